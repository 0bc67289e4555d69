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
#[derive(Debug, Default)]
pub struct TypicalTime(AtomicU64);

impl TypicalTime {
    /// Returns the typical duration; `None` before the first handler ended.
    #[must_use]
    pub fn get(&self) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    /// Records the duration of one handler.
    pub fn took(&self, duration: Duration) {
        let sample = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1);
        let before = self.0.load(Ordering::Relaxed);
        // Lost updates between threads do not matter to an estimate.
        let after = if before == 0 { sample } else { before - before / 8 + sample / 8 };
        self.0.store(after.max(1), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
