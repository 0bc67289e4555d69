//! A request: from Envoy's first message to the last answer.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::ORIGIN;
use http::response::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Either};
use idemptx::tower::{BodyError, Idempotency};
use idemptx::{Bypass, Code, Outcome};
use idemptx_core::exchange::grpc_content_type;
use tower_service::Service as _;

use super::super::fault::{OwnAnswer, ProxyError};
use super::super::request_id::REQUEST_ID;
use super::super::routing_table::{ActiveRoute, RoutingTable};
use super::super::{answer_broken_off, fill_extensions, headers, is_own, target, upgrade};
use super::Dialogue;
use super::dialogue::Phase;
use super::grpc::Status;
use super::handler::{AnswerBody, EnvoyHandler, EnvoyRequestBody, InEnvoy, Passed};
use super::messages::{
    BodySendMode, GrpcStatus, HeaderMutation, ImmediateResponse, ProcessingRequest, Received,
};
use super::translate::{self, Attributes};
use crate::config::ExtProc;
use crate::logging::LogRate;
use crate::observation::CompletedRequest;
use crate::upstream::UpstreamBody;

/// The settings and the log of the processor.
#[derive(Debug)]
pub(super) struct Processor {
    pub(super) settings: ExtProc,
    /// The limit of lines about a filter that is configured in another way.
    misconfigured: LogRate,
}

impl Processor {
    pub(super) fn new(settings: ExtProc) -> Self {
        Self { settings, misconfigured: LogRate::default() }
    }

    /// Processes one request, and returns the end of its call.
    ///
    /// # Cancel safety
    ///
    /// Dropped when Envoy is gone: a request that waits gives its place up, and one that Envoy may
    /// have sent goes on in its own task, which settles its record.
    pub(super) async fn process(
        &self,
        dialogue: &Dialogue,
        table: &RoutingTable,
        peer: IpAddr,
    ) -> Status {
        let Some(message) = dialogue.next().await else { return Status::ok() };
        if message.observability_mode {
            return self.refuse("observability_mode is on: it protects nothing");
        }
        let client = Attributes::of(&message).client().unwrap_or(peer);
        let modes = self.modes(&message);
        let (headers, end_of_stream) = match message.request {
            Some(Received::RequestHeaders(head)) => (head.headers, head.end_of_stream),
            // A filter before this one has answered the request.
            Some(Received::ResponseHeaders(_)) => return Status::ok(),
            _ => return Status::invalid_argument("the call begins without request_headers"),
        };
        let began = Instant::now();
        let recorder = table.store.recorder();
        let answer_own = async |fault: ProxyError, request_id| {
            let response = fault.into_response();
            recorder.request_completed(&completed(None, &response, began));
            answer_own(dialogue, response, request_id).await
        };
        let Some(mut request) = translate::request(headers.unwrap_or_default()) else {
            return answer_own(ProxyError::BadTarget, None).await;
        };
        let span = recorder.traces().start_request(&mut request, "http", client.into());
        let request_id = request.headers().get(REQUEST_ID).cloned();
        let received = request.headers().clone();
        let route = match admit(table, &mut request) {
            Ok(Some(route)) => route,
            Ok(None) => return Status::ok(),
            Err(fault) => return answer_own(fault, request_id.as_ref()).await,
        };
        span.routed(&route.config.path, &route.name);
        let Some(engine) = &route.engine else {
            let ignored = route.config.report_ignored && headers::has_key(request.headers());
            let mut response = Response::new(());
            recorder.request_completed(&completed(Some(&route), &response, began));
            if ignored {
                headers::mark_ignored(response.headers_mut());
            }
            return pass(dialogue, HeaderMutation::default(), response.into_parts().0).await;
        };
        if let Err(wrong) = modes {
            return self.refuse(wrong);
        }
        if is_grpc_under_key(&route, &request) {
            return answer_grpc(dialogue).await;
        }
        let origin = request.headers().get(ORIGIN).cloned();
        let stripped = translate::difference(&received, request.headers());
        let handler = EnvoyHandler {
            dialogue: dialogue.clone(),
            route: Arc::clone(&route),
            stripped: stripped.clone(),
            upstream_http2: self.settings.upstream_http2,
            request_id: request_id.clone(),
        };
        let request = request.map(|()| EnvoyRequestBody::new(dialogue, end_of_stream));
        let mut service = Idempotency::new(engine.clone(), handler);
        let response: Result<_, Infallible> = span.instrument(service.call(request)).await;
        let Ok(mut response) = response;
        let mut response = match answer_broken_off(&mut response) {
            Some(lost) => lost.map(Either::Left),
            None => {
                fill_extensions(&mut response);
                response.map(Either::Right)
            }
        };
        if is_own(&response, response.extensions().get()) {
            if let Some(id) = request_id {
                response.headers_mut().insert(REQUEST_ID, id);
            }
            if let Some(origin) = &origin {
                let cors = route.config.cors.as_ref();
                headers::allow_origin(response.headers_mut(), origin, cors);
            }
        }
        let ended = completed(Some(&route), &response, began);
        recorder.request_completed(&ended);
        span.end(&ended);
        finish(dialogue, &route, stripped, response).await
    }

