//! The services that requests are forwarded to.

use std::path::PathBuf;
use std::time::Duration;

use http::uri::Authority;
use serde::{Deserialize, Deserializer};

use super::invalid_config::InvalidSetting;
use super::listen_address::{UNIX, unix_path};
use super::values::{head_bytes, is_server, millis, origins, positive, positive_millis, seconds};
use super::{Ejection, HealthCheck};

/// A service that requests are forwarded to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Upstream {
    /// The name that routes refer to.
    pub name: String,
    /// The service's addresses; requests are spread over them.
    #[serde(rename = "urls", deserialize_with = "origins")]
    pub origins: Vec<Origin>,
    /// The share of requests of each address, in the order of the addresses; empty for equal ones.
    #[serde(default)]
    pub weights: Vec<u32>,
    /// The choice of the address.
    #[serde(default)]
    pub balance: Balance,
    /// The version of HTTP.
    #[serde(rename = "http2", default, deserialize_with = "version")]
    pub version: UpstreamVersion,
    /// The `Host` that is sent.
    #[serde(default)]
    pub host: HostRule,
    /// The host and the port by which addresses that are Unix sockets are named to the service.
    #[serde(default, deserialize_with = "authority")]
    pub authority: Option<Authority>,
    /// A PEM file of certificate authorities, instead of the public ones.
    pub ca: Option<PathBuf>,
    /// The certificate by which the service knows the gateway, a PEM file with its chain.
    pub client_certificate: Option<PathBuf>,
    /// A PEM file with its private key.
    pub client_key: Option<PathBuf>,
    /// The time limit of connecting, a TLS handshake included.
    #[serde(rename = "connect_timeout_ms", deserialize_with = "positive_millis")]
    #[serde(default = "seconds::<2>")]
    pub connect_timeout: Duration,
    /// The time limit from the end of the request to the head of the response.
    #[serde(rename = "response_timeout_ms", deserialize_with = "positive_millis")]
    #[serde(default = "seconds::<60>")]
    pub response_timeout: Duration,
    /// The time limit of a pause within the response.
    #[serde(rename = "pause_timeout_ms", deserialize_with = "positive_millis")]
    #[serde(default = "seconds::<60>")]
    pub pause_timeout: Duration,
    /// The time after which an idle connection is closed.
    // Shorter than usual services keep theirs open: a request that meets the closing was written,
    // and its outcome would be unknown.
    #[serde(rename = "idle_timeout_ms", deserialize_with = "millis", default = "seconds::<4>")]
    pub idle_timeout: Duration,
    /// The age at which a connection is replaced, however busy it is, and its name resolved again.
    #[serde(rename = "connection_age_max_ms", deserialize_with = "positive_millis")]
    #[serde(default = "seconds::<60>")]
    pub connection_age_max: Duration,
    /// The maximum number of connections to each address.
    #[serde(deserialize_with = "positive", default = "connections_max")]
    pub connections_max: usize,
    /// The maximum size of a response's head.
    #[serde(deserialize_with = "head_bytes", default = "head_bytes_max")]
    pub head_bytes_max: usize,
    /// The maximum number of lines in a response's head.
    #[serde(deserialize_with = "positive", default = "head_lines_max")]
    pub head_lines_max: usize,
    /// The time for which an address is a last resort after a failed connect.
    #[serde(rename = "down_ms", deserialize_with = "millis", default = "seconds::<5>")]
    pub down: Duration,
    /// The active health checks, if any.
    pub health: Option<HealthCheck>,
    /// The ejection of addresses whose requests fail, if any.
    pub ejection: Option<Ejection>,
}

impl Upstream {
    /// Returns an upstream with the default limits.
    #[must_use]
    pub fn new(name: impl Into<String>, origins: Vec<Origin>) -> Self {
        Self {
            name: name.into(),
            origins,
            weights: Vec::new(),
            balance: Balance::RoundRobin,
            version: UpstreamVersion::Http1,
            host: HostRule::Preserve,
            authority: None,
            ca: None,
            client_certificate: None,
            client_key: None,
            connect_timeout: seconds::<2>(),
            response_timeout: seconds::<60>(),
            pause_timeout: seconds::<60>(),
            idle_timeout: seconds::<4>(),
            connection_age_max: seconds::<60>(),
            connections_max: connections_max(),
            head_bytes_max: head_bytes_max(),
            head_lines_max: head_lines_max(),
            down: seconds::<5>(),
            health: None,
            ejection: None,
        }
    }

