//! The services that requests go to.

use std::path::PathBuf;
use std::time::Duration;

use http::uri::Authority;

use super::HealthCheck;

/// A service that requests go to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Upstream {
    /// What routes call it.
    pub name: String,
    /// Its addresses; requests are spread over them.
    pub origins: Vec<Origin>,
    /// Which version is spoken with it.
    pub version: UpstreamVersion,
    /// The `Host` that it is sent.
    pub host: HostRule,
    /// Authorities of its certificate in place of the public ones, as PEM.
    pub ca: Option<PathBuf>,
    /// How long connecting may take, a TLS handshake included.
    pub connect_timeout: Duration,
    /// How long it may take from the request's end to the head of its answer.
    pub response_timeout: Duration,
    /// How long its answer may pause.
    pub pause_timeout: Duration,
    /// How long a connection waits for its next request; shorter than it is kept open over there.
    pub idle_timeout: Duration,
    /// Connections to each address.
    pub connections_max: usize,
    /// How long an address that could not be connected to is tried last.
    pub down: Duration,
    /// How its addresses are asked whether they are well; they are not without.
    pub health: Option<HealthCheck>,
}

impl Upstream {
    /// One with the default limits.
    #[must_use]
    pub fn new(name: impl Into<String>, origins: Vec<Origin>) -> Self {
        Self {
            name: name.into(),
            origins,
            version: UpstreamVersion::Http1,
            host: HostRule::Preserve,
            ca: None,
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(60),
            pause_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(4),
            connections_max: 1024,
            down: Duration::from_secs(5),
            health: None,
        }
    }
}

/// A scheme, a host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin {
    /// Whether it is spoken to over TLS.
    pub tls: bool,
    /// Host and port, as the URL has them.
    pub authority: Authority,
}

impl Origin {
    /// Reads `http://host[:port]` or `https://host[:port]`.
    ///
    /// # Errors
    ///
    /// What to write instead.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let advice = "write `http://host:port` or `https://host:port`, without a path";
        let uri: http::Uri = url.parse().map_err(|_| advice)?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(advice),
        };
        let authority = uri.authority().filter(|it| !it.as_str().contains('@')).ok_or(advice)?;
        match uri.path_and_query().map(http::uri::PathAndQuery::as_str) {
            None | Some("/") => Ok(Self { tls, authority: authority.clone() }),
            _ => Err(advice),
        }
    }

    /// The port, by default that of the scheme.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(if self.tls { 443 } else { 80 })
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

/// Which version of HTTP an upstream is spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpstreamVersion {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, by ALPN over TLS, else without asking.
    Http2,
}

/// Which `Host` an upstream is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostRule {
    /// The client's.
    Preserve,
    /// The upstream's own, from its URL.
    Upstream,
}
