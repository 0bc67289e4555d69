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

use super::router::ApiProblem;
use crate::recorder::event_log::{Event, LoggedEvent};

/// A record of a listing.
pub(crate) fn summary(summary: &RecordSummary) -> Value {
    json!({
        "id": summary.id.to_string(),
        "state": summary.status.as_str(),
        "attempt": summary.claim.attempt,
        "fence": summary.claim.fence,
        "fingerprint": hex(summary.claim.fingerprint.digest.get(..4).unwrap_or_default()),
        "age_ms": millis(summary.age),
        "idle_ms": millis(summary.idle),
        "lease_ms": millis(summary.claim.remaining),
        "expires_in_ms": millis(summary.expires_in),
        "payload_bytes": summary.payload_bytes,
    })
}

/// What is kept of an answer, without its body and its headers' values.
pub(crate) fn answer(record_view: &RecordView) -> Option<Value> {
    let response = record_view.response.as_ref()?;
    let names: Vec<_> = response.headers.keys().map(http::HeaderName::as_str).collect();
    Some(json!({
        "status": response.status.as_u16(),
        "headers": names,
        "body_bytes": response.body.len(),
    }))
}

/// Names what somebody saw of a record, so that they do not decide about something else.
pub(super) fn seen(summary: &RecordSummary) -> String {
    format!("{}.{}", summary.status, summary.claim.fence)
}

/// The answer that an operator wants to be stored.
pub(super) fn read_answer(given: &Value) -> Result<(StatusCode, HeaderMap, Bytes), ApiProblem> {
    let bad = |text| ApiProblem::new(StatusCode::BAD_REQUEST, text);
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
pub(super) fn event(logged: &LoggedEvent, now: Instant) -> Value {
    let (kind, text) = outcome_labels(logged.event);
    json!({
        "kind": kind,
        "text": text,
        "ms_ago": millis(now.saturating_duration_since(logged.first)),
        "last_ms_ago": millis(now.saturating_duration_since(logged.last)),
        "times": logged.times,
    })
}

fn outcome_labels(event: Event) -> (&'static str, String) {
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
        #[cfg(feature = "postgres")]
        AnyStore::Postgres(_) => "PostgreSQL",
        #[cfg(feature = "redis")]
        AnyStore::Redis(_) => "Redis",
        #[cfg(feature = "sqlite")]
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
