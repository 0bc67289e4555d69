//! The store with its threads.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, ErrorKind, Inventory, Page, Query, RecordSnapshot,
    Settlement, Store, StoreError, Watch,
};
use rusqlite::{Connection, Transaction};
use tokio::sync::oneshot::{self, error::RecvError};

use super::boot_clock::{BootTime, HostClock, StoreClock};
use super::file::{DatabaseFile, Opened};
use super::job_queue::{JobQueue, NotTaken};
use super::poller::Poller;
use super::reader::{ReadJob, Reader};
use super::records::{self, RecordWriter, Refused, StepResult};
use super::sqlite_failure::{SqliteCause, SqliteFailure};
use super::writer::{Answer, WriteJob, Writer};
use crate::store::notifier::Notifier;
use crate::store::{SafetyReport, Transactional};
use crate::time_limit::limited_or;

/// Keeps records in a file; see the [module](super).
///
/// Its steps need a tokio runtime, for their time-outs; what touches the disk has threads of its
/// own.
///
/// ```
/// # async fn example(folder: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
/// use idemptx::store::sqlite::SqliteStore;
///
/// let store = SqliteStore::open(folder.join("idempotency.db"))?;
/// let report = store.check().await?;
/// assert!(!report.is_fatal(), "{}", report.guarantee);
/// # Ok(())
/// # }
/// # let folder = tempfile::tempdir().unwrap();
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
/// # runtime.block_on(example(folder.path())).unwrap();
/// ```
pub struct SqliteStore {
    file: Arc<DatabaseFile>,
    jobs: Arc<JobQueue<WriteJob>>,
    read_jobs: Arc<JobQueue<ReadJob>>,
    notifier: Arc<Notifier>,
    clock: Arc<StoreClock>,
    patience: Duration,
}

impl SqliteStore {
    /// Begins to set a store up, whose records are in the file of this name.
    pub fn builder(path: impl Into<PathBuf>) -> SqliteStoreBuilder {
        SqliteStoreBuilder { path: path.into(), timeout: STEP_LIMIT }
    }

    /// A store in a file, with the default settings; the file is made if there is none, its folder
    /// is not.
    ///
    /// Reads and writes the file before it returns, which may take some milliseconds.
    ///
    /// # Errors
    ///
    /// [`OpenError`] with what to do about it.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, OpenError> {
        Self::builder(path).open()
    }

    /// Looks at everything that decides which guarantee the file can give: what it is on, who may
    /// read it, which clock there is, and whether it is sound.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`](idemptx_core::store::ErrorKind::Unavailable) if the file cannot
    /// be read in time.
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn check(&self) -> Result<SafetyReport, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.ask(ReadJob::Check(answer))?;
        // It reads the whole file if that is small, and still takes longer than a step.
        self.wait(answered, self.patience.max(CHECK_PATIENCE_MIN)).await?
    }

    /// Returns the number of watched records.
    #[cfg(test)]
    pub(super) fn watched(&self) -> usize {
        self.notifier.len()
    }

    /// Has a step written, and waits until it is.
    async fn write<T>(&self, job: impl FnOnce(Answer<T>) -> WriteJob) -> Result<T, StoreError> {
        self.write_within(self.patience, job).await
    }

    /// Has a step written, and waits until it is, or was not begun within `begin_limit`: then it is
    /// refused for certain.
    async fn write_within<T>(
        &self,
        begin_limit: Duration,
        job: impl FnOnce(Answer<T>) -> WriteJob,
    ) -> Result<T, StoreError> {
        let (answer, mut answered, withdrawal) = Answer::new();
        let taken = self.jobs.push(job(answer), WriteJob::is_wanted);
        taken.map_err(|why| self.not_taken(why))?;
        match self.wait(&mut answered, begin_limit).await {
            Ok(verdict) => return verdict,
            Err(failure) if withdrawal.succeeds() => {
                return Err(failure.as_kind(ErrorKind::Refused));
            }
            Err(_) => {}
        }
        // It has been begun, so that its outcome is worth the rest of the time.
        self.wait(answered, self.patience.saturating_sub(begin_limit)).await?
    }

    /// Takes a step on a connection of the application's.
    fn take_on<T>(
        &self,
        transaction: &Transaction<'_>,
        step: impl FnOnce(BootTime) -> StepResult<T>,
    ) -> Result<T, StoreError> {
        self.file.verify(transaction)?;
        let now = self.clock.now();
        let era = transaction.query_row("SELECT era FROM clock", [], |row| row.get::<_, i64>(0));
        if era.map_err(|error| self.file.sqlite(error))? != now.era {
            return Err(self.file.fail(SqliteCause::OtherHost).into());
        }
        match step(now) {
            Ok(taken) => Ok(taken.verdict),
            Err(Refused::Kind(kind)) => Err(kind.into()),
            Err(Refused::Undecodable(why)) => {
                Err(self.file.fail(SqliteCause::Undecodable(why)).into())
            }
            Err(Refused::Sqlite(error)) => Err(self.file.sqlite(error).into()),
        }
    }

    fn ask(&self, read_job: ReadJob) -> Result<(), SqliteFailure> {
        let taken = self.read_jobs.push(read_job, ReadJob::is_wanted);
        taken.map_err(|why| self.not_taken(why))
    }

    async fn wait<T>(
        &self,
        answered: impl Future<Output = Result<Result<T, StoreError>, RecvError>>,
        patience: Duration,
    ) -> Result<Result<T, StoreError>, SqliteFailure> {
        let answered = async { answered.await.map_err(|_| self.file.fail(SqliteCause::Ended)) };
        let late = || self.file.fail(SqliteCause::TimedOut(patience));
        limited_or(patience, answered, late).await
    }

    fn not_taken(&self, why: NotTaken) -> SqliteFailure {
        self.file.fail(match why {
            NotTaken::Crowded => SqliteCause::Crowded(WAITING_MAX),
            NotTaken::Closed => SqliteCause::Ended,
        })
    }
}

