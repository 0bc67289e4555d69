//! Statistics of a process over its exchanges: new keys per principal, and durations of handlers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::time::{Timestamp, millis};

/// Counts each principal's new keys within the current minute, for `new_keys_per_minute_max`.
///
/// A principal is a scope and, where the policy binds keys to headers, the values of those headers:
/// [`Operation::meter_id`](crate::exchange::Operation::meter_id).
#[derive(Debug, Default)]
pub struct KeyMeter(BTreeMap<[u8; 16], Count>);

#[derive(Debug)]
struct Count {
    minute: u64,
    keys: u32,
}

impl KeyMeter {
    /// The most principals that are counted at a time; others are refused until the minute is over.
    pub const PRINCIPALS_MAX: usize = 100_000;

    /// Counts a new key, and returns true if its principal stays within `limit`.
    pub fn admits(&mut self, meter_id: [u8; 16], limit: u32, now: Timestamp) -> bool {
        let minute = millis(now.since(Timestamp::default())) / 60_000;
        let counts = &mut self.0;
        if counts.len() >= Self::PRINCIPALS_MAX {
            counts.retain(|_, count| count.minute == minute);
        }
        if counts.len() >= Self::PRINCIPALS_MAX && !counts.contains_key(&meter_id) {
            return false;
        }
        let count = counts.entry(meter_id).or_insert(Count { minute, keys: 0 });
        if count.minute != minute {
            *count = Count { minute, keys: 0 };
        }
        count.keys = count.keys.saturating_add(1);
        count.keys <= limit
    }
}

/// The smoothed duration of handlers: each new one counts for an eighth.
///
/// Before the first handler has ended, it is the time since the first request, so that a client
/// that comes back after it finds it doubled.
#[derive(Debug, Default)]
pub struct TypicalTime {
    /// In microseconds; 0 before the first handler has ended.
    smoothed: AtomicU64,
    /// The time of the first request in milliseconds, plus one; 0 before it.
    first: AtomicU64,
}

impl TypicalTime {
    /// Returns the typical duration as a request sees it that comes now.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> Duration {
        let smoothed = self.smoothed.load(Ordering::Relaxed);
        if smoothed != 0 {
            return Duration::from_micros(smoothed);
        }
        let since_start = millis(now.since(Timestamp::default()));
        let begun = since_start.saturating_add(1);
        let first = self.first.compare_exchange(0, begun, Ordering::Relaxed, Ordering::Relaxed);
        Duration::from_millis(begun.saturating_sub(first.err().unwrap_or(begun)))
    }

    /// Records the duration of one handler.
    pub fn took(&self, duration: Duration) {
        let sample = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1);
        let before = self.smoothed.load(Ordering::Relaxed);
        // Lost updates between threads do not matter to an estimate.
        let after = if before == 0 { sample } else { before - before / 8 + sample / 8 };
        self.smoothed.store(after.max(1), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
