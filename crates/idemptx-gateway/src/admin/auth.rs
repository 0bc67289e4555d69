//! Access control of the admin listener.

use std::net::IpAddr;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName};
use http::uri::Authority;
use http::{HeaderMap, Method, StatusCode};

/// The requirements for a request.
///
/// # Security
///
/// Without a token everyone who reaches the listener has access. It must then be bound to a
/// loopback address, and requests must name a loopback host: a page of another site that resolves
/// its own name to this address (DNS rebinding) sends that name.
/// With a token such a page has no credential.
///
/// Changes need a header that browsers send for another site only after a CORS preflight, which is
/// never granted; cookies are ignored.
pub(super) struct AccessPolicy {
    token: Option<blake3::Hash>,
}

/// The reason for which a request is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AccessDenied {
    /// The `Host` is not the listener's.
    WrongHost,
    /// The token is missing or wrong.
    Unauthorized,
    /// Possibly sent by another site.
    Forged,
}

impl AccessPolicy {
    pub(super) fn new(token: Option<&str>) -> Self {
        Self { token: token.map(|token| blake3::hash(token.as_bytes())) }
    }

    /// Checks that the request is for this listener.
    pub(super) fn check_host(&self, headers: &HeaderMap) -> Result<(), AccessDenied> {
        if self.token.is_some() || is_loopback(headers) {
            return Ok(());
        }
        Err(AccessDenied::WrongHost)
    }

    /// Checks the token, and for changes the header that other sites cannot send.
    pub(super) fn authorize(
        &self,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<(), AccessDenied> {
        self.check_host(headers)?;
        if let Some(token) = &self.token {
            let shown = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
            let shown = shown.and_then(bearer).ok_or(AccessDenied::Unauthorized)?;
            // Hashes compare in constant time, and hide the token's length.
            if blake3::hash(shown) != *token {
                return Err(AccessDenied::Unauthorized);
            }
        }
        let reads = *method == Method::GET || *method == Method::HEAD;
        if !reads && !is_deliberate(headers) {
            return Err(AccessDenied::Forged);
        }
        Ok(())
    }
}

impl AccessDenied {
    pub(super) const fn status(self) -> StatusCode {
        match self {
            Self::WrongHost => StatusCode::MISDIRECTED_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forged => StatusCode::FORBIDDEN,
        }
    }

    /// The line in the log.
    pub(super) const fn log_text(self) -> &'static str {
        match self {
            Self::WrongHost => "rejected admin request with an unexpected Host",
            Self::Unauthorized => "rejected admin request without the token",
            Self::Forged => "rejected admin request without Idempotency-Admin",
        }
    }

    pub(super) const fn detail(self) -> &'static str {
        match self {
            Self::WrongHost => {
                "Without a token this listener accepts loopback names only: use `localhost` or \
                 `127.0.0.1`, or set `token` under `[admin]`."
            }
            Self::Unauthorized => "Send `Authorization: Bearer` with the token of `[admin]`.",
            Self::Forged => {
                "Send `Idempotency-Admin` with your name, and the body as `application/json`. \
                 Nothing was changed."
            }
        }
    }
}

/// The name that the caller gives, for the audit log; it is not authenticated.
pub(super) fn actor(headers: &HeaderMap) -> &str {
    headers.get(ADMIN).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(BEARER.len())?;
    scheme.eq_ignore_ascii_case(BEARER).then(|| token.trim_ascii())
}

fn is_deliberate(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(|value| value.as_bytes());
    let json = headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes() == JSON);
    let own = site.is_none_or(|site| site == b"same-origin" || site == b"none");
    own && json && !actor(headers).is_empty()
}

fn is_loopback(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(HOST).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return false };
    let Ok(authority) = Authority::try_from(line.as_bytes()) else { return false };
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

const ADMIN: HeaderName = HeaderName::from_static("idempotency-admin");
const BEARER: &[u8] = b"bearer ";
const JSON: &[u8] = b"application/json";

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), value.parse().unwrap())
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn without_a_token_only_loopback_names_are_answered() {
        let gate = AccessPolicy::new(None);
        for host in ["localhost", "LOCALHOST:9901", "127.0.0.1:9901", "127.8.8.8", "[::1]:9901"] {
            assert_eq!(gate.authorize(&Method::GET, &headers(&[("host", host)])), Ok(()), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.nip.io", ""] {
            let admitted = gate.authorize(&Method::GET, &headers(&[("host", host)]));
            assert_eq!(admitted, Err(AccessDenied::WrongHost), "{host}");
        }
        assert_eq!(gate.check_host(&HeaderMap::new()), Err(AccessDenied::WrongHost));
    }

    #[test]
    fn with_a_token_it_must_be_shown() {
        let gate = AccessPolicy::new(Some("s3cret"));
        let admitted = |value| {
            gate.authorize(&Method::GET, &headers(&[("host", "any"), ("authorization", value)]))
        };
        assert_eq!(admitted("Bearer s3cret"), Ok(()));
        assert_eq!(admitted("bearer s3cret"), Ok(()));
        for value in ["", "s3cret", "Basic s3cret", "Bearer s3cre", "Bearer s3crett", "Bearer"] {
            assert_eq!(admitted(value), Err(AccessDenied::Unauthorized), "{value}");
        }
        let cookie = headers(&[("host", "any"), ("cookie", "token=s3cret")]);
        assert_eq!(gate.authorize(&Method::GET, &cookie), Err(AccessDenied::Unauthorized));
    }

    #[test]
    fn what_another_site_can_send_changes_nothing() {
        let gate = AccessPolicy::new(None);
        let ours = [
            ("host", "localhost"),
            ("content-type", "application/json"),
            ("idempotency-admin", "alice"),
        ];
        assert_eq!(gate.authorize(&Method::POST, &headers(&ours)), Ok(()));
        for left_out in ["content-type", "idempotency-admin"] {
            let lines: Vec<_> = ours.into_iter().filter(|(name, _)| *name != left_out).collect();
            let admitted = gate.authorize(&Method::POST, &headers(&lines));
            assert_eq!(admitted, Err(AccessDenied::Forged), "{left_out}");
        }
        for site in ["cross-site", "same-site"] {
            let mut lines = ours.to_vec();
            lines.push(("sec-fetch-site", site));
            assert_eq!(
                gate.authorize(&Method::POST, &headers(&lines)),
                Err(AccessDenied::Forged),
                "{site}"
            );
        }
    }
}
