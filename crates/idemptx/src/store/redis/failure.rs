//! Why Redis gave no answer, and what that means for the step that asked.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use idemptx_core::store::{ErrorKind, StoreError};
use redis::{RedisError, ServerErrorKind};

/// A step without a usable answer; it names the server, never a credential.
#[derive(Clone)]
pub(super) struct Failure {
    server: Arc<str>,
    cause: Cause,
}

#[derive(Clone, Debug)]
enum Cause {
    Redis(RedisError),
    TimedOut(Duration),
    NoRuntime,
    Unexpected(&'static str),
}

impl Failure {
    pub(super) fn redis(server: &Arc<str>, error: RedisError) -> Self {
        Self { server: server.clone(), cause: Cause::Redis(error) }
    }

    pub(super) fn timed_out(server: &Arc<str>, after: Duration) -> Self {
        Self { server: server.clone(), cause: Cause::TimedOut(after) }
    }

    pub(super) fn no_runtime(server: &Arc<str>) -> Self {
        Self { server: server.clone(), cause: Cause::NoRuntime }
    }

    pub(super) fn unexpected(server: &Arc<str>, step: &'static str) -> Self {
        Self { server: server.clone(), cause: Cause::Unexpected(step) }
    }

    /// Whether the server does not know the script that was named by its hash.
    pub(super) fn is_unknown_script(&self) -> bool {
        matches!(&self.cause, Cause::Redis(error)
            if error.kind() == redis::ErrorKind::Server(ServerErrorKind::NoScript))
    }

    /// Whether the server knows or allows no such command: `NOPERM`, or `ERR unknown command`.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(&self.cause, Cause::Redis(error)
        if matches!(error.kind(), redis::ErrorKind::Server(
            ServerErrorKind::NoPerm | ServerErrorKind::ResponseError
        )))
    }

    fn kind(&self) -> ErrorKind {
        let error = match &self.cause {
            Cause::Redis(error) => error,
            Cause::TimedOut(_) => return ErrorKind::Unavailable,
            Cause::NoRuntime | Cause::Unexpected(_) => return ErrorKind::Internal,
        };
        match (error.kind(), error.code()) {
            (_, Some("WRONGTYPE")) => ErrorKind::Corrupt,
            (redis::ErrorKind::AuthenticationFailed, _)
            | (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM")) => ErrorKind::Internal,
            // Whatever else it says (OOM, LOADING, READONLY, BUSY, CLUSTERDOWN, … or nothing at
            // all), it is no verdict on the record.
            _ => ErrorKind::Unavailable,
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        Self::with_source(failure.kind(), failure)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redis at {}: ", self.server)?;
        match &self.cause {
            Cause::Redis(error) if self.kind() == ErrorKind::Internal => {
                write!(f, "the user, the password or the permissions were refused: {error}")
            }
            Cause::Redis(error) => error.fmt(f),
            Cause::TimedOut(after) => write!(f, "no answer within {after:?}"),
            Cause::NoRuntime => f.write_str("its store must be used within a tokio runtime"),
            Cause::Unexpected(step) => write!(f, "answered `{step}` in a way it never should"),
        }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failure({self})")
    }
}

impl std::error::Error for Failure {}
