//! Request bodies, from the client to the upstream.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use idemptx::tower::{BodyError, RequestBody};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::config::{Limits, RouteLimits};

/// The limits of a client's request body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimits {
    pause_max: Duration,
    rate_min: u64,
    bytes_max: u64,
}

impl BodyLimits {
    /// The limits of a request before its route is known.
    pub(crate) const fn of(limits: &Limits) -> Self {
        Self {
            pause_max: limits.pause,
            rate_min: limits.body_rate_min,
            bytes_max: limits.body_bytes_max,
        }
    }

    /// The limits of a request on a route.
    pub(crate) fn on_route(limits: &Limits, route: &RouteLimits) -> Self {
        Self {
            pause_max: route.body_pause(limits),
            rate_min: route.body_rate_min(limits),
            bytes_max: route.body_bytes_max(limits),
        }
    }

    /// Returns whether a body of this size may be sent.
    pub(crate) const fn admits(&self, bytes: u64) -> bool {
        bytes <= self.bytes_max
    }
}

/// A client's request body, limited in size and rate.
///
/// The rate counts only the time spent waiting for the client, not for the upstream.
///
/// Dropped before its end, because the answer did not need it, it is read on for a while: otherwise
/// the connection would be reset under a client that is still sending, and which then loses the
/// answer (RFC 9112 §9.6).
#[derive(Debug)]
pub(crate) struct ClientBody {
    /// `None` once it must not be read on.
    body: Option<Incoming>,
    lingers: bool,
    pace: BodyLimits,
    bytes: u64,
    /// The bytes so far, for the access log, which outlives the body.
    counted: Option<Arc<AtomicU64>>,
    waited: Duration,
    waiting: Option<WaitTimer>,
}

#[derive(Debug)]
struct WaitTimer {
    since: Instant,
    pause: Pin<Box<Sleep>>,
}

/// A violated limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyLimitError {
    TooLarge,
    TooSlow,
}

impl ClientBody {
    /// Takes over the body of a request, whose client may wait for permission to send it.
    pub(crate) fn of(
        request: Request<Incoming>,
        has_expect: bool,
        pace: BodyLimits,
    ) -> Request<Self> {
        // Over HTTP/2 a stream is reset by itself; and a client that waits for permission to send
        // would get it.
        let lingers = request.version() <= Version::HTTP_11 && !has_expect;
        request.map(|body| Self {
            body: Some(body),
            lingers,
            pace,
            bytes: 0,
            counted: None,
            waited: Duration::ZERO,
            waiting: None,
        })
    }

    /// Sets the limits, once they are known.
    pub(crate) fn limit(&mut self, pace: BodyLimits) {
        self.pace = pace;
    }

    /// Counts the bytes elsewhere, too.
    pub(crate) fn count_in(&mut self, counted: Arc<AtomicU64>) {
        self.counted = Some(counted);
    }

    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<BodyLimitError> {
        let until = Instant::now() + self.pace.pause_max;
        let waiting = self.waiting.get_or_insert_with(|| WaitTimer {
            since: Instant::now(),
            pause: Box::pin(sleep_until(until)),
        });
        waiting.pause.as_mut().poll(cx).map(|()| BodyLimitError::TooSlow)
    }

    fn count_bytes(&mut self, bytes: usize) -> Result<(), BodyLimitError> {
        if let Some(waiting) = self.waiting.take() {
            self.waited += waiting.since.elapsed();
        }
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if let Some(counted) = &self.counted {
            counted.store(self.bytes, Ordering::Relaxed);
        }
        let due =
            self.waited.saturating_sub(RATE_GRACE).as_secs().saturating_mul(self.pace.rate_min);
        match self.bytes {
            bytes if bytes > self.pace.bytes_max => Err(BodyLimitError::TooLarge),
            bytes if bytes < due => Err(BodyLimitError::TooSlow),
            _ => Ok(()),
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(cx) {
            Poll::Pending => self.poll_wait(cx).map(|fault| {
                self.lingers = false;
                Some(Err(fault.into()))
            }),
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                Poll::Ready(Some(self.count_bytes(bytes).map(|()| frame).map_err(Into::into)))
            }
            Poll::Ready(end) => {
                self.lingers = false;
                Poll::Ready(end.map(|frame| frame.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if !self.lingers || self.is_end_stream() {
            return;
        }
        if let (Some(body), Ok(runtime)) = (self.body.take(), Handle::try_current()) {
            runtime.spawn(linger(body));
        }
    }
}

/// Reads the rest of a body within limits, so that its client gets to the answer.
async fn linger(mut body: Incoming) {
    let mut left = LINGER_BYTES_MAX;
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    drop(timeout(LINGER_MAX, read).await);
}

impl fmt::Display for BodyLimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "the request body exceeds the gateway's limit",
            Self::TooSlow => "the request body arrived too slowly",
        })
    }
}

impl std::error::Error for BodyLimitError {}

/// The body of a request to an upstream.
#[derive(Debug)]
pub(crate) struct UpstreamRequestBody {
    content: RequestContent,
    /// Dropped when the last frame has been sent.
    sending: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
enum RequestContent {
    Empty,
    // Boxed: hyper reserves space for 32 requests on every upstream connection.
    Plain(Box<ClientBody>),
    Keyed(Box<RequestBody<ClientBody>>),
}

impl UpstreamRequestBody {
    pub(crate) const fn empty() -> Self {
        Self { content: RequestContent::Empty, sending: None }
    }

    pub(crate) fn plain(body: ClientBody) -> Self {
        Self { content: RequestContent::Plain(Box::new(body)), sending: None }
    }

    pub(crate) fn keyed(body: RequestBody<ClientBody>) -> Self {
        Self { content: RequestContent::Keyed(Box::new(body)), sending: None }
    }

    /// Returns a receiver that resolves when everything is sent; `None` if that takes no time.
    pub(crate) fn upload(&mut self) -> Option<oneshot::Receiver<()>> {
        let quick = match &self.content {
            RequestContent::Empty => true,
            RequestContent::Plain(body) => body.is_end_stream(),
            RequestContent::Keyed(body) => {
                body.size_hint().exact().is_some_and(|it| it <= BUFFERED_BYTES_MAX)
            }
        };
        if quick {
            return None;
        }
        let (sending, sent) = oneshot::channel();
        self.sending = Some(sending);
        Some(sent)
    }
}

impl Body for UpstreamRequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match &mut self.content {
            RequestContent::Empty => Poll::Ready(None),
            RequestContent::Plain(body) => Pin::new(body).poll_frame(cx),
            RequestContent::Keyed(body) => Pin::new(body).poll_frame(cx),
        };
        if frame.is_ready() && self.is_end_stream() {
            self.sending = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            RequestContent::Empty => true,
            RequestContent::Plain(body) => body.is_end_stream(),
            RequestContent::Keyed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            RequestContent::Empty => SizeHint::with_exact(0),
            RequestContent::Plain(body) => body.size_hint(),
            RequestContent::Keyed(body) => body.size_hint(),
        }
    }
}

/// The limits within which a body is read that the answer did not need.
const LINGER_BYTES_MAX: usize = 64 << 20;
const LINGER_MAX: Duration = Duration::from_secs(5);
/// The wait after which the rate counts.
const RATE_GRACE: Duration = Duration::from_secs(10);
/// A body up to this size is in memory and is sent at once.
const BUFFERED_BYTES_MAX: u64 = 64 << 10;
