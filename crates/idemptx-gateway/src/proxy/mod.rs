//! Handles client requests.
//!
//! ```text
//! request ─▶ target, host ─▶ route ─▶ hop-by-hop fields off ─▶ engine of the route ─▶ forward
//!                │             │                                │   (keys, records)     │
//!               400           404                          replay, 409, 422 …      upstream, or
//!                                                                                  502, 503, 504
//! ```
//!
//! Nothing here makes protocol decisions: those are the engine's. A missing response is reported to
//! it with `Idempotency-Outcome`, as by any other handler.

mod downstream_body;
mod ext_proc;
mod fault;
mod forward;
mod headers;
mod request_id;
mod routing_table;
mod store_checks;
mod target;
mod tunnel;
mod upgrade;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use http::header::{CONTENT_TYPE, EXPECT, HeaderValue, ORIGIN};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use idemptx::tower::{Idempotency, ResponseBody};
use idemptx::{Bypass, Outcome};
use idemptx_core::exchange::grpc_content_type;
use idemptx_core::key::RecordId;
use tower_service::Service;

pub(crate) use self::downstream_body::DownstreamBody;
pub(crate) use self::ext_proc::ExtProcServer;
#[cfg(any(test, fuzzing))]
pub use self::ext_proc::calls::messages;
use self::fault::OwnAnswer;
pub(crate) use self::fault::ProxyError;
pub(crate) use self::forward::Peer;
use self::forward::{ForwardService, forward_request};
use self::headers::NotableFields;
use self::request_id::REQUEST_ID;
pub(crate) use self::routing_table::{ActiveRoute, RoutingTable};
pub(crate) use self::store_checks::LoggedFindings;
pub(crate) use self::target::is_ambiguous_path;
use crate::observation::{CompletedRequest, short_id};
use crate::recorder::AccessLine;
use crate::request_body::{BodyLimits, ClientBody, UpstreamRequestBody};
use crate::upstream::UpstreamBody;

/// Handles a request.
///
/// No `async fn`, which would keep the request twice, and as it came for as long as it is answered.
pub(crate) fn answer(
    table: Arc<RoutingTable>,
    peer: Arc<Peer>,
    mut request: Request<Incoming>,
) -> impl Future<Output = Response<DownstreamBody>> + Send {
    let version = request.version();
    let began = Instant::now();
    let client = peer.client(request.headers());
    let span = table.store.recorder().traces().start_request(&mut request, peer.scheme(), client);
    let fields = NotableFields::of(request.headers());
    let origin = fields.has_origin.then(|| request.headers().get(ORIGIN).cloned()).flatten();
    let grpc = grpc_content_type(request.headers()).cloned();
    let request_id = request_id::take_or_make(request.headers(), fields.has_request_id);
    let log = table.store.recorder().log();
    let logged = AccessLine::is_wanted(log).then(|| {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        (method, path, Arc::<AtomicU64>::default())
    });
    let mut request = ClientBody::of(request, fields.has_expect, BodyLimits::of(&table.limits));
    if let Some((_, _, received)) = &logged {
        request.body_mut().count_in(Arc::clone(received));
    }
    let admitted = admit(&table, &peer, &fields, &mut request);
    async move {
        let (route, mut response) = match admitted {
            Ok(route) => {
                span.routed(&route.config.path, &route.name);
                let routed = route_request(&route, peer, request, &request_id);
                let response = span.instrument(routed).await;
                (Some(route), response)
            }
            Err(fault) => {
                drop(request);
                (None, fault.into_response().map(DownstreamBody::plain))
            }
        };
        let (outcome, record) = exchange_end(&response);
        let own = response.extensions().get().map(|OwnAnswer(fault)| *fault);
        if let (Some(fault), Some(content_type)) = (own, grpc) {
            response = fault.shape_for_grpc(response, content_type).map(DownstreamBody::plain);
        }
        if is_own(&response, outcome.as_ref()) {
            if is_problem(&response, outcome.as_ref()) {
                response = request_id::name_in_problem(response, &request_id).await;
            }
            response.headers_mut().insert(REQUEST_ID, request_id.clone());
            if let (Some(route), Some(origin)) = (&route, &origin) {
                headers::allow_origin(response.headers_mut(), origin, route.config.cors.as_ref());
            }
        }
        let ended = CompletedRequest {
            route: route.as_ref().map(|route| &route.name),
            upstream: route.as_ref().map(|route| route.config.upstream.as_str()),
            status: response.status().as_u16(),
            own,
            outcome: outcome.as_ref(),
            record: record.as_ref(),
            began,
        };
        table.store.recorder().request_completed(&ended);
        let line = logged.map(|(method, path, received)| {
            let (outcome, reason) = ended.labels();
            AccessLine {
                log,
                method,
                path,
                version,
                client,
                request_id,
                route: ended.route.cloned(),
                upstream: ended.upstream.map(str::to_owned),
                status: ended.status,
                code: ended.own.map(ProxyError::code),
                outcome,
                reason,
                attempt: ended.attempt(),
                record: ended.record.map(short_id),
                answered: response.extensions().get().cloned(),
                began,
                head: began.elapsed(),
                received,
                sent: 0,
                is_complete: false,
            }
        });
        span.end(&ended);
        if let Some(line) = line {
            response = response.map(|body| body.logged_as(line));
        }
        // hyper writes the client's version, whatever the upstream spoke.
        *response.version_mut() = Version::HTTP_11;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            headers::strip_answer(response.headers_mut());
            headers::close_if_unread(&mut response, version);
        }
        response
    }
}

