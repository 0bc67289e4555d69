//! The threads that read beside the writer: neither waits for the other.

use std::sync::Arc;

use idemptx_core::key::RecordId;
use idemptx_core::store::{Page, Query, RecordSnapshot, StoreError};
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::check;
use super::clock::StoreClock;
use super::failure::{Cause, Failure};
use super::file::DatabaseFile;
use super::listing::list;
use super::queue::{Next, Queue, Served};
use super::records::{Finder, Refused};
use crate::store::SafetyReport;

/// Something to be read, and who waits for it.
#[derive(Debug)]
pub(super) enum Question {
    Look(RecordId, oneshot::Sender<Result<Option<RecordSnapshot>, StoreError>>),
    List(Query, oneshot::Sender<Result<Page, StoreError>>),
    Check(oneshot::Sender<Result<SafetyReport, StoreError>>),
}

impl Question {
    /// Whether anybody still waits for it.
    pub(super) fn is_wanted(&self) -> bool {
        match self {
            Self::Look(_, answer) => !answer.is_closed(),
            Self::List(_, answer) => !answer.is_closed(),
            Self::Check(answer) => !answer.is_closed(),
        }
    }
}

/// What such a thread works with.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) file: Arc<DatabaseFile>,
    pub(super) clock: Arc<StoreClock>,
    pub(super) queue: Arc<Queue<Question>>,
}

impl Reader {
    /// Reads until the queue has come to its end.
    pub(super) fn run(self, connection: &Connection) {
        let _served = Served(&self.queue);
        let Ok(mut finder) = Finder::new(connection) else { return };
        while let Next::Things(questions) = self.queue.next(1, None) {
            for question in questions.into_iter().filter(Question::is_wanted) {
                self.answer(&mut finder, connection, question);
            }
        }
    }

    fn answer(&self, finder: &mut Finder<'_>, connection: &Connection, question: Question) {
        // Whoever asked may have left meanwhile.
        match question {
            Question::Look(id, answer) => {
                let seen = look(finder, &id, &self.file, &self.clock);
                let _ = answer.send(seen.map_err(StoreError::from));
            }
            Question::List(query, answer) => {
                let _ = answer.send(list(connection, &query, &self.file, &self.clock));
            }
            Question::Check(answer) => {
                let report = check::look(connection, &self.file, &self.clock);
                let report = report.map_err(|error| self.file.sqlite(error).into());
                let _ = answer.send(report);
            }
        }
    }
}

/// What there is under an id.
pub(super) fn look(
    finder: &mut Finder<'_>,
    id: &RecordId,
    file: &DatabaseFile,
    clock: &StoreClock,
) -> Result<Option<RecordSnapshot>, Failure> {
    if !file.is_in_place() {
        return Err(file.fail(Cause::Replaced));
    }
    match finder.find(id, clock.now()) {
        Ok(found) => Ok(found.map(RecordSnapshot::from)),
        Err(Refused::Sqlite(error)) => Err(file.sqlite(error)),
        Err(Refused::Undecodable(why)) => Err(file.fail(Cause::Undecodable(why))),
        Err(Refused::Kind(_)) => Ok(None),
    }
}
