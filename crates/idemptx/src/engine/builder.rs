//! The builder of an engine.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use http::Response;
use idemptx_core::exchange::{ProbeResult, Rules};
use idemptx_core::key::{Key, Scope};
use idemptx_core::outcome::Rejection;
use idemptx_core::policy::{ConfigError, Mode, OnLargeBody, OnOrphan, Policy, ScopeRule};
use idemptx_core::stats::{KeyMeter, TypicalTime};
use idemptx_core::store::Store;
use tokio::sync::Semaphore;

use super::probe::{Orphan, Probes};
use super::{
    Completed, Engine, Hooks, Inner, MonotonicClock, OPEN_BODIES_MAX, ScopeFn, ScopePermits,
    Shared, Transactions,
};
use crate::lease_renewer::LeaseRenewer;
use crate::single_flight::SingleFlight;
#[cfg(feature = "spool")]
use crate::spool::Spool;
use crate::store::Transactional;
use crate::tokens::Tokens;

/// Configures an [`Engine`].
#[must_use]
pub struct EngineBuilder<S> {
    store: S,
    policy: Policy,
    namespace: Box<str>,
    variant: Variant,
    executions_max: u32,
    executions_per_scope_max: Option<u32>,
    hooks: Hooks,
    transactions: Option<TransactionsOf<S>>,
    #[cfg(feature = "spool")]
    spool: Option<Spool>,
}

impl<S: Store> EngineBuilder<S> {
    pub(super) fn new(store: S) -> Self {
        Self {
            store,
            policy: Policy::draft(),
            namespace: Box::default(),
            variant: Variant::default(),
            executions_max: EXECUTIONS_MAX,
            executions_per_scope_max: None,
            hooks: Hooks::default(),
            transactions: None,
            #[cfg(feature = "spool")]
            spool: None,
        }
    }

    /// Sets the policy; [`Policy::draft`] by default.
    ///
    /// [`scope`](Self::scope) and [`probe`](Self::probe) go before what it says, set earlier or
    /// later.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets the namespace, which tells services on one store apart; empty by default.
    ///
    /// Every process of a service must have the same one: it is part of the names of records.
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Sets the name of the route, by which records describe their requests to operators; empty by
    /// default.
    pub fn route(mut self, name: &str) -> Self {
        self.variant.route = name.into();
        self
    }

