//! Opening the file: making it if need be, and refusing what cannot keep the promise.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, MAIN_DB, OpenFlags, TransactionBehavior};

use super::boot_clock::{HostClock, StoreClock};
use super::filesystem;
use super::schema::{self, FileOwner};
use super::sqlite_failure::{OLDEST_VERSION_NUMBER, SqliteCause, SqliteFailure};
use super::writer_lock::WriterLock;

/// The file of a store.
#[derive(Debug)]
pub(super) struct DatabaseFile {
    path: Arc<Path>,
    patience: Duration,
    identity: Option<Identity>,
}

/// State of an opened file.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: DatabaseFile,
    pub(super) connection: Connection,
    pub(super) writer_lock: WriterLock,
    pub(super) clock: StoreClock,
}

impl DatabaseFile {
    /// Opens the file, and makes it if there is none.
    ///
    /// One process after the other: they may all start at the same moment.
    pub(super) fn open(
        path: &Path,
        host: HostClock,
        patience: Duration,
    ) -> Result<Opened, SqliteFailure> {
        let path = absolute(path)?;
        let fail = |cause| SqliteFailure::new(&path, cause);
        let sqlite = |error| fail(SqliteCause::Sqlite(error));
        if rusqlite::version_number() < OLDEST_VERSION_NUMBER {
            return Err(fail(SqliteCause::OldLibrary(rusqlite::version())));
        }
        if path.is_dir() {
            return Err(fail(SqliteCause::NoFile));
        }
        if let Some(kind) = folder_of(&path).as_deref().and_then(network) {
            return Err(fail(SqliteCause::Network(kind)));
        }
        let writer_lock = WriterLock::open(&path).map_err(|error| {
            let text = match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    "its folder cannot be written to; change its permissions, or name another file"
                }
                _ => "cannot open the `-turn` file beside it",
            };
            fail(SqliteCause::Io(text, error))
        })?;
        let turn = writer_lock.take_within(patience).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => fail(SqliteCause::TimedOut(patience)),
            _ => fail(SqliteCause::Io("cannot lock the `-turn` file beside it", error)),
        })?;
        create(&path).map_err(|error| fail(SqliteCause::Io("cannot create it", error)))?;
        if folder_of(&path).is_some_and(|folder| filesystem::is_mounted_alone(&path, &folder)) {
            return Err(fail(SqliteCause::MountedAlone));
        }
        #[cfg(test)]
        super::failpoint::reach("created");
        let mut file = Self { path: path.clone(), patience, identity: None };
        let mut connection = file.connect()?;
        file.claim(&connection)?;
        let clock = set_up(&mut connection, host).map_err(sqlite)?;
        let clock = clock.ok_or_else(|| fail(SqliteCause::OtherClock))?;
        file.identity = Identity::of(&path);
        drop(turn);
        Ok(Opened { file, connection, writer_lock, clock })
    }

    /// Opens another connection, for reading.
    pub(super) fn reader(&self) -> Result<Connection, SqliteFailure> {
        let connection = self.connect()?;
        connection.pragma_update(None, "query_only", true).map_err(|error| self.sqlite(error))?;
        Ok(connection)
    }

    /// Returns true if its name still leads to it.
    ///
    /// Processes that have a removed file open go on writing into it, and the next process creates
    /// another: both would grant the same claim.
    pub(super) fn is_in_place(&self) -> bool {
        Identity::of(&self.path) == self.identity
    }

    /// Refuses a connection of the application's that is not on it, or would not flush what it
    /// commits.
    pub(super) fn verify(&self, connection: &Connection) -> Result<(), SqliteFailure> {
        if !self.is_in_place() {
            return Err(self.fail(SqliteCause::Replaced));
        }
        let path = connection.path().map(Path::new);
        if !path.is_some_and(|path| is_same(path, &self.path)) {
            return Err(self.fail(SqliteCause::OtherFile));
        }
        let synchronous = connection
            .pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0))
            .map_err(|error| self.sqlite(error))?;
        if synchronous < SYNCHRONOUS_FULL { Err(self.fail(SqliteCause::Careless)) } else { Ok(()) }
    }

    pub(super) fn path(&self) -> &Arc<Path> {
        &self.path
    }

    pub(super) fn fail(&self, cause: SqliteCause) -> SqliteFailure {
        SqliteFailure::new(&self.path, cause)
    }

    pub(super) fn sqlite(&self, error: rusqlite::Error) -> SqliteFailure {
        self.fail(SqliteCause::Sqlite(error))
    }

    /// The file is never opened by any other means: closing a handle of our own would give up
    /// SQLite's locks on it, as POSIX has it.
    fn connect(&self) -> Result<Connection, SqliteFailure> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_EXRESCODE;
        let open = || {
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(self.patience)?;
            connection.pragma_update(None, "trusted_schema", false)?;
            connection.pragma_update(None, "cell_size_check", true)?;
            connection.pragma_update(None, "cache_size", -CACHE_KIBIBYTES)?;
            Ok(connection)
        };
        open().map_err(|error| self.sqlite(error))
    }

    /// Refuses what is not ours, before anything is changed.
    fn claim(&self, connection: &Connection) -> Result<(), SqliteFailure> {
        let owner = schema::owner(connection).map_err(|error| self.sqlite(error))?;
        match owner {
            FileOwner::SomebodyElse => Err(self.fail(SqliteCause::Foreign)),
            FileOwner::Us { version, readable_from } if readable_from > schema::VERSION => {
                Err(self.fail(SqliteCause::Newer(version)))
            }
            _ if is_read_only(connection) => Err(self.fail(SqliteCause::ReadOnly)),
            owner => {
                let prepare = || {
                    if owner == FileOwner::Nobody {
                        connection.pragma_update(None, "auto_vacuum", "incremental")?;
                    }
                    connection.pragma_update_and_check(None, "journal_mode", "wal", |row| {
                        row.get::<_, String>(0)
                    })
                };
                match prepare().map_err(|error| self.sqlite(error))? {
                    mode if mode == "wal" => Ok(()),
                    mode => Err(self.fail(SqliteCause::NotWal(mode))),
                }
            }
        }
    }
}

