use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::Body;
use idemptx_core::exchange::{
    Action, Answer, BodyEnd, Directive, Event, Exchange, Handled, Head, Operation, Rules,
};
use idemptx_core::fingerprint::{Fingerprint, Fingerprinter};
use idemptx_core::outcome::{Bypass, Code, Outcome, Rejection};
use idemptx_core::problem::Problem;
use idemptx_core::response::StoredResponse;
use idemptx_core::response_headers::{IDEMPOTENCY_OUTCOME, mark};
use idemptx_core::store::Store;
use tokio::sync::mpsc;
use tower_service::Service;

use super::body::{BodyError, LiveFrame, Read, RequestBody, ResponseBody, Whole, read};
use super::future::{Keyed, ResponseFuture};
#[cfg(feature = "spool")]
use super::spooling::spooled;
use crate::drive::{Answered, Done, Driver, Ended, Work, drive};
use crate::engine::{Engine, Inner};
use crate::execution::Execution;
#[cfg(all(feature = "axum", feature = "postgres"))]
use crate::transaction::Unclaimed;

/// A service whose requests under a key are safe to retry; see the [module](super).
#[derive(Debug)]
pub struct Idempotency<S, T> {
    engine: Engine<S>,
    inner: T,
}

impl<S, T> Idempotency<S, T> {
    /// Wraps `inner`.
    pub const fn new(engine: Engine<S>, inner: T) -> Self {
        Self { engine, inner }
    }
}

impl<S, T: Clone> Clone for Idempotency<S, T> {
    fn clone(&self) -> Self {
        Self { engine: self.engine.clone(), inner: self.inner.clone() }
    }
}

impl<S, T, B, C> Service<Request<B>> for Idempotency<S, T>
where
    S: Store,
    T: Service<Request<RequestBody<B>>, Response = Response<C>> + Clone + Send + 'static,
    T::Future: Send + 'static,
    T::Error: Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BodyError>,
    C: Body<Data = Bytes> + Send + 'static,
    C::Error: Into<BodyError>,
{
    type Response = Response<ResponseBody<C>>;
    type Error = T::Error;
    type Future = ResponseFuture<T::Future, C, T::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), T::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let engine = self.engine.inner();
        let (parts, body) = request.into_parts();
        let (exchange, action) = {
            let head = Head::new(&parts.method, &parts.uri, &parts.headers)
                .in_scope(engine.scope_of(&parts))
                .accepting(engine.accepts());
            Exchange::begin(engine.rules(), &head, || engine.token())
        };
        let mut request = Request::from_parts(parts, RequestBody::inner(body));
        let rejection = match action {
            Action::ReadBody { bytes_max } => {
                let driver = Driver::new(engine, exchange.typical(engine.typical().get()));
                let ready = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, ready);
                let call = Box::new(Call { inner, request });
                return ResponseFuture::keyed(exchanged(driver, bytes_max, call));
            }
            Action::Answer { answer: Answer::Pass(passed), .. } => {
                let (outcome, rules) = (Outcome::Bypassed(passed), Arc::clone(engine.rules()));
                unclaimed(&mut request, &rules, passed);
                return ResponseFuture::pass(self.inner.call(request), rules, outcome);
            }
            Action::Answer { answer: Answer::Refuse(rejection), .. } => rejection,
            // An exchange begins with nothing else.
            _ => Rejection::new(Code::StoreUnavailable, engine.policy()),
        };
        let marker = Marker { rules: Arc::clone(engine.rules()), operation: None, print: None };
        let refused = marker.mark(problem(&rejection), Outcome::Refused(rejection.code));
        ResponseFuture::refused(refused)
    }
}

/// A request, and the service that is ready for it.
///
/// Boxed wherever it is kept: what moves from future to future is a pointer.
struct Call<T, B> {
    inner: T,
    request: Request<RequestBody<B>>,
}

/// A request under a key, from its head to its response.
fn exchanged<S, T, B, C>(
    mut driver: Box<Driver<S>>,
    bytes_max: u64,
    mut call: Box<Call<T, B>>,
) -> Keyed<C, T::Error>
where
    S: Store,
    T: Service<Request<RequestBody<B>>, Response = Response<C>> + Send + 'static,
    T::Future: Send + 'static,
    T::Error: Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BodyError>,
    C: Body<Data = Bytes> + Send + 'static,
    C::Error: Into<BodyError>,
{
    Box::pin(async move {
        let end = read_request(driver.engine(), &mut call.request, bytes_max).await;
        let version = call.request.version();
        let marker;
        let driving = {
            let action = driver.step(Event::Body(end));
            marker = Marker::of(&driver);
            drive(driver, action, Handler { call, rules: Arc::clone(&marker.rules) })
        };
        let (passed, work) = match driving.await {
            Ended::Pass(passed, work) => (passed, work),
            Ended::Answered(answered) => return told(&marker, answered, version),
        };
        let passing = {
            let Call { mut inner, mut request } = *work.call;
            unclaimed(&mut request, &work.rules, passed);
            // Apart: most requests' futures need no room for it.
            Box::pin(inner.call(request))
        };
        let response = passing.await?;
        Ok(marker.mark(response.map(ResponseBody::inner), Outcome::Bypassed(passed)))
    })
}

