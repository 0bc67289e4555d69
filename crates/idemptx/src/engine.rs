//! The engine: a policy on a store, with what a process needs to drive it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use idemptx_core::exchange::{Operation, Rules};
use idemptx_core::key::{Key, Scope};
use idemptx_core::lease::Token;
use idemptx_core::outcome::Rejection;
#[cfg(feature = "spool")]
use idemptx_core::policy::OnLargeBody;
use idemptx_core::policy::Policy;
use idemptx_core::stats::{KeyMeter, TypicalTime};
use idemptx_core::store::Store;
use idemptx_core::time::{Clock, Timestamp, millis};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::lease_renewer::LeaseRenewer;
use crate::operator::Operator;
use crate::single_flight::SingleFlight;
#[cfg(feature = "spool")]
use crate::spool::Spool;
use crate::store::Transactional;
use crate::tokens::Tokens;

mod builder;
mod observer;
mod probe;
mod route;
mod scope_permits;
mod store_check;

use self::builder::Variant;
pub use self::builder::{EngineBuilder, EngineError};
pub use self::observer::Completed;
pub(crate) use self::observer::Observation;
use self::observer::ObserveFn;
#[cfg(all(feature = "spool", feature = "tracing"))]
pub(crate) use self::observer::warn_of_spool;
#[cfg(feature = "tracing")]
pub(crate) use self::observer::{warn_of_directive, warn_of_key};
pub use self::probe::Orphan;
use self::probe::{ProbeFn, Probes};
pub use self::route::RouteBuilder;
use self::scope_permits::ScopePermits;
pub use self::store_check::CheckError;
use self::store_check::StoreSafety;

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
        self.inner.store()
    }

    /// Returns an engine with another policy that shares everything else with this one: the store,
    /// the renewal of leases, and all limits.
    ///
    /// Put its layer around the routes to which the policy applies.
    /// Where a request meets layers of both, the outer one counts.
    /// The functions of the builder hold for every policy of the engine.
    ///
    /// ```
    /// use axum::{Router, routing::post};
    /// use idemptx::{Engine, Policy, Scope, store::MemoryStore};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let engine = Engine::builder(MemoryStore::new())
    ///     .scope(|request| request.headers.get("x-account").map(Scope::new))
    ///     .build()?;
    /// let payments = engine.with_policy(Policy::payments())?;
    /// let app: Router = Router::new()
    ///     .route("/payments", post(|| async { "paid" }).layer(payments.layer()))
    ///     .route("/orders", post(|| async { "ordered" }).layer(engine.layer()));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`EngineBuilder::build`].
    pub fn with_policy(&self, policy: Policy) -> Result<Self, EngineError> {
        let Inner { variant, shared, .. } = &*self.inner;
        Self::sharing(policy, variant.clone(), Arc::default(), Arc::clone(shared))
    }

    /// Returns its present load, for metrics.
    #[must_use]
    pub fn load(&self) -> Load {
        let shared = &self.inner.shared;
        let all = shared.executions_max as usize;
        Load {
            executing: all.saturating_sub(shared.permits.available_permits()),
            waiting: shared.single_flight.waiting(),
            unconfirmed: shared.lease_renewer.unconfirmed(),
        }
    }

    /// Returns the operators' view of its records: look, list, resolve, forget.
    #[must_use]
    pub fn operator(&self) -> Operator<S> {
        let Inner { rules, shared, .. } = &*self.inner;
        Operator::of(Arc::clone(&shared.store), Arc::clone(rules), Arc::clone(&shared.tokens))
    }

    /// Waits until every running handler, under any policy of the engine, has ended and every result
    /// is in the store, for at most the policy's `drain_ms`; `true` if so.
    ///
    /// Call it after the server has stopped to accept connections.
    /// What is not finished keeps its claim, and becomes an orphan.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    pub async fn drain(&self) -> bool {
        let shared = &self.inner.shared;
        let all = shared.executions_max;
        let idle = async {
            let executed = shared.permits.acquire_many(all).await;
            let flowed = shared.open_bodies.acquire_many(OPEN_BODIES_MAX).await;
            shared.lease_renewer.idle().await;
            drop((executed, flowed));
        };
        timeout(self.policy().drain, idle).await.is_ok()
    }

    /// Returns the number of operations that would be lost if the process ended now: handlers that
    /// run under a key, clients present or gone, and operations that the store has not confirmed.
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
            .field("store", &self.inner.shared.store)
            .field("policy", self.inner.rules.policy())
            .finish_non_exhaustive()
    }
}

/// The present load of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Load {
    /// Handlers that run under a key, or are about to; their clients may have left.
    pub executing: usize,
    /// Requests that wait for the end of another one.
    pub waiting: usize,
    /// Operations that are repeated in the background until the store confirms them.
    pub unconfirmed: usize,
}

pub(crate) type ScopeFn = Arc<dyn Fn(&http::request::Parts) -> Option<Scope> + Send + Sync>;
type AcceptsFn = Arc<dyn Fn(&Key) -> bool + Send + Sync>;
type Transactions = Arc<dyn Transactional>;
pub(crate) type RenderFn = Arc<dyn Fn(&Rejection) -> Response<Bytes> + Send + Sync>;

