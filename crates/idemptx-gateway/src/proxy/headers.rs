//! Which fields go on, and which concern one connection only.

use http::header::{
    CONNECTION, COOKIE, EXPECT, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use idemptx_core::fingerprint::HeaderRule;
use idemptx_core::policy::ScopeRule;
use idemptx_core::response_headers::{IDEMPOTENCY_OUTCOME, IDEMPOTENCY_STORED};

use super::fault::Fault;
use super::plan::Route;
use crate::config::{Protection, ScopeSource};

/// Takes off a request what is not for the upstream, or could be mistaken there for ours.
///
/// # Security
///
/// A field that `Connection` names is taken off (RFC 9110 §7.6.1).
/// Where the key, its scope or the fingerprint depends on it the request is refused instead: it
/// would mean something else behind us than in front.
pub(super) fn strip_request<B>(request: &mut Request<B>, route: &Route) -> Result<(), Fault> {
    join_cookies(request.headers_mut());
    // Most requests have none of it, and to look once costs less than to remove one by one.
    if !request.headers().keys().any(is_for_one_connection) {
        return Ok(());
    }
    let upgrade = super::upgrade::permitted(request, route);
    let headers = request.headers_mut();
    if headers.contains_key(CONNECTION) {
        let nominated = nominated(headers)?;
        if nominated.iter().any(|name| route.relies_on(name)) {
            return Err(Fault::NominatedField);
        }
        for name in nominated.iter().filter(|name| **name != TE && **name != UPGRADE) {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    strip_hops(headers);
    headers.remove(EXPECT);
    keep_trailers(headers);
    match upgrade {
        // Put back by whoever forwards it.
        Some(protocol) => _ = headers.insert(UPGRADE, protocol),
        None => _ = headers.remove(UPGRADE),
    }
    for name in OURS {
        headers.remove(name);
    }
    Ok(())
}

/// Takes off an answer what concerns the upstream's connection only.
pub(super) fn strip_answer(headers: &mut HeaderMap) {
    if !headers.keys().any(is_for_one_connection) {
        return;
    }
    if headers.contains_key(CONNECTION) {
        let nominated = nominated(headers).unwrap_or_default();
        for name in nominated {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    strip_hops(headers);
    headers.remove(UPGRADE);
    headers.remove(IDEMPOTENCY_OUTCOME);
}

/// What stands in `Connection`, but for `close` and `keep-alive`.
fn nominated(headers: &HeaderMap) -> Result<Vec<HeaderName>, Fault> {
    let mut names = Vec::new();
    for line in headers.get_all(CONNECTION) {
        let line = line.to_str().map_err(|_| Fault::NominatedField)?;
        for name in line.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let name = name.parse().map_err(|_| Fault::NominatedField)?;
            names.push(name);
        }
    }
    Ok(names)
}

/// Whether a field may have to be taken off: all that [`strip_request`] and [`strip_answer`] name.
fn is_for_one_connection(name: &HeaderName) -> bool {
    [CONNECTION, EXPECT, TE, UPGRADE].contains(name) || HOPS.contains(name) || OURS.contains(name)
}

fn strip_hops(headers: &mut HeaderMap) {
    for name in HOPS {
        headers.remove(name);
    }
}

/// `TE` goes on as far as it announces that trailers are understood.
fn keep_trailers(headers: &mut HeaderMap) {
    let understood = headers.get_all(TE).iter().any(|line| {
        let mut codings = line.as_bytes().split(|byte| *byte == b',');
        codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    headers.remove(TE);
    if understood {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// HTTP/2 may cut a cookie into lines, which nobody else understands (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let lines: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Fields that a policy depends on.
pub(super) fn relied_on(protection: &Protection) -> Vec<HeaderName> {
    let policy = &protection.policy;
    let mut names = policy.header_names.clone();
    match &policy.scope {
        Some(ScopeRule::Bind(bound)) => names.extend(bound.iter().cloned()),
        Some(ScopeRule::Header(name)) => names.push(name.clone()),
        _ => {}
    }
    if let ScopeSource::Token(jwt) = &protection.scope {
        names.push(jwt.header.clone());
    }
    names.extend([http::header::CONTENT_TYPE, http::header::CONTENT_LENGTH, COOKIE]);
    names.extend([http::header::AUTHORIZATION, http::header::HOST]);
    if let Some(HeaderRule::Only(chosen)) = policy.fingerprint.as_ref().map(|it| &it.headers) {
        names.extend(chosen.iter().cloned());
    }
    names
}

/// Whether a key is there that nobody looks at.
pub(super) fn has_key(headers: &HeaderMap) -> bool {
    headers.contains_key(KEY)
}

pub(super) fn mark_ignored(headers: &mut HeaderMap) {
    headers.insert(STATUS, HeaderValue::from_static("ignored"));
}

pub(super) fn mark_unstored(headers: &mut HeaderMap) {
    headers.insert(IDEMPOTENCY_STORED, HeaderValue::from_static("false"));
}

/// Says that the connection cannot be used again where a body was refused unread.
pub(super) fn close_if_unread<B>(response: &mut Response<B>, version: Version) {
    if super::is_http1(version) && response.status() == StatusCode::PAYLOAD_TOO_LARGE {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// RFC 9110 §7.6.1, and what older servers send.
const HOPS: [HeaderName; 6] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
    HeaderName::from_static("http2-settings"),
];
/// Said by us alone, to the upstream or by it.
const OURS: [HeaderName; 4] = [IDEMPOTENCY_OUTCOME, ATTEMPT, FENCE, DERIVED];

pub(super) const ATTEMPT: HeaderName = HeaderName::from_static("idempotency-attempt");
pub(super) const FENCE: HeaderName = HeaderName::from_static("idempotency-fence");
pub(super) const DERIVED: HeaderName = HeaderName::from_static("idempotency-derived");
const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const STATUS: HeaderName = HeaderName::from_static("idempotency-status");