/// What the client is told.
fn told<C, E>(
    marker: &Marker,
    answered: Answered<Made<C, E>>,
    version: Version,
) -> Result<Response<ResponseBody<C>>, E> {
    match answered {
        Answered::Own { product: Made::Response(response), attempt, stored } => {
            Ok(marker.mark(response, Outcome::Executed { attempt, stored }))
        }
        Answered::Replay(stored) => Ok(marker.mark(replayed(*stored), Outcome::Replayed)),
        // A service's own error means more to the layers around us than our problem document.
        Answered::Own { product: Made::Error(error), .. } => Err(error),
        Answered::Refuse(rejection, Some(Made::Error(error)))
            if rejection.code == Code::HandlerFailed =>
        {
            Err(error)
        }
        Answered::Refuse(rejection, _) => {
            let mut response = problem(&rejection);
            // The rest of the body will not be read, so the connection cannot be used again:
            // say so, lest a pooling client sends its next request on it (RFC 9112 §9.6).
            if rejection.code == Code::BodyTooLarge && version <= Version::HTTP_11 {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(marker.mark(response, Outcome::Refused(rejection.code)))
        }
    }
}

/// Tells extractors why there is no execution.
fn unclaimed<B>(request: &mut Request<B>, rules: &Arc<Rules>, passed: Bypass) {
    #[cfg(all(feature = "axum", feature = "postgres"))]
    request.extensions_mut().insert(Unclaimed { rules: Arc::clone(rules), passed });
    #[cfg(not(all(feature = "axum", feature = "postgres")))]
    let _ = (request, rules, passed);
}

/// Reads the request's body within the limit, fingerprinting it on the way, and puts it back.
async fn read_request<S, B>(
    engine: &Inner<S>,
    request: &mut Request<RequestBody<B>>,
    bytes_max: u64,
) -> BodyEnd
where
    S: Store,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    let mut prints = {
        let head = Head::new(request.method(), request.uri(), request.headers());
        Operation::fingerprinters(engine.rules(), &head)
    };
    let body = request.body_mut();
    let seen = |data: &[u8]| prints.iter_mut().for_each(|it| it.update(data));
    match read(&mut *body, bytes_max, seen).await {
        Read::Whole(whole) => {
            body.put_back(whole);
            BodyEnd::Whole(prints.into_iter().map(Fingerprinter::finish).collect())
        }
        Read::TooLarge(whole, rest) => too_large(engine, whole, rest, prints).await,
        Read::Broken(whole, error) => {
            body.put_back(whole);
            body.break_off(error);
            BodyEnd::Failed
        }
    }
}

/// Reads on into a file, where there is one and the fingerprint is made on the way.
#[cfg_attr(not(feature = "spool"), expect(unused_variables, reason = "there is no file"))]
async fn too_large<S, B>(
    engine: &Inner<S>,
    read: Whole,
    rest: &mut RequestBody<B>,
    prints: Vec<Fingerprinter>,
) -> BodyEnd
where
    S: Store,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    #[cfg(feature = "spool")]
    if let Some(spool) = engine.spool()
        && !prints.iter().any(Fingerprinter::keeps_body)
    {
        return Box::pin(spooled(spool, read, rest, prints)).await;
    }
    rest.put_back(read);
    BodyEnd::TooLarge
}

/// The inner service's call, as the driver runs it.
struct Handler<T, B> {
    call: Box<Call<T, B>>,
    rules: Arc<Rules>,
}

impl<T, B, C> Work for Handler<T, B>
where
    T: Service<Request<RequestBody<B>>, Response = Response<C>> + Send + 'static,
    T::Future: Send + 'static,
    T::Error: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    C: Body<Data = Bytes> + Send + 'static,
    C::Error: Into<BodyError>,
{
    type Product = Made<C, T::Error>;

    async fn run(self, execution: Execution) -> Done<Self::Product> {
        let Self { call, rules } = self;
        let running = {
            let Call { mut inner, mut request } = *call;
            request.extensions_mut().insert(execution);
            inner.call(request)
        };
        match running.await {
            Err(error) => Done { product: Some(Made::Error(error)), ..Done::broken() },
            Ok(response) => captured(response, rules).await,
        }
    }
}

/// What an execution made.
enum Made<C, E> {
    /// Its body is whole, or flowing.
    Response(Response<ResponseBody<C>>),
    Error(E),
}