impl Store for SqliteStore {
    async fn claim(&self, id: &RecordId, request: &ClaimRequest) -> Result<Claim, StoreError> {
        // Another process may keep the file, even a stopped one: the client hears of it before the
        // engine gives the claim up, and certainly nothing was claimed.
        let begin_limit = self.patience * CLAIM_PERCENT / 100;
        self.write_within(begin_limit, |answer| WriteJob::Claim(*id, request.clone(), answer)).await
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        self.write(|answer| WriteJob::Settle(lease.clone(), done.clone(), answer)).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.write(|answer| WriteJob::Release(lease.clone(), answer)).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        self.write(|answer| WriteJob::Renew(lease.clone(), answer)).await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.ask(ReadJob::Look(*id, answer))?;
        self.wait(answered, self.patience).await?
    }

    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        let handle = self.notifier.watch(*id);
        let found = self.lookup(id).await.ok()?;
        handle.expect(match found {
            Some(RecordSnapshot::Held(claim)) => Some(claim.token),
            _ => None,
        });
        Some(handle.into_watch())
    }

    fn maintain(&self) {
        // It comes again.
        let _ = self.jobs.push(WriteJob::Maintain, WriteJob::is_wanted);
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.shared = true;
        capabilities.durable = true;
        capabilities.watch = true;
        capabilities
    }
}

impl Transactional for SqliteStore {
    fn is_transactional(&self) -> bool {
        true
    }

    fn claim_in_sqlite(
        &self,
        transaction: &Transaction<'_>,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        self.take_on(transaction, |now| RecordWriter::new(transaction)?.claim(id, request, now))
    }

    fn settle_in_sqlite(
        &self,
        transaction: &Transaction<'_>,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<(), StoreError> {
        self.take_on(transaction, |now| records::settle_on(transaction, lease, done, now))
    }
}

/// A reader walks up to a thousand records in the order of their ids, beside the writer.
impl Inventory for SqliteStore {
    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.ask(ReadJob::List(query.clone(), answer))?;
        self.wait(answered, self.patience).await?
    }
}

/// Closes the queues: the threads serve what waits, and end.
impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.jobs.close();
        self.read_jobs.close();
        self.notifier.close();
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("file", self.file.path())
            .field("timeout", &self.patience)
            .finish_non_exhaustive()
    }
}

/// Settings of a [`SqliteStore`], begun by [`SqliteStore::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct SqliteStoreBuilder {
    path: PathBuf,
    timeout: Duration,
}

