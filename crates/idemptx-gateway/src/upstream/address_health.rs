//! The health of an address: what checks, connects and responses say of it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Ejection;

/// The health of an address: as good as others, or the last resort.
#[derive(Debug, Default)]
pub(super) struct AddressHealth {
    /// Set by checks.
    is_unhealthy: AtomicBool,
    /// Consecutive failures of requests.
    failures: AtomicU32,
    /// Set from an ejection, or a connect that failed, until the first success after it.
    is_returning: AtomicBool,
    ejections: AtomicU64,
    passive: Mutex<Passive>,
}

/// The findings of requests.
#[derive(Debug, Default)]
struct Passive {
    /// The end of the time in which other addresses are preferred.
    until: Option<Instant>,
    /// The end of the last ejection.
    ejected_until: Option<Instant>,
    /// Ejections in a row, by which their time grows.
    streak: u32,
}

impl AddressHealth {
    /// Prefers other addresses for a while, after a connect that failed; returns whether it is the
    /// first since the last success.
    pub(super) fn mark_unreachable(&self, now: Instant, down: Duration) -> bool {
        let mut passive = self.passive();
        passive.until = passive.until.max(Some(now + down));
        !self.is_returning.swap(true, Ordering::Relaxed)
    }

    /// Notes a connect that succeeded; an ejection goes on.
    pub(super) fn mark_reachable(&self) {
        let mut passive = self.passive();
        passive.until = passive.ejected_until;
    }

    /// Sets what checks have found; an address that is well again is as good as any other.
    pub(super) fn set_checked(&self, is_well: bool) {
        self.is_unhealthy.store(!is_well, Ordering::Relaxed);
        if is_well {
            let mut passive = self.passive();
            (passive.until, passive.ejected_until) = (None, None);
            self.failures.store(0, Ordering::Relaxed);
            self.is_returning.store(false, Ordering::Relaxed);
        }
    }

    /// Returns whether checks have found it unhealthy.
    pub(super) fn is_unhealthy(&self) -> bool {
        self.is_unhealthy.load(Ordering::Relaxed)
    }

    /// Returns whether other addresses are preferred.
    pub(super) fn is_last_resort(&self, now: Instant) -> bool {
        self.is_unhealthy() || self.passive().until.is_some_and(|until| now < until)
    }

    /// Notes a response that is no failure; returns whether it is the first after an ejection or a
    /// connect that failed.
    pub(super) fn succeeded(&self, now: impl FnOnce() -> Instant) -> bool {
        // Read first: most requests find nothing to change.
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        self.is_returning.load(Ordering::Relaxed)
            && !self.is_last_resort(now())
            && self.is_returning.swap(false, Ordering::Relaxed)
    }

    /// Counts a failure, and returns how many there are in a row; zero during an ejection.
    pub(super) fn failed(&self, now: Instant) -> u32 {
        if self.passive().ejected_until.is_some_and(|until| now < until) {
            return 0;
        }
        self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Ejects the address, and returns for how long: longer each time, unless it was well for as
    /// long as an ejection takes; `None` if it is ejected already.
    pub(super) fn eject(&self, now: Instant, ejection: &Ejection) -> Option<Duration> {
        let mut passive = self.passive();
        if passive.ejected_until.is_some_and(|until| now < until) {
            return None;
        }
        let well = passive.ejected_until.map_or(Duration::MAX, |end| now.duration_since(end));
        let forgotten = well.as_nanos() / ejection.base.as_nanos().max(1);
        let forgotten = u32::try_from(forgotten).unwrap_or(u32::MAX);
        passive.streak = passive.streak.saturating_sub(forgotten).saturating_add(1);
        let time = ejection.base.saturating_mul(passive.streak).min(ejection.max);
        passive.ejected_until = Some(now + time);
        passive.until = passive.until.max(passive.ejected_until);
        self.failures.store(0, Ordering::Relaxed);
        self.is_returning.store(true, Ordering::Relaxed);
        self.ejections.fetch_add(1, Ordering::Relaxed);
        Some(time)
    }

    /// Returns how often it was ejected.
    pub(super) fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    fn passive(&self) -> MutexGuard<'_, Passive> {
        self.passive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ejection() -> Ejection {
        toml::from_str("base_ms = 1000\nmax_ms = 2500").unwrap()
    }

    #[test]
    fn an_ejection_takes_longer_each_time_and_less_after_a_good_while() {
        let (health, ejection, mut now) = (AddressHealth::default(), ejection(), Instant::now());
        for (well_ms, takes_ms) in
            [(0, 1000), (10, 2000), (10, 2500), (10, 2500), (1_500, 2500), (60_000, 1000)]
        {
            now += Duration::from_millis(well_ms);
            let time = health.eject(now, &ejection).unwrap();
            assert_eq!(time, Duration::from_millis(takes_ms), "after {well_ms} ms");
            assert_eq!(health.eject(now, &ejection), None, "that is one ejection");
            assert!(health.is_last_resort(now));
            now += time;
            assert!(!health.is_last_resort(now));
        }
        assert_eq!(health.ejections(), 6);
    }

    #[test]
    fn only_failures_in_a_row_count_and_none_during_an_ejection() {
        let (health, ejection, now) = (AddressHealth::default(), ejection(), Instant::now());
        assert_eq!((health.failed(now), health.failed(now)), (1, 2));
        assert!(!health.succeeded(|| now));
        assert_eq!(health.failed(now), 1);
        let end = now + health.eject(now, &ejection).unwrap();
        assert_eq!((health.failed(now), health.failed(end)), (0, 1));
        assert!(!health.succeeded(|| now), "it is still ejected");
        assert!(health.succeeded(|| end) && !health.succeeded(|| end), "once");
    }

    #[test]
    fn a_connect_neither_shortens_an_ejection_nor_is_longer_for_one() {
        let (health, ejection, now) = (AddressHealth::default(), ejection(), Instant::now());
        let later = now + Duration::from_millis(10);
        let down = Duration::from_millis(20);
        assert!(health.mark_unreachable(now, down) && !health.mark_unreachable(now, down));
        health.mark_reachable();
        assert!(!health.is_last_resort(later));
        let end = now + health.eject(now, &ejection).unwrap();
        health.mark_unreachable(now, Duration::from_millis(5));
        assert!(health.is_last_resort(later));
        health.mark_reachable();
        assert!(health.is_last_resort(later) && !health.is_last_resort(end));
    }

    #[test]
    fn an_address_that_checks_find_well_again_is_used_at_once() {
        let (health, now) = (AddressHealth::default(), Instant::now());
        assert!(health.eject(now, &ejection()).is_some());
        health.set_checked(false);
        health.set_checked(true);
        assert!(!health.is_last_resort(now));
        assert_eq!(health.failed(now), 1);
    }
}
