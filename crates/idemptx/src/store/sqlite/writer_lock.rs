//! The lock that gives the processes of a file turns in writing.
//!
//! SQLite gives its lock to the process that asks at the right moment, and the others poll: with
//! several busy processes some would wait for ever.
//! So each first takes the turn, a lock of the operating system on a file beside the database,
//! which wakes the process that waits for it.
//! It is for fairness alone: that only one writes is SQLite's doing.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The right to take turns in writing a file.
#[derive(Debug)]
pub(super) struct WriterLock(File);

impl WriterLock {
    /// Opens the file beside the database, and creates it if need be.
    pub(super) fn open(database: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, super::file::MODE);
        // A file has one, whatever links lead to it, as SQLite has one log for all of them.
        let file = database.canonicalize();
        options.open(beside(file.as_deref().unwrap_or(database), "-turn")).map(Self)
    }

    /// Waits for this process's turn.
    pub(super) fn take(&self) -> io::Result<WriterGuard<'_>> {
        for _ in 0..INTERRUPTIONS_MAX {
            match self.0.lock() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                taken => return taken.map(|()| WriterGuard(&self.0)),
            }
        }
        Err(io::Error::from(io::ErrorKind::Interrupted))
    }

    /// Waits for this process's turn for a limited time.
    pub(super) fn take_within(&self, patience: Duration) -> io::Result<WriterGuard<'_>> {
        let deadline = Instant::now() + patience;
        loop {
            match self.0.try_lock() {
                Ok(()) => return Ok(WriterGuard(&self.0)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(LOOK_AGAIN);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::from(io::ErrorKind::TimedOut));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

/// A turn, until dropped.
#[derive(Debug)]
pub(super) struct WriterGuard<'a>(&'a File);

impl Drop for WriterGuard<'_> {
    fn drop(&mut self) {
        // It ends with the process at the latest.
        let _ = self.0.unlock();
    }
}

/// The name of a file that belongs to the database.
pub(super) fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Signals that come in while it waits.
const INTERRUPTIONS_MAX: u32 = 1000;
const LOOK_AGAIN: Duration = Duration::from_millis(5);
