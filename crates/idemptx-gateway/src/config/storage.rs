//! The store of the records.

use std::fmt::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use idemptx::store::AnyStore;
use serde::Deserialize;

use super::invalid_config::InvalidSetting;
use super::values::{count_or_all, optional_positive_millis, positive_millis, seconds};

/// The store of the records.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Store {
    /// `memory:`, `sqlite:path`, `redis://…`, `redis+cluster://…`, `redis+sentinel://…` or
    /// `postgres://…`.
    pub url: String,
    /// The authorities that may vouch for the server, in PEM; by default those of the system.
    pub ca_file: Option<String>,
    /// The certificate by which the server knows the gateway, in PEM.
    pub cert_file: Option<String>,
    /// The private key to it.
    pub key_file: Option<String>,
    /// A file with the password, read before each attempt to connect.
    pub password_file: Option<String>,
    /// A command of the shell that prints the password, run before each attempt to connect.
    pub password_command: Option<String>,
    /// The prefix of Redis' keys.
    pub prefix: Option<String>,
    /// The number of replicas that must have a claim or a result in Redis before it counts, or
    /// `all`.
    #[serde(default, deserialize_with = "count_or_all")]
    pub wait_replicas: Option<String>,
    /// A claim or a result counts once it is in Redis' append-only file, on the disk.
    pub wait_aof: Option<bool>,
    /// The period during which a Redis server that was promoted, or started again, grants nothing
    /// new.
    #[serde(rename = "failover_grace_ms")]
    pub failover_grace_millis: Option<u64>,
    /// The user that Redis' sentinels want.
    pub sentinel_user: Option<String>,
    /// The password that the sentinels want.
    pub sentinel_password: Option<String>,
    /// A file with that password, read before each attempt to connect.
    pub sentinel_password_file: Option<String>,
    /// A command of the shell that prints that password, run before each attempt to connect.
    pub sentinel_password_command: Option<String>,
    /// Connections to the sentinels are encrypted; by default where those to the servers are.
    pub sentinel_tls: Option<bool>,
    /// The authorities that may vouch for the sentinels, in PEM; by default those for the servers.
    pub sentinel_ca_file: Option<String>,
    /// The certificate by which the sentinels know the gateway, in PEM.
    pub sentinel_cert_file: Option<String>,
    /// The private key to it.
    pub sentinel_key_file: Option<String>,
    /// The schema of PostgreSQL's tables.
    pub schema: Option<String>,
    /// The table of the records in it.
    pub table: Option<String>,
    /// PostgreSQL is behind a pooler in transaction mode.
    pub pooled: Option<bool>,
    /// PostgreSQL's tables are made, or migrated, by the first session.
    pub migrate: Option<bool>,
    /// The maximum number of PostgreSQL's sessions for statements.
    pub sessions: Option<usize>,
    /// The time limit of a step, after which its outcome counts as unknown.
    #[serde(default, rename = "timeout_ms", deserialize_with = "optional_positive_millis")]
    pub timeout: Option<Duration>,
    /// The time limit of an attempt to connect.
    #[serde(default, rename = "connect_timeout_ms", deserialize_with = "optional_positive_millis")]
    pub connect_timeout: Option<Duration>,
    /// The size of the near cache, which replays without a round trip; 0 disables it.
    #[serde(default)]
    pub near_bytes: usize,
    /// The lifetime of an entry, for which changes by other processes may go unnoticed.
    #[serde(rename = "near_hold_ms", deserialize_with = "positive_millis")]
    #[serde(default = "seconds::<1>")]
    pub near_hold: Duration,
    /// Makes `/readyz` answer 503 while the store is unavailable.
    ///
    /// By default a gateway without its store stays in its load balancer: it refuses requests with
    /// a key, and forwards all others.
    #[serde(default)]
    pub required_for_readiness: bool,
    /// The encryption of results, if any.
    pub seal: Option<SealConfig>,
}

/// The encryption of results.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SealConfig {
    /// The keys: the first one seals, the others open.
    pub keys: Option<String>,
    /// A file with the keys, in the place of `keys`.
    pub file: Option<PathBuf>,
    /// Accepts unsealed results, until they have expired.
    #[serde(default)]
    pub accept_unsealed: bool,
}

