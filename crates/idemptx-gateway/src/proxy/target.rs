//! The host and the path of a request.

use std::borrow::Cow;

use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};

use super::fault::ProxyError;

/// Brings the target into origin form, and sets `Host` for every version of HTTP.
///
/// # Security
///
/// Several hosts, none, or one that differs from the target's are rejected: a server up- or
/// downstream may choose another one. So is a name with an empty label, which servers trim in
/// different ways.
pub(super) fn resolve<B>(request: &mut Request<B>) -> Result<(), ProxyError> {
    if !has_usual_form(request) {
        return Err(ProxyError::BadTarget);
    }
    if is_plain(request) {
        return Ok(());
    }
    let named = request.uri().authority().cloned();
    let mut lines = request.headers().get_all(HOST).iter();
    let stated = match (lines.next(), lines.next()) {
        (Some(line), None) => Some(authority(line).ok_or(ProxyError::BadTarget)?),
        (None, _) => None,
        (Some(_), Some(_)) => return Err(ProxyError::BadTarget),
    };
    // RFC 9112 §3.2: a server has to refuse it, whatever the target says.
    if request.version() == Version::HTTP_11 && stated.is_none() {
        return Err(ProxyError::BadTarget);
    }
    let authority = match (named, stated) {
        (Some(named), Some(stated)) if named != stated => return Err(ProxyError::BadTarget),
        (Some(one), _) | (None, Some(one)) => one,
        (None, None) => return Err(ProxyError::BadTarget),
    };
    if authority.as_str().contains('@') || !has_usual_port(&authority) {
        return Err(ProxyError::BadTarget);
    }
    if request.uri().authority().is_some() {
        let value = HeaderValue::from_str(authority.as_str()).map_err(|_| ProxyError::BadTarget)?;
        request.headers_mut().insert(HOST, value);
        let path = request.uri().path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
    }
    if host(request.headers()).split('.').any(str::is_empty) {
        return Err(ProxyError::BadTarget);
    }
    Ok(())
}

/// Returns whether the target is a path and the host, which stands alone, a name or an address of
/// version 4: most requests need no parser of authorities.
fn is_plain<B>(request: &Request<B>) -> bool {
    let mut lines = request.headers().get_all(HOST).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return false };
    let line = line.as_bytes();
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    request.uri().authority().is_none()
        && line.first().is_some_and(|first| *first != b'.')
        && line.iter().all(is_part)
        && !has_pair(line, b'.')
}

/// Returns whether a byte is there twice in a row.
fn has_pair(bytes: &[u8], byte: u8) -> bool {
    bytes.windows(2).any(|pair| pair == [byte; 2])
}

/// Returns whether the target is a path, so that `Host` alone names the host.
pub(super) fn is_origin_form<B>(request: &Request<B>) -> bool {
    request.uri().authority().is_none() && has_usual_form(request)
}

/// Returns the host of a request whose target was [resolved](resolve), in lower case.
pub(super) fn host(headers: &HeaderMap) -> Cow<'_, str> {
    headers.get(HOST).map_or(Cow::Borrowed(""), host_in)
}

/// Returns the host that a line names, in lower case.
pub(super) fn host_in(line: &HeaderValue) -> Cow<'_, str> {
    let line = line.to_str().unwrap_or_default();
    let end = match line.find(']') {
        Some(bracket) => bracket + 1,
        None => line.find(':').unwrap_or(line.len()),
    };
    let host = line.get(..end).unwrap_or_default();
    // A dot at the end names the same host (RFC 3986 §3.2.2).
    let host = host.strip_suffix('.').unwrap_or(host);
    match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(host.to_ascii_lowercase()),
        false => Cow::Borrowed(host),
    }
}

/// Returns whether the target is a path, an absolute URL or `OPTIONS *` (RFC 9112 §3.2).
fn has_usual_form<B>(request: &Request<B>) -> bool {
    let uri = request.uri();
    match uri.scheme() {
        Some(scheme) => *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS,
        None => uri.path().starts_with('/') || uri == "*" && request.method() == Method::OPTIONS,
    }
}

/// Returns whether the port is absent or a number.
fn has_usual_port(authority: &Authority) -> bool {
    let port = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    // A sign would count as part of the number, and other servers refuse it.
    port.is_empty() || authority.port_u16().is_some() && !port.contains('+')
}

fn authority(line: &HeaderValue) -> Option<Authority> {
    Authority::try_from(line.as_bytes()).ok()
}

/// Returns whether another server could read the target as another one, or refuse it.
///
/// Servers may remove dot segments and empty ones, turn backslashes, or decode dots and slashes:
/// the request would then match another route, or another record. Bytes beyond ASCII are in no target
/// (RFC 3986 §2), and are read in several encodings.
pub(super) fn is_ambiguous(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| !query.is_ascii()) || is_ambiguous_path(uri.path())
}

/// Returns whether that holds for a path.
pub(crate) fn is_ambiguous_path(path: &str) -> bool {
    // Most paths have nothing in them that is to be looked at closer.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_');
    if path.starts_with('/') && path.bytes().all(is_plain) && !has_pair(path.as_bytes(), b'/') {
        return false;
    }
    if !path.is_ascii() {
        return true;
    }
    if path == "*" {
        return false;
    }
    let Some(path) = path.strip_prefix('/') else { return true };
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        // Some servers ignore a segment's parameters.
        let plain = segment.split(';').next().unwrap_or_default();
        if matches!(plain, "." | "..") || segment.is_empty() && !is_last {
            return true;
        }
    }
    path.bytes().any(|byte| byte == b'\\')
        || path.split('%').skip(1).any(|escape| {
            let code = escape.get(..2).unwrap_or_default();
            ["2e", "2f", "5c", "00"].iter().any(|it| it.eq_ignore_ascii_case(code))
                || !code.bytes().all(|byte| byte.is_ascii_hexdigit())
                || code.len() < 2
        })
}

#[cfg(test)]
mod tests;
