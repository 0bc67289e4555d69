//! Time as an argument.
//!
//! The core never reads a clock: a driver passes a [`Timestamp`] of its monotonic [`Clock`].
//! Only the store's clock decides if a lease has lapsed.

use std::fmt;
use std::time::Duration;

/// A moment on a driver's monotonic clock, in milliseconds since a moment of the driver's choice.
///
/// Only differences between two timestamps of one clock mean anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Returns the moment `millis` milliseconds after the clock's origin.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Returns the milliseconds since the clock's origin.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Returns the time passed since `earlier`, or zero if this moment is not after it.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Returns the moment `wait` after this one, or the last one that can be expressed.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(millis(wait)))
    }
}

/// A driver's monotonic clock.
///
/// The clock must advance while the process is stopped (`SIGSTOP`), for the start rule to notice
/// the pause: `CLOCK_MONOTONIC` does.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Returns the current moment, never earlier than one returned before.
    fn now(&self) -> Timestamp;
}

/// Converts a duration to whole milliseconds, the unit of every stored time; saturates.
#[must_use]
pub const fn millis(duration: Duration) -> u64 {
    let millis = duration.as_millis();
    if millis > u64::MAX as u128 { u64::MAX } else { millis as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_never_runs_backwards() {
        let early = Timestamp::from_millis(5);
        let late = Timestamp::from_millis(9);
        assert_eq!(late.since(early), Duration::from_millis(4));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(Timestamp::from_millis(u64::MAX).after(Duration::MAX).as_millis(), u64::MAX);
    }
}
