use std::panic::resume_unwind;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONNECTION;
use http::request::Parts;
use http::{Extensions, HeaderValue, Request, Response, Uri, Version};
use http_body::Body;
use http_body_util::LengthLimitError;
use idemptx_core::exchange::{
    Answer, BodyEnd, Event, Exchange, Head, Operation, Rules, grpc_content_type,
};
use idemptx_core::fingerprint::Fingerprinters;
use idemptx_core::key::Scope;
use idemptx_core::outcome::{Bypass, Code, Outcome, Rejection};
use idemptx_core::response::StoredResponse;
use idemptx_core::store::Store;
use tower_service::Service;

use super::body::{BodyError, Read, RequestBody, ResponseBody, Whole, read};
use super::capture::{Call, Handler, HandlerOutput};
use super::future::{BoxExchange, BoxOpening, BypassMark, Opened, ResponseFuture};
use super::marker::Marker;
#[cfg(feature = "spool")]
use super::spooling::spooled;
use crate::detachable::Detachable;
use crate::drive::{Driven, Driver, Failure, Reply, drive};
use crate::engine::{Engine, Inner, Observation};
#[cfg(any(feature = "actix", feature = "axum"))]
use crate::execution::BypassNote;
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
        // A second layer of the same engine would find the key claimed: by the first one.
        let execution = parts.extensions.get::<Execution>();
        if execution.is_some_and(|execution| execution.is_under(engine)) {
            let request = Request::from_parts(parts, RequestBody::inner(body));
            return ResponseFuture::nested(self.inner.call(request));
        }
        let observation = Observation::begin(engine);
        let opened = {
            let head =
                Head::new(&parts.method, client_uri(&parts.extensions, &parts.uri), &parts.headers)
                    .in_scope(scope_of(engine, &parts))
                    .accepting(engine.accepts());
            Exchange::open(engine.rules(), &head)
        };
        let mut request = Request::from_parts(parts, RequestBody::inner(body));
        let rejection = match opened {
            Ok(exchange) => {
                #[cfg(feature = "tracing")]
                if let Some(operation) = exchange.operation() {
                    crate::engine::warn_of_key(engine.policy(), operation, request.headers());
                }
                let ready = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, ready);
                let (engine, call) = (Arc::clone(engine), Call { inner, request });
                let opening = open_exchange(engine, exchange, call, observation);
                return ResponseFuture::keyed(opening);
            }
            Err(Answer::Pass(bypass)) => {
                let (outcome, rules) = (Outcome::Bypassed(bypass), Arc::clone(engine.rules()));
                observation.end(&outcome, None);
                let fills_extensions = engine.fills_extensions();
                if fills_extensions {
                    note_bypass(&mut request, &rules, bypass, None);
                }
                let mark = BypassMark { rules, outcome, fills_extensions };
                return ResponseFuture::pass(self.inner.call(request), mark);
            }
            Err(Answer::Refuse(rejection)) => rejection,
            // An exchange begins with nothing else.
            Err(_) => Box::new(Rejection::new(Code::StoreUnavailable, engine.policy())),
        };
        let marker = Marker::before_body(engine, grpc_content_type(request.headers()));
        let outcome = Outcome::Refused(rejection.code);
        observation.end(&outcome, None);
        ResponseFuture::refused(marker.mark(marker.refusal(&rejection), outcome))
    }
}

/// Asks the application's function for the scope of a request that carries a key.
///
/// Others need none, and the function may be costly, or count on a login that they do not have.
fn scope_of<S: Store>(engine: &Inner<S>, parts: &Parts) -> Option<Scope> {
    let scope = engine.scope()?;
    let mut names = engine.policy().header_names.iter();
    names.any(|name| parts.headers.contains_key(name)).then(|| scope(parts)).flatten()
}

fn head_of<B>(request: &Request<B>) -> Head<'_> {
    let uri = client_uri(request.extensions(), request.uri());
    Head::new(request.method(), uri, request.headers())
}

/// Returns the request's target as the client sent it.
///
/// Inside `Router::nest`, axum has removed the prefix from the request's own: without it, the same
/// path below two prefixes would be one operation.
fn client_uri<'a>(extensions: &'a Extensions, uri: &'a Uri) -> &'a Uri {
    #[cfg(feature = "axum")]
    if let Some(axum::extract::OriginalUri(original)) = extensions.get() {
        return original;
    }
    let _ = extensions;
    uri
}