    /// Returns which setting of the filter, if any, keeps the bodies from being seen.
    fn modes(&self, message: &ProcessingRequest) -> Result<(), &'static str> {
        let Some(modes) = &message.protocol_config else { return Err(TOO_OLD) };
        let (request, response) = (modes.request_body_mode, modes.response_body_mode);
        if BodySendMode::try_from(request) != Ok(BodySendMode::Buffered) {
            return Err(REQUEST_MODE);
        }
        match BodySendMode::try_from(response) {
            Ok(BodySendMode::Buffered | BodySendMode::BufferedPartial) => Ok(()),
            _ => Err(RESPONSE_MODE),
        }
    }

    /// Ends a call with an error, so that Envoy does not go on, and says why in the log.
    fn refuse(&self, wrong: &'static str) -> Status {
        if let Some(suppressed) = self.misconfigured.admit() {
            tracing::error!(
                "Envoy's filter must be configured in another way: {wrong}{suppressed}"
            );
        }
        Status::failed_precondition(wrong)
    }
}

/// Describes a request whose response is known to metrics and traces.
fn completed<'a, B>(
    route: Option<&'a ActiveRoute>,
    response: &'a Response<B>,
    began: Instant,
) -> CompletedRequest<'a> {
    let extensions = response.extensions();
    CompletedRequest {
        route: route.map(|route| &route.name),
        upstream: route.map(|route| route.config.upstream.as_str()),
        status: response.status().as_u16(),
        own: extensions.get().map(|OwnAnswer(fault)| *fault),
        outcome: extensions.get(),
        record: extensions.get(),
        began,
    }
}

/// Validates a request and finds its route; `None` if Envoy alone decides about it.
fn admit(
    table: &RoutingTable,
    request: &mut Request<()>,
) -> Result<Option<Arc<ActiveRoute>>, ProxyError> {
    if *request.method() == Method::CONNECT {
        return Ok(None);
    }
    target::resolve(request)?;
    if table.limits.strict_paths && target::is_ambiguous(request.uri()) {
        return Err(ProxyError::AmbiguousPath);
    }
    let host = target::host(request.headers());
    let Some(route) = table.route(&host, request.method(), request.uri().path()) else {
        return Ok(None);
    };
    if upgrade::permitted_protocol(request, route).is_some() {
        return Ok(None);
    }
    let fields = headers::NotableFields::of(request.headers());
    headers::strip_request(request, &fields, route)?;
    Ok(Some(Arc::clone(route)))
}

/// Sends what the engine's response means to Envoy.
async fn finish<B>(
    dialogue: &Dialogue,
    route: &ActiveRoute,
    stripped: HeaderMutation,
    response: Response<B>,
) -> Status
where
    B: http_body::Body<Data = Bytes, Error = BodyError>,
{
    let (mut parts, body) = response.into_parts();
    if parts.extensions.get::<Passed>().is_some() {
        let ignored = Outcome::Bypassed(Bypass::Method { keyed: true });
        if parts.extensions.get() == Some(&ignored) && route.config.report_ignored {
            headers::mark_ignored(&mut parts.headers);
        }
        return pass(dialogue, stripped, parts).await;
    }
    if let Some(InEnvoy(before)) = parts.extensions.get() {
        let mutation = translate::difference(before, &parts.headers);
        let proceeds = dialogue.proceed(mutation).await.is_ok();
        if proceeds {
            // What flows is Envoy's alone, which does not say when it has ended.
            drop(body.collect().await);
        }
        return ended(proceeds);
    }
    // Envoy has answered by itself before anything was claimed, and its client gets that.
    if dialogue.phase() == Phase::ResponseHeaders && !was_executed(&parts) {
        return Status::ok();
    }
    let Ok(body) = body.collect().await else {
        return Status::internal("the response broke off");
    };
    let immediate = translate::immediate(parts.status, &parts.headers, body.to_bytes(), DETAILS);
    ended(dialogue.answer(immediate).await.is_ok())
}

