//! The journal of executions, which can be counted in it across processes and kills.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// An append-only file of one line an event, which several processes may share.
#[derive(Debug)]
pub struct Journal(File);

impl Journal {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    ///
    /// If it cannot be opened for appending.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().create(true).append(true).open(path).map(Self)
    }

    /// Writes one line, in one piece and through to the disk, which blocks.
    ///
    /// # Panics
    ///
    /// If it cannot be written: an execution that is not counted must not go on.
    pub fn record(&self, event: &str, method: &str, path: &str, key: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let line = format!("{now} {} {event} {method} {path} {key}\n", std::process::id());
        let written = (&self.0).write_all(line.as_bytes()).and_then(|()| self.0.sync_data());
        written.expect("the journal can be written");
    }
}
