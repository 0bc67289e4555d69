//! Failures of PostgreSQL, and their meaning for the step.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use idemptx_core::store::{ErrorKind, StoreError};
use tokio_postgres::Error;
use tokio_postgres::error::{Severity, SqlState};

use crate::store::connection::{Fate, StepFailure};
use crate::store::server_access::NoPassword;

/// A step without a usable answer; it names the server, never a credential.
#[derive(Clone)]
pub(super) struct PostgresFailure {
    server: Arc<str>,
    cause: PostgresCause,
    fate: Fate,
}

#[derive(Clone)]
enum PostgresCause {
    Postgres(Arc<Error>),
    TimedOut(Duration),
    /// The wait for a synchronous standby was cancelled, after which success is reported.
    Doubtful,
    /// Others were quicker, every time.
    Contended,
    /// More steps wait than may.
    Busy,
    /// All sessions wait for late answers.
    Crowded,
    NoRuntime,
    /// The handler has committed or rolled back what it should have left to us.
    EndedByHand,
    /// There is no such record where the transaction is.
    NoRecord,
    Schema(String),
    /// A standby was promoted in the server's place.
    Replaced,
    /// The password could not be read.
    NoPassword(String),
    Unexpected,
}

impl PostgresFailure {
    pub(super) fn postgres(server: &Arc<str>, error: Error) -> Self {
        Self::of(server, PostgresCause::Postgres(Arc::new(error)))
    }

    pub(super) fn timed_out(server: &Arc<str>, after: Duration) -> Self {
        Self::of(server, PostgresCause::TimedOut(after))
    }

    pub(super) fn doubtful(server: &Arc<str>) -> Self {
        Self::of(server, PostgresCause::Doubtful)
    }

    pub(super) fn contended(server: &Arc<str>) -> Self {
        Self::of(server, PostgresCause::Contended)
    }

    pub(super) fn busy(server: &Arc<str>) -> Self {
        Self::of(server, PostgresCause::Busy)
    }

    pub(super) fn crowded(server: &Arc<str>) -> Self {
        Self::of(server, PostgresCause::Crowded)
    }

    pub(super) fn no_runtime(server: &Arc<str>) -> Self {
        Self::of(server, PostgresCause::NoRuntime)
    }

    pub(super) fn ended_by_hand(server: &Arc<str>) -> Self {
        Self::of(server, PostgresCause::EndedByHand)
    }

    pub(super) fn no_record(server: &Arc<str>) -> Self {
        Self::of(server, PostgresCause::NoRecord)
    }

    pub(super) fn replaced(server: &Arc<str>) -> Self {
        Self::of(server, PostgresCause::Replaced)
    }

    pub(super) fn schema(server: &Arc<str>, remedy: impl Into<String>) -> Self {
        Self::of(server, PostgresCause::Schema(remedy.into()))
    }

    pub(super) fn no_password(server: &Arc<str>, error: &NoPassword) -> Self {
        Self::of(server, PostgresCause::NoPassword(error.to_string()))
    }

    pub(super) fn unexpected(server: &Arc<str>) -> Self {
        Self::of(server, PostgresCause::Unexpected)
    }

    fn of(server: &Arc<str>, cause: PostgresCause) -> Self {
        Self { server: server.clone(), cause, fate: Fate::Sent }
    }

    /// Returns true if a single row may have failed the batch, so that its steps are retried one
    /// by one.
    pub(super) fn may_be_about_one_row(&self) -> bool {
        matches!(
            self.class(),
            Some(
                SqlStateClass::Later
                    | SqlStateClass::Refused
                    | SqlStateClass::Shortage
                    | SqlStateClass::Corrupt
                    | SqlStateClass::Other
            )
        )
    }

    /// Returns true if the tables are missing, or are others than those that were verified.
    pub(super) fn is_about_tables(&self) -> bool {
        self.class() == Some(SqlStateClass::NoTables)
    }

    /// Returns true if the server refused the user or the password.
    pub(super) fn is_of_authentication(&self) -> bool {
        self.class() == Some(SqlStateClass::Denied)
    }

    /// Returns true if the server has become a standby, or takes no writes for another reason.
    pub(super) fn is_read_only(&self) -> bool {
        self.class() == Some(SqlStateClass::ReadOnly)
    }

    /// Returns the failure of an earlier server, if that one has said why it refuses and this one
    /// has not.
    pub(super) fn or_earlier(self, earlier: Option<Self>) -> Self {
        match earlier {
            Some(earlier) if earlier.class().is_some() && self.class().is_none() => earlier,
            _ => self,
        }
    }

    /// Returns true if the role lacks a right.
    pub(super) fn is_about_rights(&self) -> bool {
        self.class() == Some(SqlStateClass::NoRights)
    }

    fn class(&self) -> Option<SqlStateClass> {
        match &self.cause {
            PostgresCause::Postgres(error) => SqlStateClass::of_error(error),
            _ => None,
        }
    }

    /// Joins the doubt of an earlier failure of the same step.
    pub(super) fn after(self, earlier: &Self) -> Self {
        if earlier.fate == Fate::InDoubt { self.in_doubt() } else { self }
    }

