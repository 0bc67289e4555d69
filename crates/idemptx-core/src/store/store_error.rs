//! The errors of a store, which say whether the step may have happened.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// The error of a step that a store did not do, or may not have done.
///
/// [`kind`](Self::kind) distinguishes the two, and so decides what the caller must do.
pub struct StoreError {
    failure: StoreFailure,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl StoreError {
    /// Creates an error without a source.
    #[must_use]
    pub const fn new(kind: ErrorKind) -> Self {
        Self { failure: StoreFailure { kind, retry_after: None }, source: None }
    }

    /// Creates an error with its source.
    #[must_use]
    pub fn with_source(
        kind: ErrorKind,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { source: Some(source.into()), ..Self::new(kind) }
    }

    /// Adds the delay after which another try makes sense.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.failure.retry_after = Some(wait);
        self
    }

    /// Takes back that a refused step was certainly not done, because an earlier request of it may
    /// have been executed.
    #[must_use]
    pub const fn in_doubt(mut self) -> Self {
        if matches!(self.failure.kind, ErrorKind::Refused | ErrorKind::Full) {
            self.failure.kind = ErrorKind::Unavailable;
        }
        self
    }

    /// Returns the kind, which decides what the caller must do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.failure.kind
    }

    /// Returns the delay after which another try makes sense, if the store knows it.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.failure.retry_after
    }

    /// Returns the part of the error that the protocol decides on.
    #[must_use]
    pub const fn failure(&self) -> StoreFailure {
        self.failure
    }
}

/// The part of a [`StoreError`] that the protocol decides on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreFailure {
    /// The kind of the error.
    pub kind: ErrorKind,
    /// The delay after which another try makes sense, if the store knows it.
    pub retry_after: Option<Duration>,
}

impl From<StoreFailure> for ErrorKind {
    fn from(failure: StoreFailure) -> Self {
        failure.kind
    }
}

impl From<ErrorKind> for StoreFailure {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, retry_after: None }
    }
}

impl From<ErrorKind> for StoreError {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreError")
            .field("kind", &self.failure.kind)
            .field("retry_after", &self.failure.retry_after)
            .field("source", &self.source)
            .finish()
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.failure.kind {
            ErrorKind::Unavailable => "the store did not answer: the step may have happened",
            ErrorKind::Refused => "the store refused the step: nothing was changed",
            ErrorKind::Fenced => "another claim holds the record, or the record is gone",
            ErrorKind::Corrupt => "the store holds something that is no record of this key",
            ErrorKind::Full => {
                "a limit of this process or the store was reached: nothing was changed"
            }
            ErrorKind::Invalid => "the request was malformed: nothing was changed",
            ErrorKind::Internal => "the store failed: the step may have happened",
        })
    }
}

impl StdError for StoreError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// The kind of a [`StoreError`]: certainty about the step, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Unknown: no answer came. Try again with the same token, or release by it.
    Unavailable,
    /// Certainly not done: the store or the connection to it refused the step, for now.
    Refused,
    /// Certainly not done: the caller is not the owner any more. Change nothing.
    Fenced,
    /// Certainly not done: the stored bytes cannot be read. Neither execute nor delete.
    Corrupt,
    /// Certainly not done: a limit of this process or its store was reached, or a later release has
    /// written the record and this process is too old for it.
    ///
    /// Never answered by running unprotected, because that would lift the limit, or execute again.
    Full,
    /// Certainly not done: the request was malformed, and another try will not help.
    Invalid,
    /// Unknown: the store failed in a way that it should not.
    Internal,
}

impl ErrorKind {
    /// Returns true if the step may have happened: only then is there something to undo.
    #[must_use]
    pub const fn is_unknown(self) -> bool {
        matches!(self, Self::Unavailable | Self::Internal)
    }

    /// Returns true if another try may succeed: nothing is decided yet, or refused for good.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        self.is_unknown() || matches!(self, Self::Refused)
    }
}
