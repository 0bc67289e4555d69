//! The engine: a policy on a store, with what a process needs to drive it.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use idemptx_core::exchange::{Exchange, Probed, Rules};
use idemptx_core::key::{Key, RecordId, Scope};
use idemptx_core::lease::Token;
use idemptx_core::policy::{OnLargeBody, OnOrphan, OnUnsafeStore, Policy, ScopeRule};
use idemptx_core::store::{Store, StoreError};
use idemptx_core::time::{Clock, Timestamp, millis};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::flight::Flights;
use crate::keeper::Keeper;
use crate::store::{Finding, SafetyCheck, SafetyReport, Severity};

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
        EngineBuilder {
            store,
            policy: Policy::draft(),
            executions_max: EXECUTIONS_MAX,
            scope: None,
            accepts: None,
            probe: None,
        }
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

    pub(crate) fn inner(&self) -> &Arc<Inner<S>> {
        &self.inner
    }
}

impl<S: SafetyCheck> Engine<S> {
    /// Asks the store what it promises in its present configuration.
    ///
    /// Call it at start, and print the report's guarantee line and findings.
    /// Under `on_unsafe_store: refuse`, an unsafe store makes the engine answer every request under
    /// a key with `store-unavailable` until a later check finds it safe.
    ///
    /// # Errors
    ///
    /// [`CheckError::Unreachable`] when the store gave no answer: call again later.
    /// [`CheckError::Refused`] when it is unsafe and the policy refuses that.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    pub async fn check(&self) -> Result<SafetyReport, CheckError> {
        let mut report = self.inner.store.check().await.map_err(CheckError::Unreachable)?;
        if self.policy().secrets.is_empty() && self.store().capabilities().shared {
            let guessable = "without a secret in the policy, whoever reads the store can test \
                             guesses of keys and bodies: set `secrets`";
            report.findings.push(Finding::new(Severity::Warning, guessable));
        }
        let refuse = report.is_fatal()
            || report.is_unsafe() && self.policy().on_unsafe_store == OnUnsafeStore::Refuse;
        self.inner.refuses.store(refuse, Ordering::Relaxed);
        if refuse { Err(CheckError::Refused(report)) } else { Ok(report) }
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

/// Why a store may not be used, or why that cannot be told.
#[derive(Debug)]
#[non_exhaustive]
pub enum CheckError {
    /// It gave no answer.
    Unreachable(StoreError),
    /// It can lose records, or lacks something that is needed.
    Refused(SafetyReport),
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(_) => f.write_str("the store cannot be reached"),
            Self::Refused(report) => {
                f.write_str("the store is not safe enough for this policy")?;
                report.findings.iter().try_for_each(|finding| write!(f, "; {}", finding.text))
            }
        }
    }
}

impl std::error::Error for CheckError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreachable(error) => Some(error),
            Self::Refused(_) => None,
        }
    }
}

/// Configures an [`Engine`].
#[must_use]
pub struct EngineBuilder<S> {
    store: S,
    policy: Policy,
    executions_max: u32,
    scope: Option<ScopeFn>,
    accepts: Option<AcceptsFn>,
    probe: Option<ProbeFn>,
}

impl<S: Store> EngineBuilder<S> {
    /// Sets the policy; [`Policy::draft`] by default.
    ///
    /// [`scope`](Self::scope) and [`probe`](Self::probe) go before what it says, set earlier or
    /// later.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Tells whose key a request carries; `None` refuses it with `scope-unresolved`.
    ///
    /// Takes the place of the policy's `scope`.
    ///
    /// # Security
    ///
    /// Take the scope from what authentication has verified (a request extension), never from what
    /// a client can write.
    pub fn scope<F>(mut self, scope: F) -> Self
    where
        F: Fn(&http::request::Parts) -> Option<Scope> + Send + Sync + 'static,
    {
        self.scope = Some(Arc::new(scope));
        self
    }

    /// Refuses keys of another form than the API publishes, such as UUIDs only.
    pub fn accept_keys<F: Fn(&Key) -> bool + Send + Sync + 'static>(mut self, accepts: F) -> Self {
        self.accepts = Some(Arc::new(accepts));
        self
    }

    /// Finds out what became of an operation whose executor vanished.
    ///
    /// Sets the policy's `on_orphan` to `probe`.
    /// The hook has ten seconds; without an answer the outcome stays unknown.
    pub fn probe<F, R>(mut self, probe: F) -> Self
    where
        F: Fn(Orphan) -> R + Send + Sync + 'static,
        R: Future<Output = Probed> + Send + 'static,
    {
        self.probe = Some(Arc::new(move |orphan| Box::pin(probe(orphan))));
        self
    }

    /// Limits how many handlers run under a key at a time, clients present or gone; 10,000 by
    /// default.
    ///
    /// Beyond it a request waits for as long as the store may take, and is then refused with
    /// `store-unavailable`.
    pub fn executions_max(mut self, executions: u32) -> Self {
        self.executions_max = executions.max(1);
        self
    }

    /// Makes the engine.
    ///
    /// # Errors
    ///
    /// [`EngineError`] for a policy that this front door cannot carry out, or a system without
    /// randomness.
    pub fn build(self) -> Result<Engine<S>, EngineError> {
        let mut policy = self.policy;
        // Whatever order they were set in: a function that was given is meant to be asked.
        if self.scope.is_some() {
            policy.scope = Some(ScopeRule::Custom);
        }
        if self.probe.is_some() {
            policy.on_orphan = OnOrphan::Probe;
        }
        if policy.scope.is_none() {
            return Err(EngineError("set the policy's scope: whose keys are they?"));
        }
        if policy.scope == Some(ScopeRule::Custom) && self.scope.is_none() {
            return Err(EngineError("scope is a function here: set it with EngineBuilder::scope"));
        }
        if policy.on_large_body == OnLargeBody::Stream {
            return Err(EngineError("on_large_body = stream is for the gateway: reject or skip"));
        }
        if policy.on_orphan == OnOrphan::Probe && self.probe.is_none() {
            return Err(EngineError("on_orphan = probe needs a hook: EngineBuilder::probe"));
        }
        let store = Arc::new(self.store);
        let inner = Inner {
            flights: Flights::new(policy.waiters_max, policy.waiters_total_max),
            keeper: Keeper::new(Arc::clone(&store)),
            rules: Arc::new(Rules::new(policy)),
            store,
            permits: Arc::new(Semaphore::new(self.executions_max as usize)),
            executions_max: self.executions_max,
            clock: MonotonicClock(Instant::now()),
            tokens: Tokens::from_system()?,
            scope: self.scope,
            accepts: self.accepts,
            probe: self.probe,
            refuses: AtomicBool::new(false),
            typical_micros: AtomicU64::new(0),
            meters: Mutex::default(),
        };
        Ok(Engine { inner: Arc::new(inner) })
    }
}

