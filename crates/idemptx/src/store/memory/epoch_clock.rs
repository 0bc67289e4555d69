//! The clock of a store without another one.

use std::time::{Instant, SystemTime};

use idemptx_core::time::{Clock, Timestamp, millis};

/// Counts from the Unix epoch, but is never set: what the system's clock said when the store was
/// made, and what the monotonic clock has counted since.
#[derive(Debug)]
pub(in crate::store) struct SinceEpoch {
    made: Instant,
    epoch: Timestamp,
}

impl SinceEpoch {
    pub(in crate::store) fn new() -> Self {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let epoch = Timestamp::from_millis(millis(since_epoch.unwrap_or_default()));
        Self { made: Instant::now(), epoch }
    }
}

impl Clock for SinceEpoch {
    fn now(&self) -> Timestamp {
        self.epoch.after(self.made.elapsed())
    }
}
