//! Routes with their engines, and upstreams with their connections, built from a configuration.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::{HeaderName, Method, Request, Response};
use idemptx::store::AnyStore;
use idemptx::{Engine, Scope, Spool};
use tokio::time::{sleep, timeout};

use super::{headers, target};
use crate::config::{self, Config, JwtKey, Limits, Protection, ScopeSource};
use crate::error::StartError;
use crate::logging::LogRate;
use crate::observation::UpstreamResult;
use crate::recorder::{RecordedStore, Recorder};
use crate::request_body::UpstreamRequestBody;
use crate::tls::{Acceptor, TlsError};
use crate::token::{RemoteKeys, TokenVerifier};
use crate::upstream::{SendError, UpstreamBody, UpstreamPool};

/// Everything that serves requests; a reload replaces it as a whole.
pub(crate) struct RoutingTable {
    pub(crate) limits: Limits,
    pub(crate) routes: Vec<Arc<ActiveRoute>>,
    pub(crate) store: Arc<RecordedStore<AnyStore>>,
    /// The acceptor of each listener; `None` for clear text.
    pub(crate) tls: Vec<Option<Acceptor>>,
    spool: Spool,
    upstreams: HashMap<String, Arc<UpstreamPool>>,
    /// The keys for tokens that are at URLs.
    key_sets: Vec<Arc<RemoteKeys>>,
}

/// A route with the engine and upstream that serve it.
pub(crate) struct ActiveRoute {
    pub(crate) config: config::Route,
    /// The name in metrics and logs.
    pub(crate) name: Arc<str>,
    pub(crate) upstream: Arc<UpstreamPool>,
    pub(crate) engine: Option<Engine<Arc<RecordedStore<AnyStore>>>>,
    upstream_name: Arc<str>,
    key_headers: Vec<HeaderName>,
    recorder: Arc<Recorder>,
    /// The limit of lines about lost responses.
    losses: LogRate,
}

impl RoutingTable {
    /// Builds the table; unchanged parts of the `previous` one are reused.
    ///
    /// Reused parts keep their connections, spool and leases. The store never changes, since a new
    /// one would not know the records of the previous one.
    pub(crate) fn new(
        config: &Config,
        store: Arc<RecordedStore<AnyStore>>,
        previous: Option<&Self>,
    ) -> Result<Self, StartError> {
        let spool = match previous {
            Some(previous) if previous.limits.has_same_spool(&config.limits) => {
                previous.spool.clone()
            }
            _ => spool(&config.limits),
        };
        let mut upstreams = HashMap::new();
        for config in &config.upstreams {
            // An upstream with its own authorities is rebuilt: their file may have changed.
            let same = previous.and_then(|it| it.upstreams.get(&config.name));
            let reads_files = config.ca.is_some() || config.client_certificate.is_some();
            let same = same.filter(|it| it.config == *config && !reads_files);
            let upstream = match same {
                Some(same) => Arc::clone(same),
                None => Arc::new(UpstreamPool::new(config.clone()).map_err(StartError::Tls)?),
            };
            upstreams.insert(config.name.clone(), upstream);
        }
        let acceptor = |listener| Acceptor::new(listener, config.limits.handshake);
        let tls = config.listeners.iter().map(acceptor).collect::<Result<_, _>>();
        let mut routes = Vec::new();
        let key_sets = key_sets(config, previous, store.recorder()).map_err(StartError::Tls)?;
        for route in &config.routes {
            if let Some(upstream) = upstreams.get(&route.upstream) {
                let engine = route.protection.as_ref().map(|protection| {
                    let same = previous
                        .and_then(|it| it.reusable_engine(route, protection, &config.limits));
                    let build = || {
                        let limits = &config.limits;
                        build_engine(route, protection, &store, &spool, limits, &key_sets)
                    };
                    same.map_or_else(build, Ok)
                });
                let (upstream, engine) = (Arc::clone(upstream), engine.transpose()?);
                let recorder = Arc::clone(store.recorder());
                routes.push(Arc::new(ActiveRoute::new(route.clone(), upstream, engine, recorder)));
            }
        }
        let tls = tls.map_err(StartError::Tls)?;
        Ok(Self { limits: config.limits.clone(), routes, store, tls, spool, upstreams, key_sets })
    }

    /// Waits until every handler has ended; `true` if all have.
    pub(crate) async fn drain(&self) -> bool {
        let mut all = true;
        for engine in self.engines() {
            all &= engine.drain().await;
        }
        all
    }

    /// The time limit of a drain.
    pub(crate) fn drain_max(&self) -> Duration {
        self.engines().map(|engine| engine.policy().drain).max().unwrap_or(DRAIN_MAX)
    }