/// Reads a response's body as far as it may be kept; what is larger, or live, flows on.
async fn captured<C, E>(response: Response<C>, rules: Arc<Rules>) -> Done<Made<C, E>>
where
    C: Body<Data = Bytes> + Send + 'static,
    C::Error: Into<BodyError>,
{
    let (mut parts, body) = response.into_parts();
    let status = parts.status;
    let directive = parts
        .headers
        .remove(IDEMPOTENCY_OUTCOME)
        .and_then(|value| value.to_str().ok()?.parse::<Directive>().ok());
    let body = Box::pin(body);
    let live = is_live(&parts.headers);
    let limit = if live { 0 } else { rules.policy().response_bytes_max as u64 };
    let read = if live && !body.is_end_stream() {
        Read::TooLarge(Whole::default(), body)
    } else {
        read(body, limit, |_| {}).await
    };
    match read {
        Read::Broken(..) => Done::broken(),
        Read::Whole(whole) => {
            let kept = StoredResponse::capture(
                status,
                &parts.headers,
                whole.joined(),
                whole.trailers(),
                &rules.policy().replay,
            );
            let (kept, handled) = if kept.is_storable() {
                (kept, Handled::Whole { status, directive })
            } else {
                (head(&parts, &rules), Handled::Partial { status, directive })
            };
            let response = Response::from_parts(parts, ResponseBody::whole(whole));
            let product = Some(Made::Response(response));
            Done { handled, product, kept: kept.encode(), rest: None }
        }
        Read::TooLarge(prefix, rest) => {
            let (frames, received) = mpsc::channel(LIVE_FRAMES_MAX);
            let kept = head(&parts, &rules);
            let response = Response::from_parts(parts, ResponseBody::live(received));
            let mut body = RequestBody::inner(rest);
            body.put_back(prefix);
            Done {
                handled: Handled::Partial { status, directive },
                product: Some(Made::Response(response)),
                kept: kept.encode(),
                rest: Some(Box::pin(flow(body, frames, live))),
            }
        }
    }
}

/// What is kept of a response whose body cannot be.
fn head(parts: &http::response::Parts, rules: &Rules) -> StoredResponse {
    let (headers, replay) = (&parts.headers, &rules.policy().replay);
    let mut head = StoredResponse::capture(parts.status, headers, Bytes::new(), None, replay);
    if !head.is_storable() {
        // Of more lines than a record may have, the one that a retry is told.
        let location = head.headers.remove(LOCATION);
        head.headers = location.map(|value| (LOCATION, value)).into_iter().collect();
    }
    head
}

/// Sends a body on frame by frame.
///
/// When the client leaves, an event stream ends, for it was made for that client alone; any other
/// body is part of the handler's work and is read on for a while, so that the handler ends too.
async fn flow<B>(body: B, frames: mpsc::Sender<LiveFrame>, live: bool)
where
    B: Body<Data = Bytes, Error = BodyError> + Send,
{
    let mut body = std::pin::pin!(body);
    let mut next = async || std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
    loop {
        let frame = tokio::select! {
            frame = next() => frame,
            () = frames.closed() => break,
        };
        let is_end = frame.is_none();
        if frames.send(frame).await.is_err() {
            break;
        }
        if is_end {
            return;
        }
    }
    if !live {
        let rest = async { while let Some(Ok(_)) = next().await {} };
        drop(tokio::time::timeout(LEFT_ALONE_MAX, rest).await);
    }
}

/// Adds to a response what the client, and the layers around us, are told.
struct Marker {
    rules: Arc<Rules>,
    operation: Option<Operation>,
    print: Option<Fingerprint>,
}

impl Marker {
    fn of<S: Store>(driver: &Driver<S>) -> Self {
        let exchange = driver.exchange();
        Self {
            rules: Arc::clone(driver.engine().rules()),
            operation: exchange.operation().cloned(),
            print: exchange.fingerprint().copied(),
        }
    }

    fn mark<C>(&self, mut response: Response<C>, outcome: Outcome) -> Response<C> {
        let (operation, print) = (self.operation.as_ref(), self.print.as_ref());
        mark(response.headers_mut(), &self.rules, &outcome, operation, print);
        response.extensions_mut().insert(outcome);
        if let Some(operation) = operation {
            response.extensions_mut().insert(operation.id());
        }
        response
    }
}

fn problem<C>(rejection: &Rejection) -> Response<ResponseBody<C>> {
    let whole = |body| ResponseBody::whole(Whole::of(body, HeaderMap::new()));
    Problem::from(rejection).into_response().map(whole)
}

fn replayed<C>(stored: StoredResponse) -> Response<ResponseBody<C>> {
    let mut response = Response::new(ResponseBody::whole(Whole::of(stored.body, stored.trailers)));
    *response.status_mut() = stored.status;
    *response.headers_mut() = stored.headers;
    response
}

/// Whether a response is meant to be read while it is being made.
pub(crate) fn is_live(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    value.is_some_and(|value| {
        value.get(..EVENT_STREAM.len()).is_some_and(|it| it.eq_ignore_ascii_case(EVENT_STREAM))
    })
}

const EVENT_STREAM: &[u8] = b"text/event-stream";
/// How many frames of a live body wait for a slow client.
const LIVE_FRAMES_MAX: usize = 16;
/// How long a body whose client has left is read on.
const LEFT_ALONE_MAX: Duration = Duration::from_secs(30);
