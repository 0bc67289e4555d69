//! Routes with their engines, and upstreams with their connections, built from a configuration.

mod engines;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Method, Request, Response};
use idemptx::store::AnyStore;
use idemptx::{Engine, Load, Spool};
use idemptx_core::policy::OnLargeBody;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use self::engines::{Engines, GatewayEngine};
use super::headers;
use super::store_checks::{LoggedFindings, StoreChecks};
use crate::config::{self, Config, JwtKey, Limits, ScopeSource};
use crate::error::{StartError, error_text};
use crate::logging::LogRate;
use crate::observation::UpstreamResult;
use crate::recorder::{AccessLine, RecordedStore, Recorder};
use crate::request_body::UpstreamRequestBody;
use crate::tls::{Acceptor, TlsError};
use crate::token::RemoteKeys;
use crate::upstream::{SendError, UpstreamBody, UpstreamPool};

/// Everything that serves requests; a reload replaces it as a whole.
pub(crate) struct RoutingTable {
    pub(crate) limits: Limits,
    pub(crate) routes: Vec<Arc<ActiveRoute>>,
    pub(crate) store: Arc<RecordedStore<AnyStore>>,
    /// The acceptor of each listener; `None` for clear text.
    pub(crate) tls: Vec<Option<Acceptor>>,
    /// That of the listener for Envoy.
    pub(crate) ext_proc_tls: Option<Acceptor>,
    spool: Spool,
    upstreams: HashMap<String, Arc<UpstreamPool>>,
    engines: Engines,
    /// The keys for tokens that are at URLs.
    key_sets: Vec<Arc<RemoteKeys>>,
    /// The task that checks the store.
    checks: OnceLock<AbortHandle>,
    former: Mutex<Vec<Weak<Self>>>,
}

impl Drop for RoutingTable {
    fn drop(&mut self) {
        self.stop_store_checks();
    }
}

/// A route with the engine and upstream that serve it.
pub(crate) struct ActiveRoute {
    pub(crate) config: config::Route,
    /// The name in metrics and logs.
    pub(crate) name: Arc<str>,
    pub(crate) upstream: Arc<UpstreamPool>,
    pub(crate) engine: Option<GatewayEngine>,
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
            _ => spool(config)?,
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
        let acceptor =
            |listener: &config::Listener| Acceptor::new(listener, config.limits.handshake);
        let tls = config.listeners.iter().map(acceptor).collect::<Result<_, _>>();
        let ext_proc_tls = config.ext_proc.as_ref().map(|ext_proc| acceptor(&ext_proc.listener()));
        let mut routes: Vec<Arc<ActiveRoute>> = Vec::new();
        let key_sets = key_sets(config, previous, store.recorder()).map_err(StartError::Tls)?;
        let comparable = previous.filter(|it| {
            it.limits.executions_max == config.limits.executions_max
                && it.limits.has_same_spool(&config.limits)
        });
        let mut engines = Engines::new(&store, &spool, &config.limits, comparable);
        for route in &config.routes {
            if let Some(upstream) = upstreams.get(&route.upstream) {
                let engine = route.protection.as_ref().map(|protection| {
                    let former = comparable.map_or(&[][..], |it| &it.routes);
                    engines.build(route, protection, &routes, former, &key_sets)
                });
                let (upstream, engine) = (Arc::clone(upstream), engine.transpose()?);
                let recorder = Arc::clone(store.recorder());
                routes.push(Arc::new(ActiveRoute::new(route.clone(), upstream, engine, recorder)));
            }
        }
        let tls = tls.map_err(StartError::Tls)?;
        let ext_proc_tls = ext_proc_tls.transpose().map_err(StartError::Tls)?.flatten();
        engines.forget_former();
        let (limits, checks) = (config.limits.clone(), OnceLock::new());
        Ok(Self {
            limits,
            routes,
            store,
            tls,
            ext_proc_tls,
            spool,
            upstreams,
            engines,
            key_sets,
            checks,
            former: Mutex::default(),
        })
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

    /// Begins to check the store against each policy, and logs the findings.
    ///
    /// Returns after a moment at most, so that findings precede the first request; the store is
    /// checked again in the background, until it answers and from time to time after that.
    pub(crate) async fn check_store(&self, findings: &LoggedFindings) {
        let engines: Vec<_> = self.engines().cloned().collect();
        if engines.is_empty() {
            return;
        }
        let (first, checked) = oneshot::channel();
        let checks = StoreChecks { engines, findings: findings.clone(), problem: None };
        let checks = tokio::spawn(checks.run(Arc::clone(&self.store), first));
        // Only the first call of a table has a task to keep.
        let _ = self.checks.set(checks.abort_handle());
        let _ = timeout(START_CHECK_MAX, checked).await;
    }

