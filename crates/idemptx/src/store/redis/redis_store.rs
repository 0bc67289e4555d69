//! The store on top of the connections.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, ErrorKind, Inventory, Page, Query, RecordSnapshot,
    Settlement, Store, StoreError, Watch,
};
use redis::ConnectionInfo;

use super::client::packed;
use super::cluster::Cluster;
use super::deployment::Deployment;
use super::endpoint::Endpoint;
use super::list_cluster;
use super::node::Node;
use super::protocol::check::{self, Transport};
use super::protocol::clock;
use super::protocol::{
    ClaimStep, Layout, ListStep, LookupStep, Next, ReleaseStep, RenewStep, SettleStep,
    Step, WatchStep,
};
use super::redis_connection::{RedisTimeouts, Target};
use super::redis_failure::RedisFailure;
use super::sentinel::Sentinels;
use super::url::{self, InvalidUrl, Servers};
use crate::store::connection::Doubt;
use crate::store::notifier::Notifier;
use crate::store::server_access::{ServerAccess, access_settings};
use crate::store::url_settings::{AccessNames, UrlSettings};
use crate::store::{SafetyReport, Transactional};

/// Keeps records in Redis or Valkey; see the [module](super).
///
/// One connection for commands and one for wake-ups is opened for each tokio runtime that uses it,
/// when it is first needed and again whenever it is lost.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use idemptx::store::redis::RedisStore;
///
/// let store = RedisStore::builder("redis://127.0.0.1:6379/0").prefix("payments:").connect().await?;
/// let report = store.check().await?;
/// println!("{}", report.guarantee);
/// # Ok(())
/// # }
/// ```
pub struct RedisStore {
    deployment: Deployment,
    layout: Layout,
    notifier: Arc<Notifier>,
    durable: AtomicBool,
}

impl RedisStore {
    /// Begins to set a store up.
    ///
    /// | URL | servers |
    /// |---|---|
    /// | `redis://[user[:password]@]host[:port][/database]` | one server |
    /// | `redis+unix:///path?db=number&user=name&pass=password` | one server, through a socket file |
    /// | `redis+cluster://[user[:password]@]host[:port],…` | the cluster of these nodes |
    /// | `redis+sentinel://[user[:password]@]host[:port],…/service[/database]` | the primary that these sentinels know by this name |
    ///
    /// With `rediss` instead of `redis` connections are encrypted.
    /// In the query stand `prefix`, `ca_file`, `cert_file` with `key_file`, and `password_file` or
    /// `password_command`; the user and the password of a URL are those of the servers, and what
    /// sentinels want goes into `sentinel_user` and `sentinel_password`, `sentinel_password_file` or
    /// `sentinel_password_command`, `sentinel_tls`, `sentinel_ca_file`, and `sentinel_cert_file`
    /// with `sentinel_key_file`.
    #[must_use]
    pub fn builder(url: impl Into<String>) -> RedisStoreBuilder {
        RedisStoreBuilder {
            url: url.into(),
            prefix: PREFIX.to_owned(),
            timeouts: RedisTimeouts { command: COMMAND_TIMEOUT, connect: CONNECT_TIMEOUT },
            access: ServerAccess::default(),
        }
    }

    /// A store at a URL, with the default settings and without connecting: a server that cannot be
    /// reached now may be reached later.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] if the URL is none of the forms that [`builder`](Self::builder) names.
    pub fn open(url: impl Into<String>) -> Result<Self, InvalidUrl> {
        Self::builder(url).open()
    }

    /// A store at a URL, with the default settings and a connection that works.
    ///
    /// # Errors
    ///
    /// As [`RedisStoreBuilder::connect`].
    ///
    /// # Cancel safety
    ///
    /// No state remains.
    pub async fn connect(url: impl Into<String>) -> Result<Self, StoreError> {
        Self::builder(url).connect().await
    }

    /// Asks the server for everything that decides which guarantee it can give.
    ///
    /// What the server will not tell (hosted ones forbid `CONFIG`, some users `INFO`) is reported
    /// as a warning, not guessed.
    /// [`capabilities`](Store::capabilities) follow what was found.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] if the server cannot be reached, or refuses the user or the password;
    /// [`ErrorKind::Unavailable`] if it does not answer.
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn check(&self) -> Result<SafetyReport, StoreError> {
        let primaries = self.deployment.primaries().await?;
        let mut replies = Vec::with_capacity(primaries.len());
        for primary in &primaries {
            let [about, configuration] = check::questions();
            replies.push([primary.ask(&about).await?, primary.ask(&configuration).await?]);
        }
        let transport = match self.deployment.is_plaintext() {
            true => Transport::Plaintext,
            false => Transport::Private,
        };
        let kind = match &self.deployment {
            Deployment::Single(node) if node.has_sentinels() => check::Deployment::Sentinel,
            Deployment::Single(_) => check::Deployment::Single,
            Deployment::Cluster(_) => check::Deployment::Cluster,
        };
        let checked = check::evaluate_all(&self.layout, transport, kind, replies)?;
        if let Some(durable) = checked.durable {
            self.durable.store(durable, Ordering::Relaxed);
        }
        Ok(checked.report)
    }

    /// Holds a step's dialogue with the server of its record.
    async fn take<S: Step>(&self, id: &RecordId, mut step: S) -> Result<S::Verdict, StoreError> {
        let mut doubt = Doubt::default();
        let mut route = self.deployment.route(id).await?;
        let begin = |micros| packed(&step.begin(&self.layout, micros));
        let mut reply = self.deployment.ask(&mut route, &mut doubt, begin).await?;
        loop {
            match step.answer(&self.layout, reply) {
                Next::Ask(command) => {
                    let next = |_| packed(&command);
                    reply = self.deployment.ask(&mut route, &mut doubt, next).await?;
                }
                // The server's error is certain for the request it answers, not for a lost one.
                Next::Done(Err(error)) if doubt.exists() => return Err(error.in_doubt()),
                Next::Done(verdict) => return verdict,
            }
        }
    }