impl SqliteStoreBuilder {
    /// Sets how long a step waits for the disk, and for its turn among the processes that share the
    /// file, before its outcome counts as unknown; five seconds by default.
    ///
    /// A claim that is not begun in 15 % of it is refused: another process, which may be stopped,
    /// keeps the file locked.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The store.
    ///
    /// # Errors
    ///
    /// As [`SqliteStore::open`].
    pub fn open(self) -> Result<SqliteStore, OpenError> {
        self.open_at(HostClock::new()).map_err(OpenError)
    }

    pub(super) fn open_at(self, host: HostClock) -> Result<SqliteStore, SqliteFailure> {
        let Opened { file, connection, writer_lock, clock } =
            DatabaseFile::open(&self.path, host, self.timeout)?;
        let parts = Parts { file: Arc::new(file), clock: Arc::new(clock) };
        let Parts { file, clock } = &parts;
        let store = SqliteStore {
            file: file.clone(),
            jobs: Arc::new(JobQueue::new(WAITING_MAX)),
            read_jobs: Arc::new(JobQueue::new(WAITING_MAX)),
            notifier: Arc::new(Notifier::default()),
            clock: clock.clone(),
            patience: self.timeout,
        };
        let writer = Writer {
            file: file.clone(),
            clock: clock.clone(),
            writer_lock,
            notifier: store.notifier.clone(),
            queue: store.jobs.clone(),
        };
        parts.start("idemptx-write", connection, |connection| writer.run(connection))?;
        for _ in 0..READERS {
            let reader =
                Reader { file: file.clone(), clock: clock.clone(), queue: store.read_jobs.clone() };
            let connection = file.reader()?;
            parts.start("idemptx-read", connection, |connection| reader.run(connection))?;
        }
        let poller =
            Poller { file: file.clone(), clock: clock.clone(), notifier: store.notifier.clone() };
        parts.start("idemptx-watch", file.reader()?, |connection| poller.run(connection))?;
        Ok(store)
    }
}

/// State that all threads share.
struct Parts {
    file: Arc<DatabaseFile>,
    clock: Arc<StoreClock>,
}

impl Parts {
    fn start(
        &self,
        name: &str,
        connection: Connection,
        run: impl FnOnce(&Connection) + Send + 'static,
    ) -> Result<(), SqliteFailure> {
        let thread = thread::Builder::new().name(name.to_owned());
        let started = thread.spawn(move || run(&connection));
        let fail =
            |error: io::Error| self.file.fail(SqliteCause::Io("cannot start a thread", error));
        started.map(drop).map_err(fail)
    }
}

/// A file that cannot be the store; its text names it, and says what to do.
pub struct OpenError(SqliteFailure);

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenError({})", self.0)
    }
}

impl std::error::Error for OpenError {}

/// The path in a URL `sqlite:path` or `sqlite:///path`.
///
/// # Errors
///
/// A sentence that says what to write instead.
pub(in crate::store) fn path_of(url: &str) -> Result<&Path, &'static str> {
    let path = url.strip_prefix("sqlite:").unwrap_or(url);
    let path = match path.strip_prefix("//") {
        Some(absolute) if absolute.starts_with('/') => absolute,
        Some(_) => return Err("write `sqlite:PATH`, or `sqlite:///PATH` for an absolute path"),
        None => path,
    };
    match path {
        "" => Err("the URL names no file: write `sqlite:PATH`"),
        ":memory:" => Err("SQLite in memory keeps nothing: write `memory:` for the memory store"),
        _ if path.contains(['?', '#']) => {
            Err("a URL `sqlite:PATH` takes no parameters: settings are in `SqliteStore::builder`")
        }
        _ => Ok(Path::new(path)),
    }
}

/// The default time limit of a step.
pub(in crate::store) const STEP_LIMIT: Duration = Duration::from_secs(5);
/// Share of the time limit in which a claim must be begun: less than the time that an engine gives
/// it by default.
const CLAIM_PERCENT: u32 = 15;
const CHECK_PATIENCE_MIN: Duration = Duration::from_secs(30);
/// Lookups and checks share them.
const READERS: usize = 2;
/// Maximum number of steps that wait for the writer, and for the readers.
const WAITING_MAX: usize = 65_536;
