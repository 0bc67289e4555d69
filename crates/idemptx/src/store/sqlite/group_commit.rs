//! The steps of one transaction, and who is to be told how it ended.

use std::collections::HashSet;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{Claim, ErrorKind};

use super::boot_clock::BootTime;
use super::file::DatabaseFile;
use super::poller::Watched;
use super::records::{Committed, RecordWriter, Refused, StepResult};
use super::sqlite_failure::{SqliteCause, SqliteFailure};
use super::writer::{Answer, Verdict, WriteJob};

/// Steps whose verdicts count once the transaction is on disk.
#[derive(Debug, Default)]
pub(super) struct Batch {
    steps: Vec<Pending>,
    /// What the transaction has changed: verdicts on it depend on the commit, others do not.
    changed: HashSet<RecordId>,
    payload_bytes: usize,
}

#[derive(Debug)]
enum Pending {
    Claim(Answer<Claim>, Verdict<Claim>),
    Renew(Answer<Lease>, Verdict<Lease>),
    /// With the record that whoever waits for it is to look at.
    End(Answer<()>, Verdict<()>, RecordId),
}

impl Batch {
    /// Takes a step.
    ///
    /// A verdict that depends on nothing uncommitted is told at once.
    /// A failure is told, too, and returned: it may have undone the others.
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
                self.add(lease.id, step, answer, file, ErrorKind::Unavailable, Pending::Renew)
            }
            WriteJob::Tend => Ok(()),
        }
    }

    /// Whether nothing was written.
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

    /// Tells the verdicts.
    pub(super) fn succeed(self, watched: &Watched) {
        for step in self.steps {
            match step {
                Pending::Claim(answer, verdict) => tell(answer, verdict),
                Pending::Renew(answer, verdict) => tell(answer, verdict),
                Pending::End(answer, verdict, id) => {
                    tell(answer, verdict);
                    watched.ring(&id);
                }
            }
        }
    }

    /// Tells that there are none: whether the transaction will be found on disk is not known.
    pub(super) fn fail(self, failure: &SqliteFailure) {
        for step in self.steps {
            let error = failure.as_kind(ErrorKind::Unavailable);
            match step {
                Pending::Claim(answer, _) => tell(answer, Err(error)),
                Pending::Renew(answer, _) => tell(answer, Err(error)),
                Pending::End(answer, _, _) => tell(answer, Err(error)),
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
        self.add(id, step, answer, file, ErrorKind::Unavailable, pending)
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
                let kind = if failure.is_full() { without_room } else { failure.kind() };
                tell(answer, Err(failure.as_kind(kind)));
                return Err(failure);
            }
        };
        if wrote {
            self.changed.insert(id);
        }
        if wrote || self.changed.contains(&id) {
            self.steps.push(pending(answer, verdict));
        } else {
            tell(answer, verdict);
        }
        Ok(())
    }
}

/// Tells whoever waits, if anybody still does.
pub(super) fn tell<T>(answer: Answer<T>, verdict: Verdict<T>) {
    let _ = answer.send(verdict);
}

/// Of the table, of the index by id, and of the index by time.
const PAGES_PER_STEP: usize = 3;
const PAGE_BYTES: usize = 4096;
