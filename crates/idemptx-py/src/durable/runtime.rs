//! The runtime on which the stores wait: one for the process, started when first needed.

use std::io;
use std::sync::{Mutex, PoisonError};

use pyo3::Python;
use tokio::runtime::{Builder, Handle, Runtime};

use super::fork_guard::ForkGuard;

/// Returns the runtime of this process; a child made by `fork` gets a separate one.
///
/// Called only by attached threads, so that no process is forked while the runtime starts.
pub(super) fn handle(_attached: Python<'_>) -> io::Result<Handle> {
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = current.as_ref().and_then(ForkGuard::get) {
        return Ok(runtime.handle().clone());
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(OPENING_MAX)
        .thread_name("idemptx-store")
        .enable_all()
        .build()?;
    let handle = runtime.handle().clone();
    *current = Some(ForkGuard::new(runtime));
    Ok(handle)
}

static CURRENT: Mutex<Option<ForkGuard<Runtime>>> = Mutex::new(None);
/// One thread suffices to move bytes between sockets and futures; SQLite starts more.
const THREADS: usize = 1;
/// The largest number of files opened at the same time.
const OPENING_MAX: usize = 4;
