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
use redis::Value;

use super::client::{packed, pipeline, reply};
use super::protocol::check::{self, Transport};
use super::protocol::clock;
use super::protocol::{
    ClaimStep, Command, Layout, ListNext, ListStep, LookupStep, Next, ReleaseStep, RenewStep,
    Reply, SettleStep, Step, WatchStep,
};
use super::redis_connection::{self, Connections, LinePurpose, RedisTimeouts};
use super::redis_failure::RedisFailure;
use super::server_clock::ServerClock;
use super::topology::Topology;
use super::url::{self, InvalidUrl};
use crate::store::connection::Doubt;
use crate::store::notifier::Notifier;
use crate::store::server_access::{ServerAccess, access_settings};
use crate::store::url_settings::UrlSettings;
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
    topology: Arc<Topology>,
    layout: Layout,
    clock: Arc<ServerClock>,
    commands: Connections,
    wake_ups: Connections,
    notifier: Arc<Notifier>,
    durable: AtomicBool,
}

impl RedisStore {
    /// Begins to set a store up.
    ///
    /// The URL is `redis://[user[:password]@]host[:port][/database]`, the same with `rediss://` for
    /// TLS, or `redis+unix:///path?db=number&user=name&pass=password`; in the query stand `prefix`,
    /// `ca_file`, `cert_file` with `key_file`, and `password_file` or `password_command`, too.
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
        let [about, configuration] = check::questions();
        let replies = [
            self.ask(&mut Doubt::default(), &about).await?,
            self.ask(&mut Doubt::default(), &configuration).await?,
        ];
        let transport = match self.topology.is_plaintext() {
            true => Transport::Plaintext,
            false => Transport::Private,
        };
        let checked = check::evaluate(&self.layout, transport, replies)?;
        if let Some(durable) = checked.durable {
            self.durable.store(durable, Ordering::Relaxed);
        }
        Ok(checked.report)
    }

    /// Holds a step's dialogue with the server.
    async fn take<S: Step>(&self, mut step: S) -> Result<S::Verdict, StoreError> {
        let mut doubt = Doubt::default();
        let answer = self
            .commands
            .run(&mut doubt, |connection| {
                let command = packed(&step.begin(&self.layout, self.clock.micros()));
                async move { redis_connection::send(connection, &command).await }
            })
            .await;
        let mut reply = self.reply(answer)?;
        loop {
            match step.answer(&self.layout, reply) {
                Next::Ask(command) => reply = self.ask(&mut doubt, &command).await?,
                // The server's error is certain for the request it answers, not for a lost one.
                Next::Done(Err(error)) if doubt.exists() => return Err(error.in_doubt()),
                Next::Done(verdict) => return verdict,
            }
        }
    }

    async fn ask(&self, doubt: &mut Doubt, command: &Command) -> Result<Reply, RedisFailure> {
        self.reply(self.commands.ask(doubt, &packed(command)).await)
    }

    async fn ask_all(&self, commands: &[Command]) -> Result<Vec<Reply>, RedisFailure> {
        let values = self.commands.ask_all(&pipeline(commands)).await?;
        values.into_iter().map(|value| self.reply(Ok(value))).collect()
    }

    /// The reply in an answer; an error of the server is one, too.
    fn reply(&self, answer: Result<Value, RedisFailure>) -> Result<Reply, RedisFailure> {
        match answer {
            Ok(value) => reply(value).ok_or_else(|| RedisFailure::unexpected(self.topology.name())),
            // A refusal of the connection is no reply to the command.
            Err(failure) if failure.is_unsent() => Err(failure),
            Err(failure) => failure.refusal().map(Reply::Error).ok_or(failure),
        }
    }
}

impl Store for RedisStore {
    async fn claim(&self, id: &RecordId, request: &ClaimRequest) -> Result<Claim, StoreError> {
        self.take(ClaimStep::new(*id, request.clone())).await
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        self.take(SettleStep::new(lease.clone(), done.clone())).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.take(ReleaseStep::new(lease.clone())).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        self.take(RenewStep::new(lease.clone())).await?;
        Ok(lease.clone())
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        self.take(LookupStep::new(*id)).await
    }

    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        let handle = self.notifier.watch(*id);
        // Subscribing again costs as much as asking whether the subscription is still in force.
        self.wake_ups
            .run(&mut Doubt::default(), |mut connection| async move {
                connection.subscribe(self.layout.channel()).await
            })
            .await
            .ok()?;
        if self.take(WatchStep::new(*id)).await.ok()? {
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
        let mut step = ListStep::new(query.clone())?;
        let mut commands = step.begin(&self.layout);
        loop {
            match step.answer(&self.layout, self.ask_all(&commands).await?) {
                ListNext::Ask(next) => commands = next,
                ListNext::Done(page) => return page,
            }
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("server", self.topology.name())
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
        let topology = Arc::new(Topology::new(url::parse(&settings.url)?, self.access)?);
        let clock = Arc::new(ServerClock::new());
        let notifier = Arc::new(Notifier::default());
        let connections = |purpose| Connections::new(topology.clone(), purpose, self.timeouts);
        Ok(RedisStore {
            layout: Layout::new(&self.prefix).at(topology.name().clone()),
            commands: connections(LinePurpose::Commands(clock.clone())),
            wake_ups: connections(LinePurpose::WakeUps(notifier.clone())),
            clock,
            notifier,
            topology,
            durable: AtomicBool::new(true),
        })
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
        store.commands.ask(&mut Doubt::default(), &packed(&clock::question())).await?;
        Ok(store)
    }
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
const URL_SETTINGS: &[&str] = &["prefix"];
const PREFIX: &str = "idem:";
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
