//! Envoy as the handler of a request: the engine's inner service.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use idemptx::Execution;
use idemptx::tower::{BodyError, NotReplayable, RequestBody};
use idemptx_core::response::is_live;
use idemptx_core::response_headers::IDEMPOTENCY_OUTCOME;
use tower_service::Service;

use super::super::fault::ProxyError;
use super::super::forward::{add_execution_headers, fault_response};
use super::super::routing_table::ActiveRoute;
use super::Dialogue;
use super::messages::{HeaderMutation, HttpHeaders, ProcessingRequest, Received};
use super::translate::{self, Attributes};
use crate::observation::UpstreamResult;
use crate::upstream::UpstreamBody;

/// The engine's inner service: lets Envoy send the request, and waits for the response.
#[derive(Clone, Debug)]
pub(super) struct EnvoyHandler {
    pub(super) dialogue: Dialogue,
    pub(super) route: Arc<ActiveRoute>,
    /// The changes of the request's head that do not depend on the execution.
    pub(super) stripped: HeaderMutation,
    pub(super) upstream_http2: bool,
    /// The id that Envoy or its client has given the request.
    pub(super) request_id: Option<HeaderValue>,
}

/// An extension of a response that Envoy holds: its head as Envoy has it.
#[derive(Clone, Debug)]
pub(super) struct InEnvoy(pub(super) HeaderMap);

/// An extension of a response without content: Envoy is to go on without the engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passed;

impl Service<Request<RequestBody<EnvoyRequestBody>>> for EnvoyHandler {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<RequestBody<EnvoyRequestBody>>) -> Self::Future {
        let this = self.clone();
        match request.extensions_mut().remove::<Execution>() {
            Some(execution) => {
                let (parts, _) = request.into_parts();
                Box::pin(async move { Ok(this.execute(&parts.headers, &execution).await) })
            }
            None => {
                let mut response = Response::new(AnswerBody::Whole(None));
                response.extensions_mut().insert(Passed);
                Box::pin(std::future::ready(Ok(response)))
            }
        }
    }
}

impl EnvoyHandler {
    fn log_lost(&self, reason: &str) {
        self.route.log_lost(self.request_id.as_ref(), reason);
    }

    async fn execute(&self, headers: &HeaderMap, execution: &Execution) -> Response<AnswerBody> {
        let mut sent = headers.clone();
        add_execution_headers(&self.route, execution, &mut sent);
        let mut mutation = translate::difference(headers, &sent);
        mutation.set_headers.extend(self.stripped.set_headers.iter().cloned());
        mutation.remove_headers.extend(self.stripped.remove_headers.iter().cloned());
        let began = Instant::now();
        let note = |result| self.route.note(result, began);
        if self.dialogue.phase().is_response() || self.dialogue.proceed(mutation).await.is_err() {
            note(UpstreamResult::Unsent);
            return self.fault(ProxyError::Unreachable);
        }
        let Some(message) = self.dialogue.next().await else {
            note(UpstreamResult::Broken);
            self.log_lost("sent, then Envoy gave the request up");
            return self.fault(ProxyError::lost(&self.route));
        };
        let (result, response) = self.response(message).await;
        note(result);
        response
    }

