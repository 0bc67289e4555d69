//! From a client's request to its answer.
//!
//! ```text
//! request ─▶ target, host ─▶ route ─▶ hop-by-hop fields off ─▶ engine of the route ─▶ forward
//!                │             │                                │   (keys, records)     │
//!               400           404                          replay, 409, 422 …      upstream, or
//!                                                                                  502, 503, 504
//! ```
//!
//! Nothing here decides about keys: that is the engine's, and what it has to know of an answer
//! that never came it is told with `Idempotency-Outcome`, as by any other handler.

mod body;
mod fault;
mod forward;
mod headers;
mod plan;
mod target;
mod token;
mod upgrade;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use idemptx::tower::Idempotency;
use idemptx::{Bypass, Code, Outcome};
use tower_service::Service;

pub(crate) use self::body::{AnswerBody, ClientBody, Outgoing, Pace};
pub(crate) use self::fault::Fault;
pub(crate) use self::forward::Peer;
use self::forward::{Forward, forwarded};
pub(crate) use self::plan::{Plan, Route, Told};
pub use self::token::TokenError;
use crate::observe::Ended;
use crate::upstream::UpstreamBody;

/// Answers one request of a client.
pub(crate) async fn answer(
    plan: Arc<Plan>,
    peer: Arc<Peer>,
    mut request: Request<Incoming>,
) -> Response<AnswerBody> {
    let version = request.version();
    let (began, method, uri) = (Instant::now(), request.method().clone(), request.uri().clone());
    let passage = plan.store.observer().traces().passage(&mut request, &peer);
    let (route, mut response) = match admitted(&plan, request) {
        Ok((route, request)) => {
            passage.routed(&route);
            let response = passage.along(routed(&plan, &route, peer, request)).await;
            (Some(route), response)
        }
        Err(fault) => (None, fault.into_response().map(AnswerBody::Plain)),
    };
    let ended = Ended {
        method: &method,
        path: uri.path(),
        route: route.as_ref().map(|route| &route.name),
        status: response.status().as_u16(),
        outcome: response.extensions().get(),
        record: response.extensions().get(),
        began,
    };
    plan.store.observer().ended(&ended);
    passage.end(&ended);
    // Whatever version the upstream spoke, hyper speaks the client's.
    *response.version_mut() = Version::HTTP_11;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        headers::strip_answer(response.headers_mut());
        headers::close_if_unread(&mut response, version);
    }
    response
}

/// Answers a probe, on listeners that have them.
pub(crate) fn probe(plan: &Plan, request: &Request<Incoming>) -> Option<Response<AnswerBody>> {
    let asks = [Method::GET, Method::HEAD].contains(request.method());
    let path = request.uri().path();
    let (status, text) = plan.store.observer().health().probe(path).filter(|_| asks)?;
    let mut response = Response::new(AnswerBody::Plain(UpstreamBody::own(text.into())));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    Some(response)
}

/// Finds the request's route, and takes away what concerns this connection only.
fn admitted(
    plan: &Plan,
    mut request: Request<Incoming>,
) -> Result<(Arc<Route>, Request<Incoming>), Fault> {
    if *request.method() == Method::CONNECT {
        return Err(Fault::ConnectRefused);
    }
    let host = target::resolve(&mut request)?;
    if plan.limits.strict_paths && target::is_ambiguous(request.uri().path()) {
        return Err(Fault::AmbiguousPath);
    }
    if let Some(expected) = request.headers().get(EXPECT)
        && !expected.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(Fault::Expectation);
    }
    let declared =
        request.headers().get(CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse().ok());
    if declared.is_some_and(|bytes: u64| bytes > plan.limits.body_bytes_max) {
        return Err(Fault::BodyTooLarge);
    }
    let route = plan.route(&host, request.method(), request.uri().path()).ok_or(Fault::NoRoute)?;
    headers::strip_request(&mut request, route)?;
    Ok((Arc::clone(route), request))
}

async fn routed(
    plan: &Plan,
    route: &Arc<Route>,
    peer: Arc<Peer>,
    mut request: Request<Incoming>,
) -> Response<AnswerBody> {
    if upgrade::is_wanted(&request) {
        // Boxed, as what follows is far more frequent and needs less room.
        return Box::pin(upgrade::answer(route, &peer, request)).await;
    }
    let pace = Pace::of(&plan.limits);
    let Some(engine) = &route.engine else {
        let keyed = route.config.report_ignored && headers::has_key(request.headers());
        let request = request.map(|body| Outgoing::plain(ClientBody::new(body, pace)));
        let mut response = forwarded(route, &peer, request, None).await;
        if keyed {
            headers::mark_ignored(response.headers_mut());
        }
        return response.map(AnswerBody::Plain);
    };
    if let Some(scope) = &peer.certificate {
        request.extensions_mut().insert(scope.clone());
    }
    let forward = Forward { route: Arc::clone(route), peer };
    let mut service = Idempotency::new(engine.clone(), forward);
    let Ok(mut response): Result<_, Infallible> =
        service.call(request.map(|body| ClientBody::new(body, pace))).await;
    let outcome = response.extensions().get::<Outcome>().cloned();
    if outcome == Some(Outcome::Refused(Code::HandlerFailed)) {
        // The answer broke off: to the client that is the upstream's fault, as if it had none.
        let mut lost = Fault::lost(route).into_response();
        headers::mark_unstored(lost.headers_mut());
        lost.extensions_mut().extend(std::mem::take(response.extensions_mut()));
        return lost.map(AnswerBody::Plain);
    }
    let ignored = outcome == Some(Outcome::Bypassed(Bypass::Method { keyed: true }));
    if ignored && route.config.report_ignored {
        headers::mark_ignored(response.headers_mut());
    }
    response.map(AnswerBody::Layered)
}

/// Whether a version frames messages on one stream of bytes.
fn is_http1(version: Version) -> bool {
    version <= Version::HTTP_11
}
