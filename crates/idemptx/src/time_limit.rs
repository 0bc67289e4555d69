//! A time limit on store operations.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use idemptx_core::store::{ErrorKind, StoreError};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

/// Runs a store operation for at most `limit`; later its outcome counts as unknown.
///
/// # Cancel safety
///
/// As that of the operation.
pub(crate) fn limited<T, F>(
    limit: Duration,
    operation: F,
) -> impl Future<Output = Result<T, StoreError>>
where
    F: Future<Output = Result<T, StoreError>>,
{
    limited_or(limit, operation, || ErrorKind::Unavailable.into())
}

/// Runs an operation for at most `limit`; later it fails as `late` says.
///
/// # Cancel safety
///
/// As that of the operation.
pub(crate) fn limited_or<T, E, F>(
    limit: Duration,
    operation: F,
    late: impl Fn() -> E,
) -> impl Future<Output = Result<T, E>>
where
    F: Future<Output = Result<T, E>>,
{
    Limited { operation, limit, deadline: None, late }
}

pin_project! {
    struct Limited<F, L> {
        #[pin]
        operation: F,
        limit: Duration,
        #[pin]
        deadline: Option<Sleep>,
        late: L,
    }
}

impl<T, E, F, L> Future for Limited<F, L>
where
    F: Future<Output = Result<T, E>>,
    L: Fn() -> E,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(outcome) = this.operation.poll(cx) {
            return Poll::Ready(outcome);
        }
        // The timer is made only for an operation that is not ready at once: it costs an entry in
        // the runtime's timer wheel and a reading of the clock, which the memory store need not pay.
        if this.deadline.is_none() {
            this.deadline.set(Some(sleep(*this.limit)));
        }
        match this.deadline.as_pin_mut().map(|deadline| deadline.poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Err((this.late)())),
            _ => Poll::Pending,
        }
    }
}
