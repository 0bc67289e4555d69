//! The gateway's configuration: one TOML file, or a few flags.
//!
//! A file is deserialised into the types that the gateway runs with, once; its first error is an
//! [`InvalidConfig`] with line and column, and nothing is started.
//! `${NAME}` in any string is replaced by an environment variable, so that a file need not contain
//! secrets.

mod address_range;
mod cors;
mod ejection;
mod environment;
mod ext_proc;
mod health_check;
mod invalid_config;
mod listen_address;
mod listeners;
mod pattern;
mod protection;
mod remote_key_set;
mod route;
mod route_limits;
mod storage;
mod traces;
mod upstream;
mod values;
mod warnings;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::de::DeTable;

pub use self::address_range::Network;
pub use self::cors::Cors;
pub use self::ejection::Ejection;
pub(crate) use self::environment::expanded;
pub use self::ext_proc::ExtProc;
pub use self::health_check::HealthCheck;
pub use self::invalid_config::InvalidConfig;
use self::invalid_config::{InvalidSetting, SourceText};
pub use self::listen_address::ListenAddress;
pub(crate) use self::listen_address::SOCKET_MODE;
pub use self::listeners::{Admin, ForwardedRule, KeyPair, Listener, ListenerTls};
pub use self::pattern::Pattern;
pub(crate) use self::pattern::normalised as normalised_path;
pub use self::protection::{Forwarded, Jwt, JwtKey, OnAmbiguous, Protection, ScopeSource};
pub use self::remote_key_set::RemoteKeySet;
pub use self::route::Route;
use self::route::RouteTable;
pub use self::route_limits::RouteLimits;
pub use self::storage::{SealConfig, Store};
pub use self::traces::Traces;
pub use self::upstream::{Balance, HostRule, Origin, Upstream, UpstreamVersion};
use self::values::{head_bytes, millis, positive, positive_millis};
pub(crate) use self::warnings::forgotten_records;

