use std::time::Duration;

/// The pauses between repetitions, each twice as long as the one before, up to a maximum.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pause: Duration,
    pause_max: Duration,
}

impl Backoff {
    /// Starts with `pause` and doubles it up to `pause_max`.
    #[must_use]
    pub const fn new(pause: Duration, pause_max: Duration) -> Self {
        Self { pause, pause_max }
    }

    /// Returns the next pause.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = pause.saturating_mul(2).min(self.pause_max);
        pause
    }
}
