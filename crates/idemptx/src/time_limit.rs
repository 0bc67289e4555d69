//! A time limit on store operations.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use idemptx_core::store::{ErrorKind, StoreError};
use tokio::time::sleep;

/// Runs a store operation for at most `limit`; later its outcome counts as unknown.
///
/// # Cancel safety
///
/// As that of the operation.
pub(crate) async fn limited<T>(
    limit: Duration,
    operation: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    limited_or(limit, operation, || ErrorKind::Unavailable.into()).await
}

/// Runs an operation for at most `limit`; later it fails as `late` says.
///
/// # Cancel safety
///
/// As that of the operation.
pub(crate) async fn limited_or<T, E>(
    limit: Duration,
    operation: impl Future<Output = Result<T, E>>,
    late: impl FnOnce() -> E,
) -> Result<T, E> {
    let mut operation = pin!(operation);
    // The timer is made only for an operation that is not ready at once: it costs an entry in the
    // runtime's timer wheel and a reading of the clock, which the memory store need not pay.
    let mut deadline = pin!(None);
    let in_time = poll_fn(move |cx| {
        if let Poll::Ready(outcome) = operation.as_mut().poll(cx) {
            return Poll::Ready(Some(outcome));
        }
        if deadline.is_none() {
            deadline.set(Some(sleep(limit)));
        }
        match deadline.as_mut().as_pin_mut().map(|deadline| deadline.poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(None),
            _ => Poll::Pending,
        }
    });
    in_time.await.unwrap_or_else(|| Err(late()))
}
