//! Limits lines that a failure repeats with every request.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A limit on the lines of one cause.
#[derive(Debug, Default)]
pub(crate) struct LogRate(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    logged: u32,
    suppressed: u64,
}

impl LogRate {
    /// Returns what a line that may be logged now ends with: how many were suppressed before it.
    pub(crate) fn admit(&self) -> Option<String> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<String> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.began.is_none_or(|began| now.duration_since(began) >= WINDOW) {
            let suppressed = window.suppressed;
            *window = Window { began: Some(now), logged: 1, suppressed: 0 };
            return Some(match suppressed {
                0 => String::new(),
                number => format!(" ({number} more suppressed)"),
            });
        }
        if window.logged < LINES_MAX {
            window.logged += 1;
            return Some(String::new());
        }
        window.suppressed += 1;
        None
    }
}

const WINDOW: Duration = Duration::from_secs(10);
const LINES_MAX: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_a_handful_are_counted_in_the_next() {
        let (rate, start) = (LogRate::default(), Instant::now());
        let lines = (0..100).filter_map(|_| rate.admit_at(start)).collect::<Vec<_>>();
        assert_eq!(lines, vec![String::new(); LINES_MAX as usize]);
        assert_eq!(rate.admit_at(start + WINDOW).as_deref(), Some(" (90 more suppressed)"));
        assert_eq!(rate.admit_at(start + WINDOW).as_deref(), Some(""));
    }
}