/// Returns whether the request was executed, whatever its client gets.
fn was_executed(parts: &Parts) -> bool {
    matches!(
        parts.extensions.get(),
        Some(
            Outcome::Executed { .. }
                | Outcome::Fenced { .. }
                | Outcome::Refused(Code::HandlerFailed)
        )
    )
}

/// Lets Envoy go on without the engine, and adds these fields to the response, if any.
///
/// An answer to the head makes Envoy wait for the body, up to its limit; the clean end of a call does
/// not.
async fn pass(dialogue: &Dialogue, stripped: HeaderMutation, response: Parts) -> Status {
    let adds = HeaderMutation {
        remove_headers: Vec::new(),
        ..translate::difference(&http::HeaderMap::new(), &response.headers)
    };
    let adds_nothing = adds == HeaderMutation::default();
    if adds_nothing && stripped == HeaderMutation::default() {
        return Status::ok();
    }
    if dialogue.proceed(stripped).await.is_err() {
        return ended(false);
    }
    if adds_nothing {
        return Status::ok();
    }
    while dialogue.next().await.is_some() {
        let is_head = dialogue.phase() == Phase::ResponseHeaders;
        let mutation = if is_head { adds.clone() } else { HeaderMutation::default() };
        if dialogue.proceed(mutation).await.is_err() || is_head {
            break;
        }
    }
    Status::ok()
}

/// Makes Envoy answer with a problem of the request.
async fn answer_own(
    dialogue: &Dialogue,
    response: Response<UpstreamBody>,
    request_id: Option<&HeaderValue>,
) -> Status {
    let (mut parts, body) = response.map(AnswerBody::Own).into_parts();
    if let Some(id) = request_id {
        parts.headers.insert(REQUEST_ID, id.clone());
    }
    let Ok(body) = body.collect().await else { return Status::internal("no problem document") };
    let immediate = translate::immediate(parts.status, &parts.headers, body.to_bytes(), DETAILS);
    ended(dialogue.answer(immediate).await.is_ok())
}

/// Returns whether a gRPC call would be protected.
///
/// Envoy cannot replay one: an immediate response has no messages and no trailers.
fn is_grpc_under_key<B>(route: &ActiveRoute, request: &Request<B>) -> bool {
    let Some(policy) = route.config.policy() else { return false };
    let mut names = policy.header_names.iter();
    grpc_content_type(request.headers()).is_some()
        && policy.methods.contains(request.method())
        && (policy.required || names.any(|name| request.headers().contains_key(name)))
}

async fn answer_grpc(dialogue: &Dialogue) -> Status {
    let immediate = ImmediateResponse {
        grpc_status: Some(GrpcStatus { status: UNIMPLEMENTED }),
        ..translate::immediate(
            StatusCode::OK,
            &http::HeaderMap::new(),
            Bytes::from_static(NO_GRPC),
            DETAILS,
        )
    };
    ended(dialogue.answer(immediate).await.is_ok())
}

/// Returns the end of a call whose last answer was sent, or not.
fn ended(was_sent: bool) -> Status {
    if was_sent { Status::ok() } else { Status::internal("Envoy waits for no answer") }
}

const REQUEST_MODE: &str = "set `processing_mode.request_body_mode` to BUFFERED";
const RESPONSE_MODE: &str =
    "set `processing_mode.response_body_mode` to BUFFERED_PARTIAL, or to BUFFERED";
const TOO_OLD: &str = "it does not tell its body modes: use Envoy 1.34 or later";
const NO_GRPC: &[u8] = b"idempotency keys of gRPC calls are not supported behind Envoy";
/// The gRPC status of what is not supported.
const UNIMPLEMENTED: u32 = 12;
/// The cause of an immediate response, in Envoy's access log.
const DETAILS: &str = "idemptx";
