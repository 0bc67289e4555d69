//! Exchanges that go on when their caller leaves.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use tokio::runtime::Handle;

/// A future that is polled in its caller's task and, if the caller drops it while it is
/// [held](Attachment::hold), finished in a task that the runtime owns.
///
/// The caller's task is where a handler has its tracing span and its task-locals, so it runs there
/// for as long as there is a client.
/// A spawned task would have neither, and would cost two passes through the scheduler besides.
///
/// The task is spawned on the runtime that polled the future, since its sockets and timers
/// belong to that one, on any thread that drops the future.
/// Where that runtime is shutting down, the future is dropped after all.
pub(crate) struct Detachable<T> {
    future: Option<BoxFuture<T>>,
    attachment: Attachment,
    runtime: Option<Handle>,
    /// A pointer, because a `Drop` may ask for no `'static` that the type does not ask for.
    spawn: fn(&Handle, BoxFuture<T>),
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<T> Detachable<T> {
    /// Wraps a future that controls the `attachment`.
    pub(crate) fn new(attachment: Attachment, future: BoxFuture<T>) -> Self
    where
        T: 'static,
    {
        let spawn = |runtime: &Handle, future: BoxFuture<T>| {
            spawn_on(runtime, async move { drop(future.await) });
        };
        Self { future: Some(future), attachment, runtime: None, spawn }
    }
}

impl<T> Future for Detachable<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // Taken while it is polled: a future that has panicked is not polled again.
        let Some(mut future) = self.future.take() else { return Poll::Pending };
        if self.runtime.is_none() {
            self.runtime = Handle::try_current().ok();
        }
        let poll = future.as_mut().poll(cx);
        if poll.is_pending() {
            self.future = Some(future);
        }
        poll
    }
}

impl<T> Drop for Detachable<T> {
    fn drop(&mut self) {
        let Some(future) = self.future.take() else { return };
        if let Some(runtime) = self.runtime.take()
            && self.attachment.detach()
        {
            (self.spawn)(&runtime, future);
        }
    }
}

impl<T> fmt::Debug for Detachable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detachable").field("attachment", &self.attachment).finish_non_exhaustive()
    }
}

/// Spawns what goes on without the caller that has left, on the runtime that it belongs to.
///
/// On a worker of actix that is not any task of its runtime, but one of its local tasks: a handler
/// may spawn further local ones, as actix's own `rt::spawn` does, and that panics elsewhere.
pub(crate) fn spawn_on(runtime: &Handle, future: impl Future<Output = ()> + Send + 'static) {
    #[cfg(feature = "actix")]
    if Handle::try_current().is_ok_and(|it| it.id() == runtime.id())
        && let Some(arbiter) = actix_rt::Arbiter::try_current()
    {
        arbiter.spawn(future);
        return;
    }
    runtime.spawn(future);
}

/// The connection between a [`Detachable`] and the future inside it.
///
/// Both run in one task at a time, so that no memory order between threads is needed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attachment(Arc<AtomicU8>);

impl Attachment {
    /// Asks for the future to be finished even if its caller leaves.
    pub(crate) fn hold(&self) {
        self.change(LOOSE, HELD);
    }

    /// Allows the future to be dropped.
    pub(crate) fn loosen(&self) {
        self.change(HELD, LOOSE);
    }

    /// Returns `true` once the caller has left and the future goes on without it.
    pub(crate) fn is_detached(&self) -> bool {
        self.0.load(Ordering::Relaxed) == DETACHED
    }

    /// Records that the caller leaves; returns `true` if the future is to go on.
    fn detach(&self) -> bool {
        self.change(HELD, DETACHED)
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

const LOOSE: u8 = 0;
const HELD: u8 = 1;
const DETACHED: u8 = 2;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::runtime::Builder;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_held_future_is_finished_after_its_caller_has_left() {
        let (mut future, go, ended) = waiting(true);
        assert!(poll(&mut future).is_pending());
        drop(future);
        go.send(()).unwrap();
        assert!(ended.await.unwrap(), "it knows that the caller has left");
    }

    #[tokio::test]
    async fn a_future_that_is_not_held_is_dropped_with_its_caller() {
        let (mut future, go, ended) = waiting(false);
        assert!(poll(&mut future).is_pending());
        drop(future);
        assert!(go.send(()).is_err());
        assert!(ended.await.is_err());
    }

    #[tokio::test]
    async fn a_future_may_be_dropped_outside_of_any_runtime() {
        let (mut future, go, ended) = waiting(true);
        assert!(poll(&mut future).is_pending());
        std::thread::spawn(move || drop(future)).join().unwrap();
        go.send(()).unwrap();
        assert!(ended.await.unwrap());
    }

    #[test]
    fn a_future_whose_runtime_has_ended_is_dropped() {
        let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (mut future, go, ended) = waiting(true);
        runtime.block_on(async { assert!(poll(&mut future).is_pending()) });
        runtime.shutdown_timeout(Duration::from_secs(1));
        drop(future);
        assert!(go.send(()).is_err());
        assert!(ended.blocking_recv().is_err());
    }

    #[tokio::test]
    async fn a_future_that_has_panicked_is_not_polled_again() {
        let attachment = Attachment::default();
        attachment.hold();
        let mut future = Detachable::<()>::new(attachment, Box::pin(async { panic!("once") }));
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| poll(&mut future)));
        assert!(polled.is_err());
        drop(future);
        tokio::task::yield_now().await;
    }

    /// A future that waits for the first channel and then reports whether it is detached.
    fn waiting(is_held: bool) -> (Detachable<()>, oneshot::Sender<()>, oneshot::Receiver<bool>) {
        let attachment = Attachment::default();
        if is_held {
            attachment.hold();
        }
        let ((go, gone), (report, ended)) = (oneshot::channel(), oneshot::channel());
        let inside = attachment.clone();
        let future = async move {
            gone.await.unwrap();
            report.send(inside.is_detached()).unwrap();
        };
        (Detachable::new(attachment, Box::pin(future)), go, ended)
    }

    fn poll<T>(future: &mut Detachable<T>) -> Poll<T> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        Pin::new(future).poll(&mut context)
    }
}
