//! The engine: a policy on a store, with what a process needs to drive it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use idemptx_core::exchange::{Exchange, ProbeResult, Rules};
use idemptx_core::key::{Key, RecordId, Scope};
use idemptx_core::lease::Token;
#[cfg(feature = "spool")]
use idemptx_core::policy::OnLargeBody;
use idemptx_core::policy::Policy;
use idemptx_core::stats::{KeyMeter, TypicalTime};
use idemptx_core::store::Store;
use idemptx_core::time::{Clock, Timestamp, millis};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::flight::Flights;
use crate::keeper::Keeper;
use crate::operator::Operator;
#[cfg(feature = "spool")]
use crate::spool::Spool;
use crate::store::Transactional;
use crate::tokens::Tokens;

mod builder;
mod check;

pub use self::builder::{EngineBuilder, EngineError};
pub use self::check::CheckError;

/// Makes requests safe to retry, by a [`Policy`] on a [`Store`].
///
/// Cheap to clone: all clones are one engine, with one set of limits.
/// Put [`layer`](Self::layer) around HTTP services, or call [`run`](Self::run) for jobs and
/// messages.
///
/// ```
/// use idemptx::{Engine, Policy, store::MemoryStore};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let engine = Engine::builder(MemoryStore::new()).policy(Policy::draft()).build()?;
/// # Ok(()) }
/// ```
pub struct Engine<S> {
    inner: Arc<Inner<S>>,
}

impl<S> Clone for Engine<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<S: Store> Engine<S> {
    /// Begins to configure an engine on `store`.
    pub fn builder(store: S) -> EngineBuilder<S> {
        EngineBuilder::new(store)
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        self.inner.policy()
    }

    /// The store, for operators' calls.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.inner.store
    }

    /// What it has in hand at the moment, for metrics.
    #[must_use]
    pub fn load(&self) -> Load {
        let inner = &self.inner;
        let all = inner.executions_max as usize;
        Load {
            executing: all.saturating_sub(inner.permits.available_permits()),
            waiting: inner.flights.waiting(),
            unconfirmed: inner.keeper.unconfirmed(),
        }
    }

    /// What operators do about its records: look, list, resolve, forget.
    #[must_use]
    pub fn operator(&self) -> Operator<S> {
        let Inner { store, rules, tokens, .. } = &*self.inner;
        Operator::of(Arc::clone(store), Arc::clone(rules), Arc::clone(tokens))
    }

    /// Waits until every running handler has ended and every result is in the store, for at most
    /// the policy's `drain_ms`; `true` if so.
    ///
    /// Call it after the server has stopped to accept connections.
    /// What is not finished keeps its claim, and becomes an orphan.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    pub async fn drain(&self) -> bool {
        let inner = &self.inner;
        let all = inner.executions_max;
        let idle = async {
            let executed = inner.permits.acquire_many(all).await;
            inner.keeper.idle().await;
            drop(executed);
        };
        timeout(inner.policy().drain, idle).await.is_ok()
    }

    /// How much would be lost if the process ended now: handlers that run under a key, clients
    /// present or gone, and steps that the store has not confirmed yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let load = self.load();
        load.executing.saturating_add(load.unconfirmed)
    }

    pub(crate) fn inner(&self) -> &Arc<Inner<S>> {
        &self.inner
    }
}

impl<S: fmt::Debug> fmt::Debug for Engine<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("store", &self.inner.store)
            .field("policy", self.inner.rules.policy())
            .finish_non_exhaustive()
    }
}

/// What an engine has in hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Load {
    /// Handlers that run under a key, or are about to; their clients may have left.
    pub executing: usize,
    /// Requests that wait for the end of another one.
    pub waiting: usize,
    /// Steps that are repeated behind, until the store confirms them.
    pub unconfirmed: usize,
}

/// An operation whose executor vanished, for the probe hook.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Orphan {
    /// The client's key.
    pub key: Key,
    /// Whose it is.
    pub scope: Scope,
    /// Which execution vanished, from 1.
    pub attempt: u32,
    derived: Derive,
}

#[derive(Clone)]
struct Derive(Arc<dyn Fn(&str) -> String + Send + Sync>);

impl fmt::Debug for Derive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Derive")
    }
}

impl Orphan {
    /// The key that the vanished execution derived for `label`, to look its effect up by.
    #[must_use]
    pub fn derive(&self, label: &str) -> String {
        (self.derived.0)(label)
    }
}