impl Store {
    /// Returns a store without near cache and encryption.
    #[must_use]
    pub const fn new(url: String) -> Self {
        Self {
            url,
            ca_file: None,
            cert_file: None,
            key_file: None,
            password_file: None,
            password_command: None,
            prefix: None,
            wait_replicas: None,
            wait_aof: None,
            failover_grace_millis: None,
            sentinel_user: None,
            sentinel_password: None,
            sentinel_password_file: None,
            sentinel_password_command: None,
            sentinel_tls: None,
            sentinel_ca_file: None,
            sentinel_cert_file: None,
            sentinel_key_file: None,
            schema: None,
            table: None,
            pooled: None,
            migrate: None,
            sessions: None,
            timeout: None,
            connect_timeout: None,
            near_bytes: 0,
            near_hold: seconds::<1>(),
            required_for_readiness: false,
            seal: None,
        }
    }

    /// Returns the URL with the other settings of the server in its query.
    pub(crate) fn full_url(&self) -> String {
        let (base, fragment) = match self.url.split_once('#') {
            Some((base, fragment)) => (base, format!("#{fragment}")),
            None => (self.url.as_str(), String::new()),
        };
        let mut url = base.to_owned();
        let mut separator = if base.contains('?') { '&' } else { '?' };
        for (name, value) in self.server_settings() {
            let _ = write!(url, "{separator}{name}={}", percent_encoded(&value));
            separator = '&';
        }
        url + &fragment
    }

    /// Returns the settings that only servers have, under their names in a URL's query.
    fn server_settings(&self) -> impl Iterator<Item = (&'static str, String)> {
        let text = |value: &Option<String>| value.clone();
        let settings = [
            ("ca_file", text(&self.ca_file)),
            ("cert_file", text(&self.cert_file)),
            ("key_file", text(&self.key_file)),
            ("password_file", text(&self.password_file)),
            ("password_command", text(&self.password_command)),
            ("prefix", text(&self.prefix)),
            ("wait_replicas", text(&self.wait_replicas)),
            ("wait_aof", self.wait_aof.map(|it| it.to_string())),
            ("failover_grace_ms", self.failover_grace_millis.map(|it| it.to_string())),
            ("sentinel_user", text(&self.sentinel_user)),
            ("sentinel_password", text(&self.sentinel_password)),
            ("sentinel_password_file", text(&self.sentinel_password_file)),
            ("sentinel_password_command", text(&self.sentinel_password_command)),
            ("sentinel_tls", self.sentinel_tls.map(|it| it.to_string())),
            ("sentinel_ca_file", text(&self.sentinel_ca_file)),
            ("sentinel_cert_file", text(&self.sentinel_cert_file)),
            ("sentinel_key_file", text(&self.sentinel_key_file)),
            ("schema", text(&self.schema)),
            ("table", text(&self.table)),
            ("pooled", self.pooled.map(|it| it.to_string())),
            ("migrate", self.migrate.map(|it| it.to_string())),
            ("sessions", self.sessions.map(|it| it.to_string())),
            ("timeout_ms", self.timeout.map(|it| it.as_millis().to_string())),
            ("connect_timeout_ms", self.connect_timeout.map(|it| it.as_millis().to_string())),
        ];
        settings.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }

    /// Returns the time limit of a step; `None` for a store without one.
    pub(super) fn step_limit(&self) -> Option<Duration> {
        let url = self.full_url();
        let written = url.split(['?', '&']).find_map(|it| it.strip_prefix("timeout_ms="));
        let millis = written.and_then(|it| it.parse().ok());
        millis.map(Duration::from_millis).or_else(|| AnyStore::default_step_limit(&url))
    }

    pub(super) fn validate(&self) -> Result<(), InvalidSetting> {
        let is_local = ["memory:", "sqlite:"].iter().any(|scheme| self.url.starts_with(scheme));
        if let Some((name, _)) = self.server_settings().next().filter(|_| is_local) {
            let text = "only a store on a server has this setting: Redis or PostgreSQL";
            return Err(InvalidSetting::at(["store", name], text));
        }
        let Some(seal) = &self.seal else { return Ok(()) };
        let invalid = |text| Err(InvalidSetting::at(["store", "seal"], text));
        if !cfg!(feature = "seal") {
            return invalid(NO_SEAL);
        }
        match seal.keys.is_some() == seal.file.is_some() {
            true => invalid("give one of `keys` and `file`"),
            false => Ok(()),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new("memory:".to_owned())
    }
}

impl fmt::Debug for Store {
    /// Omits the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.url.split(':').next().unwrap_or_default();
        f.debug_struct("Store").field("scheme", &scheme).finish_non_exhaustive()
    }
}

impl fmt::Debug for SealConfig {
    /// Omits the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealConfig").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Encodes every byte that could mean something in a query.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                encoded.push(char::from(byte));
            }
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

const NO_SEAL: &str = "this program was built without sealing: build it with `--features seal`";
