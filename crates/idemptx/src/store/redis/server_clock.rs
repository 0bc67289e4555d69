//! The server's clock, read ahead between questions.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

/// The server's clock, extrapolated from its answer at the last connect.
///
/// It dates the fences of claims that the plain `SET` grants, without a competing claim.
/// Those need no exact clock: a fence must exceed that of any earlier owner who may still be
/// alive, and a claim that takes a record over is granted by a script, which reads both the
/// predecessor's fence and the server's own clock.
/// A plain grant finds nothing: its predecessor gave the record up, or let it stand for a whole
/// retention.
/// Two processes read the server's clock apart by up to the time that a connect may take, so after
/// a release in one of them the other may grant a lower fence: no promise is made about those.
#[derive(Debug)]
pub(super) struct ServerClock {
    origin: Instant,
    micros_at_origin: AtomicU64,
}

impl ServerClock {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), micros_at_origin: AtomicU64::new(0) }
    }

    /// Takes what it showed, in microseconds since the Unix epoch, when it was asked at `asked`.
    ///
    /// It may be ahead of the server by the time that the question took to get there, and is never
    /// late: a claim after a fence of the server has a greater one.
    pub(super) fn set(&self, micros: u64, asked: Instant) {
        let at_origin = micros.saturating_sub(micros_since(self.origin, asked));
        self.micros_at_origin.fetch_max(at_origin, Ordering::Relaxed);
    }

    /// Microseconds since the Unix epoch.
    pub(super) fn micros(&self) -> u64 {
        let elapsed = micros_since(self.origin, Instant::now());
        self.micros_at_origin.load(Ordering::Relaxed).saturating_add(elapsed)
    }
}

fn micros_since(origin: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(origin).as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_took_its_time_does_not_put_it_behind_the_server() {
        let clock = ServerClock::new();
        let asked = Instant::now();
        tokio::time::advance(Duration::from_millis(30)).await;
        // What the server showed when the question came, 30 ms ago at most.
        clock.set(1_000_000, asked);
        assert_eq!(clock.micros(), 1_030_000);
        tokio::time::advance(Duration::from_millis(5)).await;
        assert_eq!(clock.micros(), 1_035_000);
    }

    #[tokio::test(start_paused = true)]
    async fn it_never_goes_back() {
        let clock = ServerClock::new();
        clock.set(1_000_000, Instant::now());
        clock.set(900_000, Instant::now());
        assert_eq!(clock.micros(), 1_000_000);
    }
}
