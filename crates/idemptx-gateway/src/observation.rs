//! Observations that metrics, traces, the log and the event log share.

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use idemptx::{Bypass, Code, Outcome};
use idemptx_core::key::RecordId;
use idemptx_core::store::ErrorKind;

use crate::proxy::ProxyError;

/// A request whose response is ready to be sent.
#[derive(Debug)]
pub(crate) struct CompletedRequest<'a> {
    /// `None` if no route matched.
    pub(crate) route: Option<&'a Arc<str>>,
    /// The upstream of the route.
    pub(crate) upstream: Option<&'a str>,
    pub(crate) status: u16,
    /// The error that the gateway answered with itself, other than a refusal of the engine.
    pub(crate) own: Option<ProxyError>,
    pub(crate) outcome: Option<&'a Outcome>,
    /// The record of its idempotency key.
    pub(crate) record: Option<&'a RecordId>,
    /// The time at which the request's head was complete.
    pub(crate) began: Instant,
}

impl CompletedRequest<'_> {
    /// The number of the execution, if there was one.
    pub(crate) const fn attempt(&self) -> Option<u32> {
        match self.outcome {
            Some(Outcome::Executed { attempt, .. } | Outcome::Fenced { attempt, .. }) => {
                Some(*attempt)
            }
            _ => None,
        }
    }

    /// The labels `outcome` and `reason`.
    pub(crate) fn labels(&self) -> (&'static str, &'static str) {
        match (outcome_labels(self.outcome), self.own) {
            // Without the engine, and without the upstream as well.
            (("passed", _), Some(error)) if error.is_unsent() => ("refused", error.code()),
            (labels, _) => labels,
        }
    }
}

/// An operation on the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreOperation {
    Claim,
    Settle,
    Release,
    Renew,
    Lookup,
}

impl StoreOperation {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Settle => "settle",
            Self::Release => "release",
            Self::Renew => "renew",
            Self::Lookup => "lookup",
        }
    }
}

/// The result of a store operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreResult {
    /// Succeeded, or granted.
    Ok,
    /// The claim is held by another request.
    Held,
    /// The claim's lease lapsed without a result.
    Orphan,
    /// The record has a result.
    Settled,
    Failed(ErrorKind),
}

impl StoreResult {
    /// The labels of failures.
    pub(crate) const FAILURES: [&str; 7] =
        ["unavailable", "refused", "fenced", "corrupt", "full", "invalid", "internal"];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Held => "held",
            Self::Orphan => "orphan",
            Self::Settled => "settled",
            Self::Failed(ErrorKind::Unavailable) => "unavailable",
            Self::Failed(ErrorKind::Refused) => "refused",
            Self::Failed(ErrorKind::Fenced) => "fenced",
            Self::Failed(ErrorKind::Corrupt) => "corrupt",
            Self::Failed(ErrorKind::Full) => "full",
            Self::Failed(ErrorKind::Invalid) => "invalid",
            Self::Failed(_) => "internal",
        }
    }
}

/// The result of a request to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpstreamResult {
    Status(StatusCode),
    /// Not sent.
    Unsent,
    /// Sent, then the connection broke.
    Broken,
    /// Sent, and no response arrived in time.
    Late,
}

impl UpstreamResult {
    /// All labels.
    pub(crate) const LABELS: [&str; 8] =
        ["1xx", "2xx", "3xx", "4xx", "5xx", "unsent", "broken", "late"];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Status(status) => match status.as_u16() {
                100..200 => "1xx",
                200..300 => "2xx",
                300..400 => "3xx",
                400..500 => "4xx",
                _ => "5xx",
            },
            Self::Unsent => "unsent",
            Self::Broken => "broken",
            Self::Late => "late",
        }
    }
}

/// The labels of a request that the gateway has not answered itself.
const fn outcome_labels(outcome: Option<&Outcome>) -> (&'static str, &'static str) {
    match outcome {
        Some(Outcome::Executed { stored: true, .. }) => ("executed", ""),
        // The engine's refusal of a response that broke off: the upstream has executed something.
        Some(Outcome::Executed { stored: false, .. } | Outcome::Refused(Code::HandlerFailed)) => {
            ("unstored", "")
        }
        Some(Outcome::Fenced { code: None, .. }) => ("fenced", "replayed"),
        Some(Outcome::Fenced { code: Some(code), .. }) => ("fenced", code.as_str()),
        Some(Outcome::Replayed) => ("replayed", ""),
        Some(Outcome::Refused(code)) => ("refused", code.as_str()),
        Some(Outcome::Bypassed(bypass)) => ("passed", bypass_reason(*bypass)),
        // Unprotected routes, and requests that match no route.
        _ => ("passed", "unprotected-route"),
    }
}