/// The gateway's configuration.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The addresses for clients.
    pub listeners: Vec<Listener>,
    /// The services that requests are forwarded to.
    pub upstreams: Vec<Upstream>,
    /// The routes; the first one that matches a request applies.
    pub routes: Vec<Route>,
    /// The store of the records.
    pub store: Store,
    /// The limits of clients.
    pub limits: Limits,
    /// The listener for Envoy's external processing filter, if any.
    pub ext_proc: Option<ExtProc>,
    /// The admin listener, if any.
    pub admin: Option<Admin>,
    /// The log.
    pub log: Log,
    /// The export of traces, if any.
    pub traces: Option<Traces>,
    /// A line for each setting that is valid and will hardly do what it is meant to.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// The first [`InvalidConfig`] in the file, or that it cannot be read.
    pub fn load(path: &Path) -> Result<Self, InvalidConfig> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            InvalidConfig::without_position(&name, format!("cannot be read: {error}"))
        })?;
        Self::parse(&name, &text, |variable| std::env::var(variable).ok())
    }

    /// Parses a text; `name` is used in errors, and `variable` looks up `${…}`.
    ///
    /// # Errors
    ///
    /// The first [`InvalidConfig`] in the text.
    pub fn parse(
        name: &str,
        text: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, InvalidConfig> {
        let source = SourceText { name, text };
        let mut table = DeTable::parse(text).map_err(|error| source.parse_error(&error))?;
        for (_, value) in table.get_mut().iter_mut() {
            environment::expand(value, source, &variable)?;
        }
        let document = Document::deserialize(toml::Deserializer::from(table.clone()))
            .map_err(|error| source.parse_error(&error))?;
        document.into_config().map_err(|error| source.setting_error(&table, error))
    }

    /// Returns a configuration with one listener, one upstream and one protection for all requests.
    #[must_use]
    pub fn simple(
        listen: impl Into<ListenAddress>,
        upstream: Origin,
        store: String,
        protection: Option<Protection>,
    ) -> Self {
        Self {
            listeners: vec![Listener::new(listen.into())],
            upstreams: vec![Upstream::new("upstream", vec![upstream])],
            routes: vec![Route::new("upstream", protection)],
            store: Store::new(store),
            limits: Limits::default(),
            ext_proc: None,
            admin: None,
            log: Log::default(),
            traces: None,
            warnings: Vec::new(),
        }
    }

    /// Returns the first section that differs and takes effect at a restart only.
    pub(crate) fn restart_section(&self, other: &Self) -> Option<&'static str> {
        let connections = |limits: &Limits| (limits.connections_max, limits.connections_per_ip_max);
        let differs = [
            ("[admin]", self.admin != other.admin),
            (
                "`connections_max` and `connections_per_ip_max` of [limits]",
                connections(&self.limits) != connections(&other.limits),
            ),
            ("[ext_proc]", self.ext_proc != other.ext_proc),
            ("[[listener]]", self.listeners != other.listeners),
            ("[log]", self.log != other.log),
            ("[store]", self.store != other.store),
            ("[traces]", self.traces != other.traces),
        ];
        differs.into_iter().find_map(|(section, differs)| differs.then_some(section))
    }

    /// Checks the settings that depend on each other.
    fn validate(&self) -> Result<(), InvalidSetting> {
        // For Envoy, which forwards itself, an upstream is a name.
        let forwards = self.ext_proc.is_none() || !self.listeners.is_empty();
        let empty = [
            ("listener", forwards && self.listeners.is_empty()),
            ("upstream", forwards && self.upstreams.is_empty()),
            ("route", self.routes.is_empty()),
        ];
        if let Some((name, _)) = empty.into_iter().find(|(_, is_empty)| *is_empty) {
            return Err(InvalidSetting::at([name], format!("at least one [[{name}]] is required")));
        }
        for (number, listener) in self.listeners.iter().enumerate() {
            listener.validate(&number.to_string())?;
            let earlier = self.listeners.iter().take(number);
            if listener.inherit && earlier.clone().any(|it| it.inherit) {
                let text = "only one listener can take the socket on standard input";
                let position = number.to_string();
                return Err(InvalidSetting::at(
                    ["listener", &position, "inherit"],
                    text.to_owned(),
                ));
            }
            if listener.address.is_exclusive()
                && earlier.clone().any(|it| it.address == listener.address)
            {
                let text = format!("another listener has the address {}", listener.address);
                let position = number.to_string();
                return Err(InvalidSetting::at(["listener", &position, "address"], text));
            }
        }
        let mut names = HashSet::new();
        for (number, upstream) in self.upstreams.iter().enumerate() {
            upstream.validate(&number.to_string())?;
            if !names.insert(&upstream.name) {
                let text = format!("duplicate upstream `{}`", upstream.name);
                return Err(InvalidSetting::at(["upstream", &number.to_string(), "name"], text));
            }
        }
        for (number, route) in self.routes.iter().enumerate() {
            if let Some(ext_proc) = &self.ext_proc {
                ext_proc.validate(route, &number.to_string())?;
            }
            if forwards && !names.contains(&route.upstream) {
                let text = format!("there is no upstream `{}`", route.upstream);
                return Err(InvalidSetting::at(["route", &number.to_string(), "upstream"], text));
            }
        }
        self.store.validate()?;
        if let Some(admin) = &self.admin {
            admin.validate()?;
            let mut listeners = self.listeners.iter();
            if admin.address.is_exclusive() && listeners.any(|it| it.address == admin.address) {
                let text = format!("a listener has the address {}", admin.address);
                return Err(InvalidSetting::at(["admin", "address"], text));
            }
        }
        if self.traces.is_some() && !cfg!(feature = "otel") {
            return Err(InvalidSetting::at(["traces"], NO_TRACES));
        }
        Ok(())
    }
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    listener: Vec<Listener>,
    #[serde(default)]
    upstream: Vec<Upstream>,
    #[serde(default)]
    route: Vec<RouteTable>,
    store: Option<Store>,
    #[serde(default)]
    limits: Limits,
    ext_proc: Option<ExtProc>,
    admin: Option<Admin>,
    #[serde(default)]
    log: Log,
    traces: Option<Traces>,
}

