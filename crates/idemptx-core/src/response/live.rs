//! The responses whose parts are for the client as soon as they are made.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Returns true for a response that is read while it is being made.
///
/// It flows to the client from its first byte, and ends when the client leaves; only its head is
/// stored, so a retry cannot be given it.
/// Every other response is read to its end before the client gets it, so that it can be replayed.
///
/// A response is live by its media type, or by `X-Accel-Buffering: no`, which asks every proxy not
/// to hold it back.
/// One whose length is known is finished already, and is stored like any other: in `length`, where
/// the framework knows it, or in `Content-Length`.
/// Only an event stream (`text/event-stream`) is live then, too.
#[must_use]
pub fn is_live(status: StatusCode, headers: &HeaderMap, length: Option<u64>) -> bool {
    if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED || length == Some(0) {
        return false;
    }
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], |value| essence(value.as_bytes()));
    if kind.eq_ignore_ascii_case(EVENT_STREAM) {
        return true;
    }
    if length.is_some() || headers.contains_key(CONTENT_LENGTH) {
        return false;
    }
    let unbuffered =
        |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"no");
    RECORDS.iter().any(|it| kind.eq_ignore_ascii_case(it))
        || headers.get(X_ACCEL_BUFFERING).is_some_and(unbuffered)
}

/// Returns a media type without its parameters.
fn essence(content_type: &[u8]) -> &[u8] {
    content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

const EVENT_STREAM: &[u8] = b"text/event-stream";
/// The media types of records that are read one by one.
const RECORDS: [&[u8]; 7] = [
    b"application/x-ndjson",
    b"application/ndjson",
    b"application/jsonl",
    b"application/jsonlines",
    b"application/x-jsonlines",
    b"application/json-seq",
    b"application/stream+json",
];
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_live_by_its_head() {
        let (known, unknown, events) = (Some(3), None, "text/event-stream");
        for (line, status, length, expected) in [
            (("content-type", events), 200, unknown, true),
            (("content-type", "Text/Event-Stream; charset=utf-8"), 200, unknown, true),
            (("content-type", events), 200, known, true),
            (("content-type", events), 200, Some(0), false),
            (("content-type", events), 204, unknown, false),
            (("content-type", events), 304, unknown, false),
            (("content-type", "text/event-streams"), 200, unknown, false),
            (("content-type", "application/x-ndjson"), 201, unknown, true),
            (("content-type", "application/x-ndjson"), 500, unknown, true),
            (("content-type", "application/x-ndjson"), 201, known, false),
            (("content-type", "application/ndjson"), 200, unknown, true),
            (("content-type", "application/JSONL ; charset=utf-8"), 200, unknown, true),
            (("content-type", "application/jsonlines"), 200, unknown, true),
            (("content-type", "application/x-jsonlines"), 200, unknown, true),
            (("content-type", "application/json-seq"), 200, unknown, true),
            (("content-type", "application/stream+json"), 200, unknown, true),
            (("content-type", "application/json"), 200, unknown, false),
            (("content-type", "application/grpc"), 200, unknown, false),
            (("content-type", ""), 200, unknown, false),
            (("x-accel-buffering", "no"), 200, unknown, true),
            (("x-accel-buffering", " No "), 200, unknown, true),
            (("x-accel-buffering", "no"), 200, known, false),
            (("x-accel-buffering", "no"), 204, unknown, false),
            (("x-accel-buffering", "yes"), 200, unknown, false),
        ] {
            let (name, value) = line;
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(is_live(status, &headers, length), expected, "{line:?} {status} {length:?}");
            // A length that the head declares is as good as one that the framework knows.
            if length.is_none() {
                headers.insert(CONTENT_LENGTH, HeaderValue::from_static("3"));
                let expected = expected && value.to_ascii_lowercase().starts_with(events);
                assert_eq!(is_live(status, &headers, None), expected, "{line:?} {status} declared");
            }
        }
    }
}
