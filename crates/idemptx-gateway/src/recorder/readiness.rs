//! Readiness of the gateway, for probes.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use idemptx::store::SafetyReport;

/// The state of the store and of the gateway, as probes see it.
#[derive(Debug)]
pub(crate) struct Readiness {
    began: Instant,
    /// Milliseconds from the start to the store's latest reply, plus one; zero before the first.
    store_answered: AtomicU64,
    store_asked: AtomicBool,
    draining: AtomicBool,
    needs_store: AtomicBool,
    report: Mutex<Option<SafetyReport>>,
    /// True while a policy refuses the store for that report.
    store_refused: AtomicBool,
    /// The number of sets of keys for tokens that could not be read the last time.
    unread_key_sets: AtomicUsize,
}

impl Readiness {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            store_answered: AtomicU64::new(0),
            store_asked: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            needs_store: AtomicBool::new(false),
            report: Mutex::default(),
            store_refused: AtomicBool::new(false),
            unread_key_sets: AtomicUsize::new(0),
        }
    }

    /// The time since the start.
    pub(crate) fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// Notes that the store replied, successfully or not.
    pub(crate) fn store_answered(&self) {
        self.store_asked.store(true, Ordering::Relaxed);
        self.store_answered.store(self.millis().saturating_add(1), Ordering::Relaxed);
    }

    /// Notes that the store was queried and has not replied yet.
    pub(crate) fn store_asked(&self) {
        self.store_asked.store(true, Ordering::Relaxed);
    }

    /// Notes what the store promises, and whether a policy refuses it for that.
    pub(crate) fn set_report(&self, report: SafetyReport, is_refused: bool) {
        self.store_refused.store(is_refused, Ordering::Relaxed);
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }

    /// The latest report on the store, once there is one.
    pub(crate) fn report(&self) -> Option<SafetyReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether a policy refuses the store for what it promises.
    pub(crate) fn is_store_refused(&self) -> bool {
        self.store_refused.load(Ordering::Relaxed)
    }

    /// Returns whether the store replied recently; `None` before the first query.
    pub(crate) fn store(&self) -> Option<bool> {
        self.store_asked.load(Ordering::Relaxed).then(|| self.store_answered_within(UP_FOR))
    }

    /// Returns whether the store replied within the limit.
    pub(crate) fn store_answered_within(&self, limit: Duration) -> bool {
        self.answered_within(self.millis(), limit)
    }

    /// Sets whether the gateway is ready only while the store is available.
    pub(crate) fn require_store(&self, required: bool) {
        self.needs_store.store(required, Ordering::Relaxed);
    }

    /// Notes that one more set of keys for tokens cannot be read, or one fewer.
    pub(crate) fn note_key_set(&self, is_read: bool) {
        if is_read {
            self.unread_key_sets.fetch_sub(1, Ordering::Relaxed);
        } else {
            self.unread_key_sets.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Marks the gateway as draining.
    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Returns the status and text of a probe's response; `None` for other paths.
    pub(crate) fn probe(&self, path: &str) -> Option<(StatusCode, String)> {
        let (status, text) = match (path, self.readiness()) {
            ("/healthz", _) => (StatusCode::OK, "alive\n".to_owned()),
            ("/readyz", Ready::Yes) => (StatusCode::OK, "ready\n".to_owned()),
            ("/readyz", Ready::Degraded(why)) => (StatusCode::OK, format!("ready, but {why}\n")),
            ("/readyz", Ready::No(why)) => {
                (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n"))
            }
            _ => return None,
        };
        Some((status, text))
    }

    /// Decides if a load balancer should route here.
    ///
    /// The store is usually one for all gateways: if each left the balancer while it is away, the
    /// requests without a key, which need no store, would find none.
    fn readiness(&self) -> Ready {
        match self.store() {
            _ if self.is_draining() => Ready::No("draining"),
            Some(true) if self.unread_key_sets.load(Ordering::Relaxed) > 0 => {
                Ready::Degraded(NO_KEYS)
            }
            Some(true) => Ready::Yes,
            None => Ready::No("the store has not been checked yet"),
            Some(false) if self.needs_store.load(Ordering::Relaxed) => Ready::No(NO_STORE),
            Some(false) => Ready::Degraded(NO_STORE),
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

/// The answer to a readiness probe, with the reason.
#[derive(Debug, PartialEq, Eq)]
enum Ready {
    Yes,
    Degraded(&'static str),
    No(&'static str),
}

const NO_KEYS: &str = "keys for tokens cannot be read";
const NO_STORE: &str = "the store is unavailable";
/// The time for which a reply of the store counts as recent.
const UP_FOR: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_without_its_store_is_ready_unless_it_needs_it() {
        let readiness = Readiness::new();
        assert_eq!(readiness.store(), None);
        assert!(matches!(readiness.readiness(), Ready::No(_)));
        readiness.store_asked();
        assert_eq!(readiness.readiness(), Ready::Degraded(NO_STORE));
        readiness.require_store(true);
        assert_eq!(readiness.readiness(), Ready::No(NO_STORE));
        readiness.store_answered();
        assert_eq!((readiness.store(), readiness.readiness()), (Some(true), Ready::Yes));
        readiness.note_key_set(false);
        assert_eq!(readiness.readiness(), Ready::Degraded(NO_KEYS));
        readiness.note_key_set(true);
        assert_eq!(readiness.readiness(), Ready::Yes);
        readiness.start_draining();
        assert_eq!(readiness.readiness(), Ready::No("draining"));
    }

    #[test]
    fn an_answer_counts_for_a_while() {
        let readiness = Readiness::new();
        readiness.store_answered();
        assert!(readiness.answered_within(1_000, UP_FOR));
        assert!(!readiness.answered_within(60_000, UP_FOR));
    }
}
