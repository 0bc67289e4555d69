use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, Request, Response};
use http_body::Body;
use idemptx_core::exchange::{
    Action, Answer, BodyEnd, Directive, Event, Exchange, Handled, Head, Operation, Rules,
};
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::lease::Token;
use idemptx_core::marks::{IDEMPOTENCY_OUTCOME, mark};
use idemptx_core::outcome::{Code, Outcome, Rejection};
use idemptx_core::problem::Problem;
use idemptx_core::response::StoredResponse;
use idemptx_core::store::Store;
use idemptx_core::time::Clock;
use tokio::sync::mpsc;
use tower_service::Service;

use super::body::{BodyError, LiveFrame, Read, RequestBody, ResponseBody, Whole, read};
use super::future::{Keyed, ResponseFuture};
use crate::drive::{Done, Ended, Product, Work, drive};
use crate::engine::{Engine, Inner};
use crate::execution::Execution;

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
        let mut token = Some(Token::from_bytes([0; Token::BYTES]));
        let (exchange, action) = {
            let head = Head::new(&parts.method, &parts.uri, &parts.headers)
                .in_scope(engine.scope_of(&parts))
                .accepting(engine.accepts());
            Exchange::begin(engine.rules(), &head, || {
                token = Inner::<S>::token();
                token.unwrap_or(Token::from_bytes([0; Token::BYTES]))
            })
        };
        if let Action::Answer { answer: Answer::Pass(passed), .. } = action {
            let outcome = Outcome::Passed(passed);
            let rules = Arc::clone(engine.rules());
            let request = Request::from_parts(parts, RequestBody::inner(body));
            return ResponseFuture::pass(self.inner.call(request), rules, outcome);
        }
        let engine = Arc::clone(engine);
        if token.is_none() {
            // Without randomness a claim could be taken for another one.
            let rejection = Rejection::new(Code::StoreUnavailable, engine.policy());
            return ResponseFuture::keyed(Box::pin(async move { Ok(refuse(&engine, &rejection)) }));
        }
        let ready = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, ready);
        let call = Call { inner, request: Request::from_parts(parts, body) };
        ResponseFuture::keyed(exchanged(engine, exchange, action, call))
    }
}

/// A request, and the service that is ready for it.
struct Call<T, B> {
    inner: T,
    request: Request<B>,
}

/// A request under a key, from its head to its response.
fn exchanged<S, T, B, C>(
    engine: Arc<Inner<S>>,
    exchange: Exchange,
    action: Action,
    call: Call<T, B>,
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
        let mut exchange = exchange.typical(engine.typical());
        let (action, call) = match action {
            Action::ReadBody { bytes_max } => {
                let (end, call) = read_request(engine.rules(), call, bytes_max).await;
                (exchange.step(Event::Body(end), engine.clock().now()), call)
            }
            action => (action, call.map(RequestBody::inner)),
        };
        let rules = Arc::clone(engine.rules());
        let operation = exchange.operation().cloned();
        let fingerprint = exchange.fingerprint().copied();
        let work = Handler { call, rules: Arc::clone(&rules) };
        let ended = drive(&engine, exchange, action, work).await;
        let marker = Marker { rules: &rules, operation: operation.as_ref(), fingerprint };
        match ended {
            Ended::Pass(passed, work) => {
                let Call { mut inner, request } = work.call;
                let response = inner.call(request).await?;
                Ok(marker.mark(response.map(ResponseBody::inner), Outcome::Passed(passed)))
            }
            Ended::Own { product: Made::Response(response), attempt, stored } => {
                Ok(marker.mark(response.into_http(), Outcome::Executed { attempt, stored }))
            }
            Ended::Replay(stored) => Ok(marker.mark(replayed(stored), Outcome::Replayed)),
            // A service's own error means more to the layers around us than our problem document.
            Ended::Own { product: Made::Error(error), .. } => Err(error),
            Ended::Refuse(rejection, Some(Made::Error(error)))
                if rejection.code == Code::HandlerFailed =>
            {
                Err(error)
            }
            Ended::Refuse(rejection, _) => {
                let code = rejection.code;
                Ok(marker.mark(problem(&rejection), Outcome::Refused(code)))
            }
        }
    })
}

impl<T, B> Call<T, B> {
    fn map<D>(self, body: impl FnOnce(B) -> D) -> Call<T, D> {
        Call { inner: self.inner, request: self.request.map(body) }
    }
}

