//! The runtime on which the stores wait: one for the process, started when first needed.

use std::io;
use std::sync::{Mutex, PoisonError};

use pyo3::Python;
use tokio::runtime::{Builder, Handle, Runtime};

use super::native::Native;

/// The runtime of this process; a child made by `fork` gets one of its own.
///
/// Asked for by attached threads alone, so that no process is forked while it is being started.
pub(super) fn handle(_attached: Python<'_>) -> io::Result<Handle> {
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = current.as_ref().and_then(Native::get) {
        return Ok(runtime.handle().clone());
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(OPENING_MAX)
        .thread_name("idemptx-store")
        .enable_all()
        .build()?;
    let handle = runtime.handle().clone();
    *current = Some(Native::new(runtime));
    Ok(handle)
}

static CURRENT: Mutex<Option<Native<Runtime>>> = Mutex::new(None);
/// It moves bytes between sockets and futures; SQLite has threads of its own.
const THREADS: usize = 1;
/// How many files may be opened at a time.
const OPENING_MAX: usize = 4;