    /// Sets the function that names the scope of a request's key; `None` refuses the request with
    /// `scope-unresolved`.
    ///
    /// It is called for requests that carry a key.
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
        self.variant.scope = Some(Arc::new(scope));
        self
    }

    /// Refuses keys of another form than the API publishes, such as UUIDs only; those of
    /// [`Engine::run`] too.
    pub fn accept_keys<F: Fn(&Key) -> bool + Send + Sync + 'static>(mut self, accepts: F) -> Self {
        self.hooks.accepts = Some(Arc::new(accepts));
        self
    }

    /// Sets the hook that finds out whether an operation without a result has happened.
    ///
    /// Sets the policy's `on_orphan` to `probe`.
    /// The hook has ten seconds; without an answer the outcome stays unknown.
    /// It is asked about a record once at a time, and counts for
    /// [`executions_max`](Self::executions_max).
    pub fn probe<F, R>(mut self, probe: F) -> Self
    where
        F: Fn(Orphan) -> R + Send + Sync + 'static,
        R: Future<Output = ProbeResult> + Send + 'static,
    {
        self.hooks.probe = Some(Arc::new(move |orphan| Box::pin(probe(orphan))));
        self
    }

    /// Sets the function that makes the responses of refusals, in place of the policy's `problem`.
    ///
    /// The layer adds its own header fields to them.
    /// Calls of gRPC are refused in the form of gRPC all the same.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::Response;
    /// use idemptx::{Engine, Problem, store::MemoryStore};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let engine = Engine::builder(MemoryStore::new())
    ///     .refusals(|rejection| {
    ///         // Retry-After, Link and the like stay.
    ///         let response = Problem::from(rejection).into_response();
    ///         response.map(|_| Bytes::from(format!("{{\"error\":\"{}\"}}", rejection.code)))
    ///     })
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    pub fn refusals<F>(mut self, render: F) -> Self
    where
        F: Fn(&Rejection) -> Response<Bytes> + Send + Sync + 'static,
    {
        self.hooks.render = Some(Arc::new(render));
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

    /// Limits how many handlers run at a time for one principal: a scope and the headers to which its
    /// keys are bound; no limit by default.
    ///
    /// So one account that sends much cannot use up [`executions_max`](Self::executions_max).
    /// Beyond it a request waits for as long as the store may take, and is then refused with
    /// `store-unavailable`.
    pub fn executions_per_scope_max(mut self, executions: u32) -> Self {
        self.executions_per_scope_max = Some(executions.max(1));
        self
    }

    /// Sets the function that is called with the outcome of every request, also where the client has
    /// left and no layer outside sees a response.
    ///
    /// It runs in the request's task: hand over to another task what takes time.
    /// It is called for requests without a key before their handlers run, and for others before
    /// their responses are sent.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU64, Ordering};
    /// use idemptx::{Engine, Outcome, store::MemoryStore};
    ///
    /// static REPLAYS: AtomicU64 = AtomicU64::new(0);
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let engine = Engine::builder(MemoryStore::new())
    ///     .observe(|completed| {
    ///         if completed.outcome == Outcome::Replayed {
    ///             REPLAYS.fetch_add(1, Ordering::Relaxed);
    ///         }
    ///     })
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    pub fn observe<F: Fn(&Completed) + Send + Sync + 'static>(mut self, observe: F) -> Self {
        self.hooks.observe = Some(Arc::new(observe));
        self
    }

    /// Leaves the [`Outcome`](crate::Outcome) of an exchange and the
    /// [`RecordId`](idemptx_core::key::RecordId) out of the extensions of responses, which take four
    /// allocations: [`ResponseBody::outcome`](crate::tower::ResponseBody::outcome) and
    /// [`record_id`](crate::tower::ResponseBody::record_id) tell them, too.
    ///
    /// For a service that is around the layer directly; another may replace the body.
    /// Extractors of axum inside of it cannot tell then why a request is not protected.
    pub fn without_extensions(mut self) -> Self {
        self.hooks.leaves_extensions = true;
        self
    }

    /// Lets handlers settle in transactions of the store's own database, in which they do what they
    /// do: [`IdempotentTransaction`](crate::IdempotentTransaction), `Execution::settle_in`.
    ///
    /// Handlers that have no such transaction run as they do without this.
    ///
    /// ```
    /// # #[cfg(feature = "postgres")] {
    /// use idemptx::{Engine, store::postgres::PostgresStore};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = PostgresStore::open("postgres://app@localhost/shop")?;
    /// let engine = Engine::builder(store).transactional().build()?;
    /// # Ok(()) }
    /// # main().unwrap();
    /// # }
    /// ```
    pub fn transactional(mut self) -> Self
    where
        S: Transactional,
    {
        self.transactions = Some(|store| {
            let any = || Arc::clone(store) as Arc<dyn Transactional>;
            store.is_transactional().then(any)
        });
        self
    }

    /// Sets the directory for bodies that are too large for memory, for `on_large_body: stream`.
    #[cfg(feature = "spool")]
    pub fn spool(mut self, spool: Spool) -> Self {
        self.spool = Some(spool);
        self
    }

    /// Makes the engine.
    ///
    /// # Errors
    ///
    /// [`EngineError`] for a policy that this front door cannot carry out, or a system without
    /// randomness.
    pub fn build(self) -> Result<Engine<S>, EngineError> {
        let store = Arc::new(self.store);
        let transactions = match self.transactions {
            None => None,
            Some(of) => Some(of(&store).ok_or_else(|| {
                EngineError::new(
                    "`transactional` needs a store in a database that the application has \
                     transactions on: PostgreSQL or SQLite",
                )
            })?),
        };
        let shared = Shared {
            single_flight: SingleFlight::new(),
            lease_renewer: LeaseRenewer::new(Arc::clone(&store)),
            safety: Arc::default(),
            store,
            namespace: self.namespace,
            permits: Arc::new(Semaphore::new(self.executions_max as usize)),
            executions_max: self.executions_max,
            scope_permits: self.executions_per_scope_max.map(ScopePermits::new),
            clock: MonotonicClock(Instant::now()),
            tokens: Arc::new(Tokens::from_system()?),
            hooks: self.hooks,
            probes: Probes::default(),
            open_bodies: Arc::new(Semaphore::new(OPEN_BODIES_MAX as usize)),
            transactions,
            #[cfg(feature = "spool")]
            spool: self.spool,
        };
        Engine::sharing(self.policy, self.variant, Arc::default(), Arc::new(shared))
    }
}

