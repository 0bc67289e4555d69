//! Failures of the file, and their meaning for the step.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use idemptx_core::record::Undecodable;
use idemptx_core::store::{ErrorKind, StoreError};
use rusqlite::ErrorCode;

/// A failure of a file, whose name its text begins with.
#[derive(Clone)]
pub(super) struct SqliteFailure(Arc<Inner>);

struct Inner {
    path: Arc<Path>,
    cause: SqliteCause,
}

/// Cause of a failure.
#[derive(Debug)]
pub(super) enum SqliteCause {
    Sqlite(rusqlite::Error),
    /// Not SQLite's doing: the attempt named by the text failed.
    Io(&'static str, io::Error),
    /// A step had no answer in time.
    TimedOut(Duration),
    /// Too many steps wait already.
    Crowded(usize),
    /// The writing or reading thread has ended.
    Ended,
    /// The bundled SQLite is none that keeps what it acknowledges.
    OldLibrary(&'static str),
    NoFolder,
    NoFile,
    ReadOnly,
    NotWal(String),
    /// A database of another application.
    Foreign,
    /// Written by a newer release.
    Newer(i64),
    /// The file is on a network file system of that name.
    Network(&'static str),
    /// The file is mounted without its folder.
    MountedAlone,
    /// The file was taken over by another host, or by a container with a separate kernel.
    OtherHost,
    /// The clock of this process is not the one the others go by.
    OtherClock,
    /// The name leads to another file now, or to none.
    Replaced,
    /// The application's transaction is on another file.
    OtherFile,
    /// The application's connection does not flush what it commits.
    Careless,
    Undecodable(Undecodable),
}

impl SqliteFailure {
    pub(super) fn new(path: &Arc<Path>, cause: SqliteCause) -> Self {
        Self(Arc::new(Inner { path: path.clone(), cause }))
    }

    pub(super) fn kind(&self) -> ErrorKind {
        match &self.0.cause {
            SqliteCause::Sqlite(error) => match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ErrorKind::Corrupt,
                // A statement that waited for a lock in vain has changed nothing.
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => ErrorKind::Refused,
                Some(
                    ErrorCode::DiskFull
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::ReadOnly
                    | ErrorCode::CannotOpen
                    | ErrorCode::PermissionDenied
                    | ErrorCode::OutOfMemory
                    | ErrorCode::FileLockingProtocolFailed,
                ) => ErrorKind::Unavailable,
                Some(_) => ErrorKind::Internal,
                None => ErrorKind::Corrupt,
            },
            SqliteCause::Undecodable(why) => why.error_kind(),
            SqliteCause::OtherFile | SqliteCause::Careless => ErrorKind::Invalid,
            SqliteCause::Crowded(_) => ErrorKind::Refused,
            _ => ErrorKind::Unavailable,
        }
    }

    /// Returns the kind for a step that was not begun, or whose statement failed.
    ///
    /// `without_room` is the kind if there was no room on the disk.
    pub(super) fn kind_before_commit(&self, without_room: ErrorKind) -> ErrorKind {
        match self.kind() {
            _ if self.is_full() => without_room,
            ErrorKind::Unavailable => ErrorKind::Refused,
            kind => kind,
        }
    }

    fn is_full(&self) -> bool {
        let SqliteCause::Sqlite(error) = &self.0.cause else { return false };
        error.sqlite_error_code() == Some(ErrorCode::DiskFull)
    }

    /// The error of a step, of another kind than the failure by itself would be.
    pub(super) fn as_kind(&self, kind: ErrorKind) -> StoreError {
        StoreError::with_source(kind, self.clone())
    }
}

impl From<SqliteFailure> for StoreError {
    fn from(failure: SqliteFailure) -> Self {
        let kind = failure.kind();
        Self::with_source(kind, failure)
    }
}

impl fmt::Display for SqliteFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sqlite store {}: {}", self.0.path.display(), self.0.cause)
    }
}

