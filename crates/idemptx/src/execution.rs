//! The execution, as its handler sees it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::{AtomicU8, Ordering};

use idemptx_core::exchange::{Directive, Operation, Rules};
use idemptx_core::lease::{Lease, Token};
use idemptx_core::store::Store;

use crate::engine::Inner as Engine;
use crate::lease_renewer::LossSignal;
use crate::steps::{Labels, Records};
use crate::store::Transactional;
use crate::tokens::Tokens;
use crate::transaction::Effects;

#[cfg(feature = "axum")]
mod axum_extractor;
#[cfg(any(feature = "actix", feature = "axum"))]
mod bypass_note;

#[cfg(any(feature = "actix", feature = "axum"))]
pub(crate) use self::bypass_note::BypassNote;
#[cfg(feature = "axum")]
pub(crate) use self::bypass_note::Missing;
#[cfg(any(feature = "actix", feature = "axum"))]
pub use self::bypass_note::NoExecution;

/// The execution that a handler runs in; a cheap handle.
///
/// The tower layer puts it into the request's extensions.
/// With the features `axum` and `actix` it is an extractor: a handler takes `Execution` where a key is
/// required, and `Option<Execution>` where it is optional.
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, routing::post};
/// use idemptx::{Engine, Execution, store::MemoryStore};
///
/// async fn pay(execution: Execution) -> String {
///     execution.derive("charge")
/// }
///
/// async fn order(execution: Option<Execution>) -> &'static str {
///     if execution.is_some() { "safe to retry" } else { "without a key" }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let engine = Engine::builder(MemoryStore::new()).build()?;
/// let app: Router = Router::new()
///     .route("/payments", post(pay))
///     .route("/orders", post(order))
///     .layer(engine.layer());
/// # Ok(()) }
/// # main().unwrap();
/// # }
/// ```
#[derive(Clone)]
pub struct Execution(Arc<Inner>);

struct Inner {
    operation: Operation,
    rules: Arc<Rules>,
    /// `None` for work that runs without a claim.
    lease: Option<Lease>,
    lost: Arc<LossSignal>,
    /// The identity of its engine; `None` without a claim.
    engine: Option<Arc<Tokens>>,
    /// The store's transactions, if it is in the application's database.
    #[cfg_attr(
        not(any(feature = "postgres", feature = "sqlite")),
        allow(dead_code, reason = "there is no such database")
    )]
    transactions: Option<Arc<dyn Transactional>>,
    pending: Effects,
    /// The handler's own [`Directive`], as a number.
    outcome: AtomicU8,
    /// The store of its steps, under a claim.
    records: Option<Arc<dyn Records>>,
    steps: AtomicU32,
    /// The labels of the steps that run.
    active_labels: Labels,
}

impl Execution {
    pub(crate) fn new<S: Store>(
        operation: Operation,
        lease: &Lease,
        lost: Arc<LossSignal>,
        engine: &Arc<Engine<S>>,
    ) -> Self {
        Self(Arc::new(Inner {
            operation,
            rules: Arc::clone(engine.rules()),
            lease: Some(lease.clone()),
            lost,
            engine: Some(Arc::clone(engine.tokens())),
            transactions: engine.transactions(),
            pending: Effects::default(),
            outcome: AtomicU8::new(UNSET),
            records: Some(Arc::clone(engine) as Arc<dyn Records>),
            steps: AtomicU32::new(0),
            active_labels: Labels::default(),
        }))
    }

    /// The execution of work that runs without a claim, because the policy says so: attempt 1, a
    /// token and a fence of zero.
    pub(crate) fn unprotected(operation: Operation, rules: Arc<Rules>) -> Self {
        Self(Arc::new(Inner {
            operation,
            rules,
            lease: None,
            lost: Arc::default(),
            engine: None,
            transactions: None,
            pending: Effects::default(),
            outcome: AtomicU8::new(UNSET),
            records: None,
            steps: AtomicU32::new(0),
            active_labels: Labels::default(),
        }))
    }

    /// Returns the client's key, quotes and escapes undone.
    #[must_use]
    pub fn key(&self) -> &str {
        self.0.operation.key().as_str()
    }

