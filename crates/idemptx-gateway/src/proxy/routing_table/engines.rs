//! Engines: one for each upstream, of which its routes have theirs.
//!
//! So the routes of an upstream share what runs and what waits, and those with the same policy their
//! count of new keys; a service that hangs takes nothing from the others.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderName;
use http::request::Parts;
use idemptx::store::AnyStore;
use idemptx::{Engine, Policy, Scope, Spool};

use super::{ActiveRoute, RoutingTable};
use crate::config::{self, JwtKey, Limits, Protection, ScopeSource};
use crate::error::StartError;
use crate::recorder::RecordedStore;
use crate::token::{RemoteKeys, TokenVerifier};

/// An engine of the gateway.
pub(crate) type GatewayEngine = Engine<Arc<RecordedStore<AnyStore>>>;

/// The engines by the upstreams' names.
pub(super) struct Engines {
    store: Arc<RecordedStore<AnyStore>>,
    spool: Spool,
    executions_max: u32,
    /// Shared with the next table, so that their identity says what goes on.
    of_upstreams: HashMap<String, Arc<GatewayEngine>>,
    /// Engines of the previous table, as far as they can go on.
    former: HashMap<String, Arc<GatewayEngine>>,
}

impl Engines {
    /// Starts without engines; those of the previous table, if there is one with the same limits, go
    /// on where they are needed.
    pub(super) fn new(
        store: &Arc<RecordedStore<AnyStore>>,
        spool: &Spool,
        limits: &Limits,
        previous: Option<&RoutingTable>,
    ) -> Self {
        Self {
            store: Arc::clone(store),
            spool: spool.clone(),
            executions_max: limits.executions_max,
            of_upstreams: HashMap::new(),
            former: previous.map(|it| it.engines.of_upstreams.clone()).unwrap_or_default(),
        }
    }

    /// Returns the engine of a route.
    ///
    /// It is that of a route with the same policy at the same upstream, if one of the `routes`
    /// before it or of the `former` table has it, under its own name.
    pub(super) fn build(
        &mut self,
        route: &config::Route,
        protection: &Protection,
        routes: &[Arc<ActiveRoute>],
        former: &[Arc<ActiveRoute>],
        key_sets: &[Arc<RemoteKeys>],
    ) -> Result<GatewayEngine, StartError> {
        let upstream = self.of_upstream(&route.upstream)?;
        if let Some((_, engine)) = same_policy(routes, route, protection) {
            return engine.for_route(&route.name).build().map_err(StartError::Policy);
        }
        let same = same_policy(former, route, protection);
        // Verification keys are read again: their files may have changed.
        let reads_keys = matches!(protection.scope, ScopeSource::Token(_));
        let builder = match same {
            Some((name, engine)) if *name == route.name && !reads_keys => {
                return Ok(engine.clone());
            }
            Some((_, engine)) => engine.for_route(&route.name),
            None => upstream.for_route(&route.name).policy(protection.policy.clone()),
        };
        let builder = match &protection.scope {
            ScopeSource::Policy => builder,
            ScopeSource::Certificate => builder.scope(scope_of_certificate),
            ScopeSource::Token(jwt) => {
                let is_used =
                    |it: &&Arc<RemoteKeys>| jwt.key == JwtKey::Remote(it.config().clone());
                let remote = key_sets.iter().find(is_used).map(Arc::clone);
                let tokens = TokenVerifier::new(jwt, remote).map_err(StartError::Token)?;
                let names = protection.policy.header_names.clone();
                builder.scope(move |parts| scope_of_token(&tokens, &names, parts))
            }
        };
        builder.build().map_err(StartError::Policy)
    }

    /// Returns the engine of an upstream, in whose namespace a key is another one than at any other
    /// upstream.
    fn of_upstream(&mut self, name: &str) -> Result<Arc<GatewayEngine>, StartError> {
        if let Some(engine) = self.of_upstreams.get(name) {
            return Ok(Arc::clone(engine));
        }
        let engine = match self.former.remove(name) {
            Some(engine) => engine,
            None => Arc::new(
                Engine::builder(Arc::clone(&self.store))
                    // Each route has its own.
                    .policy(Policy::draft())
                    .namespace(name)
                    .spool(self.spool.clone())
                    .executions_max(self.executions_max)
                    .without_extensions()
                    .build()
                    .map_err(StartError::Policy)?,
            ),
        };
        self.of_upstreams.insert(name.to_owned(), Arc::clone(&engine));
        Ok(engine)
    }

    /// Lets go of engines of the previous table that no route needs.
    pub(super) fn forget_former(&mut self) {
        self.former.clear();
    }

    /// Returns the engine of each upstream.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<GatewayEngine>> {
        self.of_upstreams.values()
    }

    /// Returns those that another table does not go on with.
    pub(super) fn beside(&self, other: &Self) -> impl Iterator<Item = &GatewayEngine> {
        let goes_on = |name: &str, engine: &Arc<GatewayEngine>| {
            other.of_upstreams.get(name).is_some_and(|it| Arc::ptr_eq(it, engine))
        };
        let ends = self.of_upstreams.iter().filter(move |(name, engine)| !goes_on(name, engine));
        ends.map(|(_, engine)| &**engine)
    }
}

/// Returns the name and the engine of a route with the same policy at the same upstream.
fn same_policy<'a>(
    routes: &'a [Arc<ActiveRoute>],
    wanted: &config::Route,
    protection: &Protection,
) -> Option<(&'a String, &'a GatewayEngine)> {
    let is_same = |it: &&Arc<ActiveRoute>| {
        it.config.upstream == wanted.upstream && it.config.protection.as_ref() == Some(protection)
    };
    // One of the same name knows how long its handlers take.
    let named = routes.iter().filter(is_same).find(|it| it.config.name == wanted.name);
    let same = named.or_else(|| routes.iter().find(is_same))?;
    Some((&same.config.name, same.engine.as_ref()?))
}

fn scope_of_certificate(parts: &Parts) -> Option<Scope> {
    parts.extensions.get::<Scope>().cloned()
}

fn scope_of_token(tokens: &TokenVerifier, names: &[HeaderName], parts: &Parts) -> Option<Scope> {
    // Without a key there is no need to verify a signature.
    let keyed = names.iter().any(|name| parts.headers.contains_key(name));
    keyed.then(|| tokens.scope(parts)).flatten()
}
