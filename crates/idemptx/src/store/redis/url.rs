//! Settings in a Redis URL, and the part that may be shown.

use std::fmt;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, RedisError};

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
    ClusterDatabase,
    ClusterPrefix,
    Hosts,
    NoService,
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

    pub(super) const fn no_hosts() -> Self {
        Self(UrlProblem::Hosts)
    }

    pub(super) const fn cluster_prefix() -> Self {
        Self(UrlProblem::ClusterPrefix)
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
                 same with rediss:// for TLS, redis+unix:///path?db=number, \
                 redis+cluster://host:port,host:port or redis+sentinel://host:port,host:port/service",
            ),
            UrlProblem::ClusterDatabase => {
                f.write_str("a Redis cluster has no database but 0: leave it out of the URL")
            }
            UrlProblem::ClusterPrefix => f.write_str(
                "the prefix of a Redis cluster must not contain `{`, or records of all keys would \
                 be in one slot",
            ),
            UrlProblem::Hosts => f.write_str(
                "the hosts of the Redis URL cannot be read: write host:port,host:port, at most 64",
            ),
            UrlProblem::NoService => f.write_str(
                "the Redis URL names no service: write redis+sentinel://host:port/service",
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

/// Servers that a URL names.
pub(super) enum Servers {
    /// One server.
    Single(ConnectionInfo),
    /// Nodes of a cluster.
    Cluster(Vec<ConnectionInfo>),
    /// Sentinels, by host and port, and the service whose primary they know; the address of the
    /// server itself means nothing.
    Sentinel { sentinels: Vec<(String, u16)>, service: String, server: ConnectionInfo },
}

/// Reads a URL.
pub(super) fn parse(url: &str) -> Result<Servers, InvalidUrl> {
    let (scheme, rest) = url.split_once("://").unwrap_or((url, ""));
    match scheme {
        "redis+cluster" => cluster("redis", rest),
        "rediss+cluster" => cluster("rediss", rest),
        "redis+sentinel" => sentinel("redis", rest),
        "rediss+sentinel" => sentinel("rediss", rest),
        _ => parse_single(url).map(Servers::Single),
    }
}

fn cluster(scheme: &str, rest: &str) -> Result<Servers, InvalidUrl> {
    let several = SeveralHosts::read(rest, DEFAULT_PORT)?;
    let nodes = several.hosts.iter().map(|(host, port)| {
        let place = address(host, *port);
        parse_single(&format!("{scheme}://{}{place}{}", several.credentials, several.path))
    });
    let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
    match nodes.iter().all(|node| node.redis_settings().db() == 0) {
        true => Ok(Servers::Cluster(nodes)),
        false => Err(InvalidUrl(UrlProblem::ClusterDatabase)),
    }
}

fn sentinel(scheme: &str, rest: &str) -> Result<Servers, InvalidUrl> {
    let several = SeveralHosts::read(rest, DEFAULT_SENTINEL_PORT)?;
    let path = several.path.trim_start_matches('/');
    let end = path.find(['/', '?', '#']).unwrap_or(path.len());
    let (service, path) = path.split_at(end);
    if service.is_empty() {
        return Err(InvalidUrl(UrlProblem::NoService));
    }
    let server = parse_single(&format!("{scheme}://{}sentinel{path}", several.credentials))?;
    Ok(Servers::Sentinel { sentinels: several.hosts, service: service.to_owned(), server })
}

/// Returns what opens the door of every sentinel; the address means nothing.
pub(super) fn sentinel_info(
    is_tls: bool,
    user: Option<&str>,
    password: Option<&str>,
) -> Result<ConnectionInfo, InvalidUrl> {
    let (host, port) = ("sentinel".to_owned(), DEFAULT_SENTINEL_PORT);
    let address = match is_tls {
        true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(host, port),
    };
    let mut settings = RedisConnectionInfo::default();
    if let Some(user) = user {
        settings = settings.set_username(user);
    }
    if let Some(password) = password {
        settings = settings.set_password(password);
    }
    let info = address.into_connection_info().map_err(malformed)?;
    Ok(info.set_redis_settings(settings))
}

#[allow(clippy::needless_pass_by_value, reason = "to be passed to `map_err`")]
fn malformed(error: RedisError) -> InvalidUrl {
    InvalidUrl(UrlProblem::Malformed(error.to_string()))
}

/// The parts of a URL with several hosts, after its scheme.
struct SeveralHosts<'u> {
    /// The credentials with their `@`, or nothing.
    credentials: &'u str,
    hosts: Vec<(String, u16)>,
    path: &'u str,
}

impl<'u> SeveralHosts<'u> {
    fn read(rest: &'u str, default_port: u16) -> Result<Self, InvalidUrl> {
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let hosts_at = authority.rfind('@').map_or(0, |at| at + 1);
        let (credentials, hosts) = authority.split_at(hosts_at);
        let hosts: Option<Vec<_>> =
            hosts.split(',').map(|host| host_and_port(host, default_port)).collect();
        let hosts = hosts.filter(|hosts| hosts.len() <= HOSTS_MAX);
        hosts.map(|hosts| Self { credentials, hosts, path }).ok_or(InvalidUrl(UrlProblem::Hosts))
    }
}

fn host_and_port(text: &str, default_port: u16) -> Option<(String, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (text, default_port),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

fn parse_single(url: &str) -> Result<ConnectionInfo, InvalidUrl> {
    let url = redis::parse_redis_url(url).ok_or(InvalidUrl(UrlProblem::Scheme))?;
    let known = ["db", "user", "pass"];
    if let Some((name, _)) = url.query_pairs().find(|(name, _)| !known.contains(&name.as_ref())) {
        return Err(InvalidUrl(UrlProblem::Parameter(name.into_owned())));
    }
    if url.fragment().is_some() {
        return Err(InvalidUrl(UrlProblem::Insecure));
    }
    let is_socket = matches!(url.scheme(), "unix" | "redis+unix" | "valkey+unix");
    let parameter = |name: &str| {
        url.query_pairs().filter(|(it, _)| it == name).last().map(|(_, it)| it.into_owned())
    };
    let path = Some(url.path().trim_matches('/')).filter(|path| !is_socket && !path.is_empty());
    // The query counts before the path, as in clients of other languages.
    let database = parameter("db").or_else(|| path.map(str::to_owned));
    let database = database.map(|it| it.parse::<u32>()).transpose();
    let database = database.map_err(|_| InvalidUrl(UrlProblem::Database))?;
    let (user, password) = (parameter("user"), parameter("pass"));
    let info = url.into_connection_info().map_err(malformed)?;
    let mut settings = info.redis_settings().clone();
    if let Some(database) = database {
        settings = settings.set_db(i64::from(database));
    }
    // Those before the host count first.
    if let (Some(user), None) = (user, settings.username()) {
        settings = settings.set_username(user);
    }
    if let (Some(password), None) = (password, settings.password()) {
        settings = settings.set_password(password);
    }
    Ok(info.set_redis_settings(settings))
}

/// Returns a host and a port in one text.
pub(super) fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Returns the address without credentials, for messages.
pub(super) fn name(info: &ConnectionInfo) -> String {
    let database = info.redis_settings().db();
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. }
            if host.contains(':') =>
        {
            format!("{}/{database}", address(host, *port))
        }
        address => format!("{address}/{database}"),
    }
}

const DEFAULT_PORT: u16 = 6379;
const DEFAULT_SENTINEL_PORT: u16 = 26_379;
const HOSTS_MAX: usize = 64;
