//! Request bodies, from the client to the upstream.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};

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
    is_http2: bool,
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
        let is_http2 = request.version() == Version::HTTP_2;
        let lingers = !is_http2 && !has_expect;
        request.map(|body| Self {
            body: Some(body),
            is_http2,
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
            Poll::Ready(Some(Err(error))) => {
                self.lingers = false;
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                self.lingers = false;
                // hyper takes a stream that was reset with NO_ERROR for one that has ended, but half
                // of a request must not be executed.
                let is_cut_off = self.is_http2 && !self.is_end_stream();
                Poll::Ready(is_cut_off.then(|| Err(CUT_OFF.into())))
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
    /// `None` when the last frame has been sent.
    sending: Option<Box<Sending>>,
}

/// The body's end of an [`Upload`].
#[derive(Debug)]
struct Sending {
    /// Dropped without a word where the connection does not take all of it.
    over: oneshot::Sender<()>,
    /// Given where the upstream grants room for each body, as over HTTP/2.
    progress: Option<Arc<Progress>>,
    /// The rest of a frame that is given away in pieces.
    rest: Bytes,
}

/// A body that is being sent.
#[derive(Debug)]
pub(crate) struct Upload {
    over: oneshot::Receiver<()>,
    is_over: bool,
    is_whole: bool,
    progress: Option<Arc<Progress>>,
}

/// The use that a connection makes of a body.
#[derive(Debug, Default)]
struct Progress {
    pieces: AtomicU64,
    /// Set while the connection has room, and the client has sent nothing to fill it.
    is_starved: AtomicBool,
}

impl Upload {
    /// Resolves when everything is sent, or what is left will not be.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    pub(crate) async fn over(&mut self) {
        if !self.is_over {
            self.is_whole = (&mut self.over).await.is_ok();
            self.is_over = true;
        }
    }

    /// Returns whether everything is sent.
    pub(crate) fn is_whole(&mut self) -> bool {
        if !self.is_over {
            self.is_whole = self.over.try_recv().is_ok();
            self.is_over = self.is_whole;
        }
        self.is_whole
    }

    /// Resolves when the connection has taken nothing for `pause_max`, although there was something
    /// to take.
    ///
    /// Over HTTP/1.1 never: there a write that stalls fails by itself.
    pub(crate) fn stalled(&self, pause_max: Duration) -> impl Future<Output = ()> + use<> {
        let progress = self.progress.clone();
        async move {
            let Some(progress) = progress else { return std::future::pending().await };
            // The limit is kept to within half of it, without a timer for every piece.
            let (mut before, mut quiet) = (None, 0);
            while quiet < 2 {
                sleep(pause_max / 2).await;
                let taken = Some(progress.pieces.load(Ordering::Relaxed));
                let is_quiet = taken == before && !progress.is_starved.load(Ordering::Relaxed);
                quiet = if is_quiet { quiet + 1 } else { 0 };
                before = taken;
            }
        }
    }
}

impl Sending {
    /// Notes what the connection gets, and keeps back what is more than a piece.
    fn pass(
        &mut self,
        polled: Poll<Option<Result<Frame<Bytes>, BodyError>>>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(progress) = &self.progress else { return polled };
        progress.is_starved.store(polled.is_pending(), Ordering::Relaxed);
        progress.pieces.fetch_add(u64::from(polled.is_ready()), Ordering::Relaxed);
        polled.map_ok(|frame| match frame.into_data() {
            Ok(mut data) => {
                self.rest = data.split_off(data.len().min(PIECE_BYTES));
                Frame::data(data)
            }
            Err(frame) => frame,
        })
    }
}

#[derive(Debug)]
enum RequestContent {
    Empty,
    // Boxed: hyper reserves space for 32 requests on every upstream connection.
    Plain(Box<ClientBody>),
    /// Behind the engine, which has read it to its end for an execution.
    Layered {
        body: Box<RequestBody<ClientBody>>,
        is_read: bool,
    },
}

impl UpstreamRequestBody {
    pub(crate) const fn empty() -> Self {
        Self { content: RequestContent::Empty, sending: None }
    }

    pub(crate) fn plain(body: ClientBody) -> Self {
        Self { content: RequestContent::Plain(Box::new(body)), sending: None }
    }

    /// Takes a body from the engine, which has read it to its end if it `is_read`.
    pub(crate) fn layered(body: RequestBody<ClientBody>, is_read: bool) -> Self {
        Self { content: RequestContent::Layered { body: Box::new(body), is_read }, sending: None }
    }

    /// Returns the sending of the body, to wait for its end; `None` if it takes no time.
    ///
    /// It `is_watched` where the upstream may leave the body in the connection.
    pub(crate) fn upload(&mut self, is_watched: bool) -> Option<Box<Upload>> {
        let quick = match &self.content {
            RequestContent::Empty => true,
            RequestContent::Plain(body) => body.is_end_stream(),
            RequestContent::Layered { body, is_read: true } => {
                body.size_hint().exact().is_some_and(|it| it <= BUFFERED_BYTES_MAX)
            }
            RequestContent::Layered { body, is_read: false } => body.is_end_stream(),
        };
        if quick {
            return None;
        }
        let progress: Option<Arc<Progress>> = is_watched.then(Arc::default);
        let (sender, over) = oneshot::channel();
        let sending = Sending { over: sender, progress: progress.clone(), rest: Bytes::new() };
        self.sending = Some(Box::new(sending));
        Some(Box::new(Upload { over, is_over: false, is_whole: false, progress }))
    }

    fn rest(&self) -> usize {
        self.sending.as_ref().map_or(0, |sending| sending.rest.len())
    }
}

impl Body for UpstreamRequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let mut frame = match &mut this.content {
            _ if this.sending.as_ref().is_some_and(|sending| !sending.rest.is_empty()) => {
                let rest = this.sending.as_mut().map(|it| std::mem::take(&mut it.rest));
                Poll::Ready(rest.map(|rest| Ok(Frame::data(rest))))
            }
            RequestContent::Empty => Poll::Ready(None),
            RequestContent::Plain(body) => Pin::new(body).poll_frame(cx),
            RequestContent::Layered { body, .. } => Pin::new(body).poll_frame(cx),
        };
        if let Some(sending) = &mut this.sending {
            frame = sending.pass(frame);
        }
        let is_over =
            matches!(frame, Poll::Ready(None)) || frame.is_ready() && this.is_end_stream();
        if is_over && let Some(sending) = this.sending.take() {
            // Nobody waits for it where there is an answer already.
            let _ = sending.over.send(());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.rest() == 0
            && match &self.content {
                RequestContent::Empty => true,
                RequestContent::Plain(body) => body.is_end_stream(),
                RequestContent::Layered { body, .. } => body.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        let content = match &self.content {
            RequestContent::Empty => SizeHint::with_exact(0),
            RequestContent::Plain(body) => body.size_hint(),
            RequestContent::Layered { body, .. } => body.size_hint(),
        };
        let rest = self.rest() as u64;
        let mut whole = SizeHint::new();
        whole.set_lower(content.lower().saturating_add(rest));
        if let Some(upper) = content.upper() {
            whole.set_upper(upper.saturating_add(rest));
        }
        whole
    }
}

/// The limits within which a body is read that the answer did not need.
const LINGER_BYTES_MAX: usize = 64 << 20;
const LINGER_MAX: Duration = Duration::from_secs(5);
/// The wait after which the rate counts.
const RATE_GRACE: Duration = Duration::from_secs(10);
/// A body up to this size is in memory and is sent at once.
const BUFFERED_BYTES_MAX: u64 = 64 << 10;
/// The most of a body that a watched connection is given at a time: one frame of HTTP/2
/// (RFC 9113 §4.2), so that a slow one shows progress.
const PIECE_BYTES: usize = 16 << 10;
const CUT_OFF: &str = "the request was reset before its end";
