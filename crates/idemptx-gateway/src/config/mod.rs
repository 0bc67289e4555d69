//! What the gateway is to do: one TOML file, or a few flags.
//!
//! A file is parsed into types at once; whatever is wrong with it is a [`InvalidConfig`] with its
//! line and column, and nothing is started.
//! `${NAME}` in any text stands for an environment variable, so that secrets need not be written
//! down.

mod document;
mod environment;
mod error;
mod health_check;
mod pattern;
mod protection;
mod traces;
mod upstream;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use idemptx::Policy;

pub(crate) use self::environment::expanded;
pub use self::error::InvalidConfig;
pub use self::health_check::HealthCheck;
pub use self::pattern::Pattern;
pub use self::protection::{Forwarded, Jwt, JwtKey, OnAmbiguous, Protection, ScopeSource};
pub use self::traces::Traces;
pub use self::upstream::{HostRule, Origin, Upstream, UpstreamVersion};

/// Everything that the gateway is told.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Where clients come in.
    pub listeners: Vec<Listener>,
    /// Where their requests go.
    pub upstreams: Vec<Upstream>,
    /// Which go where, and under which policy; the first that matches counts.
    pub routes: Vec<Route>,
    /// Where records are kept.
    pub store: Store,
    /// What no client may exceed.
    pub limits: Limits,
    /// Where operators come in.
    pub admin: Option<Admin>,
    /// What is logged.
    pub log: Log,
    /// Where traces go; nobody is told of any without.
    pub traces: Option<Traces>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// The first [`InvalidConfig`] in it, or that it cannot be read.
    pub fn load(path: &Path) -> Result<Self, InvalidConfig> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            InvalidConfig::without_position(&name, format!("cannot be read: {error}"))
        })?;
        Self::parse(&name, &text, |variable| std::env::var(variable).ok())
    }

    /// Reads a text, with `name` for its messages and `variable` for what `${…}` stands for.
    ///
    /// # Errors
    ///
    /// The first [`InvalidConfig`] in it.
    pub fn parse(
        name: &str,
        text: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, InvalidConfig> {
        document::read(name, text, variable)
    }

    /// One upstream behind one listener, every request under one policy.
    #[must_use]
    pub fn simple(
        listen: SocketAddr,
        upstream: Origin,
        store: String,
        protection: Option<Protection>,
    ) -> Self {
        Self {
            listeners: vec![Listener::new(listen)],
            upstreams: vec![Upstream::new("upstream", vec![upstream])],
            routes: vec![Route::new("upstream", protection)],
            store: Store::new(store),
            limits: Limits::default(),
            admin: None,
            log: Log::default(),
            traces: None,
        }
    }
}

/// A place where clients come in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listener {
    /// Where; port 0 is a free one.
    pub address: SocketAddr,
    /// Whether clients may speak HTTP/1.1.
    pub http1: bool,
    /// Whether clients may speak HTTP/2: chosen by ALPN over TLS, else by its preface.
    pub http2: bool,
    /// What becomes of `X-Forwarded-*` and `Forwarded` that a client sends.
    pub forwarded: ForwardedRule,
    /// Whether `/healthz` and `/readyz` are the gateway's own here.
    pub probes: bool,
    /// Our certificate; clear text without one.
    pub tls: Option<ListenerTls>,
}

impl Listener {
    /// One that speaks both versions in clear text.
    #[must_use]
    pub const fn new(address: SocketAddr) -> Self {
        let forwarded = ForwardedRule::Replace;
        Self { address, http1: true, http2: true, forwarded, probes: false, tls: None }
    }
}

/// What becomes of `X-Forwarded-*` and `Forwarded` that a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForwardedRule {
    /// They are replaced: anybody can write them.
    Replace,
    /// They are added to: something trusted in front of us has written them.
    Append,
}

/// The TLS of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenerTls {
    /// The certificate and its chain, as PEM.
    pub certificate: PathBuf,
    /// Its key, as PEM.
    pub key: PathBuf,
    /// The authorities of clients' certificates, as PEM; without them none is asked for.
    pub client_ca: Option<PathBuf>,
    /// Whether a client without a certificate is refused.
    pub client_required: bool,
}

/// Which requests go where, and under which policy.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Route {
    /// What logs and metrics call it.
    pub name: String,
    /// The host that it is for; every one without.
    pub host: Option<String>,
    /// The methods that it is for; every one if empty.
    pub methods: Vec<Method>,
    /// The paths that it is for.
    pub path: Pattern,
    /// The name of the upstream.
    pub upstream: String,
    /// How its requests are made safe to retry; without it they pass.
    pub protection: Option<Protection>,
    /// Whether a key that is not looked at is answered with `Idempotency-Status: ignored`.
    pub report_ignored: bool,
}

