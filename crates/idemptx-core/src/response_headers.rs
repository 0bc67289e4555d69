//! Headers that an exchange adds to its response.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::exchange::{Operation, Rules, is_in};
use crate::fingerprint::Fingerprint;
use crate::outcome::{Bypass, Code, Outcome};
use crate::policy::{Expose, Profile};

/// Adds the header fields that describe the outcome to the client.
///
/// They are `Idempotent-Replayed: true` on a replay, `Idempotency-Stored: false` on the response of
/// an execution that will not be replayed, and those that the policy's `expose` names.
pub fn mark(
    headers: &mut HeaderMap,
    rules: &Rules,
    outcome: &Outcome,
    operation: Option<&Operation>,
    fingerprint: Option<&Fingerprint>,
) {
    let policy = rules.policy();
    // The handler's instruction to this layer; clients never see it. It is never stored.
    if *outcome != Outcome::Replayed && is_in(headers) {
        headers.remove(IDEMPOTENCY_OUTCOME);
    }
    match outcome {
        Outcome::Replayed | Outcome::Fenced { code: None, .. } => {
            headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
        }
        Outcome::Executed { stored: false, .. }
        | Outcome::Bypassed(Bypass::Unprotected | Bypass::LargeBody) => {
            headers.insert(IDEMPOTENCY_STORED, HeaderValue::from_static("false"));
        }
        _ => {}
    }
    let shadowed =
        matches!(outcome, Outcome::Bypassed(Bypass::WouldReplay | Bypass::WouldRefuse(_)));
    if (policy.expose.contains(&Expose::Status) || shadowed)
        && let Some(word) = word(outcome, policy.profile)
    {
        headers.insert(policy.status_header.clone(), word);
    }
    let is_answered = matches!(
        outcome,
        Outcome::Executed { .. } | Outcome::Replayed | Outcome::Fenced { code: None, .. }
    );
    let is_refused = matches!(outcome, Outcome::Refused(_) | Outcome::Fenced { .. });
    // Only a key that is valid names an operation.
    if (is_answered || is_refused)
        && policy.expose.contains(&Expose::Key)
        && let Some(key) = operation.map(Operation::key)
        && let Ok(value) = HeaderValue::from_str(key.as_str())
        && let Some(name) = policy.header_names.first()
    {
        headers.insert(name.clone(), value);
    }
    if !is_answered {
        return;
    }
    if policy.expose.contains(&Expose::Signature)
        && let Some(Ok(value)) = fingerprint.map(|it| HeaderValue::from_str(&it.signature()))
    {
        headers.insert(IDEMPOTENCY_SIGNATURE, value);
    }
    if policy.expose.contains(&Expose::Expiry)
        && matches!(outcome, Outcome::Executed { stored: true, .. })
    {
        let seconds = HeaderValue::from(policy.retain.as_secs());
        headers.insert(IDEMPOTENCY_RETAINED, seconds);
    }
}

fn word(outcome: &Outcome, profile: Profile) -> Option<HeaderValue> {
    let original = profile == Profile::Idemptx;
    let word = match outcome {
        Outcome::Fenced { code: Some(code), .. } => {
            return word(&Outcome::Refused(*code), profile);
        }
        Outcome::Executed { .. } if original => "new",
        Outcome::Executed { stored: true, .. } => "created",
        Outcome::Executed { stored: false, .. } => "not-stored",
        Outcome::Replayed | Outcome::Fenced { .. } if original => "hit",
        Outcome::Replayed | Outcome::Fenced { .. } => "replayed",
        Outcome::Refused(Code::InProgress) => "in-progress",
        Outcome::Refused(Code::KeyReused) => "mismatch",
        Outcome::Bypassed(Bypass::Method { keyed: true } | Bypass::LargeBody) => "ignored",
        Outcome::Bypassed(Bypass::Unprotected) => "unprotected",
        Outcome::Bypassed(Bypass::WouldReplay) => "would-replay",
        Outcome::Bypassed(Bypass::WouldRefuse(code)) => {
            return HeaderValue::from_str(&format!("would-refuse-{code}")).ok();
        }
        _ => return None,
    };
    Some(HeaderValue::from_static(word))
}

/// The header that marks a replay: `true`.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// The header that marks the response of an execution which will not be replayed: `false`.
pub const IDEMPOTENCY_STORED: HeaderName = HeaderName::from_static("idempotency-stored");
/// A handler's instruction to store or release its response; removed before it is sent.
pub const IDEMPOTENCY_OUTCOME: HeaderName = HeaderName::from_static("idempotency-outcome");
/// The header with the request's fingerprint, where the policy exposes it.
pub const IDEMPOTENCY_SIGNATURE: HeaderName = HeaderName::from_static("x-idempotency-signature");
/// The header with the seconds for which the response will be replayed, where it is exposed.
pub const IDEMPOTENCY_RETAINED: HeaderName = HeaderName::from_static("idempotency-retained");
