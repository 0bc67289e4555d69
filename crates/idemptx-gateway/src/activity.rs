//! The use of a client's connection, so that one without use is closed.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::proxy::DownstreamBody;

/// The requests of one connection, and the responses that it does not take.
#[derive(Debug)]
pub(crate) struct Activity {
    began: Instant,
    requests: AtomicUsize,
    /// Milliseconds from `began` to the end of the last request.
    last: AtomicU64,
    /// HTTP/2: since when a response that was begun has not been asked for more, by its number.
    untaken: Mutex<HashMap<usize, Instant>>,
    numbers: AtomicUsize,
    resets: Mutex<Resets>,
    /// Notified when there are too many of them.
    flooded: Notify,
    /// The task that waits with the end of the client's bytes; woken when a request has ended.
    deferred: Mutex<Option<Waker>>,
}

/// HTTP/2: requests that the client has given up before they were answered, in a window of time.
#[derive(Debug)]
struct Resets {
    since: Instant,
    count: u32,
}

/// The reason to close a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inactive {
    /// No request came, or none that is complete.
    Idle,
    /// The client grants no room for a response that it has asked for.
    Stalled,
    /// The client begins requests only to give them up, each of which reaches the upstream.
    Flooding,
}

impl Activity {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            requests: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            untaken: Mutex::default(),
            numbers: AtomicUsize::new(0),
            resets: Mutex::new(Resets { since: Instant::now(), count: 0 }),
            flooded: Notify::new(),
            deferred: Mutex::default(),
        })
    }

    /// Counts a request until the returned value is dropped.
    ///
    /// Responses of HTTP/2 are watched, since their streams stall one by one: the socket says
    /// nothing of it.
    pub(crate) fn request(self: &Arc<Self>, is_http2: bool) -> ActiveRequest {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let number = is_http2.then(|| self.numbers.fetch_add(1, Ordering::Relaxed));
        ActiveRequest { number, is_answered: false, activity: Arc::clone(self) }
    }

    pub(crate) fn has_no_request(&self) -> bool {
        self.requests.load(Ordering::Relaxed) == 0
    }

    /// Returns whether the end of the client's bytes is to wait for the end of a request; then the
    /// task is woken.
    pub(crate) fn defers_end(&self, cx: &Context<'_>) -> bool {
        let mut deferred = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        *deferred = Some(cx.waker().clone());
        !self.has_no_request()
    }

    /// Resolves when there has been no request for `idle_max`, or when a response has not been
    /// taken for `pause_max`.
    pub(crate) async fn inactive(&self, idle_max: Duration, pause_max: Duration) -> Inactive {
        loop {
            let now = Instant::now();
            let oldest = self.untaken().values().min().copied();
            let stalled_at = oldest.map(|since| since + pause_max);
            if stalled_at.is_some_and(|at| at <= now) {
                return Inactive::Stalled;
            }
            let idle_at = if self.has_no_request() {
                let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
                self.began + last + idle_max
            } else {
                now + idle_max
            };
            if idle_at <= now {
                return Inactive::Idle;
            }
            // A response that begins to stall meanwhile is seen at the next look.
            let look_at = stalled_at.unwrap_or(now + pause_max).min(idle_at);
            tokio::select! {
                () = sleep_until(look_at) => {}
                () = self.flooded.notified() => return Inactive::Flooding,
            }
        }
    }

    /// Counts a request that was given up.
    ///
    /// hyper limits resets that come at once; slow ones cost the upstream as much.
    fn count_reset(&self) {
        let mut resets = self.resets.lock().unwrap_or_else(PoisonError::into_inner);
        if resets.since.elapsed() > RESETS_WINDOW {
            *resets = Resets { since: Instant::now(), count: 0 };
        }
        resets.count += 1;
        if resets.count > RESETS_MAX {
            self.flooded.notify_one();
        }
    }

    fn untaken(&self) -> MutexGuard<'_, HashMap<usize, Instant>> {
        self.untaken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request, from its head to the end of its response.
#[derive(Debug)]
pub(crate) struct ActiveRequest {
    /// Its number among the watched ones.
    number: Option<usize>,
    is_answered: bool,
    activity: Arc<Activity>,
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let activity = &self.activity;
        if let Some(number) = self.number {
            activity.untaken().remove(&number);
            if !self.is_answered {
                activity.count_reset();
            }
        }
        let millis = u64::try_from(activity.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        activity.last.store(millis, Ordering::Relaxed);
        activity.requests.fetch_sub(1, Ordering::Relaxed);
        let deferred = activity.deferred.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = deferred {
            task.wake();
        }
    }
}

/// The body of a response, which ends its request.
#[derive(Debug)]
pub(crate) struct ActiveBody {
    body: DownstreamBody,
    request: ActiveRequest,
}

impl ActiveBody {
    pub(crate) const fn new(body: DownstreamBody, mut request: ActiveRequest) -> Self {
        request.is_answered = true;
        Self { body, request }
    }
}

impl Body for ActiveBody {
    type Data = Bytes;
    type Error = <DownstreamBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(number) = self.request.number {
            let activity = &self.request.activity;
            match &polled {
                Poll::Ready(Some(Ok(_))) => activity.untaken().insert(number, Instant::now()),
                _ => activity.untaken().remove(&number),
            };
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// More than a person's browser gives up of one site, and fewer than an upstream notices.
const RESETS_MAX: u32 = 100;
const RESETS_WINDOW: Duration = Duration::from_secs(10);