/// Reads the body of a request under a key, and answers it if its result is in this process.
///
/// The driver and the future of everything else are made only for the others: most requests that
/// find a result need neither.
fn open_exchange<S, T, B, C>(
    engine: Arc<Inner<S>>,
    mut exchange: Exchange,
    mut call: Call<T, B>,
    observation: Observation,
) -> BoxOpening<C, T::Error>
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
        let end = read_request(&engine, &exchange, &mut call.request).await;
        let end = match recall(&engine, &mut exchange, end) {
            Ok(response) => {
                let outcome = Outcome::Replayed;
                let (operation, print) = (exchange.operation(), exchange.fingerprint());
                observation.end(&outcome, operation.map(Operation::id));
                let marker = Marker { operation, print, ..Marker::before_body(&engine, None) };
                return Opened::Answered(marker.mark(replayed(response), outcome));
            }
            Err(end) => end,
        };
        exchange.describe(&head_of(&call.request));
        let driver = Driver::new(&engine, exchange.typical(engine.typical_now()));
        let attachment = driver.attachment();
        let exchange = run_exchange(driver, end, Box::new(call), observation);
        Opened::Running(Detachable::new(attachment, exchange))
    })
}

/// Returns the response to replay, if the store has it in this process; otherwise the end of the body.
fn recall<S: Store>(
    engine: &Inner<S>,
    exchange: &mut Exchange,
    end: BodyEnd,
) -> Result<StoredResponse, BodyEnd> {
    let id = exchange.operation().map(Operation::id);
    match id.and_then(|id| engine.store().recall(&id)) {
        Some(record) => exchange.recall(end, &record),
        None => Err(end),
    }
}

/// Runs a request under a key whose body has been read, to its response.
fn run_exchange<S, T, B, C>(
    mut driver: Driver<S>,
    end: BodyEnd,
    call: Box<Call<T, B>>,
    observation: Observation,
) -> BoxExchange<C, T::Error>
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
        let (version, grpc) = {
            let request = &call.request;
            (request.version(), grpc_content_type(request.headers()).cloned())
        };
        let driving = {
            let engine = Arc::clone(driver.engine());
            let action = driver.step(Event::Body(end, engine.token()));
            drive(&mut driver, action, Handler { call, engine })
        };
        match driving.await {
            Driven::Reply(reply, outcome) => {
                let exchange = driver.exchange();
                observation.end(&outcome, exchange.operation().map(Operation::id));
                let marker = Marker {
                    operation: exchange.operation(),
                    print: exchange.fingerprint(),
                    ..Marker::before_body(driver.engine(), grpc.as_ref())
                };
                respond(&marker, reply, outcome, version)
            }
            // Few requests' futures need room for it.
            Driven::Pass(bypass, work) => Box::pin(pass(driver, bypass, work, observation)).await,
        }
    })
}

/// Runs a request under a key as if there were no engine.
async fn pass<S, T, B, C>(
    driver: Driver<S>,
    bypass: Bypass,
    work: Handler<S, T, B>,
    observation: Observation,
) -> Result<Response<ResponseBody<C>>, T::Error>
where
    S: Store,
    T: Service<Request<RequestBody<B>>, Response = Response<C>>,
{
    let (operation, print) = {
        let exchange = driver.exchange();
        (exchange.operation().cloned(), exchange.fingerprint().copied())
    };
    // With what it holds of the engine's limits.
    drop(driver);
    let (Handler { call, engine }, outcome) = (work, Outcome::Bypassed(bypass));
    let (operation, print) = (operation.as_ref(), print.as_ref());
    observation.end(&outcome, operation.map(Operation::id));
    let Call { mut inner, mut request } = *call;
    if engine.fills_extensions() {
        note_bypass(&mut request, engine.rules(), bypass, operation);
    }
    let response = inner.call(request).await?.map(ResponseBody::inner);
    let marker = Marker { operation, print, ..Marker::before_body(&engine, None) };
    Ok(marker.mark(response, outcome))
}