    /// Ends the checks of the store, which another table goes on with.
    pub(crate) fn stop_store_checks(&self) {
        if let Some(checks) = self.checks.get() {
            checks.abort();
        }
    }

    /// The number of requests that the end of this table would lose if the `next` one follows it,
    /// which may go on with its engines.
    pub(crate) fn in_flight_beside(&self, next: &Self) -> usize {
        self.engines.beside(&next.engines).map(Engine::in_flight).sum()
    }

    /// Names the tables before this one that still have requests in flight.
    pub(crate) fn follow(&self, former: &[Arc<Self>]) {
        let mut known = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        *known = former.iter().map(Arc::downgrade).collect();
    }

    /// Returns the load of all engines, those of the tables before included: what they have not
    /// confirmed would be lost, too.
    pub(crate) fn loads(&self) -> Vec<Load> {
        let former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        let former: Vec<_> = former.iter().filter_map(Weak::upgrade).collect();
        let mut engines: Vec<_> = self.engines.all().collect();
        for engine in former.iter().flat_map(|table| table.engines.all()) {
            if !engines.iter().any(|known| Arc::ptr_eq(known, engine)) {
                engines.push(engine);
            }
        }
        engines.into_iter().map(|engine| engine.load()).collect()
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

    /// Returns the engine of each protected route.
    pub(crate) fn engines(&self) -> impl Iterator<Item = &GatewayEngine> {
        self.routes.iter().filter_map(|route| route.engine.as_ref())
    }

    /// Returns the first route that matches.
    pub(super) fn route(
        &self,
        host: &str,
        method: &Method,
        path: &str,
    ) -> Option<&Arc<ActiveRoute>> {
        let path = config::normalised_path(path);
        self.routes.iter().find(|route| route.matches(host, method, &path))
    }
}

impl ActiveRoute {
    fn new(
        config: config::Route,
        upstream: Arc<UpstreamPool>,
        engine: Option<GatewayEngine>,
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
    ///
    /// One with a safe method and without a key may be sent again (RFC 9110 §9.2.2).
    pub(super) async fn send(
        &self,
        request: &mut Request<UpstreamRequestBody>,
        is_keyed: bool,
    ) -> Result<Response<UpstreamBody>, SendError> {
        let began = Instant::now();
        let is_repeatable = !is_keyed && request.method().is_safe();
        let is_logged = AccessLine::is_wanted(self.recorder.log());
        let limits = &self.config.limits;
        let answer = self.upstream.send(request, limits, is_repeatable, is_logged).await;
        let logged = match &answer {
            Ok(response) => UpstreamResult::Status(response.status()),
            Err(lost) => UpstreamResult::from(lost),
        };
        self.note(logged, began);
        answer
    }

    /// Records the result of a request to the upstream that was begun at this time.
    pub(super) fn note(&self, result: UpstreamResult, began: Instant) {
        self.recorder.upstream(&self.upstream_name, result, began);
    }

    /// Records a response that broke off after its head, which was recorded before.
    pub(super) fn note_broken_off(&self, request_id: &HeaderValue, began: Instant) {
        self.log_lost(Some(request_id), "its body broke off");
        self.note(UpstreamResult::Broken, began);
    }

    /// Logs a request without a response; an outage must not become a flood of lines.
    pub(super) fn log_lost(&self, request_id: Option<&HeaderValue>, reason: &str) {
        if let Some(suppressed) = self.losses.admit() {
            let (route, upstream) = (&*self.name, &*self.upstream_name);
            let request_id = request_id.and_then(|it| it.to_str().ok());
            tracing::warn!(route, upstream, request_id, "no response: {reason}{suppressed}");
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
        // One with its own authorities is rebuilt: their file may have changed.
        sets.push(match same {
            Some(same) if wanted.ca.is_none() => Arc::clone(same),
            same => {
                let keys = RemoteKeys::new(wanted, Arc::clone(recorder))?;
                Arc::new(same.into_iter().fold(keys, |keys, same| keys.beginning_as(same)))
            }
        });
    }
    Ok(sets)
}

fn spool(config: &Config) -> Result<Spool, StartError> {
    let limits = &config.limits;
    let directory = limits.spool_directory.clone().unwrap_or_else(std::env::temp_dir);
    let spool = Spool::new(&directory)
        .bytes_max(limits.spool_bytes_max)
        .total_bytes_max(limits.spool_total_bytes_max);
    let mut policies = config.routes.iter().filter_map(config::Route::policy);
    let is_used = policies.any(|policy| policy.on_large_body == OnLargeBody::Stream);
    match spool.check() {
        Err(error) if is_used => {
            let error = StartError::Spool(directory, error);
            if limits.spool_directory.is_some() {
                return Err(error);
            }
            // Not everybody has large requests, or a file system to write on.
            tracing::warn!("large requests under a key will be refused: {}", error_text(&error));
        }
        _ => {}
    }
    Ok(spool)
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
