//! gRPC over hyper: messages in the bodies of HTTP/2 requests and responses.
//!
//! One bidirectional method and one unary one need the framing and the trailers of the protocol, and
//! nothing else of a framework.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prost::Message;
use tokio::sync::mpsc;

/// The end of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    code: u32,
    message: String,
}

impl Status {
    pub(super) fn ok() -> Self {
        Self::new(0, "")
    }

    pub(super) fn invalid_argument(message: &str) -> Self {
        Self::new(3, message)
    }

    pub(super) fn not_found(message: &str) -> Self {
        Self::new(5, message)
    }

    pub(super) fn resource_exhausted(message: &str) -> Self {
        Self::new(8, message)
    }

    pub(super) fn failed_precondition(message: &str) -> Self {
        Self::new(9, message)
    }

    pub(super) fn unimplemented(message: &str) -> Self {
        Self::new(12, message)
    }

    pub(super) fn internal(message: &str) -> Self {
        Self::new(13, message)
    }

    fn new(code: u32, message: &str) -> Self {
        Self { code, message: message.to_owned() }
    }

    #[cfg(test)]
    pub(super) fn is_ok(&self) -> bool {
        self.code == 0
    }

    fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert(GRPC_STATUS, self.code.into());
        // All messages are visible ASCII without `%`, which needs no encoding.
        if let Ok(message) = HeaderValue::from_str(&self.message) {
            trailers.insert(GRPC_MESSAGE, message);
        }
        trailers
    }

    /// Returns a response that has nothing but this status.
    pub(super) fn into_response(self) -> Response<ReplyBody> {
        let (sender, replies) = mpsc::channel(1);
        // There is room for one.
        let _ = sender.try_send(Reply::End(self));
        response(replies)
    }
}

/// Returns whether this is a gRPC call at all.
pub(super) fn is_call<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    *request.method() == Method::POST
        && content_type.is_some_and(|it| it.starts_with(b"application/grpc"))
}

/// Returns the response of a call, which ends with what is sent last.
pub(super) fn response(replies: mpsc::Receiver<Reply>) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody { replies, is_over: false });
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    response
}

/// Reads the messages of a call.
#[derive(Debug)]
pub(super) struct MessageReader {
    body: Incoming,
    read: BytesMut,
    bytes_max: usize,
}

impl MessageReader {
    pub(super) fn new(body: Incoming, bytes_max: usize) -> Self {
        Self { body, read: BytesMut::new(), bytes_max }
    }

    /// Returns the next message, or `None` at the end of the call, reset or not.
    ///
    /// # Cancel safety
    ///
    /// A message is either returned or still to be read.
    pub(super) async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        loop {
            if let Some(message) = take(&mut self.read, self.bytes_max)? {
                let message = M::decode(message)
                    .map_err(|_| Status::invalid_argument("the message cannot be decoded"))?;
                return Ok(Some(message));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}

/// Takes a complete message from what was read.
pub(super) fn take(read: &mut BytesMut, bytes_max: usize) -> Result<Option<Bytes>, Status> {
    let Some((prefix, rest)) = read.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    let [compressed, length @ ..] = *prefix;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if compressed != 0 {
        return Err(Status::unimplemented("messages must not be compressed"));
    }
    if length > bytes_max {
        return Err(Status::resource_exhausted("the message exceeds message_bytes_max"));
    }
    if rest.len() < length {
        return Ok(None);
    }
    read.advance(PREFIX_BYTES);
    Ok(Some(read.split_to(length).freeze()))
}

/// The next part of a response.
#[derive(Debug)]
pub(super) enum Reply {
    Message(Bytes),
    End(Status),
}

impl Reply {
    pub(super) fn message(message: &impl Message) -> Self {
        let length = message.encoded_len();
        let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
        bytes.put_u8(0);
        bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        // There is room for all of it.
        let _ = message.encode(&mut bytes);
        Self::Message(bytes.freeze())
    }
}

/// The body of a response.
///
/// A call whose task is gone ends with an error: Envoy takes the clean end of a call as permission to
/// go on without the processor.
#[derive(Debug)]
pub(super) struct ReplyBody {
    replies: mpsc::Receiver<Reply>,
    is_over: bool,
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        self.replies.poll_recv(cx).map(|reply| {
            let status = match reply {
                Some(Reply::Message(message)) => return Some(Ok(Frame::data(message))),
                Some(Reply::End(status)) => status,
                None => Status::internal("the request was given up"),
            };
            self.is_over = true;
            Some(Ok(Frame::trailers(status.trailers())))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

/// Compressed or not, and the length.
const PREFIX_BYTES: usize = 5;
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_whole_and_within_the_limit() {
        let mut read = BytesMut::from(&[0, 0, 0, 0, 3, b'a', b'b'][..]);
        assert_eq!(take(&mut read, 3), Ok(None));
        read.extend_from_slice(b"c\0\0\0\0\0rest");
        assert_eq!(take(&mut read, 3), Ok(Some(Bytes::from_static(b"abc"))));
        assert_eq!(take(&mut read, 3), Ok(Some(Bytes::new())));
        assert_eq!(&*read, b"rest");
        for wrong in [&[1, 0, 0, 0, 0][..], &[0, 0, 0, 0, 4], &[0, 255, 255, 255, 255, 0]] {
            assert!(take(&mut BytesMut::from(wrong), 3).is_err(), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn a_call_whose_task_is_gone_ends_with_an_error() {
        let (sender, replies) = mpsc::channel(1);
        drop(sender);
        let frame = response(replies).into_body().frame().await.unwrap().unwrap();
        assert_eq!(frame.into_trailers().unwrap()[GRPC_STATUS], "13");
    }
}
