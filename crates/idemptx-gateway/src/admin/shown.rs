//! Records as JSON: what an operator may see of them, which is no key and no body.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use idemptx::operator::{RecordSummary, RecordView};
use idemptx::store::AnyStore;
use idemptx_core::record::State;
use idemptx_core::store::ErrorKind;
use serde_json::{Value, json};

use super::desk::Problem;
use super::story::{Event, Told};

/// A record of a listing.
pub(crate) fn entry(entry: &RecordSummary) -> Value {
    json!({
        "id": entry.id.to_string(),
        "state": entry.status.as_str(),
        "attempt": entry.claim.attempt,
        "fence": entry.claim.fence,
        "fingerprint": hex(entry.claim.fingerprint.digest.get(..4).unwrap_or_default()),
        "age_ms": millis(entry.age),
        "idle_ms": millis(entry.idle),
        "lease_ms": millis(entry.claim.remaining),
        "expires_in_ms": millis(entry.expires_in),
        "payload_bytes": entry.payload_bytes,
    })
}

/// What is kept of an answer, without its body and its headers' values.
pub(crate) fn answer(sighting: &RecordView) -> Option<Value> {
    let response = sighting.response.as_ref()?;
    let names: Vec<_> = response.headers.keys().map(http::HeaderName::as_str).collect();
    Some(json!({
        "status": response.status.as_u16(),
        "headers": names,
        "body_bytes": response.body.len(),
    }))
}

/// Names what somebody saw of a record, so that they do not decide about something else.
pub(super) fn seen(entry: &RecordSummary) -> String {
    format!("{}.{}", entry.status, entry.claim.fence)
}

/// The answer that an operator wants to be stored.
pub(super) fn read_answer(given: &Value) -> Result<(StatusCode, HeaderMap, Bytes), Problem> {
    let bad = |text| Problem::new(StatusCode::BAD_REQUEST, text);
    let status = given["status"].as_u64().and_then(|it| u16::try_from(it).ok());
    let status = status
        .and_then(|it| StatusCode::from_u16(it).ok())
        .filter(|status| (200..600).contains(&status.as_u16()))
        .ok_or_else(|| bad("`answer.status` is no status from 200 to 599."))?;
    let mut headers = HeaderMap::new();
    if let Some(kind) = given["content_type"].as_str().filter(|it| !it.is_empty()) {
        let kind = HeaderValue::from_str(kind);
        let kind = kind.map_err(|_| bad("`answer.content_type` is no header's value."))?;
        headers.insert(CONTENT_TYPE, kind);
    }
    let body = given["body"].as_str().unwrap_or_default().to_owned();
    Ok((status, headers, body.into()))
}

/// A moment of a record's story.
pub(super) fn moment(told: &Told, now: Instant) -> Value {
    let (kind, text) = words(told.event);
    json!({
        "kind": kind,
        "text": text,
        "ms_ago": millis(now.saturating_duration_since(told.first)),
        "last_ms_ago": millis(now.saturating_duration_since(told.last)),
        "times": told.times,
    })
}

fn words(event: Event) -> (&'static str, String) {
    let (kind, text) = match event {
        Event::Claimed { attempt } => {
            return ("claimed", format!("Claimed, attempt {attempt}"));
        }
        Event::Refused(code) => return ("refused", format!("A request was refused: {code}")),
        Event::Renewed => ("renewed", "Lease renewed"),
        Event::MetHolder => ("held", "A request found it claimed"),
        Event::MetOrphan => ("orphan", "A request found it orphaned: its owner had vanished"),
        Event::Settled(State::Completed) => ("settled", "Answer stored"),
        Event::Settled(State::Unknown) => ("no-verdict", "Taken down: its outcome is unknown"),
        Event::Settled(_) => ("settled", "Taken down as done, without its answer"),
        Event::Released => ("released", "Claim given up: the next request executes"),
        Event::Fenced => ("fenced", "The owner had lost it, and changed nothing"),
        Event::Failed(ErrorKind::Full) => ("no-verdict", "The store had no room for it"),
        Event::Failed(ErrorKind::Corrupt) => ("no-verdict", "What is stored cannot be read"),
        Event::Failed(ErrorKind::Refused) => ("no-verdict", "The store refused the step"),
        Event::Failed(_) => ("no-verdict", "The store gave no verdict"),
        Event::Executed { stored: true } => ("executed", "The client got the answer"),
        Event::Executed { stored: false } => {
            ("no-verdict", "The client got an answer that a retry will not get")
        }
        Event::Replayed { waited: false } => ("replayed", "Replayed"),
        Event::Replayed { waited: true } => ("replayed", "A request waited, and got the answer"),
        Event::OperatorReleased => ("operator", "An operator released the key"),
        Event::OperatorAnswered => ("operator", "An operator stored an answer"),
        Event::OperatorForgot => ("operator", "An operator forgot the record"),
    };
    (kind, text.to_owned())
}

pub(super) fn store_kind(store: &AnyStore) -> &'static str {
    match store {
        AnyStore::Near(near) => store_kind(near.inner().get()),
        AnyStore::Memory(_) => "memory",
        AnyStore::Postgres(_) => "PostgreSQL",
        AnyStore::Redis(_) => "Redis",
        AnyStore::Sqlite(_) => "SQLite",
        _ => "other",
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