/// Makes the response of an exchange.
fn respond<C, E>(
    marker: &Marker<'_>,
    reply: Reply<HandlerOutput<C, E>>,
    outcome: Outcome,
    version: Version,
) -> Result<Response<ResponseBody<C>>, E> {
    match reply {
        Reply::Own(HandlerOutput::Response(response))
        | Reply::Broken(Failure::Value(HandlerOutput::Response(response))) => {
            Ok(marker.mark(response, outcome))
        }
        Reply::Replay(response) => Ok(marker.mark(replayed(*response), outcome)),
        // A service's own error means more to the layers outside than a problem document.
        Reply::Own(HandlerOutput::Error(error))
        | Reply::Broken(Failure::Value(HandlerOutput::Error(error))) => Err(error),
        Reply::Broken(Failure::Panic(payload)) => resume_unwind(payload),
        Reply::Refuse { rejection, product: Some(HandlerOutput::Error(error)) }
            if rejection.code == Code::HandlerFailed =>
        {
            Err(error)
        }
        Reply::Refuse { rejection, .. } => {
            let mut response = marker.refusal(&rejection);
            if rejection.closes_connection(version) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(marker.mark(response, outcome))
        }
    }
}

/// Leaves a note for extractors that find no execution.
fn note_bypass<B>(
    request: &mut Request<B>,
    rules: &Arc<Rules>,
    bypass: Bypass,
    operation: Option<&Operation>,
) {
    #[cfg(any(feature = "actix", feature = "axum"))]
    {
        let (rules, operation) = (Arc::clone(rules), operation.cloned());
        request.extensions_mut().insert(BypassNote { rules, bypass, operation });
    }
    #[cfg(not(any(feature = "actix", feature = "axum")))]
    let _ = (request, rules, bypass, operation);
}

/// Reads the request's body within the limit, fingerprinting it on the way, and puts it back.
#[expect(clippy::manual_async_fn, reason = "an `async fn` keeps its arguments twice")]
fn read_request<S, B>(
    engine: &Inner<S>,
    exchange: &Exchange,
    request: &mut Request<RequestBody<B>>,
) -> impl Future<Output = BodyEnd> + Send
where
    S: Store,
    B: Body<Data = Bytes> + Send + Unpin,
    B::Error: Into<BodyError>,
{
    async move {
        // An exchange whose body is read has a key.
        let Some(mut prints) = exchange.fingerprinters(&head_of(request)) else {
            return BodyEnd::Failed;
        };
        let bytes_max = engine.policy().request_bytes_max;
        let declared = request.body().size_hint().lower();
        let see = |data: &[u8]| prints.update(data);
        let (whole, rest) = match read(request.body_mut(), bytes_max, see).await {
            Read::Whole(whole) => {
                request.body_mut().put_back(whole);
                return BodyEnd::complete(prints);
            }
            Read::Broken(whole, error) => {
                let end = broken_end(&error);
                request.body_mut().put_back(whole);
                request.body_mut().break_off(error);
                return end;
            }
            Read::TooLarge(whole, rest) => (whole, rest),
        };
        // Few requests' futures need room for it.
        Box::pin(read_large(engine, whole, rest, declared, prints)).await
    }
}

/// Returns the end of a body that broke off: by a limit of a layer outside, or by its client.
pub(super) fn broken_end(error: &BodyError) -> BodyEnd {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&**error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() || is_overflow(error) {
            return BodyEnd::TooLarge;
        }
        cause = error.source();
    }
    BodyEnd::Failed
}

/// Returns `true` for the error of a limit on the payload of a request to actix.
fn is_overflow(error: &(dyn std::error::Error + 'static)) -> bool {
    #[cfg(feature = "actix")]
    if let Some(actix_web::error::PayloadError::Overflow) = error.downcast_ref() {
        return true;
    }
    let _ = error;
    false
}

/// Reads on into a file, where there is one and the fingerprint is made on the way.
#[cfg_attr(not(feature = "spool"), expect(unused_variables, reason = "there is no file"))]
async fn read_large<S, B>(
    engine: &Inner<S>,
    read: Whole,
    rest: &mut RequestBody<B>,
    declared: u64,
    prints: Fingerprinters,
) -> BodyEnd
where
    S: Store,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    #[cfg(feature = "spool")]
    if let Some(spool) = engine.spool()
        && !prints.keeps_body()
    {
        return spooled(spool, read, rest, declared, prints).await;
    }
    rest.put_back(read);
    BodyEnd::TooLarge
}

fn replayed<C>(stored: StoredResponse) -> Response<ResponseBody<C>> {
    let mut response = Response::new(ResponseBody::whole(Whole::of(stored.body, stored.trailers)));
    *response.status_mut() = stored.status;
    *response.headers_mut() = stored.headers;
    response
}
