//! Whether the gateway can do its work: for probes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;

/// What is known of the store and of ourselves.
#[derive(Debug)]
pub(crate) struct Readiness {
    began: Instant,
    /// Milliseconds from the beginning to the store's last answer, and one; zero before the first.
    store_answered: AtomicU64,
    store_asked: AtomicBool,
    draining: AtomicBool,
    guarantee: Mutex<Option<String>>,
}

impl Readiness {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            store_answered: AtomicU64::new(0),
            store_asked: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            guarantee: Mutex::default(),
        }
    }

    /// How long the gateway has been there.
    pub(crate) fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// The store has given an answer, whatever it was.
    pub(crate) fn store_answered(&self) {
        self.store_asked.store(true, Ordering::Relaxed);
        self.store_answered.store(self.millis().saturating_add(1), Ordering::Relaxed);
    }

    /// The store was asked and has not answered yet.
    pub(crate) fn store_asked(&self) {
        self.store_asked.store(true, Ordering::Relaxed);
    }

    /// The store was found to promise this.
    pub(crate) fn set_guarantee(&self, guarantee: &str) {
        *self.guarantee.lock().unwrap_or_else(PoisonError::into_inner) = Some(guarantee.to_owned());
    }

    /// What the store was found to promise, once it was.
    pub(crate) fn guarantee(&self) -> Option<String> {
        self.guarantee.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the store has answered lately; `None` before it was asked.
    pub(crate) fn store(&self) -> Option<bool> {
        self.store_asked.load(Ordering::Relaxed).then(|| self.store_answered_within(UP_FOR))
    }

    /// Whether it need not be asked.
    pub(crate) fn store_answered_within(&self, limit: Duration) -> bool {
        self.answered_within(self.millis(), limit)
    }

    /// The gateway is about to end.
    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// What a probe is answered: a status and a text; `None` if the path is no probe's.
    pub(crate) fn probe(&self, path: &str) -> Option<(StatusCode, String)> {
        match (path, self.not_ready_reason()) {
            ("/healthz", _) => Some((StatusCode::OK, "alive\n".to_owned())),
            ("/readyz", None) => Some((StatusCode::OK, "ready\n".to_owned())),
            ("/readyz", Some(not_ready_reason)) => {
                Some((StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {not_ready_reason}\n")))
            }
            _ => None,
        }
    }

    /// Why requests should go elsewhere, if they should.
    fn not_ready_reason(&self) -> Option<&'static str> {
        match self.store() {
            _ if self.is_draining() => Some("draining"),
            Some(true) => None,
            Some(false) => Some("the store does not answer"),
            None => Some("the store has not been asked yet"),
        }
    }

    fn answered_within(&self, now_millis: u64, limit: Duration) -> bool {
        let Some(last) = self.store_answered.load(Ordering::Relaxed).checked_sub(1) else {
            return false;
        };
        u128::from(now_millis.saturating_sub(last)) <= limit.as_millis()
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// How long an answer counts.
const UP_FOR: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_who_has_a_store_and_does_not_drain() {
        let readiness = Readiness::new();
        assert_eq!((readiness.store(), readiness.not_ready_reason().is_some()), (None, true));
        readiness.store_asked();
        assert_eq!(readiness.not_ready_reason(), Some("the store does not answer"));
        readiness.store_answered();
        assert_eq!((readiness.store(), readiness.not_ready_reason()), (Some(true), None));
        readiness.start_draining();
        assert_eq!(readiness.not_ready_reason(), Some("draining"));
    }

    #[test]
    fn an_answer_counts_for_a_while() {
        let readiness = Readiness::new();
        readiness.store_answered();
        assert!(readiness.answered_within(1_000, UP_FOR));
        assert!(!readiness.answered_within(60_000, UP_FOR));
    }
}
