//! The results of the last moments, for a server that has forgotten them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idemptx_core::lease::Lease;
use idemptx_core::store::Settlement;
use tokio::time::Instant;

/// Results that were acknowledged lately, the oldest first.
#[derive(Default)]
pub(super) struct Recent(Mutex<Results>);

#[derive(Default)]
struct Results {
    queue: VecDeque<(Instant, Lease, Settlement)>,
    bytes: usize,
}

impl Recent {
    /// Keeps a result for so long, unless there are too many.
    pub(super) fn keep(&self, lease: &Lease, done: &Settlement, age_max: Duration) {
        if done.payload.len() > RESULT_BYTES_MAX {
            return;
        }
        let mut results = self.results();
        results.bytes += done.payload.len();
        results.queue.push_back((Instant::now(), lease.clone(), done.clone()));
        while let Some((since, ..)) = results.queue.front()
            && (since.elapsed() > age_max
                || results.queue.len() > RESULTS_MAX
                || results.bytes > BYTES_MAX)
        {
            if let Some((_, _, done)) = results.queue.pop_front() {
                results.bytes -= done.payload.len();
            }
        }
    }

    /// Returns what is no older than this.
    pub(super) fn since(&self, age_max: Duration) -> Vec<(Lease, Settlement)> {
        let results = self.results();
        let recent = results.queue.iter().filter(|(since, ..)| since.elapsed() <= age_max);
        recent.map(|(_, lease, done)| (lease.clone(), done.clone())).collect()
    }

    /// Poisoning is ignored: no code in this file panics while it holds the lock.
    fn results(&self) -> MutexGuard<'_, Results> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Number of results that are kept.
const RESULTS_MAX: usize = 10_000;
/// Bytes of all responses that are kept.
const BYTES_MAX: usize = 32 << 20;
/// Bytes of a response that is kept at all.
const RESULT_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use idemptx_core::fingerprint::Fingerprint;
    use idemptx_core::key::RecordId;
    use idemptx_core::lease::Token;
    use idemptx_core::record::State;
    use idemptx_core::store::ClaimRequest;

    fn lease(number: u8) -> Lease {
        let (term, token) = (Duration::from_secs(1), Token::from_bytes([number; Token::BYTES]));
        let fingerprint =
            Fingerprint { config: 0, digest: [0; 32], binding: [0; 16], operation: [4; 16] };
        let request = ClaimRequest::new(token, fingerprint, term, term);
        Lease::granted(RecordId::from_bytes([number; RecordId::BYTES]), &request, 1, 1)
    }

    #[tokio::test(start_paused = true)]
    async fn results_are_kept_for_a_while_and_within_limits() {
        let (recent, age) = (Recent::default(), Duration::from_secs(30));
        let done =
            |bytes: usize| Settlement::new(State::Completed, Bytes::from(vec![0; bytes]), age, age);
        recent.keep(&lease(1), &done(10), age);
        recent.keep(&lease(2), &done(RESULT_BYTES_MAX + 1), age);
        tokio::time::advance(Duration::from_secs(20)).await;
        recent.keep(&lease(3), &done(10), age);
        let ids = |age| recent.since(age).iter().map(|(it, _)| it.token).collect::<Vec<_>>();
        assert_eq!(ids(age), [lease(1).token, lease(3).token]);
        assert_eq!(ids(Duration::from_secs(10)), [lease(3).token]);
        tokio::time::advance(Duration::from_secs(20)).await;
        for number in 4..100 {
            recent.keep(&lease(number), &done(RESULT_BYTES_MAX), age);
        }
        let results = recent.results();
        assert!(results.bytes <= BYTES_MAX);
        assert_eq!(results.queue.len(), BYTES_MAX / RESULT_BYTES_MAX);
    }
}
