//! Requests and responses, translated between actix-web and `http`.

use std::cell::RefCell;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use actix_web::http::{ConnectionType, StatusCode, Version, header};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use futures_core::Stream;
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use idemptx_core::exchange::{Directive, InvalidDirective};
use idemptx_core::key::RecordId;
use idemptx_core::outcome::{Outcome, Rejection};
use send_wrapper::SendWrapper;

use crate::tower::{BodyError, NotReplayable, RequestBody, ResponseBody as LayerBody};

/// Returns the head of a request; an error if it is none by the rules of `http`.
pub(super) fn head_of(request: &HttpRequest) -> http::Result<Parts> {
    let mut head = http::Request::builder()
        .method(request.method().as_str())
        .uri(request.uri().to_string())
        .version(match request.version() {
            Version::HTTP_09 => http::Version::HTTP_09,
            Version::HTTP_10 => http::Version::HTTP_10,
            Version::HTTP_2 => http::Version::HTTP_2,
            Version::HTTP_3 => http::Version::HTTP_3,
            _ => http::Version::HTTP_11,
        });
    for (name, value) in request.headers() {
        head = head.header(name.as_str(), value.as_bytes());
    }
    head.body(()).map(|request| request.into_parts().0)
}

/// The body of a request, as the layer reads it.
pub(super) struct RequestPayload {
    payload: SendWrapper<Payload>,
    /// Its length, where nothing has decoded it since it was declared.
    declared: Option<u64>,
}

impl RequestPayload {
    pub(super) fn of(payload: Payload, headers: &HeaderMap) -> Self {
        let declared = match &payload {
            Payload::None => Some(0),
            Payload::Stream { .. } => None,
            _ => headers.get(CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse().ok()),
        };
        Self { payload: SendWrapper::new(payload), declared }
    }
}

impl Body for RequestPayload {
    type Data = Bytes;
    type Error = PayloadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PayloadError>>> {
        Pin::new(&mut *self.payload).poll_next(cx).map_ok(Frame::data)
    }

    fn is_end_stream(&self) -> bool {
        matches!(&*self.payload, Payload::None)
    }

    fn size_hint(&self) -> SizeHint {
        self.declared.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Returns the payload that a handler reads.
pub(super) fn payload_of(body: RequestBody<RequestPayload>) -> Payload {
    Payload::Stream { payload: Box::pin(Reading(Box::pin(body))) }
}

/// A stream of what the layer has read, and then of what is left.
struct Reading(Pin<Box<RequestBody<RequestPayload>>>);

impl Stream for Reading {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(match ready!(poll_data(self.0.as_mut(), cx)) {
            None => None,
            Some(Ok(data)) => Some(Ok(data)),
            Some(Err(error)) => Some(Err(match error.downcast::<PayloadError>() {
                Ok(error) => *error,
                Err(error) => PayloadError::Io(io::Error::other(error)),
            })),
        })
    }
}

/// Polls a body for data; actix knows nothing of trailers.
fn poll_data<B: Body<Data = Bytes>>(
    mut body: Pin<&mut B>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, B::Error>>> {
    loop {
        match ready!(body.as_mut().poll_frame(cx)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Poll::Ready(Some(Ok(data)));
                }
            }
        }
    }
}

/// The body of a handler's response, as the layer reads it.
pub(super) struct HandlerBody(SendWrapper<Pin<Box<BoxBody>>>);

impl Body for HandlerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // An error of actix may not leave its thread: what it says does.
        let told = |error: Box<dyn StdError>| error.to_string().into();
        self.0.as_mut().poll_next(cx).map_ok(Frame::data).map_err(told)
    }

    fn is_end_stream(&self) -> bool {
        self.0.size().is_eof()
    }

    fn size_hint(&self) -> SizeHint {
        match self.0.size() {
            BodySize::None => SizeHint::with_exact(0),
            BodySize::Sized(length) => SizeHint::with_exact(length),
            BodySize::Stream => SizeHint::default(),
        }
    }
}