    /// Checks the store against each policy, and logs the findings.
    ///
    /// Returns after a moment at most, so that findings precede the first request; an unavailable
    /// store is checked again in the background for as long as the table is in use.
    pub(crate) async fn check_store(self: &Arc<Self>, logged: &LoggedFindings) {
        let looks: Vec<_> = self
            .engines()
            .map(|engine| {
                let (engine, table, logged) =
                    (engine.clone(), Arc::downgrade(self), logged.clone());
                tokio::spawn(check_until_available(engine, table, logged))
            })
            .collect();
        let all = async {
            for check_until_available in looks {
                // A check that panicked has logged nothing, and there is nothing to add.
                let _ = check_until_available.await;
            }
        };
        let _ = timeout(START_CHECK_MAX, all).await;
    }

    /// The number of requests that an immediate exit would lose.
    pub(crate) fn in_flight(&self) -> usize {
        self.engines().map(Engine::in_flight).sum()
    }

    /// Returns an engine with the same settings, which knows the running requests.
    fn reusable_engine(
        &self,
        wanted: &config::Route,
        protection: &Protection,
        limits: &Limits,
    ) -> Option<Engine<Arc<RecordedStore<AnyStore>>>> {
        // Verification keys are read again: their files may have changed.
        let read = matches!(protection.scope, ScopeSource::Token(_));
        let same = self.limits.executions_max == limits.executions_max
            && self.limits.has_same_spool(limits)
            && !read;
        let mut routes = self.routes.iter().filter(|_| same);
        let route = routes.find(|route| {
            let config = &route.config;
            config.upstream == wanted.upstream
                && config.name == wanted.name
                && config.protection.as_ref() == Some(protection)
        })?;
        route.engine.clone()
    }

    /// Starts to read the keys for tokens, and waits a moment for the first ones.
    pub(crate) async fn start_key_sets(&self) {
        self.key_sets.iter().for_each(|keys| keys.start());
        let all = async {
            for keys in &self.key_sets {
                keys.tried().await;
            }
        };
        let _ = timeout(START_CHECK_MAX, all).await;
    }

    pub(crate) fn key_sets(&self) -> &[Arc<RemoteKeys>] {
        &self.key_sets
    }

    /// Starts the health checks of all upstreams.
    pub(crate) fn start_health_checks(&self) {
        self.upstreams.values().for_each(|upstream| upstream.start_health_checks());
    }

    /// Stops the health checks of upstreams that the `next` table does not share.
    pub(crate) fn stop_health_checks(&self, next: Option<&Self>) {
        for (name, upstream) in &self.upstreams {
            let goes_on = next.and_then(|next| next.upstreams.get(name));
            if !goes_on.is_some_and(|it| Arc::ptr_eq(it, upstream)) {
                upstream.stop_health_checks();
            }
        }
    }

    pub(crate) fn upstreams(&self) -> impl Iterator<Item = &Arc<UpstreamPool>> {
        self.upstreams.values()
    }

    /// The bytes of request bodies in spool files.
    pub(crate) fn spooled(&self) -> u64 {
        self.spool.used()
    }

    pub(crate) fn engines(&self) -> impl Iterator<Item = &Engine<Arc<RecordedStore<AnyStore>>>> {
        self.routes.iter().filter_map(|route| route.engine.as_ref())
    }

    /// Returns the first route that matches.
    pub(super) fn route(
        &self,
        host: &str,
        method: &Method,
        path: &str,
    ) -> Option<&Arc<ActiveRoute>> {
        let path = target::normalised(path);
        self.routes.iter().find(|route| route.matches(host, method, &path))
    }
}

impl ActiveRoute {
    fn new(
        config: config::Route,
        upstream: Arc<UpstreamPool>,
        engine: Option<Engine<Arc<RecordedStore<AnyStore>>>>,
        recorder: Arc<Recorder>,
    ) -> Self {
        let key_headers = headers::headers_in_use(config.protection.as_ref());
        let (name, upstream_name) = (config.name.as_str().into(), config.upstream.as_str().into());
        if let Some(metrics) = recorder.metrics() {
            metrics.announce(&name, &upstream_name);
        }
        let losses = LogRate::default();
        Self { config, name, upstream, upstream_name, engine, key_headers, recorder, losses }
    }

    /// Sends a request to the upstream, as [`UpstreamPool::send`], and records the result.
    pub(super) async fn send(
        &self,
        request: Request<UpstreamRequestBody>,
    ) -> Result<Response<UpstreamBody>, SendError> {
        let began = Instant::now();
        let answer = self.upstream.send(request, &self.config.limits).await;
        let logged = match &answer {
            Ok(response) => UpstreamResult::Status(response.status()),
            Err(lost) => UpstreamResult::from(lost),
        };
        self.note(logged, began.elapsed());
        answer
    }

    /// Records the result of a request to the upstream.
    pub(super) fn note(&self, result: UpstreamResult, took: Duration) {
        self.recorder.upstream(&self.upstream_name, result, took);
    }

    /// Records a response that broke off after its head, which was recorded before.
    pub(super) fn note_broken_off(&self, took: Duration) {
        self.log_lost("its body broke off");
        self.note(UpstreamResult::Broken, took);
    }