impl Document {
    fn into_config(self) -> Result<Config, InvalidSetting> {
        let routes = self.route.into_iter().enumerate();
        let has_store = self.store.is_some();
        let mut upstreams = self.upstream;
        upstreams.iter_mut().for_each(Upstream::name_sockets);
        let mut config = Config {
            listeners: self.listener,
            upstreams,
            routes: routes
                .map(|(number, table)| table.into_route(&number.to_string()))
                .collect::<Result<_, _>>()?,
            store: self.store.unwrap_or_default(),
            limits: self.limits,
            ext_proc: self.ext_proc,
            admin: self.admin,
            log: self.log,
            traces: self.traces,
            warnings: Vec::new(),
        };
        config.validate()?;
        config.warnings = warnings::warnings(&config, has_store);
        Ok(config)
    }
}

/// The limits of clients; times are milliseconds in the file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Limits {
    /// The maximum number of client connections.
    #[serde(deserialize_with = "positive")]
    pub connections_max: usize,
    /// The maximum number of connections from one address.
    #[serde(deserialize_with = "positive")]
    pub connections_per_ip_max: usize,
    /// The maximum number of concurrent requests on an HTTP/2 connection.
    #[serde(deserialize_with = "positive")]
    pub streams_max: u32,
    /// The maximum size of a request's head.
    #[serde(deserialize_with = "head_bytes")]
    pub head_bytes_max: usize,
    /// The maximum number of lines in a request's head.
    #[serde(deserialize_with = "positive")]
    pub head_lines_max: usize,
    /// The time limit of a TLS handshake.
    #[serde(rename = "handshake_ms", deserialize_with = "positive_millis")]
    pub handshake: Duration,
    /// The time limit of receiving a head, from the previous response on.
    #[serde(rename = "head_ms", deserialize_with = "positive_millis")]
    pub head: Duration,
    /// The time limit of a pause within a request's body, or in accepting a response.
    #[serde(rename = "pause_ms", deserialize_with = "positive_millis")]
    pub pause: Duration,
    /// The minimum average rate of a body in bytes per second, after a grace period.
    pub body_rate_min: u64,
    /// The maximum size of a request's body.
    pub body_bytes_max: u64,
    /// The maximum number of concurrent executions under a key, clients connected or not.
    #[serde(deserialize_with = "positive")]
    pub executions_max: u32,
    /// The time for which the gateway goes on accepting after SIGTERM, while probes report that it
    /// is about to end; without a listener that answers probes it ends at once.
    #[serde(rename = "lame_duck_ms", deserialize_with = "millis")]
    pub lame_duck: Duration,
    /// Rejects paths that another server could normalise differently.
    pub strict_paths: bool,
    /// The directory of large request bodies; by default the system's temporary directory.
    pub spool_directory: Option<PathBuf>,
    /// The maximum size of one body there.
    pub spool_bytes_max: u64,
    /// The maximum size of all bodies there.
    pub spool_total_bytes_max: u64,
}

impl Limits {
    /// Returns whether large bodies are spooled in the same way.
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
            connections_per_ip_max: 5_000,
            streams_max: 128,
            head_bytes_max: 64 << 10,
            head_lines_max: 100,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(60),
            pause: Duration::from_secs(30),
            body_rate_min: 256,
            body_bytes_max: 1 << 30,
            executions_max: 10_000,
            lame_duck: Duration::from_secs(2),
            strict_paths: true,
            spool_directory: None,
            spool_bytes_max: 1 << 30,
            spool_total_bytes_max: 8 << 30,
        }
    }
}

/// The log, on stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Log {
    /// The minimum level.
    pub level: LogLevel,
    /// The format.
    pub format: LogFormat,
    /// Logs every request at the level `info` instead of `debug`.
    pub access: bool,
    /// The format of these lines.
    pub access_format: AccessFormat,
}

/// The format of the lines of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AccessFormat {
    /// That of all other lines.
    #[default]
    Fields,
    /// The common log format of web servers, with further fields after it.
    Common,
}

/// The minimum level of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LogLevel {
    /// Failures that need attention.
    Error,
    /// Conditions that may need attention.
    Warn,
    /// Changes of state.
    #[default]
    Info,
    /// Details, with a line for every request.
    Debug,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// JSON for machines.
    Json,
}

const NO_TRACES: &str = "this program was built without traces: build it with `--features otel`";

#[cfg(test)]
mod tests;
