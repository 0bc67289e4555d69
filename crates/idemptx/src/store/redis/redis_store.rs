//! The store on top of the connections.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, Inventory, Page, Query, RecordSnapshot, Settlement, Store,
    StoreError, Watch,
};

use super::cluster_listing;
use super::deployment::Deployment;
use super::protocol::check::{self, Transport};
use super::protocol::{ListStep, rights};
use super::redis_store_builder::RedisStoreBuilder;
use super::step_runner::StepRunner;
use super::url::InvalidUrl;
use crate::store::notifier::Notifier;
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
    pub(super) runner: Arc<StepRunner>,
    pub(super) notifier: Arc<Notifier>,
    pub(super) durable: AtomicBool,
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
    /// The query of each of them may have `db`, `user` and `pass`; a database there counts before the
    /// one in the path, a user and a password after those before the host.
    /// There, too, stand `prefix`, `ca_file`, `cert_file` with `key_file`, `wait_replicas`,
    /// `wait_aof`, `failover_grace_ms`, `timeout_ms`, `connect_timeout_ms`, and `password_file` or
    /// `password_command`.
    /// The user and the password of a URL are those of the servers.
    /// What sentinels want goes into `sentinel_user` and `sentinel_password`,
    /// `sentinel_password_file` or `sentinel_password_command`, `sentinel_tls`, `sentinel_ca_file`,
    /// and `sentinel_cert_file` with `sentinel_key_file`.
    #[must_use]
    pub fn builder(url: impl Into<String>) -> RedisStoreBuilder {
        RedisStoreBuilder::new(url.into())
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
    /// [`Refused`](idemptx_core::store::ErrorKind::Refused) if the server cannot be reached, or
    /// refuses the user or the password;
    /// [`Unavailable`](idemptx_core::store::ErrorKind::Unavailable) if it does not answer.
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn check(&self) -> Result<SafetyReport, StoreError> {
        let primaries = self.runner.deployment.primaries().await?;
        let mut replies = Vec::with_capacity(primaries.len());
        let mut unable = Vec::new();
        for primary in &primaries {
            unable.extend(self.runner.disk_finding(primary).await?);
            let [known, script] = rights::questions(&self.runner.layout);
            let allowed = [primary.ask(&known).await?, primary.ask(&script).await?];
            unable.extend(rights::finding(&allowed));
            let [about, configuration] = check::questions();
            replies.push([primary.ask(&about).await?, primary.ask(&configuration).await?]);
        }
        let transport = match self.runner.deployment.is_plaintext() {
            true => Transport::Plaintext,
            false => Transport::Private,
        };
        let kind = match &self.runner.deployment {
            Deployment::Single(node) if node.has_sentinels() => check::Deployment::Sentinel,
            Deployment::Single(_) => check::Deployment::Single,
            Deployment::Cluster(_) => check::Deployment::Cluster,
        };
        let checked = check::evaluate_all(
            &self.runner.layout,
            transport,
            kind,
            self.runner.precautions(),
            replies,
        )?;
        if let Some(durable) = checked.durable {
            self.durable.store(durable, Ordering::Relaxed);
        }
        unable.extend(checked.report.findings);
        Ok(SafetyReport::new(unable, checked.report.guarantee))
    }
}

impl Store for RedisStore {
    async fn claim(&self, id: &RecordId, request: &ClaimRequest) -> Result<Claim, StoreError> {
        // Boxed, as every step is: its future is large and is moved about within others.
        Box::pin(self.runner.claim(id, request)).await
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        Box::pin(self.runner.settle(lease, done)).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        Box::pin(self.runner.release(lease)).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        Box::pin(self.runner.renew(lease)).await?;
        Ok(lease.clone())
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        Box::pin(self.runner.lookup(id)).await
    }

    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        let handle = self.notifier.watch(*id);
        // Subscribing again costs as much as asking whether the subscription is still in force.
        Box::pin(self.runner.subscribe(id)).await.ok()?;
        if Box::pin(self.runner.mark_awaited(id)).await.ok()? {
            return Some(handle.into_watch());
        }
        // Nobody claims it now, so there is no end to be told of: look again at once.
        Some(Box::pin(std::future::ready(())))
    }

    fn maintain(&self) {
        self.runner.maintain();
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
        match &self.runner.deployment {
            Deployment::Single(node) => {
                let step = ListStep::new(query.clone())?;
                cluster_listing::page(&self.runner.deployment, &self.runner.layout, 0, node, step)
                    .await
            }
            Deployment::Cluster(cluster) => {
                cluster_listing::list(&self.runner.deployment, cluster, &self.runner.layout, query)
                    .await
            }
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("server", self.runner.deployment.name())
            .field("layout", &self.runner.layout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