/// All labels of requests that have a route.
pub(crate) fn all_outcome_labels() -> impl Iterator<Item = (&'static str, &'static str)> {
    let fixed = [("executed", ""), ("unstored", ""), ("replayed", ""), ("fenced", "replayed")];
    let refused = refusal_reasons().map(|reason| ("refused", reason));
    let fenced = [Code::InProgress, Code::OutcomeUnknown, Code::ResultUnavailable];
    let fenced = fenced.into_iter().map(|code| ("fenced", code.as_str()));
    let passed = BYPASS_REASONS.into_iter().map(|reason| ("passed", reason));
    fixed.into_iter().chain(refused).chain(fenced).chain(passed)
}

/// The values of `reason` for requests that were refused: by the engine, or by the gateway itself.
pub(crate) fn refusal_reasons() -> impl Iterator<Item = &'static str> {
    let codes = Code::ALL.into_iter().filter(|code| *code != Code::HandlerFailed);
    codes.map(Code::as_str).chain(ProxyError::UNSENT_ON_A_ROUTE)
}

/// The values of `reason` for requests that bypass the engine.
pub(crate) const BYPASS_REASONS: [&str; 9] = [
    "not-http",
    "method",
    "no-key",
    "large-body",
    "store-unavailable",
    "would-refuse",
    "would-replay",
    "unprotected-route",
    "other",
];

const fn bypass_reason(bypass: Bypass) -> &'static str {
    match bypass {
        Bypass::NotHttp => "not-http",
        Bypass::Method { .. } => "method",
        Bypass::NoKey => "no-key",
        Bypass::LargeBody => "large-body",
        Bypass::Unprotected => "store-unavailable",
        Bypass::WouldRefuse(_) => "would-refuse",
        Bypass::WouldReplay => "would-replay",
        _ => "other",
    }
}

/// The first digits of a record's id: enough to correlate log lines, too few to guess a key.
pub(crate) fn short_id(id: &RecordId) -> String {
    let mut digits = key_digits(id);
    digits.truncate(8);
    digits
}

/// The digits of the half of an id that names the key.
pub(crate) fn key_digits(id: &RecordId) -> String {
    id.as_bytes().iter().skip(KEY_AT).map(|byte| format!("{byte:02x}")).collect()
}

/// The offset of the half of an id that names the key.
const KEY_AT: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reached_no_upstream_has_not_passed() {
        let executed = Outcome::Executed { attempt: 1, stored: false };
        let (no_key, lost) =
            (Outcome::Bypassed(Bypass::NoKey), ProxyError::Failed { released: true });
        for (outcome, own, labels) in [
            (None, None, ("passed", "unprotected-route")),
            (None, Some(ProxyError::NoRoute), ("refused", "no-route")),
            (None, Some(ProxyError::BodyTooSlow), ("refused", "body-too-slow")),
            (Some(&no_key), Some(ProxyError::Unreachable), ("refused", "upstream-unreachable")),
            (Some(&no_key), Some(ProxyError::Busy), ("refused", "upstream-busy")),
            (Some(&no_key), Some(lost), ("passed", "no-key")),
            (Some(&no_key), None, ("passed", "no-key")),
            (Some(&executed), Some(ProxyError::Unreachable), ("unstored", "")),
        ] {
            let (route, upstream, record, status) = (None, None, None, 0);
            let began = Instant::now();
            let completed =
                CompletedRequest { route, upstream, status, own, outcome, record, began };
            assert_eq!(completed.labels(), labels, "{outcome:?} {own:?}");
        }
        let announced: Vec<_> = all_outcome_labels().collect();
        for error in [
            ProxyError::BodyTooLarge,
            ProxyError::BodyTooSlow,
            ProxyError::BodyBroken,
            ProxyError::Unreachable,
            ProxyError::Busy,
        ] {
            let count = announced.iter().filter(|it| **it == ("refused", error.code())).count();
            assert_eq!(count, 1, "{error:?}");
        }
    }

    #[test]
    fn a_key_goes_by_eight_digits_of_the_half_that_names_it() {
        let id = "00112233445566778899aabbccddeeff:8e03978e0123456789abcdef01234567";
        assert_eq!(short_id(&id.parse().unwrap()), "8e03978e");
    }
}
