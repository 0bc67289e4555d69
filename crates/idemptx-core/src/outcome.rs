//! The [`Outcome`] of an exchange, and the [`Rejection`] that a refused client receives.

use std::fmt;
use std::time::Duration;

use http::{HeaderName, StatusCode};

use crate::key::InvalidKey;
use crate::problem::ProblemRules;

/// The end of one request's exchange; adapters put it into the response's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The request was not protected: it has no key, or keys do not apply to it.
    Bypassed(Bypass),
    /// The handler ran under a claim.
    Executed {
        /// The number of this execution of the operation, from 1.
        attempt: u32,
        /// True if a retry will get this response.
        stored: bool,
    },
    /// The handler ran under a claim, but when it ended another execution had taken the record
    /// over: the client got that one's response, or was refused with `code`.
    Fenced {
        /// The number of this execution of the operation, from 1.
        attempt: u32,
        /// The refusal; `None` if the client got the stored response.
        code: Option<Code>,
    },
    /// The stored response was replayed.
    Replayed,
    /// The request was refused, and nothing ran.
    Refused(Code),
}

/// The reason why a request passed without protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bypass {
    /// A CONNECT: it opens a tunnel, and has no response to store.
    NotHttp,
    /// The policy does not cover the method; `keyed` is true if the request had a key.
    Method {
        /// True if the request carried a key.
        keyed: bool,
    },
    /// The request has no key, and the policy requires none.
    NoKey,
    /// The body is too large and the policy says to skip it.
    LargeBody,
    /// The store was unavailable and the policy is to fail open.
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
    /// The request has no key, and the policy requires one.
    MissingKey,
    /// The value in the key's header is not a valid key.
    InvalidKey,
    /// The caller, whose key it is, cannot be identified.
    ScopeUnresolved,
    /// The request's body is larger than the policy allows.
    BodyTooLarge,
    /// The body could not be read to its end.
    BodyUnreadable,
    /// A request with the same key is being executed.
    InProgress,
    /// The key was used for another request.
    KeyReused,
    /// The operation may or may not have happened.
    OutcomeUnknown,
    /// The operation happened; its response was not kept.
    ResultUnavailable,
    /// The operation happened; its response has expired.
    KeyExpired,
    /// The store was unavailable.
    StoreUnavailable,
    /// Too many new keys in this scope.
    TooManyKeys,
    /// The handler failed before it had a response.
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

    /// Returns the name used in problem documents and URLs.
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
    /// The stable name of the refusal.
    pub code: Code,
    /// The response's status, by policy.
    pub status: StatusCode,
    /// True if the same request with the same key may succeed later.
    pub retryable: bool,
    /// True if the same request with a new key cannot execute the operation a second time.
    pub safe_new_key: bool,
    /// The wait before a retry makes sense; always whole seconds, at least one.
    pub retry_after: Option<Duration>,
    /// The headers that may carry a key, for [`Code::MissingKey`].
    pub header_names: Vec<HeaderName>,
    /// The fault in the key, for [`Code::InvalidKey`].
    pub invalid_key: Option<InvalidKey>,
    /// The status of the response that was not kept, for [`Code::ResultUnavailable`].
    pub original_status: Option<StatusCode>,
    /// The `Location` of the response that was not kept.
    pub location: Option<http::HeaderValue>,
    /// The `WWW-Authenticate` of a 401, for [`Code::ScopeUnresolved`].
    pub challenge: Option<http::HeaderValue>,
    /// True for [`Code::KeyReused`] if the request is the same, and only a header to which the key
    /// is bound differs.
    pub credential_differs: bool,
    /// The format in which the policy reports refusals.
    pub problem: Box<ProblemRules>,
    /// Marks a refusal that replaces the response of an execution and will not be replayed:
    /// `Idempotency-Stored: false`.
    pub unstored: bool,
}