    /// Logs a request without a response; an outage must not become a flood of lines.
    pub(super) fn log_lost(&self, reason: &str) {
        if let Some(suppressed) = self.losses.admit() {
            let (route, upstream) = (&*self.name, &*self.upstream_name);
            tracing::warn!(route, upstream, "no response: {reason}{suppressed}");
        }
    }

    fn matches(&self, host: &str, method: &Method, path: &str) -> bool {
        let config = &self.config;
        config.host.as_ref().is_none_or(|it| it == host)
            && (config.methods.is_empty() || config.methods.contains(method))
            && config.path.matches(path)
    }

    /// Returns whether the request's meaning, its key, scope or fingerprint depends on a field.
    pub(super) fn depends_on(&self, name: &HeaderName) -> bool {
        self.key_headers.contains(name)
    }
}

/// The findings that have been logged, so that each is logged once.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoggedFindings(Arc<Mutex<HashSet<String>>>);

impl LoggedFindings {
    fn insert(&self, text: &str) -> bool {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        logged.insert(text.to_owned())
    }
}

async fn check_until_available(
    engine: Engine<Arc<RecordedStore<AnyStore>>>,
    table: Weak<RoutingTable>,
    logged: LoggedFindings,
) {
    let mut problem = None;
    while table.strong_count() > 0 {
        match engine.check().await {
            Ok(report) => {
                if logged.insert(&report.guarantee) {
                    tracing::info!("store: {}", report.guarantee);
                }
                engine.store().recorder().readiness().set_guarantee(&report.guarantee);
                for finding in report.findings.iter().filter(|it| logged.insert(&it.text)) {
                    tracing::warn!("{}", finding.text);
                }
                return;
            }
            Err(error) => {
                let found = crate::error::error_text(&error);
                if problem.as_ref() != Some(&found) {
                    tracing::warn!("{found}; requests with a key get 503");
                }
                problem = Some(found);
                sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

/// Returns the sets of keys of a configuration; those of the previous table keep their keys.
fn key_sets(
    config: &Config,
    previous: Option<&RoutingTable>,
    recorder: &Arc<Recorder>,
) -> Result<Vec<Arc<RemoteKeys>>, TlsError> {
    let mut sets: Vec<Arc<RemoteKeys>> = Vec::new();
    let protections = config.routes.iter().filter_map(|route| route.protection.as_ref());
    for protection in protections {
        let ScopeSource::Token(jwt) = &protection.scope else { continue };
        let JwtKey::Remote(wanted) = &jwt.key else { continue };
        if sets.iter().any(|set| set.config() == wanted) {
            continue;
        }
        let same = previous.and_then(|it| it.key_sets.iter().find(|it| it.config() == wanted));
        sets.push(match same {
            Some(same) => Arc::clone(same),
            None => Arc::new(RemoteKeys::new(wanted, Arc::clone(recorder))?),
        });
    }
    Ok(sets)
}

fn spool(limits: &Limits) -> Spool {
    Spool::new(limits.spool_directory.clone().unwrap_or_else(std::env::temp_dir))
        .bytes_max(limits.spool_bytes_max)
        .total_bytes_max(limits.spool_total_bytes_max)
}

/// Builds an engine, in the namespace of the upstream: a key at another upstream is another one.
fn build_engine(
    route: &config::Route,
    protection: &Protection,
    store: &Arc<RecordedStore<AnyStore>>,
    spool: &Spool,
    limits: &Limits,
    key_sets: &[Arc<RemoteKeys>],
) -> Result<Engine<Arc<RecordedStore<AnyStore>>>, StartError> {
    let builder = Engine::builder(Arc::clone(store))
        .policy(protection.policy.clone())
        .namespace(&route.upstream)
        .route(&route.name)
        .spool(spool.clone())
        .executions_max(limits.executions_max);
    let builder = match &protection.scope {
        ScopeSource::Policy => builder,
        ScopeSource::Certificate => builder.scope(|parts| parts.extensions.get::<Scope>().cloned()),
        ScopeSource::Token(jwt) => {
            let remote = key_sets.iter().find(|it| jwt.key == JwtKey::Remote(it.config().clone()));
            let tokens =
                TokenVerifier::new(jwt, remote.map(Arc::clone)).map_err(StartError::Token)?;
            let names = protection.policy.header_names.clone();
            // Without a key there is no need to verify a signature.
            builder.scope(move |parts| {
                let keyed = names.iter().any(|name| parts.headers.contains_key(name));
                keyed.then(|| tokens.scope(parts)).flatten()
            })
        }
    };
    builder.build().map_err(StartError::Policy)
}

impl fmt::Debug for RoutingTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("routes", &self.routes).finish_non_exhaustive()
    }
}

impl fmt::Debug for ActiveRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The time limit of a drain without protected routes.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// The time for which a start or a reload waits for the store.
const START_CHECK_MAX: Duration = Duration::from_secs(1);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
