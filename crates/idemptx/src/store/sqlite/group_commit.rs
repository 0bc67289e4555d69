//! The steps of one transaction, with the tasks that wait for their verdicts.

use std::collections::HashSet;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{Claim, ErrorKind};

use super::boot_clock::BootTime;
use super::file::DatabaseFile;
use super::records::{Committed, RecordWriter, Refused, StepResult};
use super::sqlite_failure::{SqliteCause, SqliteFailure};
use super::writer::{Answer, Verdict, WriteJob};
use crate::store::notifier::Notifier;

/// Steps whose verdicts count once the transaction is on disk.
#[derive(Debug, Default)]
pub(super) struct Batch {
    steps: Vec<Pending>,
    /// Records that the transaction has changed: only verdicts on these depend on the commit.
    changed: HashSet<RecordId>,
    payload_bytes: usize,
}

#[derive(Debug)]
enum Pending {
    Claim(Answer<Claim>, Verdict<Claim>),
    Renew(Answer<Lease>, Verdict<Lease>),
    /// A settlement or release, with the record whose waiters are notified.
    End(Answer<()>, Verdict<()>, RecordId),
}

impl Batch {
    /// Takes a step.
    ///
    /// A verdict that depends on nothing uncommitted is sent at once.
    /// A failure is sent, too, and returned: it may have undone the others.
    pub(super) fn take(
        &mut self,
        records: &mut RecordWriter<'_>,
        job: WriteJob,
        now: BootTime,
        file: &DatabaseFile,
    ) -> Result<(), SqliteFailure> {
        match job {
            WriteJob::Claim(id, request, answer) => {
                let step = records.claim(&id, &request, now);
                self.add(id, step, answer, file, ErrorKind::Full, Pending::Claim)
            }
            WriteJob::Settle(lease, done, answer) => {
                let step = records.settle(&lease, &done, now);
                self.payload_bytes += done.payload.len();
                self.end(lease.id, step, answer, file)
            }
            WriteJob::Release(lease, answer) => {
                let step = records.release(&lease, now);
                self.end(lease.id, step, answer, file)
            }
            WriteJob::Renew(lease, answer) => {
                let step = records.renew(&lease, now);
                self.add(lease.id, step, answer, file, ErrorKind::Refused, Pending::Renew)
            }
            WriteJob::Maintain => Ok(()),
        }
    }

    /// Returns true if nothing was written.
    pub(super) fn is_empty(&self) -> bool {
        self.changed.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// About how many pages were written.
    pub(super) fn pages(&self) -> usize {
        PAGES_PER_STEP * self.steps.len() + self.payload_bytes / PAGE_BYTES
    }

    /// Sends the verdicts.
    pub(super) fn succeed(self, notifier: &Notifier) {
        for step in self.steps {
            match step {
                Pending::Claim(answer, verdict) => answer.send(verdict),
                Pending::Renew(answer, verdict) => answer.send(verdict),
                Pending::End(answer, verdict, id) => {
                    answer.send(verdict);
                    notifier.notify(&id);
                }
            }
        }
    }

    /// Sends the failure: the transaction may be on disk or not.
    pub(super) fn fail(self, failure: &SqliteFailure) {
        for step in self.steps {
            let error = failure.as_kind(ErrorKind::Unavailable);
            match step {
                Pending::Claim(answer, _) => answer.send(Err(error)),
                Pending::Renew(answer, _) => answer.send(Err(error)),
                Pending::End(answer, _, _) => answer.send(Err(error)),
            }
        }
    }

    fn end(
        &mut self,
        id: RecordId,
        step: StepResult<()>,
        answer: Answer<()>,
        file: &DatabaseFile,
    ) -> Result<(), SqliteFailure> {
        let pending = |answer, verdict| Pending::End(answer, verdict, id);
        self.add(id, step, answer, file, ErrorKind::Refused, pending)
    }

    fn add<T>(
        &mut self,
        id: RecordId,
        step: StepResult<T>,
        answer: Answer<T>,
        file: &DatabaseFile,
        without_room: ErrorKind,
        pending: impl FnOnce(Answer<T>, Verdict<T>) -> Pending,
    ) -> Result<(), SqliteFailure> {
        let (verdict, wrote) = match step {
            Ok(Committed { verdict, wrote }) => (Ok(verdict), wrote),
            Err(Refused::Kind(kind)) => (Err(kind.into()), false),
            Err(Refused::Undecodable(why)) => {
                (Err(file.fail(SqliteCause::Undecodable(why)).into()), false)
            }
            Err(Refused::Sqlite(error)) => {
                let failure = file.sqlite(error);
                let kind = failure.kind_before_commit(without_room);
                answer.send(Err(failure.as_kind(kind)));
                return Err(failure);
            }
        };
        if wrote {
            self.changed.insert(id);
        }
        if wrote || self.changed.contains(&id) {
            self.steps.push(pending(answer, verdict));
        } else {
            answer.send(verdict);
        }
        Ok(())
    }
}

/// Pages of the table, of the index by id, and of the index by time.
const PAGES_PER_STEP: usize = 3;
const PAGE_BYTES: usize = 4096;
