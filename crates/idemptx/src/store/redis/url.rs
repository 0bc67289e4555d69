//! Settings in a Redis URL, and the part that may be shown.

use std::fmt;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use crate::store::url_settings::InvalidUrlSetting;

/// A URL, or a setting that goes with it, with which no Redis can be reached.
///
/// Its text says what to change and shows neither user nor password.
#[derive(Clone, PartialEq, Eq)]
pub struct InvalidUrl(UrlProblem);

#[derive(Clone, PartialEq, Eq)]
enum UrlProblem {
    Scheme,
    Database,
    Parameter(String),
    Insecure,
    Malformed(String),
    CertificatesWithoutTls,
    NoCertificates(String),
    InUrl(InvalidUrlSetting),
}

impl InvalidUrl {
    pub(super) const fn certificates_without_tls() -> Self {
        Self(UrlProblem::CertificatesWithoutTls)
    }

    pub(super) const fn certificates(reason: String) -> Self {
        Self(UrlProblem::NoCertificates(reason))
    }
}

impl From<InvalidUrlSetting> for InvalidUrl {
    fn from(problem: InvalidUrlSetting) -> Self {
        Self(UrlProblem::InUrl(problem))
    }
}

impl fmt::Display for InvalidUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            UrlProblem::Scheme => f.write_str(
                "not a Redis URL: write redis://[user[:password]@]host[:port][/database], the \
                 same with rediss:// for TLS, or redis+unix:///path?db=number",
            ),
            UrlProblem::Database => f.write_str("the database of the Redis URL must be a number"),
            UrlProblem::Parameter(name) => {
                write!(f, "the Redis URL has a parameter `{name}`, which means nothing here")
            }
            UrlProblem::Insecure => f.write_str(
                "the Redis URL has a fragment; certificates are always verified: name a private \
                 authority with `ca_certificates` or `ca_file` instead of `#insecure`",
            ),
            UrlProblem::Malformed(reason) => write!(f, "malformed Redis URL: {reason}"),
            UrlProblem::CertificatesWithoutTls => {
                f.write_str("certificates need TLS: write rediss:// instead of the URL's scheme")
            }
            UrlProblem::NoCertificates(reason) => {
                write!(f, "`ca_certificates` are no certificates in PEM: {reason}")
            }
            UrlProblem::InUrl(problem) => problem.fmt(f),
        }
    }
}

impl fmt::Debug for InvalidUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InvalidUrl({self})")
    }
}

impl std::error::Error for InvalidUrl {}

/// Reads a URL.
pub(super) fn parse(url: &str) -> Result<ConnectionInfo, InvalidUrl> {
    let url = redis::parse_redis_url(url).ok_or(InvalidUrl(UrlProblem::Scheme))?;
    let is_socket = matches!(url.scheme(), "unix" | "redis+unix" | "valkey+unix");
    let known: &[&str] = if is_socket { &["db", "user", "pass"] } else { &[] };
    if let Some((name, _)) = url.query_pairs().find(|(name, _)| !known.contains(&name.as_ref())) {
        return Err(InvalidUrl(UrlProblem::Parameter(name.into_owned())));
    }
    if url.fragment().is_some() {
        return Err(InvalidUrl(UrlProblem::Insecure));
    }
    let database = match is_socket {
        true => url.query_pairs().find(|(name, _)| name == "db").map(|(_, db)| db.into_owned()),
        false => Some(url.path().trim_matches('/').to_owned()).filter(|path| !path.is_empty()),
    };
    if database.is_some_and(|database| database.parse::<u32>().is_err()) {
        return Err(InvalidUrl(UrlProblem::Database));
    }
    url.into_connection_info().map_err(|error| InvalidUrl(UrlProblem::Malformed(error.to_string())))
}

/// Returns the address without credentials, for messages.
pub(super) fn name(info: &ConnectionInfo) -> String {
    let database = info.redis_settings().db();
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. }
            if host.contains(':') =>
        {
            format!("[{host}]:{port}/{database}")
        }
        address => format!("{address}/{database}"),
    }
}
