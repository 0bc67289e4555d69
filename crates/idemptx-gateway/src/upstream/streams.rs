//! The streams of an HTTP/2 connection that may be open at a time.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::rt::Executor;
use tokio::sync::Notify;

/// Counts the open streams of a connection against the server's limit (RFC 9113 §5.1.2).
///
/// hyper would queue a request beyond the limit without a word: after a time-out there would be no
/// telling that it was never sent.
#[derive(Debug, Default)]
pub(super) struct Streams {
    max: AtomicUsize,
    open: Mutex<usize>,
    changed: Notify,
    progress: Notify,
    /// Held by the request that waits for room; the others queue for it in the order in which they
    /// came.
    turn: tokio::sync::Mutex<()>,
}

/// An open stream, until dropped.
#[derive(Debug)]
pub(crate) struct OpenStream(Arc<Streams>);

impl Streams {
    /// Resolves when the connection has received something, until the limit is known, and whenever
    /// a request waits for room after that.
    pub(super) async fn progressed(&self) {
        self.progress.notified().await;
    }

    fn progress(&self) {
        if self.max.load(Ordering::Relaxed) == 0 {
            self.progress.notify_one();
        }
    }

    /// Sets the server's limit.
    pub(super) fn set_max(&self, max: usize) {
        if self.max.swap(max, Ordering::Relaxed) != max {
            self.changed.notify_waiters();
        }
    }

    /// Waits for room for another stream.
    ///
    /// # Cancel safety
    ///
    /// May be dropped.
    pub(super) async fn open(self: &Arc<Self>) -> OpenStream {
        let _turn = self.turn.lock().await;
        loop {
            let changed = self.changed.notified();
            {
                let mut open = self.lock();
                if *open < self.max.load(Ordering::Relaxed) {
                    *open += 1;
                    return OpenStream(Arc::clone(self));
                }
            }
            // The server may have raised its limit since.
            self.progress.notify_one();
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the tasks of a connection, and reports when they were polled: hyper does not report that the
/// server has stated its limit.
#[derive(Clone, Debug)]
pub(super) struct StreamsExecutor(pub(super) Arc<Streams>);

impl<F> Executor<F> for StreamsExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let streams = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut task = pin!(task);
            poll_fn(|cx| {
                let polled = task.as_mut().poll(cx);
                streams.progress();
                polled
            })
            .await
        });
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn a_stream_that_ends_makes_room_for_the_first_that_waits() {
        let streams = Arc::new(Streams::default());
        streams.set_max(1);
        let open = streams.open().await;
        let mut first = pin!(streams.open());
        let mut second = pin!(streams.open());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(first.as_mut().poll(&mut cx).is_pending());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(open);
        assert!(second.as_mut().poll(&mut cx).is_pending());
        for waiting in [first, second] {
            drop(waiting.await);
        }
    }
}
