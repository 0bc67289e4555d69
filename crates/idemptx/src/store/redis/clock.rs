//! The server's clock, read ahead between questions.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

/// What the server's clock shows, by its answer at the last connect and the time since.
///
/// It dates the fences of claims that the plain `SET` grants, where nobody else is in sight.
/// Those need no exact clock: a fence must exceed that of any earlier owner who may still be
/// alive, and whoever takes a record over from one is granted it by a script, which reads both the
/// predecessor's fence and the server's own clock.
/// A plain grant finds nothing: its predecessor gave the record up, or let it stand for a whole
/// retention, which is far more than the clocks can be apart.
#[derive(Debug)]
pub(super) struct ServerClock {
    origin: Instant,
    micros_at_origin: AtomicU64,
}

impl ServerClock {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), micros_at_origin: AtomicU64::new(0) }
    }

    /// Takes what it shows right now, in microseconds since the Unix epoch.
    pub(super) fn set(&self, micros: u64) {
        self.micros_at_origin.store(micros.saturating_sub(self.elapsed()), Ordering::Relaxed);
    }

    /// Microseconds since the Unix epoch.
    pub(super) fn micros(&self) -> u64 {
        self.micros_at_origin.load(Ordering::Relaxed).saturating_add(self.elapsed())
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}