    /// Makes the response of the message that follows the request.
    async fn response(&self, message: ProcessingRequest) -> (UpstreamResult, Response<AnswerBody>) {
        let lost = || (UpstreamResult::Broken, self.fault(ProxyError::lost(&self.route)));
        let attributes = Attributes::of(&message);
        let source = |status| Source::of(&attributes, status);
        let Some(Received::ResponseHeaders(head)) = &message.request else {
            self.log_lost("sent, then Envoy sent no head of a response");
            return lost();
        };
        let HttpHeaders { headers, end_of_stream } = head.clone();
        let Some(response) = translate::response(headers.unwrap_or_default()) else {
            self.log_lost("sent, but the response's head cannot be read");
            return lost();
        };
        match source(response.status()) {
            Source::Service => {}
            Source::Unsent => {
                let mut response = response.map(|()| AnswerBody::Whole(None));
                let before = response.headers().clone();
                response.extensions_mut().insert(InEnvoy(before));
                let release = HeaderValue::from_static("release");
                response.headers_mut().insert(IDEMPOTENCY_OUTCOME, release);
                return (UpstreamResult::Unsent, response);
            }
            Source::Late => {
                self.log_lost("sent, but no response in time");
                return (UpstreamResult::Late, self.fault(ProxyError::late(&self.route)));
            }
            Source::Lost => {
                let details = attributes.code_details().unwrap_or(NO_DETAILS);
                self.log_lost(&format!("sent, then {details}"));
                return lost();
            }
        }
        let (mut parts, ()) = response.into_parts();
        let result = UpstreamResult::Status(parts.status);
        let body = match self.framing(parts.status, &parts.headers, end_of_stream) {
            Framing::Empty => AnswerBody::Whole(None),
            Framing::Live => AnswerBody::Flowing,
            Framing::Unbounded => {
                parts.extensions.insert(NotReplayable);
                AnswerBody::Whole(None)
            }
            Framing::Bounded => {
                let asked = self.dialogue.proceed(HeaderMutation::default()).await;
                let body = if asked.is_ok() { self.dialogue.next().await } else { None };
                let Some(Received::ResponseBody(body)) = body.and_then(|it| it.request) else {
                    // The engine decides, after what the head may say.
                    self.log_lost("its body broke off");
                    let response = Response::from_parts(parts, AnswerBody::BrokenOff);
                    return (UpstreamResult::Broken, response);
                };
                // More than Envoy buffers, or trailers, which it does not tell apart.
                if !body.end_of_stream {
                    parts.extensions.insert(NotReplayable);
                }
                AnswerBody::Whole((!body.body.is_empty()).then_some(body.body))
            }
        };
        parts.extensions.insert(InEnvoy(parts.headers.clone()));
        (result, Response::from_parts(parts, body))
    }

    fn framing(&self, status: StatusCode, headers: &HeaderMap, end_of_stream: bool) -> Framing {
        if end_of_stream {
            return Framing::Empty;
        }
        if is_live(status, headers, None) {
            return Framing::Live;
        }
        let limit = self.route.config.policy().map_or(0, |it| it.response_bytes_max as u64);
        let length =
            headers.get(CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse::<u64>().ok());
        match length {
            Some(length) if length > limit => Framing::Unbounded,
            Some(_) => Framing::Bounded,
            // Over HTTP/1.1 the end of the connection is the end of the response, or a break.
            None if self.upstream_http2 || headers.contains_key(TRANSFER_ENCODING) => {
                Framing::Bounded
            }
            None => Framing::Unbounded,
        }
    }

    fn fault(&self, fault: ProxyError) -> Response<AnswerBody> {
        fault_response(&self.route, fault).map(AnswerBody::Own)
    }
}

/// The way in which the end of a response's body shows.
enum Framing {
    Empty,
    /// A body that ends within what Envoy buffers, or of which Envoy says that it does not.
    Bounded,
    /// A body that is too large, or whose end cannot be told from a break.
    Unbounded,
    /// A body that is meant to be read while it is being made.
    Live,
}

/// The source of a response, as Envoy's attributes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Service,
    /// Envoy; the service cannot have seen the request.
    Unsent,
    /// Envoy; the service may have seen the request, and has not answered in time.
    Late,
    /// Envoy; the service may have seen the request.
    Lost,
}

impl Source {
    /// Classifies a response.
    ///
    /// A failure to connect proves nothing when it is not the first attempt: Envoy tells of the last
    /// one, and an earlier one may have been sent.
    fn of(attributes: &Attributes<'_>, status: StatusCode) -> Self {
        let (details, attempts) = (attributes.code_details(), attributes.attempts());
        match (details, attempts) {
            (Some(VIA_UPSTREAM), _) => Self::Service,
            (Some(_), Some(0)) => Self::Unsent,
            (Some(details), Some(1)) if UNSENT.iter().any(|it| details.contains(it)) => {
                Self::Unsent
            }
            (Some(details), _) if details.contains("timeout") => Self::Late,
            (Some(_), _) => Self::Lost,
            // The filter is not configured to tell.
            (None, _) if status.is_server_error() => Self::Lost,
            (None, _) => Self::Service,
        }
    }
}

/// The body of a request, which Envoy sends once it is asked to go on.
pub(super) struct EnvoyRequestBody(Reading);

enum Reading {
    Over,
    Unread(Dialogue),
    Asked(Pin<Box<dyn Future<Output = Result<Bytes, BodyError>> + Send>>),
}

impl EnvoyRequestBody {
    pub(super) fn new(dialogue: &Dialogue, end_of_stream: bool) -> Self {
        Self(if end_of_stream { Reading::Over } else { Reading::Unread(dialogue.clone()) })
    }
}

