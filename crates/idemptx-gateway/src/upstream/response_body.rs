//! Bodies of responses.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use idemptx::tower::BodyError;
use tokio::time::{Instant, Sleep, sleep_until};

use super::address::PooledConnection;
use crate::request_body::Upload;

/// The body of an upstream's response, or a generated one.
///
/// The connection is reused only if the body was read to its end.
#[derive(Debug)]
pub(crate) struct UpstreamBody {
    content: ResponseContent,
    pause_max: Duration,
    pause: Option<Pin<Box<Sleep>>>,
}

enum ResponseContent {
    Upstream { body: Incoming, connection: Option<PooledConnection>, stream: Option<StreamEnd> },
    Local(Option<Bytes>),
}

/// A stream of HTTP/2, whose end hyper does not tell from a reset with NO_ERROR.
pub(super) struct StreamEnd {
    /// The request's body, unless it was sent at once.
    pub(super) upload: Option<Box<Upload>>,
}

impl StreamEnd {
    /// Returns whether a body that hyper takes for ended was cut off.
    ///
    /// A server may answer before it has the whole request, and then reset the stream with
    /// NO_ERROR (RFC 9113 §8.1): such an answer is whole, as far as its length does not show the
    /// contrary.
    fn is_cut_off(&mut self, body: &Incoming) -> bool {
        !body.is_end_stream()
            && (body.size_hint().lower() > 0
                || self.upload.as_mut().is_none_or(|upload| upload.is_whole()))
    }
}

impl UpstreamBody {
    /// Returns the body of an upstream; over HTTP/2, of this `stream`.
    pub(super) fn new(
        body: Incoming,
        connection: PooledConnection,
        pause_max: Duration,
        stream: Option<StreamEnd>,
    ) -> Self {
        let content = ResponseContent::Upstream { body, connection: Some(connection), stream };
        let mut this = Self { content, pause_max, pause: None };
        this.give_back_at_end();
        this
    }

    /// Returns the body of an answer that switches protocols, whose connection is not to be reused.
    pub(super) fn switching(body: Incoming, connection: PooledConnection) -> Self {
        let content =
            ResponseContent::Upstream { body, connection: Some(connection), stream: None };
        Self { content, pause_max: Duration::ZERO, pause: None }
    }

    /// Takes the connection from such a body: as long as it is kept, it counts as a request.
    pub(crate) fn take_connection(&mut self) -> Option<PooledConnection> {
        match &mut self.content {
            ResponseContent::Upstream { connection, .. } => connection.take(),
            ResponseContent::Local(_) => None,
        }
    }

    /// Returns a generated body.
    pub(crate) fn from_bytes(bytes: Bytes) -> Self {
        let content = ResponseContent::Local((!bytes.is_empty()).then_some(bytes));
        Self { content, pause_max: Duration::ZERO, pause: None }
    }

    fn give_back_at_end(&mut self) {
        if let ResponseContent::Upstream { body, connection, .. } = &mut self.content
            && body.is_end_stream()
            && let Some(connection) = connection.take()
        {
            connection.release_connection();
        }
    }

    fn mark_suspect(&mut self) {
        if let ResponseContent::Upstream { connection, .. } = &mut self.content
            && let Some(connection) = connection.take()
        {
            connection.mark_suspect();
        }
    }

    /// Resolves when the body has paused for too long.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = Instant::now() + self.pause_max;
        let pause = self.pause.get_or_insert_with(|| Box::pin(sleep_until(until)));
        pause.as_mut().poll(cx)
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let (body, connection, stream) = match &mut this.content {
            ResponseContent::Local(bytes) => {
                return Poll::Ready(bytes.take().map(|it| Ok(Frame::data(it))));
            }
            ResponseContent::Upstream { body, connection, stream } => (body, connection, stream),
        };
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Pending => {
                ready!(this.poll_pause(cx));
                this.mark_suspect();
                Poll::Ready(Some(Err(PAUSED_TOO_LONG.into())))
            }
            Poll::Ready(Some(Ok(frame))) => {
                this.pause = None;
                this.give_back_at_end();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                // Closes the connection.
                *connection = None;
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) if stream.as_mut().is_some_and(|it| it.is_cut_off(body)) => {
                *connection = None;
                Poll::Ready(Some(Err(CUT_OFF.into())))
            }
            Poll::Ready(None) => {
                if let Some(connection) = connection.take() {
                    connection.release_connection();
                }
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            ResponseContent::Upstream { body, .. } => body.is_end_stream(),
            ResponseContent::Local(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            ResponseContent::Upstream { body, .. } => body.size_hint(),
            ResponseContent::Local(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |it| it.len() as u64))
            }
        }
    }
}

impl std::fmt::Debug for ResponseContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Upstream { .. } => "Upstream",
            Self::Local(_) => "Own",
        })
    }
}

const PAUSED_TOO_LONG: &str = "the upstream's response paused for too long";
const CUT_OFF: &str = "the upstream reset the response before its end";
