//! The threads that read beside the writer: neither waits for the other.

use std::sync::Arc;

use idemptx_core::key::RecordId;
use idemptx_core::store::{Page, Query, RecordSnapshot, StoreError};
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::boot_clock::StoreClock;
use super::file::DatabaseFile;
use super::file_check;
use super::job_queue::{Drain, JobQueue, NextJobs};
use super::list_blobs::list;
use super::records::{RecordReader, Refused};
use super::sqlite_failure::{SqliteCause, SqliteFailure};
use crate::store::SafetyReport;

/// Something to be read, and who waits for it.
#[derive(Debug)]
pub(super) enum ReadJob {
    Look(RecordId, oneshot::Sender<Result<Option<RecordSnapshot>, StoreError>>),
    List(Query, oneshot::Sender<Result<Page, StoreError>>),
    Check(oneshot::Sender<Result<SafetyReport, StoreError>>),
}

impl ReadJob {
    /// Returns true if a task still waits for it.
    pub(super) fn is_wanted(&self) -> bool {
        match self {
            Self::Look(_, answer) => !answer.is_closed(),
            Self::List(_, answer) => !answer.is_closed(),
            Self::Check(answer) => !answer.is_closed(),
        }
    }
}

/// State of a reading thread.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) file: Arc<DatabaseFile>,
    pub(super) clock: Arc<StoreClock>,
    pub(super) queue: Arc<JobQueue<ReadJob>>,
}

impl Reader {
    /// Reads until the queue has come to its end.
    pub(super) fn run(self, connection: &Connection) {
        let _served = Drain(&self.queue);
        let Ok(mut reader) = RecordReader::new(connection) else { return };
        while let NextJobs::Things(read_jobs) = self.queue.next(1, None) {
            for read_job in read_jobs.into_iter().filter(ReadJob::is_wanted) {
                self.answer(&mut reader, connection, read_job);
            }
        }
    }

    fn answer(&self, reader: &mut RecordReader<'_>, connection: &Connection, read_job: ReadJob) {
        // Whoever asked may have left meanwhile.
        match read_job {
            ReadJob::Look(id, answer) => {
                let seen = look(reader, &id, &self.file, &self.clock);
                let _ = answer.send(seen.map_err(StoreError::from));
            }
            ReadJob::List(query, answer) => {
                let _ = answer.send(list(connection, &query, &self.file, &self.clock));
            }
            ReadJob::Check(answer) => {
                let report = file_check::look(connection, &self.file, &self.clock);
                let report = report.map_err(|error| self.file.sqlite(error).into());
                let _ = answer.send(report);
            }
        }
    }
}

/// Reads the record of an id.
pub(super) fn look(
    reader: &mut RecordReader<'_>,
    id: &RecordId,
    file: &DatabaseFile,
    clock: &StoreClock,
) -> Result<Option<RecordSnapshot>, SqliteFailure> {
    if !file.is_in_place() {
        return Err(file.fail(SqliteCause::Replaced));
    }
    match reader.find(id, clock.now()) {
        Ok(found) => Ok(found.map(RecordSnapshot::from)),
        Err(Refused::Sqlite(error)) => Err(file.sqlite(error)),
        Err(Refused::Undecodable(why)) => Err(file.fail(SqliteCause::Undecodable(why))),
        Err(Refused::Kind(_)) => Ok(None),
    }
}
