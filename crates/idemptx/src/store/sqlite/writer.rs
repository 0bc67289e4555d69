//! The one thread that writes, and its group commits.
//!
//! It takes all waiting steps, performs them in one transaction, and answers once that is on disk.
//! The steps that arrive meanwhile form the next group, so a single step is never delayed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{Claim, ClaimRequest, ErrorKind, Settlement, StoreError};
use rusqlite::{Connection, Statement};
use tokio::sync::oneshot;

use super::boot_clock::{BootTime, StoreClock};
use super::file::DatabaseFile;
use super::group_commit::Batch;
use super::job_queue::{Drain, JobQueue, NextJobs};
use super::records::RecordWriter;
use super::sqlite_failure::{SqliteCause, SqliteFailure};
use super::writer_lock::{WriterGuard, WriterLock};
use crate::store::notifier::Notifier;

/// Something to be written, and who waits for it.
#[derive(Debug)]
pub(super) enum WriteJob {
    Claim(RecordId, ClaimRequest, Answer<Claim>),
    Settle(Lease, Settlement, Answer<()>),
    Release(Lease, Answer<()>),
    Renew(Lease, Answer<Lease>),
    /// Removes expired records, without an answer.
    Maintain,
}

pub(super) type Verdict<T> = Result<T, StoreError>;

/// The writer's end of a job.
#[derive(Debug)]
pub(super) struct Answer<T> {
    verdict: oneshot::Sender<Verdict<T>>,
    decided: Arc<AtomicBool>,
}

/// The caller's right to withdraw a job that was not begun.
#[derive(Debug)]
pub(super) struct Withdrawal(Arc<AtomicBool>);

impl<T> Answer<T> {
    pub(super) fn new() -> (Self, oneshot::Receiver<Verdict<T>>, Withdrawal) {
        let (verdict, receiver) = oneshot::channel();
        let decided = Arc::new(AtomicBool::new(false));
        (Self { verdict, decided: decided.clone() }, receiver, Withdrawal(decided))
    }

    /// Sends the verdict to the task that waits for it, if it still does.
    pub(super) fn send(self, verdict: Verdict<T>) {
        let _ = self.verdict.send(verdict);
    }

    fn is_wanted(&self) -> bool {
        !self.verdict.is_closed()
    }

    /// Returns true if the job may be performed, which it then counts as.
    fn begin(&self) -> bool {
        self.is_wanted() && !self.decided.swap(true, Ordering::AcqRel)
    }
}

impl Withdrawal {
    /// Returns true if the job was not begun, and never will be.
    pub(super) fn succeeds(self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

impl WriteJob {
    /// Returns true if a task still waits for it; otherwise it is skipped.
    pub(super) fn is_wanted(&self) -> bool {
        match self {
            Self::Claim(_, _, answer) => answer.is_wanted(),
            Self::Settle(_, _, answer) | Self::Release(_, answer) => answer.is_wanted(),
            Self::Renew(_, answer) => answer.is_wanted(),
            Self::Maintain => true,
        }
    }

    /// Returns true if the job may be performed: its caller has not withdrawn it.
    fn begin(&self) -> bool {
        match self {
            Self::Claim(_, _, answer) => answer.begin(),
            Self::Settle(_, _, answer) | Self::Release(_, answer) => answer.begin(),
            Self::Renew(_, answer) => answer.begin(),
            Self::Maintain => true,
        }
    }

    /// Fails a job that was not begun.
    fn fail(self, failure: &SqliteFailure) {
        let error = failure.as_kind(failure.kind_before_commit(ErrorKind::Refused));
        match self {
            Self::Claim(_, _, answer) => {
                let kind = failure.kind_before_commit(ErrorKind::Full);
                answer.send(Err(failure.as_kind(kind)));
            }
            Self::Settle(_, _, answer) | Self::Release(_, answer) => answer.send(Err(error)),
            Self::Renew(_, answer) => answer.send(Err(error)),
            Self::Maintain => {}
        }
    }
}

/// State of the writing thread.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) file: Arc<DatabaseFile>,
    pub(super) clock: Arc<StoreClock>,
    pub(super) writer_lock: WriterLock,
    pub(super) notifier: Arc<Notifier>,
    pub(super) queue: Arc<JobQueue<WriteJob>>,
}

impl Writer {
    /// Writes until the queue has come to its end.
    pub(super) fn run(self, connection: &Connection) {
        let _served = Drain(&self.queue);
        // Without statements every step fails: the queue is abandoned.
        let Ok(tools) = Tools::new(connection) else { return };
        let mut work = Work { writer: &self, tools, next_due: 0, pages: 0, is_maintaining: false };
        loop {
            match self.queue.next(BATCH_MAX, work.patience()) {
                NextJobs::Things(jobs) => work.serve(jobs),
                NextJobs::Nothing if work.is_maintaining => work.maintain(),
                NextJobs::Nothing => work.copy_log_alone(),
                NextJobs::End => return work.copy_log_alone(),
            }
        }
    }
}

/// Prepared statements of the writer.
struct Tools<'c> {
    connection: &'c Connection,
    records: RecordWriter<'c>,
    begin: Statement<'c>,
    commit: Statement<'c>,
    clock: Statement<'c>,
    mark: Statement<'c>,
}

