//! How an exchange ends: its [`Outcome`], and the [`Rejection`] a client gets when it is refused.

use std::fmt;
use std::time::Duration;

use http::StatusCode;

use crate::key::InvalidKey;

/// How one request's passage ended; adapters put it into the response's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Not under a key, or not a request that keys are for: the handler ran as if we were not here.
    Bypassed(Bypass),
    /// The handler ran under a claim.
    Executed {
        /// Which execution of this operation it was, from 1.
        attempt: u32,
        /// Whether a retry will get this response.
        stored: bool,
    },
    /// The handler ran under a claim, but when it ended another execution had taken the record over:
    /// the client got that one's response, or was refused with `code`.
    Fenced {
        /// Which execution of this operation it was, from 1.
        attempt: u32,
        /// The refusal; `None` if the client got the stored response.
        code: Option<Code>,
    },
    /// A stored response was given again.
    Replayed,
    /// Nothing ran.
    Refused(Code),
}

/// Why a request passed untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bypass {
    /// A CONNECT: it opens a tunnel, and has no response to store.
    NotHttp,
    /// The method is not one that keys are for; `keyed` tells whether a key came all the same.
    Method {
        /// Whether the request carried a key.
        keyed: bool,
    },
    /// No key, and none is required.
    NoKey,
    /// The body is too large and the policy says to skip it.
    LargeBody,
    /// The store gave no verdict and the policy is to fail open.
    Unprotected,
    /// Shadow mode: the request would have been refused.
    WouldRefuse(Code),
    /// Shadow mode: the request would have been answered with the stored response.
    WouldReplay,
}

/// The stable name of a refusal: the last part of the problem's `type` and its `code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Code {
    /// No key where one is required.
    MissingKey,
    /// A key that is none.
    InvalidKey,
    /// Whose key it is cannot be told.
    ScopeUnresolved,
    /// The request's body is larger than the policy allows.
    BodyTooLarge,
    /// The body could not be read to its end.
    BodyUnreadable,
    /// Another request with the key is being executed.
    InProgress,
    /// The key was used for another request.
    KeyReused,
    /// Whether the operation happened is not known.
    OutcomeUnknown,
    /// The operation happened; its response was not kept.
    ResultUnavailable,
    /// The operation happened; its response has expired.
    KeyExpired,
    /// The store gave no verdict.
    StoreUnavailable,
    /// Too many new keys in this scope.
    TooManyKeys,
    /// The handler broke down.
    HandlerFailed,
}

impl Code {
    /// Every code, for documentation and metrics.
    pub const ALL: [Self; 13] = [
        Self::MissingKey,
        Self::InvalidKey,
        Self::ScopeUnresolved,
        Self::BodyTooLarge,
        Self::BodyUnreadable,
        Self::InProgress,
        Self::KeyReused,
        Self::OutcomeUnknown,
        Self::ResultUnavailable,
        Self::KeyExpired,
        Self::StoreUnavailable,
        Self::TooManyKeys,
        Self::HandlerFailed,
    ];

    /// Its name in problem documents and URLs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MissingKey => "missing-key",
            Self::InvalidKey => "invalid-key",
            Self::ScopeUnresolved => "scope-unresolved",
            Self::BodyTooLarge => "body-too-large",
            Self::BodyUnreadable => "body-unreadable",
            Self::InProgress => "in-progress",
            Self::KeyReused => "key-reused",
            Self::OutcomeUnknown => "outcome-unknown",
            Self::ResultUnavailable => "result-unavailable",
            Self::KeyExpired => "key-expired",
            Self::StoreUnavailable => "store-unavailable",
            Self::TooManyKeys => "too-many-keys",
            Self::HandlerFailed => "handler-failed",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal, for the HTTP client; [`Problem`](crate::problem::Problem) is its document.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rejection {
    /// What it is.
    pub code: Code,
    /// The response's status, by policy.
    pub status: StatusCode,
    /// Whether the same request with the same key may succeed later.
    pub retryable: bool,
    /// Whether the same request with a new key cannot execute the operation a second time.
    pub safe_new_key: bool,
    /// When a retry makes sense; always whole seconds of at least one.
    pub retry_after: Option<Duration>,
    /// What is wrong with the key, for [`Code::InvalidKey`].
    pub invalid_key: Option<InvalidKey>,
    /// The status of the response that was not kept, for [`Code::ResultUnavailable`].
    pub original_status: Option<StatusCode>,
    /// Where the result is, if the response that was not kept said so.
    pub location: Option<http::HeaderValue>,
    /// Whether this stands in for an execution's answer, which a retry will not get:
    /// `Idempotency-Stored: false`.
    pub unstored: bool,
}
