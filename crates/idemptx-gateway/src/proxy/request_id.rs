//! The id of a request, by which logs of several services can be joined.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body_util::BodyExt as _;

use super::downstream_body::DownstreamBody;
use crate::upstream::UpstreamBody;

/// Returns the client's id of a request, if one is given, or makes one.
///
/// The service gets it when the request is forwarded: one that the gateway has made is no part of
/// what the client sent, by which a retry is compared.
///
/// # Security
///
/// A client may choose any id, also that of another request: it correlates, and proves nothing.
/// One that is long, repeated or not plain is replaced, because it is logged.
pub(super) fn take_or_make(headers: &HeaderMap, is_given: bool) -> HeaderValue {
    if is_given {
        let mut lines = headers.get_all(REQUEST_ID).iter();
        if let (Some(line), None) = (lines.next(), lines.next())
            && is_plain(line.as_bytes())
        {
            return line.clone();
        }
    }
    make()
}

/// Adds the id to a problem document that the gateway has made, as the member `request_id`: what a
/// client shows of the document then leads to the lines of the log.
pub(super) async fn name_in_problem(
    response: Response<DownstreamBody>,
    id: &HeaderValue,
) -> Response<DownstreamBody> {
    let (mut parts, body) = response.into_parts();
    // It is in memory, and cannot fail.
    let document = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let document = with_member(&document, id).map_or(document, Bytes::from);
    if parts.headers.contains_key(CONTENT_LENGTH) {
        parts.headers.insert(CONTENT_LENGTH, document.len().into());
    }
    Response::from_parts(parts, DownstreamBody::plain(UpstreamBody::from_bytes(document)))
}

/// Returns a JSON object with one more member; `None` if it is no object.
fn with_member(document: &[u8], id: &HeaderValue) -> Option<Vec<u8>> {
    let members = document.strip_suffix(b"}").filter(|it| it.len() > 1)?;
    // A plain id has nothing to escape.
    Some([members, b",\"request_id\":\"", id.as_bytes(), b"\"}"].concat())
}

fn is_plain(id: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
    (1..=BYTES_MAX).contains(&id.len()) && id.iter().all(plain)
}

/// Makes an id of 32 digits, different for every request of every process.
///
/// # Security
///
/// Clients see it, so it shows no number that counts requests.
fn make() -> HeaderValue {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let keys = KEYS.get_or_init(RandomState::new);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let halves = [0_u8, 1].map(|half| keys.hash_one((number, half)).to_be_bytes());
    let mut id = [b'0'; 32];
    for (digits, byte) in id.chunks_exact_mut(2).zip(halves.as_flattened()) {
        digits.copy_from_slice(&hex(*byte));
    }
    // Shared from the beginning: it is cloned for the upstream, and that would allocate again.
    let shared = HeaderValue::from_maybe_shared(Bytes::from_owner(id));
    shared.unwrap_or(HeaderValue::from_static("-"))
}

fn hex(byte: u8) -> [u8; 2] {
    let digit = |value: u8| if value < 10 { b'0' + value } else { b'a' + value - 10 };
    [digit(byte >> 4), digit(byte & 15)]
}

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_id_of_the_client_is_kept_and_any_other_replaced() {
        let of = |ids: &[&str]| {
            let lines = ids.iter().map(|id| (REQUEST_ID, HeaderValue::from_str(id).unwrap()));
            let headers = HeaderMap::from_iter(lines);
            let is_given = !headers.is_empty();
            let id = take_or_make(&headers, is_given);
            id.to_str().unwrap().to_owned()
        };
        assert_eq!(of(&["4f2a-91.b:c/d+e=@_"]), "4f2a-91.b:c/d+e=@_");
        let long = "x".repeat(BYTES_MAX + 1);
        let mut made: Vec<_> =
            [&[][..], &[""], &["a b"], &["a\"b"], &["a", "a"], &[&long]].map(of).into();
        assert!(made.iter().all(|id| id.len() == 32), "{made:?}");
        made.dedup();
        assert_eq!(made.len(), 6);
    }

    #[test]
    fn an_object_gets_a_member_and_anything_else_stays() {
        let id = HeaderValue::from_static("4f2a");
        let object = with_member(br#"{"a":1}"#, &id).unwrap();
        assert_eq!(object, br#"{"a":1,"request_id":"4f2a"}"#);
        for document in [&b""[..], b"{}", b"[]", b"null"] {
            assert_eq!(with_member(document, &id), None);
        }
    }
}
