//! A configuration made ready: routes with their engines, upstreams with their connections.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::{HeaderName, Method, Request, Response};
use idemptx::store::AnyStore;
use idemptx::{Engine, Scope, Spool};
use tokio::time::{sleep, timeout};

use super::body::Outgoing;
use super::headers;
use super::token::Tokens;
use crate::config::{self, Config, Limits, Protection, ScopeSource};
use crate::metrics::UpstreamAnswer;
use crate::observe::{Observed, Observer};
use crate::serve::StartError;
use crate::tls::Acceptor;
use crate::upstream::{Lost, Upstream, UpstreamBody};

/// What requests are answered by; replaced as a whole.
pub(crate) struct Plan {
    pub(crate) limits: Limits,
    pub(crate) routes: Vec<Arc<Route>>,
    pub(crate) store: Arc<Observed<AnyStore>>,
    /// For each listener, unless it is in clear text.
    pub(crate) tls: Vec<Option<Acceptor>>,
    spool: Spool,
    upstreams: HashMap<String, Arc<Upstream>>,
}

/// A route with what serves it.
pub(crate) struct Route {
    pub(crate) config: config::Route,
    /// What metrics and logs call it.
    pub(crate) name: Arc<str>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) engine: Option<Engine<Arc<Observed<AnyStore>>>>,
    upstream_name: Arc<str>,
    relied_on: Vec<HeaderName>,
    observer: Arc<Observer>,
}

impl Plan {
    /// Makes a configuration ready; what the `former` one has of it already goes on being used.
    pub(crate) fn new(
        config: &Config,
        store: Arc<Observed<AnyStore>>,
        former: Option<&Self>,
    ) -> Result<Self, StartError> {
        let spool = match former {
            Some(former) if former.limits.has_same_spool(&config.limits) => former.spool.clone(),
            _ => spool(&config.limits),
        };
        let mut upstreams = HashMap::new();
        for config in &config.upstreams {
            // With authorities of its own it is made anew: their file may have changed.
            let same = former.and_then(|it| it.upstreams.get(&config.name));
            let same = same.filter(|it| it.config == *config && config.ca.is_none());
            let upstream = match same {
                Some(same) => Arc::clone(same),
                None => Arc::new(Upstream::new(config.clone()).map_err(StartError::Tls)?),
            };
            upstreams.insert(config.name.clone(), upstream);
        }
        let acceptor = |listener| Acceptor::new(listener, config.limits.handshake);
        let tls = config.listeners.iter().map(acceptor).collect::<Result<_, _>>();
        let mut routes = Vec::new();
        for route in &config.routes {
            if let Some(upstream) = upstreams.get(&route.upstream) {
                let engine = route.protection.as_ref().map(|protection| {
                    let same = former.and_then(|it| it.engine_for(protection, &config.limits));
                    let made = || engine_of(protection, &store, &spool, &config.limits);
                    same.map_or_else(made, Ok)
                });
                let (upstream, engine) = (Arc::clone(upstream), engine.transpose()?);
                let observer = Arc::clone(store.observer());
                routes.push(Arc::new(Route::new(route.clone(), upstream, engine, observer)));
            }
        }
        let tls = tls.map_err(StartError::Tls)?;
        Ok(Self { limits: config.limits.clone(), routes, store, tls, spool, upstreams })
    }

    /// Waits until every handler has ended; `true` if so.
    pub(crate) async fn drain(&self) -> bool {
        let mut all = true;
        for engine in self.engines() {
            all &= engine.drain().await;
        }
        all
    }

    /// How long draining may take.
    pub(crate) fn drain_max(&self) -> Duration {
        self.engines().map(|engine| engine.policy().drain).max().unwrap_or(DRAIN_MAX)
    }

    /// Asks the store what it promises to each policy, and tells in the log.
    ///
    /// What is unsafe should be known before the first request, so this waits for a moment; a store
    /// that is away is asked again behind, for as long as the plan is in use.
    pub(crate) async fn look_at_store(self: &Arc<Self>, told: &Told) {
        let looks: Vec<_> = self
            .engines()
            .map(|engine| {
                let (engine, plan, told) = (engine.clone(), Arc::downgrade(self), told.clone());
                tokio::spawn(look(engine, plan, told))
            })
            .collect();
        let all = async {
            for look in looks {
                // One that panics has told nothing, which is all that can be said.
                let _ = look.await;
            }
        };
        let _ = timeout(LOOK_MAX, all).await;
    }

    /// How much would be lost if the process ended now.
    pub(crate) fn in_flight(&self) -> usize {
        self.engines().map(Engine::in_flight).sum()
    }

    /// An engine that does the same already, with what it knows of running requests.
    fn engine_for(
        &self,
        protection: &Protection,
        limits: &Limits,
    ) -> Option<Engine<Arc<Observed<AnyStore>>>> {
        // The keys of tokens are read anew: their files may have changed.
        let read = matches!(protection.scope, ScopeSource::Token(_));
        let same = self.limits.executions_max == limits.executions_max
            && self.limits.has_same_spool(limits)
            && !read;
        let mut routes = self.routes.iter().filter(|_| same);
        let route = routes.find(|route| route.config.protection.as_ref() == Some(protection))?;
        route.engine.clone()
    }

