//! The store that keeps its records in Redis or Valkey.
//!
//! A record is one string under `{prefix}{` id `}`, and a claim that finds nothing, or a settled
//! record, is one native command: `SET … NX GET PX`, hence Redis 7.0.
//! Everything else is a script that compares before it writes.
//! A claim is written and renewed with its retention as its time to live, so that
//! *retention − time to live* is the age of its lease by the server's own clock, and nobody else's.
//!
//! # What it promises
//!
//! What Redis promises for acknowledged writes: with one server and `appendfsync always`,
//! everything; with `everysec`, all but the last second at a loss of power; **with replicas, no
//! more than asynchronous replication** — a claim acknowledged by a primary may be unknown to the
//! replica that is promoted, and then its operation runs twice.
//! [`RedisStore::check`] says which of these a server's configuration amounts to.
//!
//! # Permissions
//!
//! The least that a user needs, with the default prefix, is
//! `~idem:* &idem:* -@all +set +get +getrange +setrange +del +pexpire +pttl +time +eval +evalsha
//! +publish`; besides, `+hello +subscribe` for wake-ups across processes, `+select` for a database
//! other than 0, and `+info +config|get` for the check.

mod check;
mod clock;
mod connection;
mod failure;
mod notify;
mod scripts;
mod topology;
mod url;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::{Record, State};
use idemptx_core::store::{
    Bid, Capabilities, Claim, ErrorKind, Holder, Over, Seen, Settlement, Store, StoreError, Watch,
};
use idemptx_core::time::millis;
use redis::{Cmd, Value};

use self::clock::ServerClock;
use self::connection::{Connections, Purpose, Timeouts};
use self::failure::Failure;
use self::notify::Waiters;
use self::scripts::{Script, Scripts};
use self::topology::Topology;

pub use self::url::InvalidUrl;

/// Keeps records in Redis or Valkey; see the [module](self).
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
    prefix: Box<str>,
    channel: Box<str>,
    scripts: Scripts,
    clock: Arc<ServerClock>,
    commands: Connections,
    wake_ups: Connections,
    waiters: Arc<Waiters>,
    durable: AtomicBool,
}