    fn kind(&self) -> ErrorKind {
        match (self.fate, &self.cause, self.kind_by_answer()) {
            // An answer to what opens a session, whatever it means: nothing of the step was sent.
            (Fate::Unsent, PostgresCause::Postgres(_), ErrorKind::Internal) => ErrorKind::Refused,
            (fate, _, kind) => fate.judge(kind),
        }
    }

    fn kind_by_answer(&self) -> ErrorKind {
        match &self.cause {
            PostgresCause::Postgres(error) => match SqlStateClass::of_error(error) {
                Some(class) => class.kind(),
                None if is_of_authentication(error) => ErrorKind::Refused,
                None => ErrorKind::Unavailable,
            },
            PostgresCause::TimedOut(_)
            | PostgresCause::Crowded
            | PostgresCause::Doubtful
            | PostgresCause::Contended => ErrorKind::Unavailable,
            PostgresCause::Busy => ErrorKind::Full,
            PostgresCause::NoRecord => ErrorKind::Fenced,
            PostgresCause::Schema(_) | PostgresCause::NoPassword(_) | PostgresCause::Replaced => {
                ErrorKind::Refused
            }
            PostgresCause::NoRuntime | PostgresCause::EndedByHand | PostgresCause::Unexpected => {
                ErrorKind::Internal
            }
        }
    }

    /// Returns the remedy, if the server's message does not name it.
    fn hint(&self) -> &'static str {
        match self.class() {
            Some(SqlStateClass::NoTables) => {
                "; the tables are missing or of another version: let the store migrate, or run \
                 what `PostgresStore::schema_sql` prints"
            }
            Some(SqlStateClass::NoRights) => "; see the grants in the documentation of this store",
            Some(SqlStateClass::Denied) => {
                "; correct the user, the password or the database in the URL, or allow them in the \
                 server's pg_hba.conf"
            }
            Some(SqlStateClass::NotPrepared) => {
                "; is there a pooler in transaction mode? then call `pooled(true)`"
            }
            Some(SqlStateClass::ReadOnly) => {
                "; this server takes no writes (a standby, after a failover)"
            }
            _ => "",
        }
    }
}

impl StepFailure for PostgresFailure {
    fn is_spent(&self) -> bool {
        let PostgresCause::Postgres(error) = &self.cause else { return false };
        // Closed, or on a server that has become a standby, or with statements of other tables.
        SqlStateClass::of_error(error).is_none_or(|class| {
            matches!(
                class,
                SqlStateClass::Lost
                    | SqlStateClass::ReadOnly
                    | SqlStateClass::NoTables
                    | SqlStateClass::NotPrepared
            )
        })
    }

    fn is_dropped(&self) -> bool {
        let PostgresCause::Postgres(error) = &self.cause else { return false };
        match SqlStateClass::of_error(error) {
            None => !is_of_authentication(error),
            Some(class) => class == SqlStateClass::Lost,
        }
    }

    fn unsent(self) -> Self {
        Self { fate: Fate::Unsent, ..self }
    }

    fn in_doubt(self) -> Self {
        Self { fate: Fate::InDoubt, ..self }
    }
}

/// Meaning of an error code of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SqlStateClass {
    /// The session is over or never began; a new one may do better.
    Lost,
    /// The server is no primary.
    ReadOnly,
    /// A time-out or a conflict.
    Later,
    /// A lock that was not had in time: the statement has changed nothing.
    Refused,
    /// No room for rows, memory or connections: the statement has changed nothing.
    Shortage,
    /// The user, the password or the database of a new session.
    Denied,
    NoRights,
    NoTables,
    NotPrepared,
    Corrupt,
    Other,
}

impl SqlStateClass {
    /// Classifies an error of the server; `None` for one of the client library.
    fn of_error(error: &Error) -> Option<Self> {
        let server_error = error.as_db_error()?;
        // It goes down, and will find out what of the step is on disk: that is no verdict, even if
        // the reason is want of room.
        let is_going_down = server_error.parsed_severity() == Some(Severity::Panic);
        Some(if is_going_down { Self::Lost } else { Self::of(server_error.code()) })
    }

    fn of(code: &SqlState) -> Self {
        match code.code() {
            "25006" => Self::ReadOnly,
            "42501" => Self::NoRights,
            // Undefined table, column or schema; the result type of a cached plan changed.
            "42P01" | "42703" | "3F000" | "0A000" => Self::NoTables,
            "26000" | "42P05" => Self::NotPrepared,
            "XX001" | "XX002" => Self::Corrupt,
            // Shut down, crashed, starting up; ended for idling in or out of a transaction.
            "57P01" | "57P02" | "57P03" | "57P05" | "25P03" => Self::Lost,
            "55P03" => Self::Refused,
            // Serialization and deadlock; statement time-out.
            "40001" | "40P01" | "57014" => Self::Later,
            code => match code.get(..2) {
                Some("08") => Self::Lost,
                Some("53") => Self::Shortage,
                Some("40" | "57" | "58") => Self::Later,
                Some("28" | "3D") => Self::Denied,
                _ => Self::Other,
            },
        }
    }

