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
pub(super) struct RedisFailure {
    server: Arc<str>,
    cause: RedisCause,
}

#[derive(Clone, Debug)]
enum RedisCause {
    Redis(RedisError),
    TimedOut(Duration),
    NoRuntime,
    Unexpected,
}

impl RedisFailure {
    pub(super) fn redis(server: &Arc<str>, error: RedisError) -> Self {
        Self { server: server.clone(), cause: RedisCause::Redis(error) }
    }

    pub(super) fn timed_out(server: &Arc<str>, after: Duration) -> Self {
        Self { server: server.clone(), cause: RedisCause::TimedOut(after) }
    }

    pub(super) fn no_runtime(server: &Arc<str>) -> Self {
        Self { server: server.clone(), cause: RedisCause::NoRuntime }
    }

    pub(super) fn unexpected(server: &Arc<str>) -> Self {
        Self { server: server.clone(), cause: RedisCause::Unexpected }
    }

    /// What the server said, code first, if it was the server that said no.
    pub(super) fn refusal(&self) -> Option<Bytes> {
        let RedisCause::Redis(error) = &self.cause else { return None };
        error_text(error)
    }

    fn kind(&self) -> ErrorKind {
        match &self.cause {
            RedisCause::Redis(error) if is_about_rights(error) => ErrorKind::Internal,
            RedisCause::Redis(_) | RedisCause::TimedOut(_) => ErrorKind::Unavailable,
            RedisCause::NoRuntime | RedisCause::Unexpected => ErrorKind::Internal,
        }
    }
}

impl From<RedisFailure> for StoreError {
    fn from(failure: RedisFailure) -> Self {
        match failure.refusal() {
            Some(error) => protocol::refused(Some(failure.server), &error),
            None => Self::with_source(failure.kind(), failure),
        }
    }
}

/// What the server said in an error, code first, if it was the server that made it.
pub(super) fn error_text(error: &RedisError) -> Option<Bytes> {
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

impl fmt::Display for RedisFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redis at {}: ", self.server)?;
        match &self.cause {
            RedisCause::Redis(error) if is_about_rights(error) => {
                write!(f, "the user or the password was refused: {error}")
            }
            RedisCause::Redis(error) => error.fmt(f),
            RedisCause::TimedOut(after) => write!(f, "no answer within {after:?}"),
            RedisCause::NoRuntime => f.write_str("its store must be used within a tokio runtime"),
            RedisCause::Unexpected => f.write_str("answered in a way it never should"),
        }
    }
}

impl fmt::Debug for RedisFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisFailure({self})")
    }
}

impl std::error::Error for RedisFailure {}
