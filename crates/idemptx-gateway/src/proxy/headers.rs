//! End-to-end and hop-by-hop fields.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT,
    HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING,
    UPGRADE, VARY,
};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use idemptx_core::fingerprint::HeaderRule;
use idemptx_core::policy::ScopeRule;
use idemptx_core::response_headers::{IDEMPOTENCY_OUTCOME, IDEMPOTENCY_STORED};

use super::fault::ProxyError;
use super::routing_table::ActiveRoute;
use crate::config::{Cors, Protection, ScopeSource};

/// The fields that a request has of those that need attention.
///
/// Most requests have none: one scan is cheaper than a look-up for each.
#[derive(Debug, Default)]
pub(super) struct NotableFields {
    cookies: usize,
    has_underscore: bool,
    /// True if there are fields that are not for the upstream.
    is_connected: bool,
    pub(super) has_expect: bool,
    pub(super) has_origin: bool,
    pub(super) has_request_id: bool,
}

impl NotableFields {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for (name, _) in headers {
            match name.as_str() {
                "cookie" => found.cookies += 1,
                "origin" => found.has_origin = true,
                "x-request-id" => found.has_request_id = true,
                text => {
                    found.has_expect |= text == "expect";
                    found.has_underscore |= text.bytes().any(|byte| byte == b'_');
                    found.is_connected |= is_for_one_connection(name);
                }
            }
        }
        found
    }
}