/// A policy, with what all policies of an engine share.
pub(crate) struct Inner<S> {
    rules: Arc<Rules>,
    typical: TypicalTime,
    /// Shared with the routes that have this policy from this engine.
    meter: Arc<Mutex<KeyMeter>>,
    variant: Variant,
    shared: Arc<Shared<S>>,
}

/// The state that all requests of an engine share, whatever their policy.
struct Shared<S> {
    store: Arc<S>,
    namespace: Box<str>,
    single_flight: Arc<SingleFlight>,
    lease_renewer: LeaseRenewer<S>,
    safety: Arc<StoreSafety>,
    permits: Arc<Semaphore>,
    executions_max: u32,
    scope_permits: Option<ScopePermits>,
    clock: MonotonicClock,
    tokens: Arc<Tokens>,
    hooks: Hooks,
    probes: Probes,
    /// Bodies of responses that flow on after their executions have ended.
    open_bodies: Arc<Semaphore>,
    transactions: Option<Transactions>,
    #[cfg(feature = "spool")]
    spool: Option<Spool>,
}

/// The application's functions.
#[derive(Clone, Default)]
struct Hooks {
    accepts: Option<AcceptsFn>,
    probe: Option<ProbeFn>,
    render: Option<RenderFn>,
    observe: Option<ObserveFn>,
    /// Set if only the bodies of responses tell how their exchanges ended.
    leaves_extensions: bool,
}

impl<S: Store> Inner<S> {
    pub(crate) fn store(&self) -> &S {
        &self.shared.store
    }

    pub(crate) fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    pub(crate) fn policy(&self) -> &Policy {
        self.rules.policy()
    }

    pub(crate) fn single_flight(&self) -> &Arc<SingleFlight> {
        &self.shared.single_flight
    }

    pub(crate) fn lease_renewer(&self) -> &LeaseRenewer<S> {
        &self.shared.lease_renewer
    }

    pub(crate) fn permits(&self) -> Arc<Semaphore> {
        Arc::clone(&self.shared.permits)
    }

    /// Returns the permits of an operation's principal, if their number is limited.
    pub(crate) fn scope_permits(&self, operation: &Operation) -> Option<Arc<Semaphore>> {
        let permits = self.shared.scope_permits.as_ref()?;
        Some(permits.of(operation.meter_id(&self.rules)))
    }

    /// Counts a body that flows on, until the permit is dropped; [`Engine::drain`] waits for it.
    pub(crate) fn open_body(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.shared.open_bodies).try_acquire_owned().ok()
    }

    pub(crate) fn clock(&self) -> &impl Clock {
        &self.shared.clock
    }

    /// Returns the application's function that names scopes.
    pub(crate) fn scope(&self) -> Option<&ScopeFn> {
        self.variant.scope.as_ref()
    }

    pub(crate) fn accepts(&self) -> Option<&(dyn Fn(&Key) -> bool + Sync)> {
        let accepts = self.shared.hooks.accepts.as_deref();
        accepts.map(|accepts| accepts as &(dyn Fn(&Key) -> bool + Sync))
    }

    /// Returns the application's function that makes responses of refusals.
    pub(crate) fn render(&self) -> Option<&RenderFn> {
        self.shared.hooks.render.as_ref()
    }

    /// Returns whether the extensions of responses tell how their exchanges ended.
    pub(crate) fn fills_extensions(&self) -> bool {
        !self.shared.hooks.leaves_extensions
    }

    /// Returns the application's function that observes outcomes.
    pub(crate) fn observer(&self) -> Option<ObserveFn> {
        self.shared.hooks.observe.clone()
    }

    pub(crate) fn transactions(&self) -> Option<Transactions> {
        self.shared.transactions.clone()
    }

    /// Returns the spool, if the policy streams large bodies.
    #[cfg(feature = "spool")]
    pub(crate) fn spool(&self) -> Option<&Spool> {
        let streams = self.policy().on_large_body == OnLargeBody::Stream;
        self.shared.spool.as_ref().filter(|_| streams)
    }

    /// Returns `true` if no new claim may be made: too much is unconfirmed, or the store is unsafe.
    pub(crate) fn is_closed_to_claims(&self) -> bool {
        self.shared.safety.is_refused_by(self.policy()) || self.lease_renewer().is_full()
    }

    /// Draws a token that is unique and cannot be guessed.
    pub(crate) fn token(&self) -> Token {
        self.shared.tokens.draw()
    }

    /// Returns the source of tokens, which is that of one engine with all of its policies.
    pub(crate) fn tokens(&self) -> &Arc<Tokens> {
        &self.shared.tokens
    }

    /// The typical duration of handlers.
    pub(crate) fn typical(&self) -> &TypicalTime {
        &self.typical
    }

    /// The typical duration of handlers, as a request sees it that comes now.
    pub(crate) fn typical_now(&self) -> Duration {
        self.typical.at(self.clock().now())
    }

    /// Counts a new key; returns `false` if its principal may have no more this minute.
    pub(crate) fn meter(&self, operation: &Operation) -> bool {
        let Some(limit) = self.policy().new_keys_per_minute_max else { return true };
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        meter.admits(operation.meter_id(&self.rules), limit, self.clock().now())
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

/// More bodies than these may flow, but a drain does not wait for them.
pub(super) const OPEN_BODIES_MAX: u32 = 1 << 20;
