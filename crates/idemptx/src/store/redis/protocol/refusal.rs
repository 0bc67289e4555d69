//! Errors of the server, and their meaning for the step.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use idemptx_core::store::{ErrorKind, StoreError};

use super::layout::Layout;

impl Layout {
    /// Converts an error of the server to the step's error.
    ///
    /// Its text is kept as the source.
    #[must_use]
    pub fn refused(&self, error: &[u8]) -> StoreError {
        refused(self.server(), error)
    }

    /// A reply that no server should ever give.
    pub(super) fn unexpected(&self, step: &'static str) -> StoreError {
        let refusal = Refusal { server: self.server(), cause: RefusalCause::Unexpected(step) };
        StoreError::with_source(ErrorKind::Internal, refusal)
    }
}

/// Converts an error of the server outside of a step.
pub(in crate::store::redis) fn refused(server: Option<Arc<str>>, error: &[u8]) -> StoreError {
    let cause = RefusalCause::Refused(String::from_utf8_lossy(error).into_owned());
    let refused = StoreError::with_source(kind(error), Refusal { server, cause });
    match code_of(error) {
        b"OOM" | b"MISCONF" | b"NOREPLICAS" => refused.with_retry_after(SHORTAGE_RETRY_AFTER),
        _ => refused,
    }
}

/// Returns true if an error begins with this code.
pub(in crate::store::redis) fn has_code(error: &[u8], code: &str) -> bool {
    code_of(error) == code.as_bytes()
}

/// Returns true if the server does not know an option of a command.
pub(super) fn is_unknown_syntax(error: &[u8]) -> bool {
    has_code(error, "ERR") && error.ends_with(b"syntax error")
}

fn kind(error: &[u8]) -> ErrorKind {
    match code_of(error) {
        b"WRONGTYPE" => ErrorKind::Corrupt,
        // The server checks these before it executes a command, and before a script's first write.
        b"NOAUTH" | b"WRONGPASS" | b"NOPERM" | b"OOM" | b"READONLY" | b"LOADING"
        | b"MASTERDOWN" | b"NOREPLICAS" | b"MISCONF" | b"TRYAGAIN" | b"CLUSTERDOWN" | b"MOVED"
        | b"ASK" | b"BUSY" => ErrorKind::Refused,
        _ => ErrorKind::Unavailable,
    }
}

/// Returns what to do about an error whose own text does not say it.
fn remedy(error: &[u8]) -> &'static str {
    match code_of(error) {
        b"NOAUTH" => "it wants a password: write redis://user:password@host into the URL; ",
        b"WRONGPASS" => "it refused the user or the password of the URL: correct them; ",
        b"NOPERM" => "its user lacks a permission: see those in the documentation of this store; ",
        _ => "",
    }
}

pub(super) fn code_of(error: &[u8]) -> &[u8] {
    error.split(|byte| *byte == b' ').next().unwrap_or_default()
}

/// A step without a usable answer; it names the server, never a credential.
struct Refusal {
    server: Option<Arc<str>>,
    cause: RefusalCause,
}

enum RefusalCause {
    Refused(String),
    Unexpected(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            Some(server) => write!(f, "redis at {server}: ")?,
            None => f.write_str("redis: ")?,
        }
        match &self.cause {
            RefusalCause::Refused(error) => write!(f, "{}{error}", remedy(error.as_bytes())),
            RefusalCause::Unexpected(step) => {
                write!(f, "answered `{step}` in a way it never should")
            }
        }
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refusal({self})")
    }
}

impl std::error::Error for Refusal {}

/// Missing memory, disk space or replicas do not come back within a moment.
const SHORTAGE_RETRY_AFTER: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errors_code_says_what_it_means_and_its_text_is_kept() {
        for (error, kind) in [
            ("WRONGTYPE Operation against a key", ErrorKind::Corrupt),
            ("NOAUTH Authentication required.", ErrorKind::Refused),
            ("WRONGPASS invalid username-password pair", ErrorKind::Refused),
            ("NOPERM this user has no permissions", ErrorKind::Refused),
            ("OOM command not allowed", ErrorKind::Refused),
            ("READONLY You can't write against a read only replica.", ErrorKind::Refused),
            ("LOADING", ErrorKind::Refused),
            ("MASTERDOWN Link with MASTER is down", ErrorKind::Refused),
            ("NOREPLICAS Not enough good replicas to write.", ErrorKind::Refused),
            ("MISCONF Errors writing to the AOF file", ErrorKind::Refused),
            ("TRYAGAIN Multiple keys request during rehashing of slot", ErrorKind::Refused),
            ("CLUSTERDOWN The cluster is down", ErrorKind::Refused),
            ("BUSY Redis is busy running a script.", ErrorKind::Refused),
            ("ERR WRONGTYPE is not its code", ErrorKind::Unavailable),
            ("", ErrorKind::Unavailable),
        ] {
            let refused = Layout::new("idem:").at("host:6379/0").refused(error.as_bytes());
            assert_eq!(refused.kind(), kind, "{error}");
            let text = std::error::Error::source(&refused).unwrap().to_string();
            assert!(text.starts_with("redis at host:6379/0: "), "{text}");
            assert!(text.ends_with(error), "{text}");
        }
    }
}
