//! Notices the end of claims that other processes settle or release.
//!
//! The writer notifies about the claims of this process.
//! For those of other processes a thread queries `PRAGMA data_version` every [`POLL_INTERVAL`] as
//! long as a task waits: that takes a few microseconds, and the watched records are read only after
//! another process has written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use idemptx_core::key::RecordId;
use idemptx_core::lease::Token;
use idemptx_core::store::RecordSnapshot;
use rusqlite::Connection;

use super::boot_clock::StoreClock;
use super::file::DatabaseFile;
use super::reader;
use super::records::RecordReader;
use crate::store::notifier::Notifier;

/// State of the polling thread.
#[derive(Debug)]
pub(super) struct Poller {
    pub(super) file: Arc<DatabaseFile>,
    pub(super) clock: Arc<StoreClock>,
    pub(super) notifier: Arc<Notifier>,
}

impl Poller {
    /// Polls until the store is closed.
    pub(super) fn run(self, connection: &Connection) {
        let Ok(mut reader) = RecordReader::new(connection) else { return };
        let Ok(mut version) = connection.prepare("PRAGMA data_version") else { return };
        let mut last = None;
        while let Some(claims) = self.notifier.wait_for_watched() {
            let began = Instant::now();
            // A failed query counts as a change.
            let now = version.query_row([], |row| row.get::<_, i64>(0)).ok();
            if now.is_none() || now != last {
                claims.iter().for_each(|(id, token)| self.check(&mut reader, id, *token));
                last = now;
            }
            // On a busy file with many claims the polling takes at most a tenth of the time.
            std::thread::sleep(POLL_INTERVAL.max(began.elapsed() * 10).min(POLL_INTERVAL_MAX));
        }
    }

    fn check(&self, reader: &mut RecordReader<'_>, id: &RecordId, token: Option<Token>) {
        match reader::look(reader, id, &self.file, &self.clock) {
            Ok(Some(RecordSnapshot::Held(holder)))
                if token.is_none_or(|token| token == holder.token) => {}
            // The woken task reads what is there now, or gets the error.
            _ => self.notifier.notify(id),
        }
    }
}

/// Delay after which the end of a claim in another process is noticed at the latest.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Longest pause between two polls.
const POLL_INTERVAL_MAX: Duration = Duration::from_millis(100);
