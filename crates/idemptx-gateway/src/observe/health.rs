//! Whether the gateway can do its work: for probes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;

/// What is known of the store and of ourselves.
#[derive(Debug)]
pub(crate) struct Health {
    began: Instant,
    /// Milliseconds from the beginning to the store's last answer, and one; zero before the first.
    answered: AtomicU64,
    asked: AtomicBool,
    draining: AtomicBool,
    guarantee: Mutex<Option<String>>,
}

impl Health {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            answered: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            guarantee: Mutex::default(),
        }
    }

    /// How long the gateway has been there.
    pub(crate) fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// The store has given an answer, whatever it was.
    pub(crate) fn answered(&self) {
        self.asked.store(true, Ordering::Relaxed);
        self.answered.store(self.millis().saturating_add(1), Ordering::Relaxed);
    }

    /// The store was asked and has not answered yet.
    pub(crate) fn asked(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// The store was found to promise this.
    pub(crate) fn promised(&self, guarantee: &str) {
        *self.guarantee.lock().unwrap_or_else(PoisonError::into_inner) = Some(guarantee.to_owned());
    }

    /// What the store was found to promise, once it was.
    pub(crate) fn guarantee(&self) -> Option<String> {
        self.guarantee.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the store has answered lately; `None` before it was asked.
    pub(crate) fn store(&self) -> Option<bool> {
        self.asked.load(Ordering::Relaxed).then(|| self.has_answered_within(UP_FOR))
    }

    /// Whether it need not be asked.
    pub(crate) fn has_answered_within(&self, limit: Duration) -> bool {
        self.had_answered(self.millis(), limit)
    }

    /// The gateway is about to end.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// What a probe is answered: a status and a text; `None` if the path is no probe's.
    pub(crate) fn probe(&self, path: &str) -> Option<(StatusCode, String)> {
        match (path, self.trouble()) {
            ("/healthz", _) => Some((StatusCode::OK, "alive\n".to_owned())),
            ("/readyz", None) => Some((StatusCode::OK, "ready\n".to_owned())),
            ("/readyz", Some(trouble)) => {
                Some((StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {trouble}\n")))
            }
            _ => None,
        }
    }

    /// Why requests should go elsewhere, if they should.
    fn trouble(&self) -> Option<&'static str> {
        match self.store() {
            _ if self.is_draining() => Some("draining"),
            Some(true) => None,
            Some(false) => Some("the store does not answer"),
            None => Some("the store has not been asked yet"),
        }
    }

    fn had_answered(&self, now_millis: u64, limit: Duration) -> bool {
        let Some(last) = self.answered.load(Ordering::Relaxed).checked_sub(1) else { return false };
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
        let health = Health::new();
        assert_eq!((health.store(), health.trouble().is_some()), (None, true));
        health.asked();
        assert_eq!(health.trouble(), Some("the store does not answer"));
        health.answered();
        assert_eq!((health.store(), health.trouble()), (Some(true), None));
        health.drain();
        assert_eq!(health.trouble(), Some("draining"));
    }

    #[test]
    fn an_answer_counts_for_a_while() {
        let health = Health::new();
        health.answered();
        assert!(health.had_answered(1_000, UP_FOR));
        assert!(!health.had_answered(60_000, UP_FOR));
    }
}