impl<'c> Tools<'c> {
    fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            connection,
            records: RecordWriter::new(connection)?,
            begin: connection.prepare("BEGIN IMMEDIATE")?,
            commit: connection.prepare("COMMIT")?,
            clock: connection.prepare("SELECT era, mark FROM clock")?,
            mark: connection.prepare("UPDATE clock SET mark = ?1")?,
        })
    }
}

/// The thread's work, from one transaction to the next.
struct Work<'c> {
    writer: &'c Writer,
    tools: Tools<'c>,
    /// Nothing is looked for before.
    next_due: i64,
    /// About how many pages were written since the log was copied.
    pages: usize,
    is_maintaining: bool,
}

impl<'c> Work<'c> {
    fn patience(&self) -> Option<Duration> {
        if self.is_maintaining { Some(Duration::ZERO) } else { (self.pages > 0).then_some(IDLE) }
    }

    fn serve(&mut self, mut jobs: Vec<WriteJob>) {
        self.is_maintaining |= jobs.iter().any(|job| matches!(job, WriteJob::Maintain));
        jobs.retain(|job| job.is_wanted() && !matches!(job, WriteJob::Maintain));
        if jobs.is_empty() {
            return;
        }
        let (turn, now) = match self.begin() {
            Ok(begun) => begun,
            Err(failure) => return jobs.into_iter().for_each(|job| job.fail(&failure)),
        };
        #[cfg(test)]
        super::failpoint::reach("begun");
        let mut batch = Batch::default();
        let mut jobs = jobs.into_iter();
        while let Some(job) = jobs.next() {
            // Its time may have passed while another process had its turn.
            if !job.begin() {
                continue;
            }
            let taken = batch.take(&mut self.tools.records, job, now, &self.writer.file);
            if let Err(failure) = taken
                && self.is_undone()
            {
                batch.fail(&failure);
                return jobs.for_each(|job| job.fail(&failure));
            }
        }
        if batch.is_empty() {
            return self.undo();
        }
        match self.sweep_and_commit(&batch, now) {
            Ok(()) => {
                #[cfg(test)]
                super::failpoint::reach("committed");
                batch.succeed(&self.writer.notifier);
            }
            Err(failure) => batch.fail(&failure),
        }
        if self.pages >= LOG_PAGES_MAX {
            self.copy_log(&turn);
        }
    }

    fn sweep_and_commit(&mut self, batch: &Batch, now: BootTime) -> Result<(), SqliteFailure> {
        self.pages += batch.pages();
        match self.sweep(now, batch.len() * SWEEP_SHARE) {
            // What could not be swept now stays where it is: the steps count.
            Err(failure) if self.is_undone() => Err(failure),
            _ => self.commit(),
        }
    }

    /// Removes some of what has expired, or gives some of the file back.
    fn maintain(&mut self) {
        self.next_due = 0;
        // After a failure the next call tries again.
        self.is_maintaining = false;
        let Ok((_turn, now)) = self.begin() else { return };
        let Ok(is_unfinished) = self.tidy(now) else { return self.undo() };
        if self.commit().is_ok() {
            self.is_maintaining = is_unfinished;
        }
    }

    fn tidy(&mut self, now: BootTime) -> Result<bool, SqliteFailure> {
        let removed = self.sweep(now, SWEEP_BATCH)?;
        if removed == SWEEP_BATCH {
            return Ok(true);
        }
        self.give_back().map_err(|error| self.writer.file.sqlite(error))
    }

    /// Gives some of the file's free pages back if there are many, and returns true if there still
    /// are.
    fn give_back(&mut self) -> rusqlite::Result<bool> {
        let count = |pragma| {
            self.tools.connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
        };
        let (free, pages) = (count("freelist_count")?, count("page_count")?);
        if free < FREE_PAGES_KEPT.max(pages / FREE_SHARE_KEPT) {
            return Ok(false);
        }
        let vacuum = format!("PRAGMA incremental_vacuum({GIVE_BACK_PAGES})");
        self.tools.connection.execute_batch(&vacuum)?;
        #[cfg(test)]
        super::failpoint::reach("given back");
        self.pages += 2 * GIVE_BACK_PAGES;
        Ok(true)
    }

