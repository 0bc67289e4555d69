//! What a handler sees of the execution it is part of.

use std::fmt;
use std::sync::Arc;
#[cfg(feature = "json")]
use std::sync::atomic::{AtomicU32, Ordering};

use idemptx_core::exchange::{Operation, Rules};
use idemptx_core::lease::{Lease, Token};
use idemptx_core::store::Store;

use crate::engine::Inner as Engine;
use crate::keeper::Lost;
#[cfg(feature = "json")]
use crate::steps::{Labels, Records};
use crate::store::Transactional;
use crate::transaction::Effects;

/// The execution that a handler runs in; a cheap handle.
///
/// The tower layer puts it into the request's extensions, so that an axum handler takes it as
/// `Extension<Execution>` (or `Option<Extension<Execution>>` where a key is optional).
#[derive(Clone)]
pub struct Execution(Arc<Inner>);

struct Inner {
    operation: Operation,
    rules: Arc<Rules>,
    /// `None` for work that runs without a claim.
    lease: Option<Lease>,
    lost: Arc<Lost>,
    /// Of an engine whose store is in the application's database.
    #[cfg_attr(
        not(any(feature = "postgres", feature = "sqlite")),
        allow(dead_code, reason = "there is no such database")
    )]
    transactions: Option<Arc<dyn Transactional>>,
    effects: Effects,
    /// Where its steps are kept, under a claim.
    #[cfg(feature = "json")]
    records: Option<Arc<dyn Records>>,
    #[cfg(feature = "json")]
    steps: AtomicU32,
    /// The labels of those that are under way.
    #[cfg(feature = "json")]
    under_way: Labels,
}

impl Execution {
    pub(crate) fn new<S: Store>(
        operation: Operation,
        lease: &Lease,
        lost: Arc<Lost>,
        engine: &Arc<Engine<S>>,
    ) -> Self {
        Self(Arc::new(Inner {
            operation,
            rules: Arc::clone(engine.rules()),
            lease: Some(lease.clone()),
            lost,
            transactions: engine.transactions(),
            effects: Effects::default(),
            #[cfg(feature = "json")]
            records: Some(Arc::clone(engine) as Arc<dyn Records>),
            #[cfg(feature = "json")]
            steps: AtomicU32::new(0),
            #[cfg(feature = "json")]
            under_way: Labels::default(),
        }))
    }

    /// The execution of work that runs without a claim, because the policy says so: attempt 1, a
    /// token and a fence of zero.
    #[cfg(feature = "json")]
    pub(crate) fn unprotected(operation: Operation, rules: Arc<Rules>) -> Self {
        Self(Arc::new(Inner {
            operation,
            rules,
            lease: None,
            lost: Arc::default(),
            transactions: None,
            effects: Effects::default(),
            records: None,
            steps: AtomicU32::new(0),
            under_way: Labels::default(),
        }))
    }

    /// The client's key, quotes and escapes undone.
    #[must_use]
    pub fn key(&self) -> &str {
        self.0.operation.key().as_str()
    }

    /// Which execution of this operation it is: 1, or more after an orphan was taken over.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.lease.as_ref().map_or(1, |lease| lease.attempt)
    }

    /// The random token of this execution's claim.
    #[must_use]
    pub fn token(&self) -> Token {
        let none = Token::from_bytes([0; Token::BYTES]);
        self.0.lease.as_ref().map_or(none, |lease| lease.token)
    }

    /// A number greater than that of any earlier execution of this operation that may still be
    /// running: give it to systems that can refuse a stale writer.
    #[must_use]
    pub fn fence(&self) -> u64 {
        self.0.lease.as_ref().map_or(0, |lease| lease.fence)
    }

    /// A key for a call to another system, named by `label`.
    ///
    /// It depends on scope, key and label (and the policy's secret) alone: every attempt derives
    /// the same, so a downstream system that honours keys executes once, however often we do.
    #[must_use]
    pub fn derive(&self, label: &str) -> String {
        self.0.operation.derive(label, &self.0.rules)
    }

    /// Whether somebody took the operation over: what this handler still does is in vain.
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

    #[cfg(any(feature = "postgres", feature = "sqlite", feature = "json"))]
    pub(crate) fn rules(&self) -> &Rules {
        &self.0.rules
    }

    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.0.lease.as_ref()
    }

    /// What its steps are kept with; `None` without a claim.
    #[cfg(feature = "json")]
    pub(crate) fn recorded(&self) -> Option<(&Lease, &dyn Records)> {
        Some((self.0.lease.as_ref()?, &**self.0.records.as_ref()?))
    }

    /// Counts a step.
    #[cfg(feature = "json")]
    pub(crate) fn begin_step(&self) -> u32 {
        self.0.steps.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    #[cfg(feature = "json")]
    pub(crate) fn under_way(&self) -> &Labels {
        &self.0.under_way
    }

    #[cfg(feature = "json")]
    pub(crate) fn operation(&self) -> &Operation {
        &self.0.operation
    }

    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn transactions(&self) -> Option<&Arc<dyn Transactional>> {
        self.0.transactions.as_ref()
    }

    pub(crate) fn effects(&self) -> &Effects {
        &self.0.effects
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