/// Returns how the exchange of a response ended, and the id of its record.
fn exchange_end(response: &Response<DownstreamBody>) -> (Option<Outcome>, Option<RecordId>) {
    let (body, extensions) = (response.body(), response.extensions());
    let outcome = body.outcome().or_else(|| extensions.get()).cloned();
    (outcome, body.record_id().or_else(|| extensions.get().copied()))
}

/// Adds to the extensions what the body tells of the end of the exchange.
fn fill_extensions<B>(response: &mut Response<ResponseBody<B>>) {
    let (outcome, id) = (response.body().outcome().cloned(), response.body().record_id());
    if let Some(outcome) = outcome {
        response.extensions_mut().insert(outcome);
    }
    if let Some(id) = id {
        response.extensions_mut().insert(id);
    }
}

/// Returns whether the upstream was not asked for this response.
fn is_own<B>(response: &Response<B>, outcome: Option<&Outcome>) -> bool {
    response.extensions().get::<OwnAnswer>().is_some()
        || matches!(outcome, Some(Outcome::Refused(_) | Outcome::Replayed | Outcome::Fenced { .. }))
}

/// Returns whether a response that is [the gateway's own](is_own) is a problem, and no replay.
fn is_problem<B>(response: &Response<B>, outcome: Option<&Outcome>) -> bool {
    let is_replay = matches!(outcome, Some(Outcome::Replayed | Outcome::Fenced { code: None, .. }));
    let content_type = response.headers().get(CONTENT_TYPE);
    !is_replay && content_type.is_some_and(|it| it == "application/problem+json")
}

/// Returns the response to a probe, on listeners that answer probes.
pub(crate) fn probe(
    table: &RoutingTable,
    request: &Request<Incoming>,
) -> Option<Response<DownstreamBody>> {
    let asks = [Method::GET, Method::HEAD].contains(request.method());
    let path = request.uri().path();
    let (status, text) = table.store.recorder().readiness().probe(path).filter(|_| asks)?;
    let mut response = Response::new(DownstreamBody::plain(UpstreamBody::from_bytes(text.into())));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    Some(response)
}

/// Validates a request, finds its route and removes hop-by-hop fields.
fn admit(
    table: &RoutingTable,
    peer: &Peer,
    fields: &NotableFields,
    request: &mut Request<ClientBody>,
) -> Result<Arc<ActiveRoute>, ProxyError> {
    if *request.method() == Method::CONNECT {
        return Err(ProxyError::ConnectRefused);
    }
    let host = peer.resolve(request)?;
    if table.limits.strict_paths && target::is_ambiguous(request.uri()) {
        return Err(ProxyError::AmbiguousPath);
    }
    if fields.has_expect
        && let Some(expected) = request.headers().get(EXPECT)
        && !expected.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(ProxyError::Expectation);
    }
    let route = table
        .route(&host.name, request.method(), request.uri().path())
        .ok_or(ProxyError::NoRoute)?;
    let limits = BodyLimits::on_route(&table.limits, &route.config.limits);
    // What is declared, as far as it is.
    if !limits.admits(request.body().size_hint().lower()) {
        return Err(ProxyError::BodyTooLarge);
    }
    request.body_mut().limit(limits);
    headers::strip_request(request, fields, route)?;
    Ok(Arc::clone(route))
}

async fn route_request(
    route: &Arc<ActiveRoute>,
    peer: Arc<Peer>,
    mut request: Request<ClientBody>,
    request_id: &HeaderValue,
) -> Response<DownstreamBody> {
    if upgrade::is_wanted(&request) {
        // Boxed: upgrades are rare, and the common path needs less memory.
        return Box::pin(upgrade::answer(route, &peer, request, request_id)).await;
    }
    let Some(engine) = &route.engine else {
        let keyed = route.config.report_ignored && headers::has_key(request.headers());
        let request = request.map(UpstreamRequestBody::plain);
        // Boxed: replays need no room for it.
        let mut response = Box::pin(forward_request(route, &peer, request, None, request_id)).await;
        if keyed {
            headers::mark_ignored(response.headers_mut());
        }
        return response.map(DownstreamBody::plain);
    };
    if let Some(scope) = &peer.certificate {
        request.extensions_mut().insert(scope.clone());
    }
    let began = Instant::now();
    let forward = ForwardService { route: Arc::clone(route), peer, request_id: request_id.clone() };
    let mut service = Idempotency::new(engine.clone(), forward);
    let Ok(mut response): Result<_, Infallible> = service.call(request).await;
    let outcome = response.body().outcome().cloned();
    if let Some(lost) = answer_broken_off(&mut response) {
        route.note_broken_off(request_id, began);
        return lost.map(DownstreamBody::plain);
    }
    let ignored = outcome == Some(Outcome::Bypassed(Bypass::Method { keyed: true }));
    if ignored && route.config.report_ignored {
        headers::mark_ignored(response.headers_mut());
    }
    response.map(DownstreamBody::layered)
}

/// Returns the answer in place of one of the upstream that broke off, if this response is the
/// engine's for that: the client gets the same as if there had been none.
fn answer_broken_off<B>(
    response: &mut Response<ResponseBody<B>>,
) -> Option<Response<UpstreamBody>> {
    let mut lost = ProxyError::broken_off(response.extensions())?.into_response();
    headers::mark_unstored(lost.headers_mut());
    fill_extensions(response);
    lost.extensions_mut().extend(std::mem::take(response.extensions_mut()));
    Some(lost)
}

/// Returns whether messages share a stream of bytes in this version.
fn is_http1(version: Version) -> bool {
    version <= Version::HTTP_11
}