/// Reads the request's body within the limit, fingerprinting it on the way.
async fn read_request<T, B>(
    rules: &Rules,
    call: Call<T, B>,
    bytes_max: u64,
) -> (BodyEnd, Call<T, RequestBody<B>>)
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    let Call { inner, request } = call;
    let (parts, body) = request.into_parts();
    let mut prints = {
        let head = Head::new(&parts.method, &parts.uri, &parts.headers);
        Operation::fingerprinters(rules, &head)
    };
    let read = read(body, bytes_max, |data| prints.iter_mut().for_each(|it| it.update(data))).await;
    let (end, body) = match read {
        Read::Whole(whole) => {
            let prints = prints.into_iter().map(|print| print.finish()).collect();
            (BodyEnd::Whole(prints), RequestBody::prefixed(whole, None))
        }
        Read::TooLarge(whole, rest) => {
            (BodyEnd::TooLarge, RequestBody::prefixed(whole, Some(rest)))
        }
        Read::Broken(whole, error) => (BodyEnd::Failed, RequestBody::broken(whole, error)),
    };
    (end, Call { inner, request: Request::from_parts(parts, body) })
}

/// The inner service's call, as the driver runs it.
struct Handler<T, B> {
    call: Call<T, RequestBody<B>>,
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
        let Self { call: Call { mut inner, mut request }, rules } = self;
        request.extensions_mut().insert(execution);
        match inner.call(request).await {
            Err(error) => {
                Done { handled: Handled::Broken, product: Some(Made::Error(error)), rest: None }
            }
            Ok(response) => captured(response, rules).await,
        }
    }
}

/// What an execution made.
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is a response")]
enum Made<C, E> {
    Response(Captured<C>),
    Error(E),
}

/// A response whose body is either whole or flowing.
struct Captured<C> {
    parts: http::response::Parts,
    body: CapturedBody<C>,
    /// What a store keeps of it: all, or the head of what cannot be replayed.
    kept: StoredResponse,
}

enum CapturedBody<C> {
    Whole(Whole),
    Live(ResponseBody<C>),
}

impl<C> Captured<C> {
    fn into_http(self) -> Response<ResponseBody<C>> {
        let body = match self.body {
            CapturedBody::Whole(whole) => ResponseBody::whole(whole),
            CapturedBody::Live(live) => live,
        };
        Response::from_parts(self.parts, body)
    }
}

impl<C: Send + 'static, E: Send + 'static> Product for Made<C, E> {
    fn payload(&self) -> Bytes {
        match self {
            Self::Response(captured) => captured.kept.encode(),
            Self::Error(_) => Bytes::new(),
        }
    }
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
        Read::Broken(..) => Done { handled: Handled::Broken, product: None, rest: None },
        Read::Whole(whole) => {
            let kept = StoredResponse::capture(
                status,
                &parts.headers,
                whole.joined(),
                whole.trailers.as_ref(),
                &rules.policy().replay,
            );
            let (kept, handled) = if kept.is_storable() {
                (kept, Handled::Whole { status, directive })
            } else {
                (head(&parts, &rules), Handled::Partial { status, directive })
            };
            let body = CapturedBody::Whole(whole);
            let product = Some(Made::Response(Captured { parts, body, kept }));
            Done { handled, product, rest: None }
        }
        Read::TooLarge(prefix, rest) => {
            let (frames, received) = mpsc::channel(LIVE_FRAMES_MAX);
            let kept = head(&parts, &rules);
            let body = CapturedBody::Live(ResponseBody::live(received));
            let product = Some(Made::Response(Captured { parts, body, kept }));
            let rest = Box::pin(flow(RequestBody::prefixed(prefix, Some(rest)), frames, live));
            Done { handled: Handled::Partial { status, directive }, product, rest: Some(rest) }
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
struct Marker<'a> {
    rules: &'a Rules,
    operation: Option<&'a Operation>,
    fingerprint: Option<Fingerprint>,
}

impl Marker<'_> {
    fn mark<C>(&self, mut response: Response<C>, outcome: Outcome) -> Response<C> {
        let print = self.fingerprint.as_ref();
        mark(response.headers_mut(), self.rules, &outcome, self.operation, print);
        response.extensions_mut().insert(outcome);
        response
    }
}

fn refuse<S: Store, C>(engine: &Inner<S>, rejection: &Rejection) -> Response<ResponseBody<C>> {
    let marker = Marker { rules: engine.rules(), operation: None, fingerprint: None };
    marker.mark(problem(rejection), Outcome::Refused(rejection.code))
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
fn is_live(headers: &HeaderMap) -> bool {
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