    /// Subscribes to the notifications of a record.
    async fn subscribe(&self, id: &RecordId) -> Result<(), RedisFailure> {
        let channel = self.layout.channel_of(id);
        let command = match &self.deployment {
            Deployment::Single(_) => "SUBSCRIBE",
            Deployment::Cluster(_) => "SSUBSCRIBE",
        };
        let mut subscribe = redis::cmd(command);
        subscribe.arg(&*channel);
        let mut route = self.deployment.route(id).await?;
        self.deployment.subscribe(&mut route, &subscribe).await
    }
}

impl Store for RedisStore {
    async fn claim(&self, id: &RecordId, request: &ClaimRequest) -> Result<Claim, StoreError> {
        self.take(id, ClaimStep::new(*id, request.clone())).await
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        self.take(&lease.id, SettleStep::new(lease.clone(), done.clone())).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.take(&lease.id, ReleaseStep::new(lease.clone())).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        self.take(&lease.id, RenewStep::new(lease.clone())).await?;
        Ok(lease.clone())
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        self.take(id, LookupStep::new(*id)).await
    }

    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        let handle = self.notifier.watch(*id);
        // Subscribing again costs as much as asking whether the subscription is still in force.
        self.subscribe(id).await.ok()?;
        if self.take(id, WatchStep::new(*id)).await.ok()? {
            return Some(handle.into_watch());
        }
        // Nobody claims it now, so there is no end to be told of: look again at once.
        Some(Box::pin(std::future::ready(())))
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.shared = true;
        capabilities.durable = self.durable.load(Ordering::Relaxed);
        capabilities.watch = true;
        capabilities
    }
}

impl Transactional for RedisStore {}

/// A page takes a few `SCAN`s and batches of reads, between which the server does other work.
impl Inventory for RedisStore {
    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        match &self.deployment {
            Deployment::Single(node) => {
                let step = ListStep::new(query.clone())?;
                list_cluster::page(&self.deployment, &self.layout, 0, node, step).await
            }
            Deployment::Cluster(cluster) => {
                list_cluster::list(&self.deployment, cluster, &self.layout, query).await
            }
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("server", self.deployment.name())
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

/// Settings of a [`RedisStore`], begun by [`RedisStore::builder`].
pub struct RedisStoreBuilder {
    url: String,
    prefix: String,
    timeouts: RedisTimeouts,
    access: ServerAccess,
}

impl RedisStoreBuilder {
    /// Sets the prefix of all keys and of the channel; `idem:` by default.
    ///
    /// Stores with different prefixes share nothing.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets how long a step waits for its answer before its outcome counts as unknown; one second
    /// by
    /// default.
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
        let notifier = Arc::new(Notifier::default());
        let layout = Layout::new(&self.prefix);
        let single = |target| Deployment::Single(Arc::new(Node::new(target, &notifier, self.timeouts)));
        let (deployment, layout) = match url::parse(&settings.url)? {
            Servers::Single(info) => {
                (single(Target::Server(Endpoint::new(info, self.access)?)), layout)
            }
            Servers::Sentinel { sentinels, service, server } => {
                let name: Arc<str> = format!("sentinel service {service}").into();
                let server = Endpoint::new(server, self.access)?.named(name.clone());
                let access = sentinel_access(&settings, &server)?;
                let sentinels = sentinels.iter().map(|(host, port)| access.at(host, *port)).collect();
                let sentinels = Arc::new(Sentinels::new(service, sentinels, server));
                (single(Target::Service(sentinels, name)), layout)
            }
            Servers::Cluster(nodes) => {
                if self.prefix.contains('{') {
                    return Err(InvalidUrl::cluster_prefix());
                }
                let (cluster, layout) = (self.cluster(nodes, notifier.clone())?, layout.sharded());
                (Deployment::Cluster(Arc::new(cluster)), layout)
            }
        };
        let layout = layout.at(deployment.name().clone());
        Ok(RedisStore { deployment, layout, notifier, durable: AtomicBool::new(true) })
    }

    /// The cluster to which these nodes belong.
    fn cluster(
        &self,
        nodes: Vec<ConnectionInfo>,
        notifier: Arc<Notifier>,
    ) -> Result<Cluster, InvalidUrl> {
        let endpoints = nodes.into_iter().map(|node| Endpoint::new(node, self.access.clone()));
        let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
        let address = |node: &Endpoint| node.address().map(|(host, port)| (host.to_owned(), port));
        let seeds: Vec<_> = endpoints.iter().filter_map(address).collect();
        let places: Vec<_> = seeds.iter().map(|(host, port)| url::address(host, *port)).collect();
        let name = format!("cluster {}", places.join(",")).into();
        let access = endpoints.into_iter().next().ok_or_else(InvalidUrl::no_hosts)?;
        Ok(Cluster::new(name, seeds, access, notifier, self.timeouts))
    }

    /// The store, with a connection that works.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] with an [`InvalidUrl`] as its source, and [`ErrorKind::Refused`] if
    /// the server cannot be reached, or refuses the user or the password.
    ///
    /// # Cancel safety
    ///
    /// No state remains.
    pub async fn connect(self) -> Result<RedisStore, StoreError> {
        let store =
            self.open().map_err(|error| StoreError::with_source(ErrorKind::Invalid, error))?;
        for primary in store.deployment.primaries().await? {
            primary.ask(&clock::question()).await?;
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
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
