//! Bodies that are passed on while they are being made.

use std::fmt;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::body::BodyError;
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

/// The resources that are held until a body has ended.
struct Ending {
    flow: BodyFlow,
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

    /// Reports the end of the body, and holds the permit until then.
    pub(super) fn until_end(mut self, flow: BodyFlow, open: Option<OwnedSemaphorePermit>) -> Self {
        self.ending = Some(Box::new(Ending { flow, _open: open }));
        self
    }

    pub(super) fn is_over(&self) -> bool {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let slot = self.body.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(body) = slot else { return Poll::Ready(None) };
        // A panic ends this body, not the connection with all its other requests. The body is never
        // polled again after it, so no broken state can be seen.
        let poll = std::panic::catch_unwind(AssertUnwindSafe(|| body.as_mut().poll_frame(cx)))
            .unwrap_or_else(|_| Poll::Ready(Some(Err(BROKE_OFF.into()))));
        if matches!(poll, Poll::Ready(None | Some(Err(_)))) {
            *slot = None;
            if let Some(mut ending) = self.ending.take() {
                ending.flow.end(matches!(poll, Poll::Ready(None)));
            }
        }
        poll
    }
}

impl Drop for LiveBody {
    fn drop(&mut self) {
        let body = self.body.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(mut body), Some(runtime)) = (body, self.runtime.take()) else { return };
        let mut ending = self.ending.take();
        if self.ends_with_client {
            // A server that has sent as much as was declared does not ask for the end.
            if let Some(ending) = &mut ending {
                ending.flow.end(body.is_end_stream());
            }
            return;
        }
        runtime.spawn(async move {
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
        });
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