/// Removes hop-by-hop fields and fields that only the gateway may set.
///
/// # Security
///
/// A field that `Connection` nominates is removed (RFC 9110 §7.6.1).
/// If the key, its scope or the fingerprint depends on it, the request is rejected instead:
/// upstream it would mean something else.
pub(super) fn strip_request<B>(
    request: &mut Request<B>,
    fields: &NotableFields,
    route: &ActiveRoute,
) -> Result<(), ProxyError> {
    if fields.cookies > 1 {
        join_cookies(request.headers_mut());
    }
    if fields.has_underscore {
        drop_aliases(request.headers_mut(), route);
    }
    if !fields.is_connected {
        return Ok(());
    }
    let upgrade = super::upgrade::permitted_protocol(request, route);
    let headers = request.headers_mut();
    if headers.contains_key(CONNECTION) {
        let connection_options = connection_options(headers)?;
        if connection_options.iter().any(|name| route.depends_on(name)) {
            return Err(ProxyError::NominatedField);
        }
        for name in connection_options.iter().filter(|name| **name != TE && **name != UPGRADE) {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    strip_hops(headers);
    headers.remove(EXPECT);
    keep_trailers(headers);
    match upgrade {
        // Whoever forwards the upgrade restores `Connection`.
        Some(protocol) => _ = headers.insert(UPGRADE, protocol),
        None => _ = headers.remove(UPGRADE),
    }
    for name in OURS {
        headers.remove(name);
    }
    Ok(())
}

/// Removes the hop-by-hop fields of the upstream's connection.
pub(super) fn strip_answer(headers: &mut HeaderMap) {
    if !headers.keys().any(is_for_one_connection) {
        return;
    }
    if headers.contains_key(CONNECTION) {
        let connection_options = connection_options(headers).unwrap_or_default();
        for name in connection_options {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    strip_hops(headers);
    headers.remove(UPGRADE);
    headers.remove(IDEMPOTENCY_OUTCOME);
}

/// The fields that `Connection` nominates.
fn connection_options(headers: &HeaderMap) -> Result<Vec<HeaderName>, ProxyError> {
    let mut names = Vec::new();
    for line in headers.get_all(CONNECTION) {
        let line = line.to_str().map_err(|_| ProxyError::NominatedField)?;
        for name in line.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let name = name.parse().map_err(|_| ProxyError::NominatedField)?;
            names.push(name);
        }
    }
    Ok(names)
}

/// Returns whether [`strip_request`] or [`strip_answer`] might remove the field.
///
/// Every field of every message is asked about, so it is compared as a text: a comparison of names
/// costs several times as much.
fn is_for_one_connection(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "expect"
            | "te"
            | "upgrade"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "transfer-encoding"
            | "http2-settings"
            | "idempotency-outcome"
            | "idempotency-attempt"
            | "idempotency-fence"
            | "idempotency-derived"
    )
}

fn strip_hops(headers: &mut HeaderMap) {
    for name in HOPS {
        headers.remove(name);
    }
}

/// Keeps `TE` only as far as it announces support for trailers.
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

/// Drops fields that differ from one that the gateway vouches for in an underscore only.
///
/// # Security
///
/// CGI and what follows it (WSGI, Rack, PHP) give both the same variable, so that a client's
/// `X_Forwarded_For` could be taken for the gateway's field.
fn drop_aliases(headers: &mut HeaderMap, route: &ActiveRoute) {
    let is_alias = |name: &&HeaderName| {
        let plain = name.as_str().replace('_', "-");
        plain != name.as_str()
            && HeaderName::try_from(plain).is_ok_and(|plain| {
                OURS.contains(&plain) || VOUCHED.contains(&plain) || route.depends_on(&plain)
            })
    };
    let aliases: Vec<_> = headers.keys().filter(is_alias).cloned().collect();
    for alias in aliases {
        headers.remove(alias);
    }
}

/// Joins cookie lines, which HTTP/2 may split but HTTP/1.1 may not (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let lines: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Returns the fields that must reach the upstream as they came, whatever `Connection` says: those
/// that say what a request is, and those that a policy depends on.
pub(super) fn headers_in_use(protection: Option<&Protection>) -> Vec<HeaderName> {
    let mut names =
        vec![AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST];
    let Some(protection) = protection else { return names };
    let policy = &protection.policy;
    names.extend(policy.header_names.iter().cloned());
    match &policy.scope {
        Some(ScopeRule::Bind(bound)) => names.extend(bound.iter().cloned()),
        Some(ScopeRule::Header(name)) => names.push(name.clone()),
        _ => {}
    }
    if let ScopeSource::Token(jwt) = &protection.scope {
        names.push(jwt.header.clone());
    }
    if let Some(HeaderRule::Only(chosen)) = policy.fingerprint.as_ref().map(|it| &it.headers) {
        names.extend(chosen.iter().cloned());
    }
    names
}

/// Makes an answer that the gateway gives itself readable for scripts of the request's origin: a
/// refusal, a failure or a replay.
///
/// What a replay has of the upstream's own CORS fields stays where it is meant for this origin.
pub(super) fn allow_origin(headers: &mut HeaderMap, origin: &HeaderValue, cors: Option<&Cors>) {
    let stored = headers.get(ACCESS_CONTROL_ALLOW_ORIGIN);
    if stored.is_some_and(|stored| stored == origin || stored == "*") {
        return;
    }
    let names: Vec<_> =
        headers.keys().filter(|it| it.as_str().starts_with(CORS)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
    let Some((cors, allowed)) = cors.and_then(|cors| Some((cors, cors.allowed(origin)?))) else {
        return;
    };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    if cors.credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    headers.append(VARY, HeaderValue::from_static("Origin"));
}

/// Returns whether a request carries a key.
pub(super) fn has_key(headers: &HeaderMap) -> bool {
    headers.contains_key(KEY)
}

pub(super) fn mark_ignored(headers: &mut HeaderMap) {
    headers.insert(STATUS, HeaderValue::from_static("ignored"));
}

pub(super) fn mark_unstored(headers: &mut HeaderMap) {
    headers.insert(IDEMPOTENCY_STORED, HeaderValue::from_static("false"));
}

/// Closes the connection if the body was rejected unread.
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
/// Set by the gateway for the upstream: the client, as far as it is known.
const VOUCHED: [HeaderName; 5] = [
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
];
/// Set by the gateway or by the upstream, never by a client.
const OURS: [HeaderName; 4] = [IDEMPOTENCY_OUTCOME, ATTEMPT, FENCE, DERIVED];

pub(super) const ATTEMPT: HeaderName = HeaderName::from_static("idempotency-attempt");
pub(super) const FENCE: HeaderName = HeaderName::from_static("idempotency-fence");
pub(super) const DERIVED: HeaderName = HeaderName::from_static("idempotency-derived");
/// The fields that a script needs to act on an answer.
const EXPOSED: &str = "Idempotency-Key, Idempotency-Status, Idempotency-Stored, Idempotent-Replayed, Link, \
     Location, Retry-After, X-Request-Id, X-Should-Retry";
/// The beginning of the names of CORS fields.
const CORS: &str = "access-control-";
const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const STATUS: HeaderName = HeaderName::from_static("idempotency-status");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_that_is_removed_is_looked_for() {
        let others = [CONNECTION, EXPECT, TE, UPGRADE];
        for name in others.iter().chain(&HOPS).chain(&OURS) {
            assert!(is_for_one_connection(name), "{name}");
        }
        for name in VOUCHED.iter().chain(&[HOST, COOKIE, KEY, STATUS]) {
            assert!(!is_for_one_connection(name), "{name}");
        }
    }
}
