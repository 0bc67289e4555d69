//! Moments at which a process under test ends.

use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Kills the process if it was started to end here and has been here often enough.
pub(super) fn reach(point: &str) {
    let Some(crash) = &*CHOSEN else { return };
    if point != crash.point || REACHED.fetch_add(1, Ordering::Relaxed) + 1 != crash.times {
        return;
    }
    if crash.later.is_zero() {
        kill();
    }
    std::thread::spawn(|| {
        std::thread::sleep(crash.later);
        kill();
    });
}

/// Ends the process without any preparation.
fn kill() -> ! {
    let own = std::process::id().to_string();
    let _ = Command::new("kill").args(["-s", "KILL", &own]).status();
    std::process::abort();
}

/// Point at which a process ends.
struct Crash {
    point: String,
    times: u32,
    later: Duration,
}

/// The name of the variable with the moment, how often it is come to, and how many microseconds
/// later the end is, with commas in between.
pub(super) const VARIABLE: &str = "IDEMPTX_TEST_CRASH";

static CHOSEN: LazyLock<Option<Crash>> = LazyLock::new(|| {
    let text = std::env::var(VARIABLE).ok()?;
    let mut parts = text.split(',');
    let point = parts.next()?.to_owned();
    let times = parts.next()?.parse().ok()?;
    let later = Duration::from_micros(parts.next()?.parse().ok()?);
    Some(Crash { point, times, later })
});
static REACHED: AtomicU32 = AtomicU32::new(0);
