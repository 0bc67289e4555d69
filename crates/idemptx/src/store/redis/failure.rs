//! Why Redis gave no answer, and what that means for the step that asked.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use idemptx_core::store::{ErrorKind, StoreError};
use redis::RedisError;

use super::protocol;

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
    Unexpected,
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

    pub(super) fn unexpected(server: &Arc<str>) -> Self {
        Self { server: server.clone(), cause: Cause::Unexpected }
    }

    /// What the server said, code first, if it was the server that said no.
    pub(super) fn refusal(&self) -> Option<Bytes> {
        let Cause::Redis(error) = &self.cause else { return None };
        said(error)
    }

    fn kind(&self) -> ErrorKind {
        match &self.cause {
            Cause::Redis(error) if is_about_rights(error) => ErrorKind::Internal,
            Cause::Redis(_) | Cause::TimedOut(_) => ErrorKind::Unavailable,
            Cause::NoRuntime | Cause::Unexpected => ErrorKind::Internal,
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure.refusal() {
            Some(error) => protocol::refused(Some(failure.server), &error),
            None => Self::with_source(failure.kind(), failure),
        }
    }
}

/// What the server said in an error, code first, if it was the server that made it.
pub(super) fn said(error: &RedisError) -> Option<Bytes> {
    let code = error.code()?;
    Some(match error.detail() {
        Some(detail) => format!("{code} {detail}").into(),
        None => Bytes::copy_from_slice(code.as_bytes()),
    })
}

/// Whether the client library says, in its own words, that the server refused the user.
fn is_about_rights(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::AuthenticationFailed
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redis at {}: ", self.server)?;
        match &self.cause {
            Cause::Redis(error) if is_about_rights(error) => {
                write!(f, "the user or the password was refused: {error}")
            }
            Cause::Redis(error) => error.fmt(f),
            Cause::TimedOut(after) => write!(f, "no answer within {after:?}"),
            Cause::NoRuntime => f.write_str("its store must be used within a tokio runtime"),
            Cause::Unexpected => f.write_str("answered in a way it never should"),
        }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failure({self})")
    }
}

impl std::error::Error for Failure {}