impl fmt::Debug for SqliteFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqliteFailure({self})")
    }
}

impl StdError for SqliteFailure {}

impl fmt::Display for SqliteCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(error) => sqlite(error, f),
            Self::Io(attempt, error) => write!(f, "{attempt}: {error}"),
            Self::TimedOut(after) => write!(
                f,
                "no answer within {after:?}: the disk is slow, or another process keeps the file \
                 locked"
            ),
            Self::Crowded(steps) => write!(f, "{steps} steps wait already for the disk"),
            Self::Ended => f.write_str("the store has been closed"),
            Self::OldLibrary(version) => write!(
                f,
                "SQLite {version} can lose acknowledged writes; link {OLDEST_VERSION} or newer, as \
                 the feature `sqlite` does by itself"
            ),
            Self::NoFolder => {
                f.write_str("its folder does not exist; create it, or name another file")
            }
            Self::NoFile => f.write_str("it is a folder; name a file in it"),
            Self::ReadOnly => f.write_str(
                "this process may not write the file; give its user the right to, and the folder, \
                 too",
            ),
            Self::NotWal(mode) => write!(
                f,
                "it cannot be switched to a write-ahead log but stays in mode `{mode}`; other \
                 programs must close it, and its file system must be a local one"
            ),
            Self::Foreign => f.write_str(
                "it is a database of another application; give the store a file of its own",
            ),
            Self::Newer(version) => write!(
                f,
                "a newer release has given it schema {version}, and this one knows {SCHEMA} at \
                 most; upgrade this process"
            ),
            Self::Network(kind) => write!(
                f,
                "it is on {kind}, where several hosts cannot lock it safely; put it on a local \
                 disk, or use Redis or PostgreSQL for several hosts"
            ),
            Self::MountedAlone => f.write_str(
                "it is mounted without its folder, so that each container has another write-ahead \
                 log beside it: one key would be executed twice, and results end with the \
                 container; mount the folder, with nothing else in it",
            ),
            Self::OtherHost => f.write_str(
                "another host, or a container with a kernel of its own, has opened it; only \
                 processes of one host may share it: restart the rightful ones",
            ),
            Self::OtherClock => f.write_str(
                "this process has a boot clock earlier than that of the others, as in a time \
                 namespace; run all of them in the same one",
            ),
            Self::Replaced => f.write_str(
                "the file was removed, or replaced by another one, while it was in use; restart \
                 every process that uses it",
            ),
            Self::OtherFile => f.write_str(
                "the transaction is on another file; its connection must have opened this one, as \
                 its main database",
            ),
            Self::Careless => f.write_str(
                "the transaction's connection does not flush what it commits to the disk; set its \
                 `PRAGMA synchronous` to FULL",
            ),
            Self::Undecodable(why) => why.fmt(f),
        }
    }
}

fn sqlite(error: &rusqlite::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let advice = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "there is no room left on the disk; make some",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another program keeps it locked for too long"
        }
        Some(ErrorCode::DatabaseCorrupt) => {
            "it is damaged; stop every process that uses it, keep a copy, and restore a backup or \
             start with a new file (what it recorded may then be executed again)"
        }
        Some(ErrorCode::NotADatabase) => "it is not an SQLite database; name another file",
        Some(ErrorCode::ReadOnly) => "this process may not write it",
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            "this process may not open it, or the files beside it whose names begin with its own"
        }
        Some(ErrorCode::SystemIoFailure) => "reading or writing it failed",
        _ => "a step failed in a way it should not",
    };
    write!(f, "{advice} ({error})")
}

pub(super) const SCHEMA: i64 = super::schema::VERSION;
/// Older ones have the WAL-reset bug: a checkpoint may lose or corrupt what was committed.
pub(super) const OLDEST_VERSION: &str = "3.51.3";
pub(super) const OLDEST_VERSION_NUMBER: i32 = 3_051_003;