    /// Begins to ask upstreams whether they are well.
    pub(crate) fn begin_checks(&self) {
        self.upstreams.values().for_each(|upstream| upstream.begin_checks());
    }

    /// Ends that for upstreams that are not those of the `next` plan as well.
    pub(crate) fn end_checks(&self, next: Option<&Self>) {
        for (name, upstream) in &self.upstreams {
            let goes_on = next.and_then(|next| next.upstreams.get(name));
            if !goes_on.is_some_and(|it| Arc::ptr_eq(it, upstream)) {
                upstream.end_checks();
            }
        }
    }

    pub(crate) fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.upstreams.values()
    }

    /// How many bytes of bodies wait in files.
    pub(crate) fn spooled(&self) -> u64 {
        self.spool.used()
    }

    pub(crate) fn engines(&self) -> impl Iterator<Item = &Engine<Arc<Observed<AnyStore>>>> {
        self.routes.iter().filter_map(|route| route.engine.as_ref())
    }

    /// The first route that is meant.
    pub(super) fn route(&self, host: &str, method: &Method, path: &str) -> Option<&Arc<Route>> {
        self.routes.iter().find(|route| route.is_for(host, method, path))
    }
}

impl Route {
    fn new(
        config: config::Route,
        upstream: Arc<Upstream>,
        engine: Option<Engine<Arc<Observed<AnyStore>>>>,
        observer: Arc<Observer>,
    ) -> Self {
        let relied_on = config.protection.as_ref().map(headers::relied_on).unwrap_or_default();
        let (name, upstream_name) = (config.name.as_str().into(), config.upstream.as_str().into());
        Self { config, name, upstream, upstream_name, engine, relied_on, observer }
    }

    /// Sends a request to the upstream, as [`Upstream::send`], and tells how that went.
    pub(super) async fn send(
        &self,
        request: Request<Outgoing>,
    ) -> Result<Response<UpstreamBody>, Lost> {
        let began = Instant::now();
        let answer = self.upstream.send(request).await;
        let told = match &answer {
            Ok(response) => UpstreamAnswer::Status(response.status()),
            Err(lost) => UpstreamAnswer::from(lost),
        };
        self.observer.upstream(&self.upstream_name, told, began.elapsed());
        answer
    }

    fn is_for(&self, host: &str, method: &Method, path: &str) -> bool {
        let config = &self.config;
        config.host.as_ref().is_none_or(|it| it == host)
            && (config.methods.is_empty() || config.methods.contains(method))
            && config.path.matches(path)
    }

    /// Whether the key, its scope or the fingerprint depends on a field.
    pub(super) fn relies_on(&self, name: &HeaderName) -> bool {
        self.relied_on.contains(name)
    }
}

/// What the log has been told already.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told(Arc<Mutex<HashSet<String>>>);

impl Told {
    fn is_new(&self, text: &str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.insert(text.to_owned())
    }
}

async fn look(engine: Engine<Arc<Observed<AnyStore>>>, plan: Weak<Plan>, told: Told) {
    let mut problem = None;
    while plan.strong_count() > 0 {
        match engine.check().await {
            Ok(report) => {
                if told.is_new(&report.guarantee) {
                    tracing::info!("store: {}", report.guarantee);
                }
                engine.store().observer().health().promised(&report.guarantee);
                for finding in report.findings.iter().filter(|it| told.is_new(&it.text)) {
                    tracing::warn!("{}", finding.text);
                }
                return;
            }
            Err(error) => {
                let found = crate::cli::told(&error);
                if problem.as_ref() != Some(&found) {
                    tracing::warn!("{found}; requests under a key are answered 503");
                }
                problem = Some(found);
                sleep(LOOK_AGAIN).await;
            }
        }
    }
}

fn spool(limits: &Limits) -> Spool {
    Spool::new(limits.spool_directory.clone().unwrap_or_else(std::env::temp_dir))
        .bytes_max(limits.spool_bytes_max)
        .total_bytes_max(limits.spool_total_bytes_max)
}

fn engine_of(
    protection: &Protection,
    store: &Arc<Observed<AnyStore>>,
    spool: &Spool,
    limits: &Limits,
) -> Result<Engine<Arc<Observed<AnyStore>>>, StartError> {
    let builder = Engine::builder(Arc::clone(store))
        .policy(protection.policy.clone())
        .spool(spool.clone())
        .executions_max(limits.executions_max);
    let builder = match &protection.scope {
        ScopeSource::Policy => builder,
        ScopeSource::Certificate => builder.scope(|parts| parts.extensions.get::<Scope>().cloned()),
        ScopeSource::Token(jwt) => {
            let tokens = Tokens::new(jwt).map_err(StartError::Token)?;
            let names = protection.policy.header_names.clone();
            // A signature is not verified in vain where there is no key.
            builder.scope(move |parts| {
                let keyed = names.iter().any(|name| parts.headers.contains_key(name));
                keyed.then(|| tokens.scope(parts)).flatten()
            })
        }
    };
    builder.build().map_err(StartError::Policy)
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("routes", &self.routes).finish_non_exhaustive()
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route").field("config", &self.config).finish_non_exhaustive()
    }
}

/// How long ending may take where no route has a policy.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// How long a start or a reload waits for the store.
const LOOK_MAX: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_secs(1);
