//! Repetition of store operations that may be sent twice.

use std::future::Future;
use std::time::Duration;

pub(crate) use idemptx_core::coordination::Backoff;
use idemptx_core::store::{ErrorKind, StoreError};
use tokio::time::{Instant, sleep};

/// Repeats an operation until it has a final outcome, or until the next attempt would begin after
/// `limit`; returns the last outcome.
///
/// `attempt` gets the time that is left.
///
/// # Cancel safety
///
/// As that of the operation.
pub(crate) async fn retry_within<T, F>(
    limit: Duration,
    mut backoff: Backoff,
    is_retryable: impl Fn(ErrorKind) -> bool,
    mut attempt: impl FnMut(Duration) -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let began = Instant::now();
    let mut left = limit;
    loop {
        let outcome = attempt(left).await;
        match &outcome {
            Err(error) if is_retryable(error.kind()) => {}
            _ => return outcome,
        }
        let pause = backoff.next_pause();
        left = limit.saturating_sub(began.elapsed() + pause);
        if left.is_zero() {
            return outcome;
        }
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::ready;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_unknown_outcome_is_repeated_with_growing_pauses_until_it_is_known() {
        let (began, attempts) = (Instant::now(), Cell::new(0));
        let outcome = retry_within(MINUTE, BACKOFF, ErrorKind::is_transient, |_| {
            attempts.set(attempts.get() + 1);
            ready(if attempts.get() < 5 { Err(ErrorKind::Unavailable.into()) } else { Ok(7) })
        });
        assert_eq!(outcome.await.unwrap(), 7);
        assert_eq!((attempts.get(), began.elapsed().as_millis()), (5, 10 + 20 + 40 + 40));
    }

    #[tokio::test(start_paused = true)]
    async fn a_final_error_is_not_repeated() {
        let attempts = Cell::new(0);
        let outcome = retry_within(MINUTE, BACKOFF, ErrorKind::is_transient, |_| {
            attempts.set(attempts.get() + 1);
            ready(Err::<(), _>(ErrorKind::Fenced.into()))
        });
        assert_eq!(outcome.await.unwrap_err().kind(), ErrorKind::Fenced);
        assert_eq!(attempts.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn no_attempt_begins_after_the_deadline() {
        let began = Instant::now();
        let last = Cell::new(MINUTE);
        let outcome =
            retry_within(Duration::from_millis(100), BACKOFF, ErrorKind::is_transient, |left| {
                last.set(left);
                ready(Err::<(), _>(ErrorKind::Unavailable.into()))
            });
        assert_eq!(outcome.await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!((began.elapsed().as_millis(), last.get().as_millis()), (70, 30));
    }

    const BACKOFF: Backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(40));
    const MINUTE: Duration = Duration::from_secs(60);
}