    /// Gives the addresses that are Unix sockets their name.
    pub(super) fn name_sockets(&mut self) {
        let Some(authority) = &self.authority else { return };
        for origin in self.origins.iter_mut().filter(|it| it.socket.is_some()) {
            origin.authority = authority.clone();
        }
    }

    pub(super) fn validate(&self, position: &str) -> Result<(), InvalidSetting> {
        let wrong =
            |name, text: String| Err(InvalidSetting::at(["upstream", position, name], text));
        if !self.weights.is_empty() && self.weights.len() != self.origins.len() {
            let text = format!("give {} weights, one for each URL", self.origins.len());
            return wrong("weights", text);
        }
        if self.weights.iter().any(|weight| !(1..=WEIGHT_MAX).contains(weight)) {
            return wrong("weights", format!("a weight is a number from 1 to {WEIGHT_MAX}"));
        }
        if self.authority.is_some() && self.origins.iter().all(|it| it.socket.is_none()) {
            let text = "only an address that is a Unix socket takes its name from here";
            return wrong("authority", text.to_owned());
        }
        self.ejection.as_ref().map_or(Ok(()), |it| it.validate(position))?;
        match (&self.client_certificate, &self.client_key) {
            (Some(_), None) => wrong("client_certificate", "`client_key` is missing".to_owned()),
            (None, Some(_)) => wrong("client_key", "`client_certificate` is missing".to_owned()),
            _ => Ok(()),
        }
    }
}

/// The choice of the address that a request is sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Balance {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the fewest requests in flight for its weight.
    LeastRequests,
}

const WEIGHT_MAX: u32 = 100;

const fn connections_max() -> usize {
    1024
}

const fn head_bytes_max() -> usize {
    64 << 10
}

const fn head_lines_max() -> usize {
    256
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<UpstreamVersion, D::Error> {
    Ok(match bool::deserialize(deserializer)? {
        true => UpstreamVersion::Http2,
        false => UpstreamVersion::Http1,
    })
}

/// Deserialises a host with or without a port.
fn authority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Authority>, D::Error> {
    let authority = String::deserialize(deserializer)?.parse::<Authority>();
    let authority = authority.ok().filter(is_server);
    authority.map(Some).ok_or_else(|| serde::de::Error::custom("write a host, as `shop:80`"))
}

/// A scheme, a host and a port, or a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin {
    /// Use TLS.
    pub tls: bool,
    /// The host and the port, as in the URL.
    pub authority: Authority,
    /// The path of a Unix socket, to connect to instead.
    pub socket: Option<PathBuf>,
}

impl Origin {
    /// Parses `http://host[:port]`, `https://host[:port]` or `unix:PATH`, which is `localhost` to the
    /// service.
    ///
    /// # Errors
    ///
    /// Advice on what to write instead.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let advice = "write `http://host:port` or `https://host:port`, without a path, or \
                      `unix:/run/app.sock`";
        if let Some(path) = url.strip_prefix(UNIX) {
            let authority = Authority::from_static("localhost");
            return Ok(Self { tls: false, authority, socket: Some(unix_path(path)?) });
        }
        let uri: http::Uri = url.parse().map_err(|_| advice)?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(advice),
        };
        let authority = uri.authority().filter(|it| is_server(it)).ok_or(advice)?;
        if url.contains('#') {
            return Err(advice); // The type leaves it out.
        }
        match uri.path_and_query().map(http::uri::PathAndQuery::as_str) {
            None | Some("/") => Ok(Self { tls, authority: authority.clone(), socket: None }),
            _ => Err(advice),
        }
    }

    /// Returns the scheme.
    pub(crate) const fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    /// Returns the port, by default that of the scheme.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(if self.tls { 443 } else { 80 })
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.socket {
            Some(path) => write!(f, "{UNIX}{}", path.display()),
            None => write!(f, "{}://{}", self.scheme(), self.authority),
        }
    }
}

/// The version of HTTP that an upstream speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpstreamVersion {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, by ALPN over TLS, else with prior knowledge.
    Http2,
}

/// The `Host` that an upstream receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum HostRule {
    /// The client's.
    #[default]
    Preserve,
    /// The upstream's, from its URL.
    Upstream,
}