type ScopeFn = Arc<dyn Fn(&http::request::Parts) -> Option<Scope> + Send + Sync>;
type AcceptsFn = Arc<dyn Fn(&Key) -> bool + Send + Sync>;
type Transactions = Arc<dyn Transactional>;
type ProbeFn =
    Arc<dyn Fn(Orphan) -> Pin<Box<dyn Future<Output = ProbeResult> + Send>> + Send + Sync>;

/// What all requests of an engine share.
pub(crate) struct Inner<S> {
    store: Arc<S>,
    rules: Arc<Rules>,
    flights: Arc<Flights>,
    keeper: Keeper<S>,
    permits: Arc<Semaphore>,
    executions_max: u32,
    clock: MonotonicClock,
    tokens: Arc<Tokens>,
    scope: Option<ScopeFn>,
    accepts: Option<AcceptsFn>,
    probe: Option<ProbeFn>,
    transactions: Option<Transactions>,
    #[cfg(feature = "spool")]
    spool: Option<Spool>,
    /// The store was found unsafe, and the policy refuses that.
    refuses: AtomicBool,
    typical: TypicalTime,
    meter: Mutex<KeyMeter>,
}

impl<S: Store> Inner<S> {
    pub(crate) fn store(&self) -> &S {
        &self.store
    }

    pub(crate) fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    pub(crate) fn policy(&self) -> &Policy {
        self.rules.policy()
    }

    pub(crate) fn flights(&self) -> &Arc<Flights> {
        &self.flights
    }

    pub(crate) fn keeper(&self) -> &Keeper<S> {
        &self.keeper
    }

    pub(crate) fn permits(&self) -> Arc<Semaphore> {
        Arc::clone(&self.permits)
    }

    pub(crate) fn clock(&self) -> &impl Clock {
        &self.clock
    }

    pub(crate) fn scope_of(&self, parts: &http::request::Parts) -> Option<Scope> {
        self.scope.as_ref().and_then(|scope| scope(parts))
    }

    pub(crate) fn accepts(&self) -> Option<&(dyn Fn(&Key) -> bool + Sync)> {
        self.accepts.as_deref().map(|accepts| accepts as &(dyn Fn(&Key) -> bool + Sync))
    }

    pub(crate) fn transactions(&self) -> Option<Transactions> {
        self.transactions.clone()
    }

    /// Where large bodies wait, if that is what the policy wants.
    #[cfg(feature = "spool")]
    pub(crate) fn spool(&self) -> Option<&Spool> {
        self.spool.as_ref().filter(|_| self.policy().on_large_body == OnLargeBody::Stream)
    }

    /// Whether nothing new may begin: too much is unconfirmed, or the store is not to be trusted.
    pub(crate) fn is_closed_to_claims(&self) -> bool {
        self.refuses.load(Ordering::Relaxed) || self.keeper.is_full()
    }

    /// A token that nobody else has, nor can guess.
    pub(crate) fn token(&self) -> Token {
        self.tokens.draw()
    }

    /// How long handlers take.
    pub(crate) fn typical(&self) -> &TypicalTime {
        &self.typical
    }

    /// Whether the record's scope may have another new key this minute.
    pub(crate) fn meter(&self, id: &RecordId) -> bool {
        let Some(limit) = self.policy().new_keys_per_minute_max else { return true };
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        meter.admits(id, limit, self.clock.now())
    }

    /// Asks the application's hook; without one, or without an answer, nothing is known.
    pub(crate) async fn probe(&self, exchange: &Exchange, attempt: u32) -> ProbeResult {
        let (Some(probe), Some(operation)) = (&self.probe, exchange.operation()) else {
            return ProbeResult::Unknown;
        };
        let (named, rules) = (operation.clone(), Arc::clone(&self.rules));
        let orphan = Orphan {
            key: operation.key().clone(),
            scope: operation.scope().clone(),
            attempt,
            derived: Derive(Arc::new(move |label| named.derive(label, &rules))),
        };
        timeout(PROBE_TIMEOUT, probe(orphan)).await.unwrap_or(ProbeResult::Unknown)
    }
}

/// `CLOCK_MONOTONIC`, in milliseconds since the engine was made.
#[derive(Debug)]
struct MonotonicClock(Instant);

impl Clock for MonotonicClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(millis(self.0.elapsed()))
    }
}

const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
