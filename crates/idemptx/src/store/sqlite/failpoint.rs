//! Moments at which a process under test ends.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Ends the process, as a crash does, if it was started to end here and has been here often enough.
pub(super) fn reach(point: &str) {
    let Some((chosen, times)) = &*CHOSEN else { return };
    if point == chosen && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == *times {
        std::process::abort();
    }
}

/// The name of the variable with the moment and, after a blank, how often it is let pass.
pub(super) const VARIABLE: &str = "IDEMPTX_TEST_CRASH";

static CHOSEN: LazyLock<Option<(String, u32)>> = LazyLock::new(|| {
    let text = std::env::var(VARIABLE).ok()?;
    let (point, times) = text.split_once(' ')?;
    Some((point.to_owned(), times.parse().ok()?))
});
static REACHED: AtomicU32 = AtomicU32::new(0);
