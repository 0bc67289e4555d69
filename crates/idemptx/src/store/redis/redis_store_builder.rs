//! Settings of the store.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use idemptx_core::store::{ErrorKind, StoreError};
use redis::ConnectionInfo;

use super::cluster_nodes::Cluster;
use super::deployment::Deployment;
use super::endpoint::Endpoint;
use super::node::{Node, NodeSettings};
use super::protocol::{Layout, WaitReplicas, clock};
use super::redis_connection::{RedisTimeouts, Target};
use super::redis_store::RedisStore;
use super::sentinels::Sentinels;
use super::step_runner::{FailoverSettings, StepRunner};
use super::url::{self, InvalidUrl, Servers};
use crate::store::server_access::{ServerAccess, access_settings};
use crate::store::url_settings::{AccessNames, UrlSettings};

/// Settings of a [`RedisStore`], begun by [`RedisStore::builder`].
pub struct RedisStoreBuilder {
    url: String,
    prefix: String,
    timeouts: RedisTimeouts,
    access: ServerAccess,
    failover: FailoverSettings,
}

impl RedisStoreBuilder {
    pub(super) fn new(url: String) -> Self {
        Self {
            url,
            prefix: PREFIX.to_owned(),
            timeouts: RedisTimeouts { command: STEP_LIMIT, connect: CONNECT_TIMEOUT },
            access: ServerAccess::default(),
            failover: FailoverSettings::default(),
        }
    }

    /// Sets the prefix of all keys and of the channel; `idem:` by default.
    ///
    /// Stores with different prefixes share nothing.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets how long a step waits for its answer before its outcome counts as unknown; one second
    /// by default.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.command = timeout;
        self
    }

    /// Sets how long an attempt to connect may take; one second by default.
    #[must_use]
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.connect = timeout;
        self
    }

    /// Sets for how long a server grants nothing new after it was promoted, or started again: zero,
    /// the default, for not at all.
    ///
    /// Such a server may have forgotten the last claims and results.
    /// Meanwhile new keys of that server get 503, owners that live put their claims back as they
    /// renew them, and every process the results that it has stored lately.
    /// Set it to the lease of the policy, in all processes alike.
    /// What no process remembers is lost all the same: a result whose process died with the server.
    #[must_use]
    pub fn failover_grace(mut self, grace: Duration) -> Self {
        self.failover.grace = (!grace.is_zero()).then_some(grace);
        self
    }

    /// Sets how many replicas must have a claim or a result before it counts; none by default.
    ///
    /// A claim that fewer have received is given up, and its request gets 503.
    /// Only with the number of *all* replicas is no claim lost, whichever is promoted, and then one
    /// that is away lets nothing new begin.
    /// [`WaitReplicas::All`] is the number that the primary has connected at that time, and at least
    /// one: one that is away is not waited for, and must not be promoted before it has caught up.
    #[must_use]
    pub fn wait_replicas(mut self, replicas: impl Into<WaitReplicas>) -> Self {
        self.failover.acknowledgement.replicas = replicas.into();
        self
    }

    /// Sets whether a claim or a result counts only once it is in the append-only file, on the disk
    /// of the primary and of each replica that is waited for; false by default.
    ///
    /// It takes the command `WAITAOF` of Redis 7.2; [`connect`](Self::connect) and the check refuse
    /// a server without it.
    /// With `appendfsync everysec` that takes up to a second, for which the
    /// [time limit](Self::timeout) must leave room twice; with `always` it takes no longer than the
    /// disk.
    #[must_use]
    pub const fn wait_aof(mut self, wait: bool) -> Self {
        self.failover.acknowledgement.is_on_disk = wait;
        self
    }

    access_settings!();

    /// The store, without connecting.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] if the URL or the certificates cannot be read.
    pub fn open(mut self) -> Result<RedisStore, InvalidUrl> {
        let settings = UrlSettings::take(&self.url, URL_SETTINGS)?;
        if let Some(prefix) = settings.text("prefix") {
            prefix.clone_into(&mut self.prefix);
        }
        settings.read_access(&mut self.access)?;
        if let Some(replicas) = settings.parsed("wait_replicas", "must be a number or `all`")? {
            self.failover.acknowledgement.replicas = replicas;
        }
        if let Some(wait) = settings.parsed("wait_aof", "must be `true` or `false`")? {
            self.failover.acknowledgement.is_on_disk = wait;
        }
        if let Some(millis) = settings.parsed("failover_grace_ms", "must be a number")? {
            self = self.failover_grace(Duration::from_millis(millis));
        }
        if let Some(timeout) = settings.period("timeout_ms")? {
            self.timeouts.command = timeout;
        }
        if let Some(timeout) = settings.period("connect_timeout_ms")? {
            self.timeouts.connect = timeout;
        }
        let layout = Layout::new(&self.prefix);
        let nodes = NodeSettings {
            notifier: Arc::default(),
            timeouts: self.timeouts,
            grace: self.failover.grace.map(|grace| (layout.clone(), grace)),
        };
        let failover = self.failover;
        let single = |target| Deployment::Single(Arc::new(Node::new(target, &nodes, false)));
        let (deployment, layout) = match url::parse(&settings.url)? {
            Servers::Single(info) => {
                (single(Target::Server(Box::new(Endpoint::new(info, self.access)?))), layout)
            }
            Servers::Sentinel { sentinels, service, server } => {
                let name: Arc<str> = format!("sentinel service {service}").into();
                let server = Endpoint::new(server, self.access)?.named(name.clone());
                let access = sentinel_access(&settings, &server)?;
                let sentinels =
                    sentinels.iter().map(|(host, port)| access.at(host, *port)).collect();
                let sentinels = Arc::new(Sentinels::new(service, sentinels, server));
                (single(Target::Service(sentinels, name)), layout)
            }
            Servers::Cluster(places) => {
                if self.prefix.contains('{') {
                    return Err(InvalidUrl::cluster_prefix());
                }
                let (cluster, layout) = (self.cluster(places, nodes.clone())?, layout.sharded());
                (Deployment::Cluster(Arc::new(cluster)), layout)
            }
        };
        let layout = layout.at(deployment.name().clone());
        let runner = Arc::new(StepRunner::new(deployment, layout, failover));
        Ok(RedisStore { runner, notifier: nodes.notifier, durable: AtomicBool::new(true) })
    }

    /// The cluster to which these nodes belong.
    fn cluster(
        &self,
        places: Vec<ConnectionInfo>,
        settings: NodeSettings,
    ) -> Result<Cluster, InvalidUrl> {
        let endpoints = places.into_iter().map(|node| Endpoint::new(node, self.access.clone()));
        let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
        let address = |node: &Endpoint| node.address().map(|(host, port)| (host.to_owned(), port));
        let seeds: Vec<_> = endpoints.iter().filter_map(address).collect();
        let places: Vec<_> = seeds.iter().map(|(host, port)| url::address(host, *port)).collect();
        let name = format!("cluster {}", places.join(",")).into();
        let access = endpoints.into_iter().next().ok_or_else(InvalidUrl::no_hosts)?;
        Ok(Cluster::new(name, seeds, access, settings))
    }

    /// The store, with a connection that works.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] with an [`InvalidUrl`] as its source, and [`ErrorKind::Refused`] if
    /// the server cannot be reached, refuses the user or the password, or cannot
    /// [wait for its disk](Self::wait_aof).
    ///
    /// # Cancel safety
    ///
    /// No state remains.
    pub async fn connect(self) -> Result<RedisStore, StoreError> {
        let store =
            self.open().map_err(|error| StoreError::with_source(ErrorKind::Invalid, error))?;
        for primary in store.runner.deployment.primaries().await? {
            primary.ask(&clock::question()).await?;
            if let Some(finding) = store.runner.disk_finding(&primary).await? {
                return Err(StoreError::with_source(ErrorKind::Refused, finding.text));
            }
        }
        Ok(store)
    }
}

