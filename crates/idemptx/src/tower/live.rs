//! Bodies that are passed on while they are being made.

use std::fmt;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::body::BodyError;
use crate::detachable::spawn_on;
use crate::drive::BodyFlow;

/// A body that flows to the client.
///
/// When the client leaves, a live response ends, for it was made for that client alone.
/// A body that is only too large is part of the handler's work: it is read on for a while, so that
/// the handler ends, too.
pub(super) struct LiveBody {
    /// `None` once it has ended.
    ///
    /// The mutex makes the body `Sync`, which some servers ask for, and is never contended.
    body: Mutex<Option<BoxBody>>,
    ends_with_client: bool,
    runtime: Option<Handle>,
    /// Boxed: every response has room for a body that flows, and few have one.
    ending: Option<Box<Ending>>,
}

/// The resources that are held until a body has ended, and that end.
struct Ending {
    flow: BodyFlow,
    /// The bytes that are missing of the length that the response declares.
    missing: Option<u64>,
    /// A frame after one that might have been the last.
    next: Option<Frame<Bytes>>,
    /// The last frame or the error, once the body has ended, if it did with one.
    last: Option<Result<Frame<Bytes>, BodyError>>,
    /// `None` if too many bodies are open.
    _open: Option<OwnedSemaphorePermit>,
}

type BoxBody = Pin<Box<dyn Body<Data = Bytes, Error = BodyError> + Send>>;

impl LiveBody {
    pub(super) fn new(
        body: impl Body<Data = Bytes, Error = BodyError> + Send + 'static,
        ends_with_client: bool,
    ) -> Self {
        Self {
            body: Mutex::new(Some(Box::pin(body))),
            ends_with_client,
            runtime: Handle::try_current().ok(),
            ending: None,
        }
    }

    /// Reports the end of the body, lets the client have that once the key is free, and holds the
    /// permit until then.
    pub(super) fn until_end(
        mut self,
        flow: BodyFlow,
        declared: Option<u64>,
        open: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let ending = Ending { flow, missing: declared, next: None, last: None, _open: open };
        self.ending = Some(Box::new(ending));
        self
    }

    pub(super) fn is_over(&self) -> bool {
        let body = self.body.lock().unwrap_or_else(PoisonError::into_inner);
        body.is_none() && self.ending.is_none()
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let slot = self.body.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(body) = slot {
            let next = self.ending.as_mut().and_then(|it| it.next.take());
            let frame = match next {
                Some(next) => Some(Ok(next)),
                None => ready!(poll_guarded(body, cx)),
            };
            let Some(ending) = &mut self.ending else {
                if matches!(frame, None | Some(Err(_))) {
                    *slot = None;
                }
                return Poll::Ready(frame);
            };
            let Some(is_whole) = ending.end_at(frame.as_ref(), body, cx) else {
                return Poll::Ready(frame);
            };
            *slot = None;
            ending.flow.end(is_whole);
            ending.last = frame;
        }
        let Some(ending) = &mut self.ending else { return Poll::Ready(None) };
        ready!(ending.flow.poll_freed(cx));
        Poll::Ready(self.ending.take().and_then(|it| it.last))
    }
}

impl Ending {
    /// Returns whether the body is whole, if it ends with this frame for its client.
    ///
    /// It does with the last byte of a declared length, and with trailers, after which no client
    /// waits for more: what the body does after them, if it is not at its end, none of them sees.
    fn end_at(
        &mut self,
        frame: Option<&Result<Frame<Bytes>, BodyError>>,
        body: &mut BoxBody,
        cx: &mut Context<'_>,
    ) -> Option<bool> {
        let frame = match frame {
            None => return Some(self.missing.is_none_or(|missing| missing == 0)),
            Some(Err(_)) => return Some(false),
            Some(Ok(frame)) => frame,
        };
        if let (Some(missing), Some(data)) = (&mut self.missing, frame.data_ref()) {
            *missing = missing.saturating_sub(data.len() as u64);
        }
        if body.is_end_stream() {
            return self.end_at(None, body, cx);
        }
        if !frame.is_trailers() && self.missing != Some(0) {
            return None;
        }
        match poll_guarded(body, cx) {
            Poll::Pending => None,
            Poll::Ready(Some(Ok(next))) => {
                self.next = Some(next);
                None
            }
            Poll::Ready(end) => Some(end.is_none()),
        }
    }
}

/// Polls a body whose panic ends it alone, and not the connection with all its other requests.
fn poll_guarded(
    body: &mut BoxBody,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    // The body is never polled again after a panic, so no broken state can be seen.
    std::panic::catch_unwind(AssertUnwindSafe(|| body.as_mut().poll_frame(cx)))
        .unwrap_or_else(|_| Poll::Ready(Some(Err(BROKE_OFF.into()))))
}

impl Drop for LiveBody {
    fn drop(&mut self) {
        let body = self.body.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(mut body), Some(runtime)) = (body, self.runtime.take()) else { return };
        let mut ending = self.ending.take();
        if self.ends_with_client {
            // A server that has sent as much as was declared does not ask for the end.
            if let Some(ending) = &mut ending {
                ending.flow.end(body.is_end_stream() || ending.missing == Some(0));
            }
            return;
        }
        let reading = async move {
            let rest = async {
                loop {
                    match poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
                        Some(Ok(_)) => {}
                        end => return end.is_none(),
                    }
                }
            };
            let is_whole = timeout(READ_ON_MAX, rest).await.unwrap_or(false);
            if let Some(ending) = &mut ending {
                ending.flow.end(is_whole);
            }
        };
        spawn_on(&runtime, reading);
    }
}

impl fmt::Debug for LiveBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveBody").field("is_over", &self.is_over()).finish_non_exhaustive()
    }
}

const BROKE_OFF: &str = "the response broke off: its handler panicked";
/// The time for which a body whose client has left is read on.
const READ_ON_MAX: Duration = Duration::from_secs(30);