impl<S: fmt::Debug> fmt::Debug for EngineBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineBuilder")
            .field("store", &self.store)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// A policy that an engine cannot carry out; the text says what to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineError(&'static str);

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for EngineError {}

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
type ProbeFn = Arc<dyn Fn(Orphan) -> Pin<Box<dyn Future<Output = Probed> + Send>> + Send + Sync>;

/// What all requests of an engine share.
pub(crate) struct Inner<S> {
    store: Arc<S>,
    rules: Arc<Rules>,
    flights: Arc<Flights>,
    keeper: Keeper<S>,
    permits: Arc<Semaphore>,
    executions_max: u32,
    clock: MonotonicClock,
    tokens: Tokens,
    scope: Option<ScopeFn>,
    accepts: Option<AcceptsFn>,
    probe: Option<ProbeFn>,
    /// The store was found unsafe, and the policy refuses that.
    refuses: AtomicBool,
    typical_micros: AtomicU64,
    meters: Mutex<HashMap<[u8; 16], Meter>>,
}

/// New keys of a scope within the current minute.
struct Meter {
    minute: u64,
    keys: u32,
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

    /// Whether nothing new may begin: too much is unconfirmed, or the store is not to be trusted.
    pub(crate) fn is_closed_to_claims(&self) -> bool {
        self.refuses.load(Ordering::Relaxed) || self.keeper.is_full()
    }

    /// A token that nobody else has, nor can guess.
    pub(crate) fn token(&self) -> Token {
        self.tokens.draw()
    }

    /// How long handlers take, smoothed; `None` before the first one ended.
    pub(crate) fn typical(&self) -> Option<Duration> {
        match self.typical_micros.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    pub(crate) fn took(&self, duration: Duration) {
        let sample = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1);
        let before = self.typical_micros.load(Ordering::Relaxed);
        // Lost updates between threads do not matter to an estimate.
        let after = if before == 0 { sample } else { before - before / 8 + sample / 8 };
        self.typical_micros.store(after.max(1), Ordering::Relaxed);
    }

    /// Whether the record's scope may have another new key this minute.
    pub(crate) fn meter(&self, id: &RecordId) -> bool {
        let Some(limit) = self.policy().new_keys_per_minute_max else { return true };
        let minute = millis(self.clock.now().since(Timestamp::default())) / 60_000;
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        if meters.len() >= METERS_MAX {
            meters.retain(|_, meter| meter.minute == minute);
        }
        if meters.len() >= METERS_MAX && !meters.contains_key(&id.scope_bytes()) {
            return false;
        }
        let meter = meters.entry(id.scope_bytes()).or_insert(Meter { minute, keys: 0 });
        if meter.minute != minute {
            *meter = Meter { minute, keys: 0 };
        }
        meter.keys = meter.keys.saturating_add(1);
        meter.keys <= limit
    }

    /// Asks the application's hook; without one, or without an answer, nothing is known.
    pub(crate) async fn probe(&self, exchange: &Exchange, attempt: u32) -> Probed {
        let (Some(probe), Some(operation)) = (&self.probe, exchange.operation()) else {
            return Probed::Unknown;
        };
        let (named, rules) = (operation.clone(), Arc::clone(&self.rules));
        let orphan = Orphan {
            key: operation.key().clone(),
            scope: operation.scope().clone(),
            attempt,
            derived: Derive(Arc::new(move |label| named.derive(label, &rules))),
        };
        timeout(PROBE_TIMEOUT, probe(orphan)).await.unwrap_or(Probed::Unknown)
    }
}

/// Draws tokens: the system's randomness, stretched, because asking the system for each token costs
/// as much as a whole replay's hashing.
struct Tokens {
    seed: [u8; 32],
    drawn: AtomicU64,
    /// Part of what is hashed, so that a forked process does not draw what its parent draws.
    began: Instant,
}

impl Tokens {
    fn from_system() -> Result<Self, EngineError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)
            .map_err(|_| EngineError("the system has no randomness to make tokens from"))?;
        Ok(Self { seed, drawn: AtomicU64::new(0), began: Instant::now() })
    }

    fn draw(&self) -> Token {
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        Token::drawn(&self.seed, number, self.began.elapsed())
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

const EXECUTIONS_MAX: u32 = 10_000;
const METERS_MAX: usize = 100_000;
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