/// Returns the credentials and certificates of the sentinels, which share none with the server.
fn sentinel_access(settings: &UrlSettings, server: &Endpoint) -> Result<Endpoint, InvalidUrl> {
    let is_tls = settings.parsed("sentinel_tls", "must be `true` or `false`")?;
    let is_tls = is_tls.unwrap_or_else(|| server.is_tls());
    let mut access = ServerAccess::default();
    settings.read_access_named(SENTINEL_ACCESS, &mut access)?;
    // The authority that vouches for the servers vouches for the sentinels, unless told otherwise.
    if is_tls && access.tls.ca.is_none() {
        settings.read_access(&mut access)?;
        access.password = None;
    }
    let [user, password] = ["sentinel_user", "sentinel_password"].map(|name| settings.text(name));
    Endpoint::new(url::sentinel_info(is_tls, user, password)?, access)
}

impl fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStoreBuilder")
            .field("url", &"[redacted]")
            .field("prefix", &self.prefix)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

/// Settings in the query of a URL, beside those of every server.
const URL_SETTINGS: &[&str] = &[
    "prefix",
    "wait_replicas",
    "wait_aof",
    "failover_grace_ms",
    "timeout_ms",
    "connect_timeout_ms",
    "sentinel_user",
    "sentinel_password",
    "sentinel_tls",
    "sentinel_ca_file",
    "sentinel_cert_file",
    "sentinel_key_file",
    "sentinel_password_file",
    "sentinel_password_command",
];
const SENTINEL_ACCESS: &AccessNames = &[
    "sentinel_ca_file",
    "sentinel_cert_file",
    "sentinel_key_file",
    "sentinel_password_file",
    "sentinel_password_command",
];
const PREFIX: &str = "idem:";
/// The default time limit of a step.
pub(in crate::store) const STEP_LIMIT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
