//! A set of keys that its issuer publishes.

use std::path::PathBuf;
use std::time::Duration;

use super::Origin;
use super::values::is_server;

/// A set of public keys (RFC 7517) at a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteKeySet {
    /// The URL.
    pub url: String,
    /// The server.
    pub origin: Origin,
    /// The path with its query.
    pub target: String,
    /// A PEM file of certificate authorities, instead of the public ones.
    pub ca: Option<PathBuf>,
    /// The time after which the set is read again.
    pub refresh: Duration,
}

impl RemoteKeySet {
    pub(super) fn parse(
        url: String,
        ca: Option<PathBuf>,
        refresh_millis: Option<u64>,
    ) -> Result<Self, String> {
        let advice = "`jwks_url`: write `https://host/path`";
        let uri: http::Uri = url.parse().map_err(|_| advice)?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(advice.to_owned()),
        };
        let authority = uri.authority().filter(|it| is_server(it)).ok_or(advice)?;
        let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
        let origin = Origin { tls, authority: authority.clone(), socket: None };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let is_local = host == "localhost"
            || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
        if !tls && !is_local {
            // Who can change the answer can sign tokens.
            return Err("`jwks_url`: `http` is for this host only; write `https`".to_owned());
        }
        let refresh = match refresh_millis {
            None => REFRESH,
            Some(millis @ REFRESH_MIN_MS..=REFRESH_MAX_MS) => Duration::from_millis(millis),
            Some(_) => {
                return Err(format!(
                    "`jwks_refresh_ms`: give {REFRESH_MIN_MS} to {REFRESH_MAX_MS}"
                ));
            }
        };
        Ok(Self { url, origin, target, ca, refresh })
    }
}

const REFRESH: Duration = Duration::from_secs(300);
const REFRESH_MIN_MS: u64 = 100;
const REFRESH_MAX_MS: u64 = 86_400_000;
