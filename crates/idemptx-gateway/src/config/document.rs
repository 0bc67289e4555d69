//! The file as it is written.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use idemptx::Profile;
use serde::Deserialize;
use toml::Spanned;
use toml::de::DeTable;

use super::error::{InvalidConfig, SourceText};
use super::health_check::HealthCheckTable;
use super::protection::PolicyTable;
use super::traces::TracesTable;
use super::values::{
    head_bytes, methods, millis, origins, pattern, positive, positive_millis, saturated, yes,
};
use super::{
    Admin, Config, Forwarded, ForwardedRule, HealthCheck, HostRule, Limits, Listener, ListenerTls,
    Log, LogFormat, LogLevel, NearCache, OnAmbiguous, Origin, Pattern, Protection, Route,
    SealConfig, SealKeysFrom, Store, Upstream, UpstreamVersion, environment,
};

pub(super) fn read(
    name: &str,
    text: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Config, InvalidConfig> {
    let source = SourceText { name, text };
    let mut table = DeTable::parse(text).map_err(|error| source.parse_error(&error))?;
    for (_, value) in table.get_mut().iter_mut() {
        environment::expand(value, source, &variable)?;
    }
    let document = Document::deserialize(toml::Deserializer::from(table))
        .map_err(|error| source.parse_error(&error))?;
    document.checked(source)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    listener: Spanned<Vec<ListenerTable>>,
    upstream: Spanned<Vec<Spanned<UpstreamTable>>>,
    route: Spanned<Vec<Spanned<RouteTable>>>,
    #[serde(default)]
    store: StoreTable,
    #[serde(default)]
    limits: LimitsTable,
    admin: Option<AdminTable>,
    #[serde(default)]
    log: LogTable,
    traces: Option<Spanned<TracesTable>>,
}

impl Document {
    fn checked(self, source: SourceText<'_>) -> Result<Config, InvalidConfig> {
        for (what, span, is_empty) in [
            ("[[listener]]", self.listener.span(), self.listener.get_ref().is_empty()),
            ("[[upstream]]", self.upstream.span(), self.upstream.get_ref().is_empty()),
            ("[[route]]", self.route.span(), self.route.get_ref().is_empty()),
        ] {
            if is_empty {
                return Err(source.error_at(&span, format!("there must be a {what}")));
            }
        }
        let mut names = HashSet::new();
        let mut upstreams = Vec::new();
        for upstream in self.upstream.into_inner() {
            let upstream = upstream.into_inner();
            let name = &upstream.name;
            if !names.insert(name.get_ref().clone()) {
                let text = format!("there is an upstream `{}` already", name.get_ref());
                return Err(source.error_at(&name.span(), text));
            }
            upstreams.push(upstream.into());
        }
        let routes = self.route.into_inner().into_iter();
        let routes = routes.map(|route| route.into_inner().checked(&names, source));
        let listeners = self.listener.into_inner().into_iter();
        Ok(Config {
            listeners: listeners.map(|it| it.checked(source)).collect::<Result<_, _>>()?,
            upstreams,
            routes: routes.collect::<Result<_, _>>()?,
            store: self.store.checked(source)?,
            limits: self.limits.into(),
            admin: self.admin.map(|admin| admin.checked(source)).transpose()?,
            log: Log { level: self.log.level, format: self.log.format, access: self.log.access },
            traces: self.traces.map(|it| TracesTable::checked(it, source)).transpose()?,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenerTable {
    address: Spanned<SocketAddr>,
    #[serde(default = "yes")]
    http1: bool,
    #[serde(default = "yes")]
    http2: bool,
    #[serde(default)]
    forwarded: ForwardedWord,
    #[serde(default)]
    probes: bool,
    tls: Option<ListenerTlsTable>,
}

impl ListenerTable {
    fn checked(self, source: SourceText<'_>) -> Result<Listener, InvalidConfig> {
        if !self.http1 && !self.http2 {
            let text = "with neither `http1` nor `http2` nobody can come in here";
            return Err(source.error_at(&self.address.span(), text));
        }
        Ok(Listener {
            address: self.address.into_inner(),
            http1: self.http1,
            http2: self.http2,
            forwarded: match self.forwarded {
                ForwardedWord::Replace => ForwardedRule::Replace,
                ForwardedWord::Append => ForwardedRule::Append,
            },
            probes: self.probes,
            tls: self.tls.map(|tls| ListenerTls {
                certificate: tls.certificate,
                key: tls.key,
                client_ca: tls.client_ca,
                client_required: tls.client_required,
            }),
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ForwardedWord {
    #[default]
    Replace,
    Append,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenerTlsTable {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    #[serde(default = "yes")]
    client_required: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpstreamTable {
    name: Spanned<String>,
    #[serde(deserialize_with = "origins")]
    urls: Vec<Origin>,
    #[serde(default)]
    http2: bool,
    #[serde(default)]
    host: HostWord,
    ca: Option<PathBuf>,
    #[serde(default, deserialize_with = "positive_millis")]
    connect_timeout_ms: Option<Duration>,
    #[serde(default, deserialize_with = "positive_millis")]
    response_timeout_ms: Option<Duration>,
    #[serde(default, deserialize_with = "positive_millis")]
    pause_timeout_ms: Option<Duration>,
    #[serde(default, deserialize_with = "millis")]
    idle_timeout_ms: Option<Duration>,
    #[serde(default, deserialize_with = "positive")]
    connections_max: Option<u64>,
    #[serde(default, deserialize_with = "millis")]
    down_ms: Option<Duration>,
    health: Option<HealthCheckTable>,
}

impl From<UpstreamTable> for Upstream {
    fn from(table: UpstreamTable) -> Self {
        let default = Self::new(table.name.into_inner(), table.urls);
        Self {
            version: if table.http2 { UpstreamVersion::Http2 } else { UpstreamVersion::Http1 },
            host: match table.host {
                HostWord::Preserve => HostRule::Preserve,
                HostWord::Upstream => HostRule::Upstream,
            },
            ca: table.ca,
            connect_timeout: table.connect_timeout_ms.unwrap_or(default.connect_timeout),
            response_timeout: table.response_timeout_ms.unwrap_or(default.response_timeout),
            pause_timeout: table.pause_timeout_ms.unwrap_or(default.pause_timeout),
            idle_timeout: table.idle_timeout_ms.unwrap_or(default.idle_timeout),
            connections_max: table.connections_max.map_or(default.connections_max, saturated),
            down: table.down_ms.unwrap_or(default.down),
            health: table.health.map(HealthCheck::from),
            ..default
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum HostWord {
    #[default]
    Preserve,
    Upstream,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteTable {
    name: Option<String>,
    host: Option<String>,
    #[serde(default, deserialize_with = "methods")]
    methods: Vec<Method>,
    #[serde(default, deserialize_with = "pattern")]
    path: Option<Pattern>,
    upstream: Spanned<String>,
    protect: Option<bool>,
    #[serde(default)]
    report_ignored: bool,
    profile: Option<Spanned<String>>,
    policy: Option<Spanned<PolicyTable>>,
    on_ambiguous: Option<Spanned<OnAmbiguous>>,
    forward: Option<Spanned<Vec<Forwarded>>>,
    derive: Option<Spanned<String>>,
}

impl RouteTable {
    fn checked(
        self,
        upstreams: &HashSet<String>,
        source: SourceText<'_>,
    ) -> Result<Route, InvalidConfig> {
        if !upstreams.contains(self.upstream.get_ref()) {
            let text = format!("there is no upstream `{}`", self.upstream.get_ref());
            return Err(source.error_at(&self.upstream.span(), text));
        }
        let path = self.path.unwrap_or_else(Pattern::any);
        let name = self.name.unwrap_or_else(|| path.to_string());
        let place = self.upstream.span();
        let protection = if self.protect == Some(false) {
            let in_vain = [
                self.profile.as_ref().map(Spanned::span),
                self.policy.as_ref().map(Spanned::span),
                self.on_ambiguous.as_ref().map(Spanned::span),
                self.forward.as_ref().map(Spanned::span),
                self.derive.as_ref().map(Spanned::span),
            ];
            if let Some(span) = in_vain.into_iter().flatten().next() {
                let text = "this route is not protected: take `protect = false` or this away";
                return Err(source.error_at(&span, text));
            }
            None
        } else {
            let profile = match &self.profile {
                None => Profile::Draft,
                Some(word) => word.get_ref().parse().map_err(|error: idemptx::ConfigError| {
                    source.error_at(&word.span(), error.to_string())
                })?,
            };
            let place = self.profile.as_ref().map_or(place, Spanned::span);
            let (table, place) = match self.policy {
                Some(table) => (table.span(), table.into_inner()),
                None => (place, PolicyTable::default()),
            };
            let (policy, scope) = place.over(profile, &table, source)?;
            let on_ambiguous = self.on_ambiguous.map(Spanned::into_inner);
            let mut protection =
                Protection::with(policy, on_ambiguous.unwrap_or(OnAmbiguous::Unknown));
            protection.scope = scope;
            protection.forward = self.forward.map(Spanned::into_inner).unwrap_or_default();
            if let Some(label) = self.derive {
                protection.derive = label.into_inner();
            }
            Some(protection)
        };
        Ok(Route {
            name,
            host: self.host.map(|host| host.to_ascii_lowercase()),
            methods: self.methods,
            path,
            upstream: self.upstream.into_inner(),
            protection,
            report_ignored: self.report_ignored,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreTable {
    url: String,
    near_bytes: Option<u64>,
    #[serde(default, deserialize_with = "positive_millis")]
    near_hold_ms: Option<Duration>,
    seal: Option<Spanned<SealTable>>,
}

impl StoreTable {
    fn checked(self, source: SourceText<'_>) -> Result<Store, InvalidConfig> {
        let hold = self.near_hold_ms.unwrap_or(NEAR_HOLD);
        let near = self.near_bytes.filter(|bytes| *bytes > 0);
        let seal = self.seal.map(|table| {
            let span = table.span();
            if !cfg!(feature = "seal") {
                return Err(source.error_at(&span, SEAL_ABSENT));
            }
            let table = table.into_inner();
            let keys = match (table.keys, table.file) {
                (Some(text), None) => SealKeysFrom::Text(text),
                (None, Some(path)) => SealKeysFrom::File(path),
                _ => return Err(source.error_at(&span, "give one of `keys` and `file`")),
            };
            Ok(SealConfig { keys, accept_unsealed: table.accept_unsealed })
        });
        Ok(Store {
            url: self.url,
            near: near.map(|bytes| NearCache { bytes_max: saturated(bytes), hold }),
            seal: seal.transpose()?,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SealTable {
    keys: Option<String>,
    file: Option<PathBuf>,
    #[serde(default)]
    accept_unsealed: bool,
}

impl Default for StoreTable {
    fn default() -> Self {
        Self { url: "memory:".to_owned(), near_bytes: None, near_hold_ms: None, seal: None }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsTable {
    #[serde(deserialize_with = "positive")]
    connections_max: Option<u64>,
    #[serde(deserialize_with = "positive")]
    connections_per_ip_max: Option<u64>,
    #[serde(deserialize_with = "positive")]
    streams_max: Option<u64>,
    #[serde(deserialize_with = "head_bytes")]
    head_bytes_max: Option<u64>,
    #[serde(deserialize_with = "positive")]
    head_lines_max: Option<u64>,
    #[serde(deserialize_with = "positive_millis")]
    handshake_ms: Option<Duration>,
    #[serde(deserialize_with = "positive_millis")]
    head_ms: Option<Duration>,
    #[serde(deserialize_with = "positive_millis")]
    pause_ms: Option<Duration>,
    body_rate_min: Option<u64>,
    body_bytes_max: Option<u64>,
    #[serde(deserialize_with = "positive")]
    executions_max: Option<u64>,
    strict_paths: Option<bool>,
    spool_directory: Option<PathBuf>,
    spool_bytes_max: Option<u64>,
    spool_total_bytes_max: Option<u64>,
}

impl From<LimitsTable> for Limits {
    fn from(table: LimitsTable) -> Self {
        let default = Self::default();
        let count = |value: Option<u64>, default| value.map_or(default, saturated);
        Self {
            connections_max: count(table.connections_max, default.connections_max),
            connections_per_ip_max: count(
                table.connections_per_ip_max,
                default.connections_per_ip_max,
            ),
            streams_max: table.streams_max.map_or(default.streams_max, saturated),
            head_bytes_max: count(table.head_bytes_max, default.head_bytes_max),
            head_lines_max: count(table.head_lines_max, default.head_lines_max),
            handshake: table.handshake_ms.unwrap_or(default.handshake),
            head: table.head_ms.unwrap_or(default.head),
            pause: table.pause_ms.unwrap_or(default.pause),
            body_rate_min: table.body_rate_min.unwrap_or(default.body_rate_min),
            body_bytes_max: table.body_bytes_max.unwrap_or(default.body_bytes_max),
            executions_max: table.executions_max.map_or(default.executions_max, saturated),
            strict_paths: table.strict_paths.unwrap_or(default.strict_paths),
            spool_directory: table.spool_directory,
            spool_bytes_max: table.spool_bytes_max.unwrap_or(default.spool_bytes_max),
            spool_total_bytes_max: table
                .spool_total_bytes_max
                .unwrap_or(default.spool_total_bytes_max),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdminTable {
    address: Spanned<SocketAddr>,
    token: Option<String>,
}

impl AdminTable {
    fn checked(self, source: SourceText<'_>) -> Result<Admin, InvalidConfig> {
        let address = *self.address.get_ref();
        if self.token.is_none() && !address.ip().is_loopback() {
            let text = "an address that is not loopback requires a token: set `token`";
            return Err(source.error_at(&self.address.span(), text));
        }
        Ok(Admin { address, token: self.token })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LogTable {
    level: LogLevel,
    format: LogFormat,
    access: bool,
}

impl Default for LogTable {
    fn default() -> Self {
        let Log { level, format, access } = Log::default();
        Self { level, format, access }
    }
}

/// As long as the library holds them unless told otherwise.
const NEAR_HOLD: Duration = Duration::from_secs(1);
const SEAL_ABSENT: &str = "this program was built without sealing: build it with `--features seal`";