    /// Begins a transaction, alone with the file that was opened.
    fn begin(&mut self) -> Result<(WriterGuard<'c>, BootTime), SqliteFailure> {
        let Writer { file, writer_lock, .. } = self.writer;
        let turn = writer_lock
            .take()
            .map_err(|error| file.fail(SqliteCause::Io("cannot lock it", error)))?;
        if !file.is_in_place() {
            return Err(file.fail(SqliteCause::Replaced));
        }
        self.tools.begin.execute([]).map_err(|error| file.sqlite(error))?;
        let now = self.enter();
        if now.is_err() {
            self.undo();
        }
        Ok((turn, now?))
    }

    /// Reads the clock, and sees to it that it goes on from here after the host has booted.
    fn enter(&mut self) -> Result<BootTime, SqliteFailure> {
        let Writer { file, clock, .. } = self.writer;
        let Tools { clock: known, mark: write, .. } = &mut self.tools;
        let (era, mark): (i64, i64) = known
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .map_err(|error| file.sqlite(error))?;
        let now = clock.now();
        if era != now.era {
            return Err(file.fail(SqliteCause::OtherHost));
        }
        if let Some(mark) = StoreClock::next_mark(now, mark) {
            write.execute([mark]).map_err(|error| file.sqlite(error))?;
        }
        Ok(now)
    }

    fn commit(&mut self) -> Result<(), SqliteFailure> {
        #[cfg(test)]
        super::failpoint::reach("performed");
        let committed = self.tools.commit.execute([]);
        if committed.is_err() {
            self.undo();
        }
        committed.map(drop).map_err(|error| self.writer.file.sqlite(error))
    }

    fn undo(&self) {
        if !self.is_undone() {
            // It is undone with the connection at the latest.
            let _ = self.tools.connection.execute_batch("ROLLBACK");
        }
    }

    /// Returns true if SQLite has undone the transaction.
    fn is_undone(&self) -> bool {
        self.tools.connection.is_autocommit()
    }

    fn sweep(&mut self, now: BootTime, count: usize) -> Result<usize, SqliteFailure> {
        if now.micros < self.next_due {
            return Ok(0);
        }
        let records = &mut self.tools.records;
        let mut sweep = || {
            let swept = records.sweep(now, count)?;
            let next_due = if swept < count { records.next_due()? } else { now.micros };
            Ok((swept, next_due))
        };
        let (swept, next_due) = sweep().map_err(|error| self.writer.file.sqlite(error))?;
        #[cfg(test)]
        if swept > 0 {
            super::failpoint::reach("swept");
        }
        self.next_due = next_due.min(now.after(LOOK_AGAIN));
        self.pages += 2 * swept;
        Ok(swept)
    }

    fn copy_log_alone(&mut self) {
        if self.pages > 0
            && let Ok(turn) = self.writer.writer_lock.take()
        {
            self.copy_log(&turn);
        }
    }

    /// Copies the log into the database, so that the next commit starts it again; under the writer
    /// lock,
    /// because a log that others write to meanwhile would never start again.
    fn copy_log(&mut self, _: &WriterGuard<'c>) {
        #[cfg(test)]
        super::failpoint::reach("copying");
        let copy = "PRAGMA wal_checkpoint(PASSIVE)";
        // What could not be copied now stays in the log, and is copied next time.
        let _ = self.tools.connection.query_row(copy, [], |_| Ok(()));
        #[cfg(test)]
        super::failpoint::reach("copied");
        self.pages = 0;
    }
}

/// More steps than that are not put into one transaction.
const BATCH_MAX: usize = 1024;
/// Expired records that a step removes: more than the one it may add, so they never pile up.
const SWEEP_SHARE: usize = 2;
/// Expired records that are removed at a time when there are no steps.
const SWEEP_BATCH: usize = 128;
/// Time after a complete sweep until the next one.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// 16 MiB.
const LOG_PAGES_MAX: usize = 4096;
/// After so long without steps the log is copied, long or not.
const IDLE: Duration = Duration::from_secs(1);
/// Free pages stay in the file up to so many, or one in so many of all: the next records need them.
const FREE_PAGES_KEPT: i64 = 1024;
const FREE_SHARE_KEPT: i64 = 4;
const GIVE_BACK_PAGES: usize = 128;