impl RedisStore {
    /// Begins to set a store up.
    ///
    /// The URL is `redis://[user[:password]@]host[:port][/database]`, the same with `rediss://` for
    /// TLS, or `redis+unix:///path?db=number&user=name&pass=password`.
    #[must_use]
    pub fn builder(url: impl Into<String>) -> RedisStoreBuilder {
        RedisStoreBuilder {
            url: url.into(),
            prefix: PREFIX.to_owned(),
            timeouts: Timeouts { command: COMMAND_TIMEOUT, connect: CONNECT_TIMEOUT },
            ca_certificates: None,
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
    /// Nothing is left behind.
    pub async fn connect(url: impl Into<String>) -> Result<Self, StoreError> {
        Self::builder(url).connect().await
    }

    fn key(&self, id: &RecordId) -> String {
        format!("{}{{{id}}}", self.prefix)
    }

    /// The record and the response that may be kept apart; the braces put both into one slot.
    fn keys(&self, id: &RecordId) -> [String; 2] {
        let record = self.key(id);
        let response = format!("{record}:response");
        [record, response]
    }

    async fn evaluate(
        &self,
        script: &Script,
        keys: &[String],
        arguments: &[&[u8]],
    ) -> Result<Value, Failure> {
        match self.commands.ask(&script.by_hash(keys, arguments)).await {
            Err(failure) if failure.is_unknown_script() => {
                self.commands.ask(&script.by_code(keys, arguments)).await
            }
            answer => answer,
        }
    }

    /// Runs a script that compares the claim: whether it was still in force.
    async fn evaluate_on_claim(
        &self,
        script: &Script,
        keys: &[String],
        arguments: &[&[u8]],
    ) -> Result<(), StoreError> {
        match self.evaluate(script, keys, arguments).await? {
            Value::Int(1) => Ok(()),
            Value::Int(0) => Err(ErrorKind::Fenced.into()),
            _ => Err(self.unexpected("EVALSHA").into()),
        }
    }

    async fn claim_by_script(&self, lease: &Lease, bid: &Bid) -> Result<Claim, StoreError> {
        let record = Record::running(lease).encode();
        let retain = millis(lease.retain).to_string();
        let (state, token): (&[u8], &[u8]) = match &bid.over {
            None => (b"", b""),
            Some(Over::Orphan(token)) => (b"held", token.as_bytes()),
            Some(Over::Settled(token)) => (b"settled", token.as_bytes()),
        };
        let arguments = [&record, retain.as_bytes(), state, token];
        let answer = self.evaluate(&self.scripts.claim, &self.keys(&lease.id), &arguments).await?;
        match self.read(&lease.id, answer)? {
            Reading::Granted(lease) => Ok(Claim::Granted(lease)),
            Reading::Seen(Seen::Held(holder)) => Ok(Claim::Held(holder)),
            Reading::Seen(Seen::Settled(record)) => Ok(Claim::Settled(record)),
            _ => Err(self.unexpected("claim").into()),
        }
    }

    /// Reads what a script says a record means.
    fn read(&self, id: &RecordId, answer: Value) -> Result<Reading, StoreError> {
        let Value::Array(parts) = answer else { return Err(self.unexpected("EVALSHA").into()) };
        let Ok([Value::BulkString(meaning), Value::BulkString(record), detail]) =
            <[Value; 3]>::try_from(parts)
        else {
            return Err(self.unexpected("EVALSHA").into());
        };
        let mut record = decode(id, record)?;
        Ok(match (meaning.as_slice(), detail) {
            (b"granted", _) => Reading::Granted(record.lease()),
            (b"held", Value::Int(remaining)) => {
                let remaining = Duration::from_millis(u64::try_from(remaining).unwrap_or(0));
                Reading::Seen(Seen::Held(Holder::new(&record, remaining)))
            }
            (b"settled", Value::BulkString(response)) => {
                record.payload = response.into();
                Reading::Seen(Seen::Settled(record))
            }
            (b"settled", _) if record.apart => Reading::Seen(Seen::Settled(record.spent())),
            (b"settled", _) => Reading::Seen(Seen::Settled(record)),
            _ => return Err(self.unexpected("EVALSHA").into()),
        })
    }

    fn unexpected(&self, step: &'static str) -> Failure {
        Failure::unexpected(self.topology.name(), step)
    }
}

impl Store for RedisStore {
    async fn claim(&self, id: &RecordId, bid: &Bid) -> Result<Claim, StoreError> {
        let mut lease = Lease::granted(*id, bid, 0, 1);
        lease.retain = kept(bid.retain);
        // What may be replaced is there, so the plain command would only say so.
        if bid.over.is_some() {
            return self.claim_by_script(&lease, bid).await;
        }
        let key = self.key(id);
        let answer = self
            .commands
            .run(|connection| {
                lease.fence = self.clock.micros();
                let command = set_new(&key, &lease);
                async move { connection::send(connection, &command).await }
            })
            .await?;
        match answer {
            Value::Nil => Ok(Claim::Granted(lease)),
            Value::BulkString(record) => match decode(id, record)? {
                record if record.state == State::Running || record.apart => {
                    self.claim_by_script(&lease, bid).await
                }
                record => Ok(Claim::Settled(record)),
            },
            _ => Err(self.unexpected("SET").into()),
        }
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        let (retain, key_retain) = (kept(done.retain), kept(done.key_retain.max(done.retain)));
        let mut record = Record::settled(lease, done);
        record.retain = key_retain;
        // Only a response that can be replayed ends before its key does.
        record.apart = record.state == State::Done && retain < key_retain;
        let response =
            if record.apart { std::mem::take(&mut record.payload) } else { Bytes::new() };
        let (record, is_apart) = (record.encode(), record.apart);
        let (retain, key_retain) = (millis(retain).to_string(), millis(key_retain).to_string());
        let name = lease.id.to_string();
        let arguments: [&[u8]; 6] = [
            &record,
            key_retain.as_bytes(),
            self.channel.as_bytes(),
            name.as_bytes(),
            &response,
            retain.as_bytes(),
        ];
        let arguments = if is_apart { &arguments[..] } else { &arguments[..4] };
        self.evaluate_on_claim(&self.scripts.settle, &self.keys(&lease.id), arguments).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let (claim, name) = (claim_of(lease), lease.id.to_string());
        let arguments = [&claim, self.channel.as_bytes(), name.as_bytes()];
        let keys = [self.key(&lease.id)];
        self.evaluate_on_claim(&self.scripts.release, &keys, &arguments).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        let keys = [self.key(&lease.id)];
        self.evaluate_on_claim(&self.scripts.renew, &keys, &[&claim_of(lease)]).await?;
        Ok(lease.clone())
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Seen>, StoreError> {
        match self.evaluate(&self.scripts.look, &self.keys(id), &[id.as_bytes()]).await? {
            Value::Nil => Ok(None),
            answer => match self.read(id, answer)? {
                Reading::Seen(seen) => Ok(Some(seen)),
                Reading::Granted(_) => Err(self.unexpected("lookup").into()),
            },
        }
    }

    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        let waiting = self.waiters.wait(*id);
        // Subscribing anew costs as much as asking whether the subscription is still in force.
        self.wake_ups
            .run(|mut connection| async move { connection.subscribe(&*self.channel).await })
            .await
            .ok()?;
        let keys = [self.key(id)];
        match self.evaluate(&self.scripts.mark_awaited, &keys, &[id.as_bytes()]).await {
            Ok(Value::Int(1)) => Some(Box::pin(waiting)),
            // Nobody claims it now, so there is no end to be told of: look again at once.
            Ok(Value::Int(0)) => Some(Box::pin(std::future::ready(()))),
            _ => None,
        }
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.shared = true;
        capabilities.durable = self.durable.load(Ordering::Relaxed);
        capabilities.watch = true;
        capabilities
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("server", self.topology.name())
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Settings of a [`RedisStore`], begun by [`RedisStore::builder`].
pub struct RedisStoreBuilder {
    url: String,
    prefix: String,
    timeouts: Timeouts,
    ca_certificates: Option<Vec<u8>>,
}

impl RedisStoreBuilder {
    /// What the names of all its keys and its channel begin with; `idem:` unless set.
    ///
    /// Stores with different prefixes share nothing.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long a step waits for its answer before its outcome counts as unknown; one second
    /// unless set.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.command = timeout;
        self
    }

    /// How long an attempt to connect may take; one second unless set.
    #[must_use]
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.connect = timeout;
        self
    }

    /// The authorities that may vouch for the server, in PEM, instead of the public ones.
    ///
    /// # Security
    ///
    /// Certificates are always verified: the server's must lead to one of these.
    #[must_use]
    pub fn ca_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca_certificates = Some(pem.into());
        self
    }

    /// The store, without connecting.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] if the URL or the certificates cannot be read.
    pub fn open(self) -> Result<RedisStore, InvalidUrl> {
        let topology = Arc::new(Topology::new(url::parse(&self.url)?, self.ca_certificates)?);
        let clock = Arc::new(ServerClock::new());
        let waiters = Arc::new(Waiters::default());
        let connections = |purpose| Connections::new(topology.clone(), purpose, self.timeouts);
        Ok(RedisStore {
            channel: format!("{}wake", self.prefix).into_boxed_str(),
            prefix: self.prefix.into_boxed_str(),
            scripts: Scripts::new(),
            commands: connections(Purpose::Commands(clock.clone())),
            wake_ups: connections(Purpose::WakeUps(waiters.clone())),
            clock,
            waiters,
            topology,
            durable: AtomicBool::new(true),
        })
    }

    /// The store, with a connection that works.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] with an [`InvalidUrl`] as its source, [`ErrorKind::Internal`] if the
    /// server refuses the user or the password, and [`ErrorKind::Unavailable`] if it cannot be
    /// reached.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind.
    pub async fn connect(self) -> Result<RedisStore, StoreError> {
        let store =
            self.open().map_err(|error| StoreError::with_source(ErrorKind::Invalid, error))?;
        store.commands.ask(&redis::cmd("TIME")).await?;
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

enum Reading {
    Granted(Lease),
    Seen(Seen),
}

/// The whole of a claim where nobody holds the record: written if there is none, read if there is.
fn set_new(key: &str, lease: &Lease) -> Cmd {
    let mut command = redis::cmd("SET");
    command.arg(key).arg(Record::running(lease).encode());
    command.arg("NX").arg("GET").arg("PX").arg(millis(lease.retain));
    command
}

fn decode(id: &RecordId, record: Vec<u8>) -> Result<Record, StoreError> {
    Record::decode(id, &Bytes::from(record))
        .map_err(|reason| StoreError::with_source(ErrorKind::Corrupt, reason))
}

/// What the scripts compare: the record's id and the token, as they follow each other in a record.
fn claim_of(lease: &Lease) -> Vec<u8> {
    [&lease.id.as_bytes()[..], lease.token.as_bytes()].concat()
}

/// A retention that Redis accepts as a time to live.
fn kept(retain: Duration) -> Duration {
    retain.clamp(RETAIN_MIN, RETAIN_MAX)
}

const PREFIX: &str = "idem:";
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const RETAIN_MIN: Duration = Duration::from_millis(1);
const RETAIN_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

#[cfg(test)]
mod tests;
