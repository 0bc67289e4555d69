//! What a request is for: its host and its path.

use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Uri};

use super::fault::ProxyError;

/// Finds the host that a request is for, and leaves the target in origin form.
///
/// The host stands in `Host` afterwards, whatever version it came in.
///
/// # Security
///
/// A target and a `Host` that differ, several of them, or none, are refused: whoever is in front
/// of us or behind may take the other one.
pub(super) fn resolve<B>(request: &mut Request<B>) -> Result<String, ProxyError> {
    if !has_usual_form(request) {
        return Err(ProxyError::BadTarget);
    }
    let named = request.uri().authority().cloned();
    let mut lines = request.headers().get_all(HOST).iter();
    let host = match (lines.next(), lines.next()) {
        (Some(line), None) => Some(authority(line).ok_or(ProxyError::BadTarget)?),
        (None, _) => None,
        (Some(_), Some(_)) => return Err(ProxyError::BadTarget),
    };
    let authority = match (named, host) {
        (Some(named), Some(host)) if named != host => return Err(ProxyError::BadTarget),
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
    Ok(authority.host().to_ascii_lowercase())
}

/// A path, a whole URL, or `OPTIONS *` (RFC 9112 §3.2).
fn has_usual_form<B>(request: &Request<B>) -> bool {
    let uri = request.uri();
    match uri.scheme() {
        Some(scheme) => *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS,
        None => uri.path().starts_with('/') || uri == "*" && request.method() == Method::OPTIONS,
    }
}

/// None, or a number.
fn has_usual_port(authority: &Authority) -> bool {
    let port = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    port.is_empty() || authority.port_u16().is_some()
}

fn authority(line: &HeaderValue) -> Option<Authority> {
    Authority::try_from(line.as_bytes()).ok()
}

/// Whether another server could take a path for another one.
///
/// Dot segments and empty ones may be removed, backslashes turned, encoded dots and slashes
/// decoded: after any of that another route, or another record, would have been meant.
pub(super) fn is_ambiguous(path: &str) -> bool {
    if path == "*" {
        return false;
    }
    let Some(path) = path.strip_prefix('/') else { return true };
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        // A parameter does not hide dots from everybody.
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