/// The settings in which the routes of one engine may differ, beside their policies.
#[derive(Clone, Default)]
pub(super) struct Variant {
    pub(super) scope: Option<ScopeFn>,
    /// The name of the route.
    pub(super) route: Box<str>,
}

impl<S: Store> Engine<S> {
    /// Makes an engine with a policy that the shared state can carry out.
    pub(super) fn sharing(
        policy: Policy,
        variant: Variant,
        meter: Arc<Mutex<KeyMeter>>,
        shared: Arc<Shared<S>>,
    ) -> Result<Self, EngineError> {
        let policy = fitted(policy, variant.scope.is_some(), &shared)?;
        let rules = Rules::in_namespace(policy, &shared.namespace).on_route(&variant.route);
        let inner = Inner {
            rules: Arc::new(rules),
            typical: TypicalTime::default(),
            meter,
            variant,
            shared,
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

/// Lets the application's functions go before what a policy says, and checks that nothing else is
/// missing.
fn fitted<S>(
    mut policy: Policy,
    has_scope: bool,
    shared: &Shared<S>,
) -> Result<Policy, EngineError> {
    // In any order of calls: a function that was given is meant to be asked.
    if has_scope {
        policy.scope = Some(ScopeRule::Custom);
    }
    if shared.hooks.probe.is_some() {
        policy.on_orphan = OnOrphan::Probe;
    }
    if policy.scope.is_none() {
        return Err(EngineError::new("set the policy's scope: whose keys are they?"));
    }
    if policy.scope == Some(ScopeRule::Custom) && !has_scope {
        return Err(EngineError::new("scope is a function here: set it with EngineBuilder::scope"));
    }
    policy.validate()?;
    #[cfg(feature = "spool")]
    let has_spool = shared.spool.is_some();
    #[cfg(not(feature = "spool"))]
    let has_spool = false;
    if policy.on_large_body == OnLargeBody::Stream && !has_spool {
        return Err(EngineError::new("on_large_body = stream needs room: EngineBuilder::spool"));
    }
    if policy.on_orphan == OnOrphan::Probe && shared.hooks.probe.is_none() {
        return Err(EngineError::new("on_orphan = probe needs a hook: EngineBuilder::probe"));
    }
    if shared.transactions.is_some() && policy.mode == Mode::Shadow {
        return Err(EngineError::new(
            "in shadow mode duplicates are executed, too, and none of them settles in a \
             transaction: enforce, or leave `transactional` out",
        ));
    }
    Ok(policy)
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineError(Reason);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Reason {
    /// The policy itself is not valid.
    Policy(ConfigError),
    /// The engine lacks what the policy needs.
    Missing(&'static str),
}

impl EngineError {
    pub(crate) const fn new(text: &'static str) -> Self {
        Self(Reason::Missing(text))
    }
}

impl From<ConfigError> for EngineError {
    fn from(error: ConfigError) -> Self {
        Self(Reason::Policy(error))
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Reason::Policy(error) => write!(f, "invalid policy: {error}"),
            Reason::Missing(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for EngineError {}

/// Remembers that a store is transactional where its type is forgotten.
type TransactionsOf<S> = fn(&Arc<S>) -> Option<Transactions>;

const EXECUTIONS_MAX: u32 = 10_000;