/// The parts of a response that are actix' own, for the way back.
#[derive(Clone)]
struct Unchanged(SendWrapper<Rc<RefCell<Option<OwnParts>>>>);

struct OwnParts {
    response: HttpResponse<()>,
    /// Set for a response that has no body, instead of an empty one.
    had_none: bool,
}

/// The response of a handler, for the layer.
pub(super) fn response_of(response: HttpResponse) -> http::Response<HandlerBody> {
    let (mut response, body) = response.into_parts();
    let had_none = body.size() == BodySize::None;
    let mut answer = http::Response::new(HandlerBody(SendWrapper::new(Box::pin(body))));
    *answer.status_mut() = status(response.status().as_u16());
    for (name, value) in response.headers() {
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_str().as_bytes()),
            HeaderValue::from_bytes(value.as_bytes()),
        ) {
            answer.headers_mut().append(name, value);
        }
    }
    let extensions = answer.extensions_mut();
    if let Some(directive) = response.extensions_mut().remove::<Directive>() {
        extensions.insert(directive);
    }
    if let Some(mark) = response.extensions_mut().remove::<NotReplayable>() {
        extensions.insert(mark);
    }
    let unchanged = Rc::new(RefCell::new(Some(OwnParts { response, had_none })));
    extensions.insert(Unchanged(SendWrapper::new(unchanged)));
    answer
}

/// The response of the layer, for actix.
pub(super) fn translated(
    response: http::Response<LayerBody<HandlerBody>>,
) -> HttpResponse<ProtectedBody> {
    let (mut parts, body) = response.into_parts();
    let unchanged = parts.extensions.remove::<Unchanged>().and_then(|it| it.0.borrow_mut().take());
    let OwnParts { mut response, had_none } = unchanged.unwrap_or_else(|| OwnParts {
        response: HttpResponse::new(StatusCode::OK).drop_body(),
        had_none: false,
    });
    *response.status_mut() = StatusCode::from_u16(parts.status.as_u16()).unwrap_or_default();
    // Which actix does not read from the field.
    if parts.headers.get(CONNECTION).is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"close"))
    {
        response.head_mut().set_connection_type(ConnectionType::Close);
    }
    response.headers_mut().clear();
    for (name, value) in &parts.headers {
        if let (Ok(name), Ok(value)) = (
            header::HeaderName::from_bytes(name.as_str().as_bytes()),
            header::HeaderValue::from_bytes(value.as_bytes()),
        ) {
            response.headers_mut().append(name, value);
        }
    }
    {
        let (from, mut to) = (&mut parts.extensions, response.extensions_mut());
        from.remove::<Outcome>().map(|it| to.insert(it));
        from.remove::<Rejection>().map(|it| to.insert(it));
        from.remove::<RecordId>().map(|it| to.insert(it));
        from.remove::<InvalidDirective>().map(|it| to.insert(it));
    }
    let may_have_none =
        matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let is_none = (had_none || may_have_none) && body.is_end_stream();
    response.set_body(ProtectedBody { body: Box::pin(body), is_none })
}

fn status(code: u16) -> http::StatusCode {
    http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR)
}

/// The body that the client gets: the handler's own, or one that was stored.
pub struct ProtectedBody {
    body: Pin<Box<LayerBody<HandlerBody>>>,
    /// Set for a response that has none, instead of an empty one.
    is_none: bool,
}

impl MessageBody for ProtectedBody {
    type Error = Box<dyn StdError>;

    fn size(&self) -> BodySize {
        match self.body.size_hint().exact() {
            _ if self.is_none => BodySize::None,
            Some(length) => BodySize::Sized(length),
            None => BodySize::Stream,
        }
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Box<dyn StdError>>>> {
        poll_data(self.body.as_mut(), cx).map_err(|error| -> Box<dyn StdError> { error })
    }
}

impl fmt::Debug for ProtectedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProtectedBody").finish_non_exhaustive()
    }
}