    /// Returns the number of this execution of the operation: 1, or more after an orphan was taken
    /// over.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.lease.as_ref().map_or(1, |lease| lease.attempt)
    }

    /// Returns the random token of this execution's claim.
    #[must_use]
    pub fn token(&self) -> Token {
        let none = Token::from_bytes([0; Token::BYTES]);
        self.0.lease.as_ref().map_or(none, |lease| lease.token)
    }

    /// Returns a number greater than that of any earlier execution of this operation that may still be
    /// running: give it to systems that can refuse a stale writer.
    #[must_use]
    pub fn fence(&self) -> u64 {
        self.0.lease.as_ref().map_or(0, |lease| lease.fence)
    }

    /// Derives a key for a call to another system, named by `label`.
    ///
    /// It depends on scope, key and label alone (and on the policy's secret, the headers to which keys
    /// are bound, and the route where the policy's `key_space` says so): every attempt derives the same, so a downstream system that honours keys executes once, however often this handler runs.
    #[must_use]
    pub fn derive(&self, label: &str) -> String {
        self.0.operation.derive(label, &self.0.rules)
    }

    /// Returns `true` once another execution has taken the operation over: what this handler still
    /// does is in vain.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.0.lost.is_lost()
    }

    /// Resolves once the lease is lost; pending as long as all is well.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    pub async fn lost(&self) {
        self.0.lost.wait().await;
    }

    /// Says how the operation's result is recorded, instead of the policy.
    ///
    /// - [`Directive::Store`]: it is final, with any status. A value or response is replayed; an
    ///   error of [`Engine::run`](crate::Engine::run) has no form to be replayed in, and a retry is
    ///   refused with `result-unavailable`.
    /// - [`Directive::Release`]: nothing has happened, and the next request with the key executes.
    /// - [`Directive::Unknown`]: it may have happened, and nothing executes until that is resolved.
    ///
    /// The last call before the handler returns counts, and also before it fails or panics.
    /// What the response itself says, by extension or header field, goes before it.
    ///
    /// ```
    /// # use idemptx::{Directive, Engine, Policy, RunError, store::MemoryStore};
    /// # use idemptx_core::policy::ScopeRule;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let policy = Policy::payments().into_builder().scope(ScopeRule::Shared).build()?;
    /// # let engine = Engine::builder(MemoryStore::new()).policy(policy).build()?;
    /// let declined = engine.run("payout-17", b"100 EUR", async |execution| {
    ///     // The bank has refused for certain: without this, `payments` would quarantine the key.
    ///     execution.set_outcome(Directive::Release);
    ///     Err::<u32, _>(std::io::Error::other("account closed"))
    /// });
    /// assert!(matches!(declined.await, Err(RunError::Failed(_))));
    /// let paid = engine.run("payout-17", b"100 EUR", async |_| Ok::<_, std::io::Error>(1001));
    /// assert_eq!(paid.await?, 1001);
    /// # Ok(()) }
    /// ```
    pub fn set_outcome(&self, outcome: Directive) {
        let number = match outcome {
            Directive::Store => STORE,
            Directive::Release => RELEASE,
            _ => UNKNOWN,
        };
        self.0.outcome.store(number, Ordering::Relaxed);
    }

    /// Returns what [`set_outcome`](Self::set_outcome) was called with.
    pub(crate) fn outcome(&self) -> Option<Directive> {
        match self.0.outcome.load(Ordering::Relaxed) {
            STORE => Some(Directive::Store),
            RELEASE => Some(Directive::Release),
            UNKNOWN => Some(Directive::Unknown),
            _ => None,
        }
    }

    /// Returns `true` if it is an execution of this engine, under any policy.
    pub(crate) fn is_under<S: Store>(&self, engine: &Engine<S>) -> bool {
        self.0.engine.as_ref().is_some_and(|it| Arc::ptr_eq(it, engine.tokens()))
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.0.rules
    }

    /// Returns the encoded description of the request, with which its record begins.
    pub(crate) fn description(&self) -> &[u8] {
        self.0.lease.as_ref().map_or(&[], |lease| &lease.description)
    }

    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.0.lease.as_ref()
    }

    /// Returns the lease and the store of its steps; `None` without a claim.
    pub(crate) fn recorded(&self) -> Option<(&Lease, &dyn Records)> {
        Some((self.0.lease.as_ref()?, &**self.0.records.as_ref()?))
    }

    /// Counts a step.
    pub(crate) fn begin_step(&self) -> u32 {
        self.0.steps.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    pub(crate) fn active_labels(&self) -> &Labels {
        &self.0.active_labels
    }

    pub(crate) fn operation(&self) -> &Operation {
        &self.0.operation
    }

    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn transactions(&self) -> Option<&Arc<dyn Transactional>> {
        self.0.transactions.as_ref()
    }

    pub(crate) fn pending(&self) -> &Effects {
        &self.0.pending
    }
}

impl fmt::Debug for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execution")
            .field("attempt", &self.attempt())
            .field("fence", &self.fence())
            .finish_non_exhaustive()
    }
}

const UNSET: u8 = 0;
const STORE: u8 = 1;
const RELEASE: u8 = 2;
const UNKNOWN: u8 = 3;
