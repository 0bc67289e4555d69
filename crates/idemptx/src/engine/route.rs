//! Engines for further routes of one engine.

use std::fmt;
use std::sync::Arc;

use idemptx_core::key::Scope;
use idemptx_core::policy::Policy;
use idemptx_core::store::Store;

use super::builder::Variant;
use super::{Engine, EngineError, Inner};

/// Configures an engine for another route, which shares with the first one whatever is not set here.
#[must_use]
pub struct RouteBuilder<S> {
    engine: Engine<S>,
    policy: Option<Policy>,
    variant: Variant,
}

impl<S: Store> Engine<S> {
    /// Begins to configure an engine for another route that shares everything with this one: the
    /// store, the renewal of leases, all limits, and with the policy its count of new keys.
    ///
    /// Records describe their requests by the name of the route.
    ///
    /// ```
    /// use idemptx::{Engine, Policy, store::MemoryStore};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let policy = Policy::draft().into_builder().new_keys_per_minute_max(600).build()?;
    /// let orders = Engine::builder(MemoryStore::new()).policy(policy).route("orders").build()?;
    /// // 600 new keys a minute on both routes together.
    /// let refunds = orders.for_route("refunds").build()?;
    /// # Ok(()) }
    /// ```
    pub fn for_route(&self, name: &str) -> RouteBuilder<S> {
        let variant = Variant { scope: self.inner.variant.scope.clone(), route: name.into() };
        RouteBuilder { engine: self.clone(), policy: None, variant }
    }
}

impl<S: Store> RouteBuilder<S> {
    /// Sets another policy, which counts its new keys by itself.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Sets another function that names the scope of a request's key, as
    /// [`EngineBuilder::scope`](super::EngineBuilder::scope).
    pub fn scope<F>(mut self, scope: F) -> Self
    where
        F: Fn(&http::request::Parts) -> Option<Scope> + Send + Sync + 'static,
    {
        self.variant.scope = Some(Arc::new(scope));
        self
    }

    /// Makes the engine.
    ///
    /// # Errors
    ///
    /// As [`EngineBuilder::build`](super::EngineBuilder::build).
    pub fn build(self) -> Result<Engine<S>, EngineError> {
        let Self { engine, policy, variant } = self;
        let Inner { rules, meter, shared, .. } = &*engine.inner;
        let (policy, meter) = match policy {
            Some(policy) => (policy, Arc::default()),
            None => (rules.policy().clone(), Arc::clone(meter)),
        };
        Engine::sharing(policy, variant, meter, Arc::clone(shared))
    }
}

impl<S: fmt::Debug> fmt::Debug for RouteBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteBuilder")
            .field("engine", &self.engine)
            .field("route", &self.variant.route)
            .finish_non_exhaustive()
    }
}