    fn kind(self) -> ErrorKind {
        match self {
            Self::Lost | Self::Later => ErrorKind::Unavailable,
            // A statement that fails has changed nothing.
            Self::ReadOnly
            | Self::Refused
            | Self::Shortage
            | Self::Denied
            | Self::NoRights
            | Self::NoTables
            | Self::NotPrepared => ErrorKind::Refused,
            Self::Corrupt => ErrorKind::Corrupt,
            Self::Other => ErrorKind::Internal,
        }
    }
}

/// Returns true if the client library, not the server, reports failed authentication.
fn is_of_authentication(error: &Error) -> bool {
    error.to_string().starts_with("authentication error")
        || error.to_string().starts_with("invalid configuration")
}

impl From<PostgresFailure> for StoreError {
    fn from(failure: PostgresFailure) -> Self {
        let is_shortage = failure.class() == Some(SqlStateClass::Shortage);
        let error = Self::with_source(failure.kind(), failure);
        if is_shortage { error.with_retry_after(SHORTAGE_RETRY_AFTER) } else { error }
    }
}

impl fmt::Display for PostgresFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgresql at {}: ", self.server)?;
        match &self.cause {
            PostgresCause::Postgres(error) => match error.as_db_error() {
                Some(server_error) => {
                    write!(
                        f,
                        "{} ({}){}",
                        server_error.message(),
                        server_error.code().code(),
                        self.hint()
                    )
                }
                None => {
                    error.fmt(f)?;
                    let mut source = StdError::source(&**error);
                    while let Some(cause) = source {
                        write!(f, ": {cause}")?;
                        source = cause.source();
                    }
                    Ok(())
                }
            },
            PostgresCause::TimedOut(after) => write!(f, "no answer within {after:?}"),
            PostgresCause::Doubtful => f.write_str(
                "the wait for a synchronous standby was cancelled, so a failover may undo the step",
            ),
            PostgresCause::Contended => {
                f.write_str("others changed the record each time it was tried")
            }
            PostgresCause::Busy => f.write_str("too many steps wait for it"),
            PostgresCause::Crowded => {
                f.write_str("its sessions wait for answers that are late; no more are opened")
            }
            PostgresCause::NoRuntime => {
                f.write_str("its store must be used within a tokio runtime")
            }
            PostgresCause::EndedByHand => f.write_str(
                "the handler's transaction has ended before it was settled: leave COMMIT and \
                 ROLLBACK to the engine",
            ),
            PostgresCause::NoRecord => f.write_str(
                "there is no record of the operation where the transaction is: begin it on the \
                 store's own database",
            ),
            PostgresCause::Schema(text) | PostgresCause::NoPassword(text) => f.write_str(text),
            PostgresCause::Replaced => f.write_str(
                "a standby was promoted in its place, so it is left alone although it takes \
                 writes: stop it, or make it a standby of the other",
            ),
            PostgresCause::Unexpected => f.write_str("answered in a way it never should"),
        }
    }
}

impl fmt::Debug for PostgresFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresFailure({self})")
    }
}

impl StdError for PostgresFailure {}

/// Missing room does not come back within a moment.
const SHORTAGE_RETRY_AFTER: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_was_never_sent_is_refused_and_one_that_was_lost_never_is() {
        let server: Arc<str> = "server".into();
        let late = || PostgresFailure::timed_out(&server, Duration::from_secs(1));
        assert_eq!(late().kind(), ErrorKind::Unavailable);
        assert_eq!(late().unsent().kind(), ErrorKind::Refused);
        assert_eq!(late().in_doubt().kind(), ErrorKind::Unavailable);
        assert_eq!(PostgresFailure::crowded(&server).unsent().kind(), ErrorKind::Refused);
        assert_eq!(PostgresFailure::busy(&server).kind(), ErrorKind::Full);
        assert_eq!(PostgresFailure::busy(&server).in_doubt().kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn every_code_that_matters_has_its_meaning() {
        for (code, kind) in [
            ("08006", ErrorKind::Unavailable),
            ("25006", ErrorKind::Refused),
            ("26000", ErrorKind::Refused),
            ("28000", ErrorKind::Refused),
            ("28P01", ErrorKind::Refused),
            ("3D000", ErrorKind::Refused),
            ("3F000", ErrorKind::Refused),
            ("40001", ErrorKind::Unavailable),
            ("40P01", ErrorKind::Unavailable),
            ("42501", ErrorKind::Refused),
            ("42P01", ErrorKind::Refused),
            ("53100", ErrorKind::Refused),
            ("53200", ErrorKind::Refused),
            ("53300", ErrorKind::Refused),
            ("55P03", ErrorKind::Refused),
            ("57014", ErrorKind::Unavailable),
            ("57P01", ErrorKind::Unavailable),
            ("57P03", ErrorKind::Unavailable),
            ("58030", ErrorKind::Unavailable),
            ("XX001", ErrorKind::Corrupt),
            ("XX000", ErrorKind::Internal),
            ("22P02", ErrorKind::Internal),
        ] {
            assert_eq!(SqlStateClass::of(&SqlState::from_code(code)).kind(), kind, "{code}");
        }
    }
}