/// Makes the connection durable, the tables those of this release, and the clock go.
fn set_up(connection: &mut Connection, host: HostClock) -> rusqlite::Result<Option<StoreClock>> {
    connection.pragma_update(None, "synchronous", "full")?;
    // On macOS, where a plain `fsync` leaves everything in the drive's cache.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    // The writer does it after it has answered.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "journal_size_limit", JOURNAL_BYTES_KEPT)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    match schema::owner(&transaction)? {
        FileOwner::Us { version, .. } if version >= schema::VERSION => {}
        FileOwner::Us { version, .. } => schema::migrate(&transaction, version)?,
        FileOwner::Nobody | FileOwner::SomebodyElse => schema::migrate(&transaction, 0)?,
    }
    let clock = StoreClock::enter(&transaction, host)?;
    #[cfg(test)]
    super::failpoint::reach("set up");
    transaction.commit()?;
    Ok(clock)
}

fn is_read_only(connection: &Connection) -> bool {
    connection.is_readonly(MAIN_DB).unwrap_or(true)
}

/// Returns the absolute path, which stays valid when the process changes its folder.
fn absolute(path: &Path) -> Result<Arc<Path>, SqliteFailure> {
    let given: Arc<Path> = path.into();
    let fail = |cause| SqliteFailure::new(&given, cause);
    let name = path.file_name().ok_or_else(|| fail(SqliteCause::NoFile))?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match folder.canonicalize() {
        Ok(folder) => Ok(folder.join(name).into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(fail(SqliteCause::NoFolder)),
        Err(error) => Err(fail(SqliteCause::Io("its folder cannot be entered", error))),
    }
}

/// Returns the folder in which SQLite keeps the log: that of the file, not of a link to it.
fn folder_of(path: &Path) -> Option<PathBuf> {
    let file = path.canonicalize();
    file.as_deref().unwrap_or(path).parent().map(Path::to_owned)
}

/// Creates an empty file that only its owner may read; SQLite gives the files beside it the same
/// mode.
fn create(path: &Path) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, MODE);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map(drop),
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    match (Identity::of(one), Identity::of(other)) {
        (Some(one), Some(other)) => one == other,
        _ => one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|it| it == one)),
    }
}

/// Identity of a file, independent of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    number: u64,
}

impl Identity {
    #[cfg(unix)]
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(path).ok()?;
        Some(Self { device: metadata.dev(), number: metadata.ino() })
    }

    #[cfg(not(unix))]
    fn of(_: &Path) -> Option<Self> {
        None
    }
}

/// Returns the kind of network file system of a folder, if it is on one.
fn network(folder: &Path) -> Option<&'static str> {
    let kind = filesystem::kind(folder)?;
    filesystem::NETWORKS.iter().find(|(number, _)| *number == kind).map(|(_, name)| *name)
}

/// Mode for the owner alone, because the file holds responses.
pub(super) const MODE: u32 = 0o600;
/// Number of `FULL` in `PRAGMA synchronous`.
const SYNCHRONOUS_FULL: i64 = 2;
const CACHE_KIBIBYTES: i64 = 16 << 10;
/// Size of the write-ahead log that stays on disk once it is copied into the database.
const JOURNAL_BYTES_KEPT: i64 = 64 << 20;
