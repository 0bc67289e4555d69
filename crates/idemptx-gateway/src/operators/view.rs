//! Records as JSON, without keys and bodies.

use std::time::Duration;

use idemptx::operator::{Cursor, Page, RecordSummary, RecordView};
use idemptx_core::description::Description;
use idemptx_core::key::RecordId;
use serde_json::{Value, json};

use crate::observation::short_id;

/// A page of a listing.
pub(crate) fn page(page: &Page) -> Value {
    json!({
        "records": page.entries.iter().map(summary).collect::<Vec<_>>(),
        "unreadable": page.unreadable.iter().map(RecordId::to_string).collect::<Vec<_>>(),
        "next": page.next.as_ref().map(Cursor::as_str),
    })
}

/// A record without its response.
pub(crate) fn summary(summary: &RecordSummary) -> Value {
    let description = summary.description();
    let part = |part: fn(&Description) -> &String| {
        description.as_ref().map(part).filter(|it| !it.is_empty())
    };
    json!({
        "id": summary.id.to_string(),
        "record": short_id(&summary.id),
        "route": part(|it| &it.route),
        "method": part(|it| &it.method),
        "path": part(|it| &it.path),
        "upstream": part(|it| &it.service),
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

/// A stored response, without its body and the values of its headers.
pub(crate) fn response(view: &RecordView) -> Option<Value> {
    let response = view.response.as_ref()?;
    let names: Vec<_> = response.headers.keys().map(http::HeaderName::as_str).collect();
    Some(json!({
        "status": response.status.as_u16(),
        "headers": names,
        "body_bytes": response.body.len(),
    }))
}

/// A stored response with its headers and body.
pub(crate) fn full_response(view: &RecordView) -> Option<Value> {
    let stored = view.response.as_ref()?;
    let headers = stored
        .headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]));
    let body = match std::str::from_utf8(&stored.body) {
        Ok(text) => text.into(),
        Err(_) => json!({ "hex": hex(&stored.body) }),
    };
    Some(json!({
        "status": stored.status.as_u16(),
        "headers": headers.collect::<Vec<_>>(),
        "body_bytes": stored.body.len(),
        "body": body,
    }))
}

/// The version of a record that an operator decides about; a later change makes the decision void.
pub(crate) fn version(summary: &RecordSummary) -> String {
    format!("{}.{}", summary.status, summary.claim.fence)
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