async fn ask(dialogue: Dialogue) -> Result<Bytes, BodyError> {
    dialogue.proceed(HeaderMutation::default()).await.map_err(|_| NO_BODY)?;
    match dialogue.next().await.and_then(|message| message.request) {
        Some(Received::RequestBody(body)) => Ok(body.body),
        // Envoy has answered by itself, for instance because the body is too large.
        _ => Err(NO_BODY.into()),
    }
}

impl Body for EnvoyRequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            match &mut self.0 {
                Reading::Over => return Poll::Ready(None),
                Reading::Unread(dialogue) => {
                    self.0 = Reading::Asked(Box::pin(ask(dialogue.clone())));
                }
                Reading::Asked(body) => {
                    let body = ready!(body.as_mut().poll(cx));
                    self.0 = Reading::Over;
                    return Poll::Ready(Some(body.map(Frame::data)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Reading::Over)
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

/// The body of a response.
#[derive(Debug)]
pub(super) enum AnswerBody {
    /// A copy of what Envoy holds.
    Whole(Option<Bytes>),
    /// A body that flows through Envoy alone.
    Flowing,
    /// A body whose end Envoy did not send.
    BrokenOff,
    /// A generated one.
    Own(UpstreamBody),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|it| Ok(Frame::data(it)))),
            Self::Flowing => Poll::Ready(None),
            Self::BrokenOff => Poll::Ready(Some(Err(BROKE_OFF.into()))),
            Self::Own(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Flowing | Self::BrokenOff => false,
            Self::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |it| it.len() as u64))
            }
            Self::Flowing | Self::BrokenOff => SizeHint::default(),
            Self::Own(body) => body.size_hint(),
        }
    }
}

const VIA_UPSTREAM: &str = "via_upstream";
/// Envoy's words for a request that was given to no connection.
const UNSENT: [&str; 5] =
    ["connection_failure", "connection_timeout", "no_healthy_upstream", "overflow", "not_found"];
const NO_DETAILS: &str = "a failure of which Envoy's filter tells no cause: set \
     `response_attributes` to `response.code_details` and `upstream.request_attempt_count`";
const BROKE_OFF: &str = "Envoy sent no end of the response";
const NO_BODY: &str = "Envoy sent no body";

#[cfg(test)]
mod tests {
    use super::super::messages::{Kind, Struct, Value};
    use super::*;

    #[test]
    fn a_response_counts_as_unsent_only_where_envoy_proves_it() {
        use Source::{Late, Lost, Service, Unsent};
        let reset = "upstream_reset_before_response_started";
        let failure = &*format!("{reset}{{remote_connection_failure|delayed_connect_error:_111}}");
        let terminated = &*format!("{reset}{{connection_termination}}");
        let mut wrong = Vec::new();
        for (details, attempts, status, expected) in [
            (Some("via_upstream"), Some(1.0), 503, Service),
            (Some("via_upstream"), None, 200, Service),
            (Some("rbac_access_denied_matched_policy[none]"), Some(0.0), 403, Unsent),
            (Some("request_payload_too_large"), Some(0.0), 413, Unsent),
            (Some(failure), Some(1.0), 503, Unsent),
            (Some(failure), Some(2.0), 503, Lost),
            (Some(failure), None, 503, Lost),
            (Some("no_healthy_upstream"), Some(1.0), 503, Unsent),
            (Some(terminated), Some(1.0), 503, Lost),
            (Some("response_timeout"), Some(1.0), 504, Late),
            (Some("a_word_of_a_later_version"), Some(1.0), 500, Lost),
            (None, None, 500, Lost),
            (None, None, 201, Service),
        ] {
            let text = details.map(|it| ("response.code_details", Kind::Text(it.to_owned())));
            let count = attempts.map(|it| ("upstream.request_attempt_count", Kind::Number(it)));
            let fields = text.into_iter().chain(count);
            let fields = fields.map(|(name, kind)| (name.to_owned(), Value { kind: Some(kind) }));
            let mut message = ProcessingRequest::default();
            let attributes = Struct { fields: fields.collect() };
            message.attributes.insert("envoy.filters.http.ext_proc".to_owned(), attributes);
            let found =
                Source::of(&Attributes::of(&message), StatusCode::from_u16(status).unwrap());
            if found != expected {
                wrong.push((details, attempts, status, found));
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