impl Route {
    /// Every request, to this upstream.
    #[must_use]
    pub fn new(upstream: impl Into<String>, protection: Option<Protection>) -> Self {
        Self {
            name: "all".into(),
            host: None,
            methods: Vec::new(),
            path: Pattern::any(),
            upstream: upstream.into(),
            protection,
            report_ignored: false,
        }
    }

    /// The policy in force, if there is one.
    #[must_use]
    pub fn policy(&self) -> Option<&Policy> {
        self.protection.as_ref().map(|protection| &protection.policy)
    }
}

/// Where records are kept.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Store {
    /// `memory:`, `sqlite:path`, `redis://…` or `postgres://…`.
    pub url: String,
    /// How much is kept at hand, so that a replay needs no round trip; nothing without.
    pub near: Option<NearCache>,
    /// How results are sealed before they reach it; not at all without.
    pub seal: Option<SealConfig>,
}

/// Results at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NearCache {
    /// So many bytes of them.
    pub bytes_max: usize,
    /// For how long, which is how long another process' change may go unnoticed.
    pub hold: Duration,
}

/// How results are sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SealConfig {
    /// The first seals, the others open.
    pub keys: SealKeysFrom,
    /// Whether what was never sealed is taken, until it has expired.
    pub accept_unsealed: bool,
}

/// Where the keys that seal come from.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SealKeysFrom {
    /// They stand here, or rather in a variable.
    Text(String),
    /// A file.
    File(PathBuf),
}

impl std::fmt::Debug for SealKeysFrom {
    /// Without the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl Store {
    /// One without more than its URL.
    #[must_use]
    pub const fn new(url: String) -> Self {
        Self { url, near: None, seal: None }
    }
}

impl std::fmt::Debug for Store {
    /// Without what may be a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = self.url.split(':').next().unwrap_or_default();
        f.debug_struct("Store").field("scheme", &scheme).finish_non_exhaustive()
    }
}

/// What no client may exceed; times are milliseconds in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Connections of clients.
    pub connections_max: usize,
    /// Connections from one address.
    pub connections_per_ip_max: usize,
    /// Requests at a time on one HTTP/2 connection.
    pub streams_max: u32,
    /// Bytes of a request's head.
    pub head_bytes_max: usize,
    /// Lines of a request's head.
    pub head_lines_max: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long a connection may take to send a head, from the last answer on.
    pub head: Duration,
    /// How long a request's body may pause, or an answer not be taken.
    pub pause: Duration,
    /// Bytes a second that a body must come with on average, once it has been waited for a while.
    pub body_rate_min: u64,
    /// Bytes of any request's body.
    pub body_bytes_max: u64,
    /// Executions under a key at a time, clients present or gone.
    pub executions_max: u32,
    /// Whether paths that another server could read in another way are refused.
    pub strict_paths: bool,
    /// Where large bodies under a key wait; the system's directory for temporary files without.
    pub spool_directory: Option<PathBuf>,
    /// Bytes of one body there.
    pub spool_bytes_max: u64,
    /// Bytes of all of them.
    pub spool_total_bytes_max: u64,
}

impl Limits {
    /// Whether large bodies wait in the same place.
    pub(crate) fn has_same_spool(&self, other: &Self) -> bool {
        self.spool_directory == other.spool_directory
            && self.spool_bytes_max == other.spool_bytes_max
            && self.spool_total_bytes_max == other.spool_total_bytes_max
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            connections_per_ip_max: 20_000,
            streams_max: 128,
            head_bytes_max: 64 << 10,
            head_lines_max: 100,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(60),
            pause: Duration::from_secs(30),
            body_rate_min: 256,
            body_bytes_max: 1 << 30,
            executions_max: 10_000,
            strict_paths: true,
            spool_directory: None,
            spool_bytes_max: 1 << 30,
            spool_total_bytes_max: 8 << 30,
        }
    }
}

/// Where operators come in.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Admin {
    /// Where; the loopback address needs no token.
    pub address: SocketAddr,
    /// What operators show.
    pub token: Option<String>,
}

impl std::fmt::Debug for Admin {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What is logged, to stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Log {
    /// From this level on.
    pub level: LogLevel,
    /// In this form.
    pub format: LogFormat,
    /// Whether every request gets a line at the level `info`; else it does at `debug`.
    pub access: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Text, access: false }
    }
}

/// How grave a line must be to be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LogLevel {
    /// What needs somebody.
    Error,
    /// What may need somebody.
    Warn,
    /// What an operator wants to know.
    Info,
    /// What a developer wants to know: every request.
    Debug,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

#[cfg(test)]
mod tests;
