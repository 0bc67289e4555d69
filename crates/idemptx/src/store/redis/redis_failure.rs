//! Failures of Redis, and their meaning for the step.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use idemptx_core::store::{ErrorKind, StoreError};
use redis::{RedisError, ServerErrorKind};

use super::protocol;
use crate::store::connection::{Fate, StepFailure};
use crate::store::server_access::NoPassword;

/// A step without a usable answer; it names the server, never a credential.
#[derive(Clone)]
pub(super) struct RedisFailure {
    server: Arc<str>,
    cause: RedisCause,
    fate: Fate,
}

#[derive(Clone, Debug)]
enum RedisCause {
    Redis(RedisError),
    TimedOut(Duration),
    /// No handshake of TLS was completed in time.
    NoHandshake(Duration),
    NoRuntime,
    /// The password could not be read.
    NoPassword(String),
    /// The server refused a question that is no step.
    Refused(Bytes),
    /// A sentinel knows no primary of this service, or it is none.
    NoPrimary(String),
    /// No node serves this slot.
    NoOwner(u16),
    Unexpected,
}

impl RedisFailure {
    fn new(server: &Arc<str>, cause: RedisCause) -> Self {
        Self { server: server.clone(), cause, fate: Fate::Sent }
    }

    pub(super) fn redis(server: &Arc<str>, error: RedisError) -> Self {
        Self::new(server, RedisCause::Redis(error))
    }

    pub(super) fn timed_out(server: &Arc<str>, after: Duration) -> Self {
        Self::new(server, RedisCause::TimedOut(after))
    }

    pub(super) fn no_handshake(server: &Arc<str>, after: Duration) -> Self {
        Self::new(server, RedisCause::NoHandshake(after))
    }

    pub(super) fn no_runtime(server: &Arc<str>) -> Self {
        Self::new(server, RedisCause::NoRuntime)
    }

    pub(super) fn no_password(server: &Arc<str>, error: &NoPassword) -> Self {
        Self::new(server, RedisCause::NoPassword(error.to_string()))
    }

    pub(super) fn refused(server: &Arc<str>, error: Bytes) -> Self {
        Self::new(server, RedisCause::Refused(error))
    }

    pub(super) fn no_primary(server: &Arc<str>, service: &str) -> Self {
        Self::new(server, RedisCause::NoPrimary(service.to_owned()))
    }

    pub(super) fn no_owner(cluster: &Arc<str>, slot: u16) -> Self {
        Self::new(cluster, RedisCause::NoOwner(slot)).unsent()
    }

    pub(super) fn unexpected(server: &Arc<str>) -> Self {
        Self::new(server, RedisCause::Unexpected)
    }

    /// Returns true if nothing of the step was sent.
    pub(super) fn is_unsent(&self) -> bool {
        self.fate == Fate::Unsent
    }

    /// Returns the server's error, if the server refused the step.
    pub(super) fn refusal(&self) -> Option<Bytes> {
        let RedisCause::Redis(error) = &self.cause else { return None };
        error_text(error)
    }

    /// Returns true if the server refused the user or the password.
    pub(super) fn is_of_authentication(&self) -> bool {
        matches!(&self.cause, RedisCause::Redis(error) if is_about_rights(error))
    }

    fn kind(&self) -> ErrorKind {
        match &self.cause {
            RedisCause::Redis(error) if is_about_rights(error) => ErrorKind::Refused,
            RedisCause::NoPassword(_)
            | RedisCause::Refused(_)
            | RedisCause::NoPrimary(_)
            | RedisCause::NoOwner(_) => ErrorKind::Refused,
            RedisCause::Redis(_) | RedisCause::TimedOut(_) | RedisCause::NoHandshake(_) => {
                ErrorKind::Unavailable
            }
            RedisCause::NoRuntime | RedisCause::Unexpected => ErrorKind::Internal,
        }
    }
}

impl StepFailure for RedisFailure {
    fn is_spent(&self) -> bool {
        let RedisCause::Redis(error) = &self.cause else { return false };
        // A server that has become a replica keeps its connections, and refuses every write.
        // One that no longer knows who this is, once its users were changed, is asked to again.
        error.is_io_error()
            || error.is_unrecoverable_error()
            || error.code() == Some("NOAUTH")
            || error.kind() == redis::ErrorKind::Server(ServerErrorKind::ReadOnly)
    }

    fn is_dropped(&self) -> bool {
        matches!(&self.cause, RedisCause::Redis(error) if error.is_connection_dropped())
    }

    fn unsent(self) -> Self {
        Self { fate: Fate::Unsent, ..self }
    }

    fn in_doubt(self) -> Self {
        Self { fate: Fate::InDoubt, ..self }
    }
}

impl From<RedisFailure> for StoreError {
    fn from(failure: RedisFailure) -> Self {
        match failure.refusal() {
            Some(error) => {
                let refused = protocol::refused(Some(Arc::clone(&failure.server)), &error);
                match failure.fate {
                    Fate::InDoubt => refused.in_doubt(),
                    // An answer to what opens a connection, such as the database's number.
                    Fate::Unsent if refused.kind().is_unknown() => {
                        Self::with_source(ErrorKind::Refused, failure)
                    }
                    _ => refused,
                }
            }
            None => Self::with_source(failure.fate.judge(failure.kind()), failure),
        }
    }
}

/// Returns the text of an error of the server, code first.
pub(super) fn error_text(error: &RedisError) -> Option<Bytes> {
    let code = error.code()?;
    Some(match error.detail() {
        Some(detail) => format!("{code} {detail}").into(),
        None => Bytes::copy_from_slice(code.as_bytes()),
    })
}

/// Returns true if the client library reports that the server refused the user.
fn is_about_rights(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::AuthenticationFailed
}

impl fmt::Display for RedisFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redis at {}: ", self.server)?;
        match &self.cause {
            RedisCause::Redis(error) if is_about_rights(error) => {
                write!(f, "the user or the password is wrong: correct them; {error}")
            }
            RedisCause::Redis(error) => error.fmt(f),
            RedisCause::TimedOut(after) => write!(f, "no answer within {after:?}"),
            RedisCause::NoHandshake(after) => write!(
                f,
                "no TLS handshake within {after:?}: if this port speaks no TLS, write redis:// \
                 instead of rediss://"
            ),
            RedisCause::NoRuntime => f.write_str("its store must be used within a tokio runtime"),
            RedisCause::NoPassword(text) => f.write_str(text),
            RedisCause::Refused(error) => f.write_str(&String::from_utf8_lossy(error)),
            RedisCause::NoPrimary(service) => {
                write!(
                    f,
                    "there is no primary of the service `{service}`: correct its name, or wait"
                )
            }
            RedisCause::NoOwner(slot) => write!(f, "no node of the cluster serves the slot {slot}"),
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
