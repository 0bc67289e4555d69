//! The state of the record after the handler has ended.

use std::fmt;
use std::str::FromStr;

use http::{HeaderMap, StatusCode};

use crate::policy::{OnPanic, Policy};
use crate::record::State;
use crate::response_headers::IDEMPOTENCY_OUTCOME;

/// The end of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handled {
    /// The response is complete and within the policy's `response_bytes_max`.
    Whole {
        /// The status of the response.
        status: StatusCode,
        /// The handler's own decision about the record, if it made one.
        directive: Option<Directive>,
    },
    /// The response is complete, and is not to be kept, or cannot be.
    Partial {
        /// The status of the response.
        status: StatusCode,
        /// The handler's own decision about the record, if it made one.
        directive: Option<Directive>,
    },
    /// The response has begun, and its body flows to the client while it is made: it is too large
    /// to keep, or [live](crate::response::is_live).
    Flowing {
        /// The status of the response.
        status: StatusCode,
        /// The handler's own decision about the record, if it made one.
        directive: Option<Directive>,
    },
    /// The handler panicked, or returned an error instead of a response.
    Failed {
        /// The decision that the handler had made before, if any; under [`Directive::Store`] there
        /// is no response to replay.
        directive: Option<Directive>,
    },
    /// The response broke off: its body failed before its end, or something that had to end before
    /// the response did.
    BrokenOff {
        /// The decision that the handler had made, if any.
        ///
        /// [`Directive::Release`] counts as none: that nothing happened is not to be relied on once
        /// a response has begun and failed. The others hold as after [`Failed`](Self::Failed).
        directive: Option<Directive>,
    },
}

impl Handled {
    /// Returns true if there is no response to give.
    pub(super) const fn is_failure(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::BrokenOff { .. })
    }
}

/// A handler's own decision about its record: the `Idempotency-Outcome` response field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Directive {
    /// Store the response, also with a status that is otherwise released.
    Store,
    /// Release the record, so that a retry executes.
    Release,
    /// Settle as [`State::Unknown`]: the handler does not know whether the operation happened.
    Unknown,
}

impl Directive {
    /// Removes `Idempotency-Outcome` from the header or trailer fields of a response, and reads it;
    /// `None` without such a field.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidDirective`] for a value that is no directive, and for lines that contradict
    /// each other.
    /// It counts as [`Unknown`](Self::Unknown): a handler that sends the field did not mean to send
    /// none, so to store or release by the status would be a guess.
    pub fn take(fields: &mut HeaderMap) -> Option<Result<Self, InvalidDirective>> {
        let parse = |line: &http::HeaderValue| {
            line.to_str().map_err(|_| InvalidDirective).and_then(str::parse)
        };
        if !is_in(fields) {
            return None;
        }
        let mut lines = fields.get_all(IDEMPOTENCY_OUTCOME).iter().map(parse);
        let first: Result<Self, _> = lines.next()?;
        let directive = if lines.all(|line| line == first) { first } else { Err(InvalidDirective) };
        fields.remove(IDEMPOTENCY_OUTCOME);
        Some(directive)
    }
}

/// Returns true if a handler's decision is among the fields.
///
/// Responses have few fields, which are compared sooner than the long name is hashed.
pub(crate) fn is_in(fields: &HeaderMap) -> bool {
    fields.keys().any(|name| *name == IDEMPOTENCY_OUTCOME)
}

/// Reads a token, compared without case.
impl FromStr for Directive {
    type Err = InvalidDirective;

    fn from_str(text: &str) -> Result<Self, InvalidDirective> {
        let words =
            [("store", Self::Store), ("release", Self::Release), ("unknown", Self::Unknown)];
        let word = words.into_iter().find(|(word, _)| text.trim().eq_ignore_ascii_case(word));
        word.map(|(_, directive)| directive).ok_or(InvalidDirective)
    }
}

/// The error of parsing a text that is no [`Directive`].
///
/// The tower layer puts it into the extensions of the response that had such a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidDirective;

impl fmt::Display for InvalidDirective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an outcome is `store`, `release` or `unknown`")
    }
}

impl std::error::Error for InvalidDirective {}

/// Returns the state to settle as, or `None` to release.
pub(super) fn classify(policy: &Policy, handled: &Handled) -> Option<State> {
    let (status, directive, kept) = match *handled {
        Handled::Failed { directive } => return classify_failure(policy, directive),
        Handled::BrokenOff { directive } => {
            let directive = directive.filter(|it| *it != Directive::Release);
            return classify_failure(policy, directive);
        }
        Handled::Whole { status, directive } => (status, directive, State::Completed),
        Handled::Partial { status, directive } | Handled::Flowing { status, directive } => {
            (status, directive, State::NotReplayable)
        }
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

fn classify_failure(policy: &Policy, directive: Option<Directive>) -> Option<State> {
    match (directive, policy.on_panic) {
        (Some(Directive::Store), _) => Some(State::NotReplayable),
        (Some(Directive::Unknown), _) | (None, OnPanic::Quarantine) => Some(State::Unknown),
        (Some(Directive::Release), _) | (None, OnPanic::Release) => None,
    }
}

/// Returns true if the handler's transaction is to be committed together with the settlement.
///
/// A response with an error status must not commit: handlers report failures by it, and expect the
/// transaction to be rolled back.
pub(super) fn commits(handled: &Handled, state: State) -> bool {
    let (Handled::Whole { status, .. }
    | Handled::Partial { status, .. }
    | Handled::Flowing { status, .. }) = handled
    else {
        return false;
    };
    matches!(state, State::Completed | State::NotReplayable)
        && !status.is_client_error()
        && !status.is_server_error()
}
