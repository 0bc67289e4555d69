//! What becomes of the record, given how the handler ended.

use std::fmt;
use std::str::FromStr;

use http::StatusCode;

use crate::policy::{OnPanic, Policy};
use crate::record::State;

/// How a handler ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handled {
    /// With a response that is whole and within the policy's `response_bytes_max`.
    Whole {
        /// Its status.
        status: StatusCode,
        /// What the handler says should become of it.
        directive: Option<Directive>,
    },
    /// With a response that is too large to keep, or a live stream.
    Partial {
        /// Its status.
        status: StatusCode,
        /// What the handler says should become of it.
        directive: Option<Directive>,
    },
    /// It panicked, gave an error instead of a response, or its body broke off.
    Broken,
}

impl Handled {
    pub(super) const fn is_broken(&self) -> bool {
        matches!(self, Self::Broken)
    }
}

/// What a handler says should become of its response: the `Idempotency-Outcome` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Directive {
    /// Keep it, whatever its status.
    Store,
    /// Forget that the request ever came.
    Release,
    /// It is not known whether the operation happened.
    Unknown,
}

impl FromStr for Directive {
    type Err = InvalidDirective;

    fn from_str(text: &str) -> Result<Self, InvalidDirective> {
        match text.trim() {
            "store" => Ok(Self::Store),
            "release" => Ok(Self::Release),
            "unknown" => Ok(Self::Unknown),
            _ => Err(InvalidDirective),
        }
    }
}

/// A text that is no [`Directive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidDirective;

impl fmt::Display for InvalidDirective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an outcome is `store`, `release` or `unknown`")
    }
}

impl std::error::Error for InvalidDirective {}

/// The state to settle as, or `None` to release.
pub(super) fn classify(policy: &Policy, handled: &Handled) -> Option<State> {
    let (status, directive, kept) = match *handled {
        Handled::Broken => {
            return match policy.on_panic {
                OnPanic::Release => None,
                OnPanic::Quarantine => Some(State::Unknown),
            };
        }
        Handled::Whole { status, directive } => (status, directive, State::Completed),
        Handled::Partial { status, directive } => (status, directive, State::NotReplayable),
    };
    match directive {
        Some(Directive::Store) => Some(kept),
        Some(Directive::Release) => None,
        Some(Directive::Unknown) => Some(State::Unknown),
        None if policy.release_statuses.contains(status) => None,
        None if policy.store_statuses.contains(status) => Some(kept),
        None => None,
    }
}

/// Whether what the handler did in its transaction is to be committed along with a settlement as
/// this state: it succeeded, and says so.
pub(super) fn commits(handled: &Handled, state: State) -> bool {
    let (Handled::Whole { status, .. } | Handled::Partial { status, .. }) = handled else {
        return false;
    };
    matches!(state, State::Completed | State::NotReplayable)
        && !status.is_client_error()
        && !status.is_server_error()
}
