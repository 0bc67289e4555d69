//! Metrics for Prometheus: `/metrics` on the admin listener.
//!
//! Labels are bounded: routes, upstreams and their addresses come from the configuration,
//! everything else from constants. No key, client, path or header is a label.

mod exposition;
mod process;

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idemptx::store::{SafetyReport, Severity};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::observation::{StoreOperation, StoreResult, UpstreamResult, all_outcome_labels};
use crate::proxy::ProxyError;
use crate::upstream::AddressState;

/// The gateway's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request_time: Family<RouteLabels, Histogram, fn() -> Histogram>,
    steps: Family<StepLabels, Histogram, fn() -> Histogram>,
    store_failures: Family<StoreFailureLabels, Counter>,
    orphans: Counter,
    upstream_answers: Family<UpstreamResultLabels, Counter>,
    upstream_time: Family<UpstreamLabels, Histogram, fn() -> Histogram>,
    connections: Gauge,
    accepted: Counter,
    refused: Family<ReasonLabels, Counter>,
    own_answers: Family<CodeLabels, Counter>,
    reloads: Family<ReloadLabels, Counter>,
    near_hits: Counter,
    spans_dropped: Counter,
    log_dropped: Counter,
    upstream_up: Family<AddressLabels, Gauge>,
    ejections: Family<AddressLabels, Counter>,
    store_findings: Family<SeverityLabels, Gauge>,
    token_keys: Family<UrlLabels, Gauge>,
    keys_age: Family<UrlLabels, Gauge>,
    reading: Mutex<()>,
    current: [Gauge; 9],
}

/// Values that are read at scrape time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CurrentValues {
    /// Handlers that run under a key.
    pub(crate) executing: usize,
    /// Requests that wait for another request's result.
    pub(crate) waiting: usize,
    /// Store operations that the store has not confirmed.
    pub(crate) unconfirmed: usize,
    /// Bytes of request bodies in spool files.
    pub(crate) spooled: u64,
    /// Bytes of responses in the near cache.
    pub(crate) near_bytes: usize,
    /// Claims and lookups that the near cache answered.
    pub(crate) near_hits: u64,
    /// Spans that were not exported.
    pub(crate) spans_dropped: u64,
    /// The addresses of upstreams.
    pub(crate) addresses: Vec<AddressState>,
    /// Sets of keys for tokens, how many keys each has, and how old it is.
    pub(crate) key_sets: Vec<(String, usize, Option<Duration>)>,
    /// The store replied recently; `None` before the first query.
    pub(crate) store: Option<bool>,
    /// The latest report on the store.
    pub(crate) report: Option<SafetyReport>,
    /// A policy refuses the store for that report.
    pub(crate) store_refused: bool,
    pub(crate) draining: bool,
    pub(crate) uptime: Duration,
}

impl CurrentValues {
    /// The values in the order of [`CURRENT`].
    fn values(&self) -> [i64; CURRENT.len()] {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        [
            number(self.executing),
            number(self.waiting),
            number(self.unconfirmed),
            i64::try_from(self.spooled).unwrap_or(i64::MAX),
            number(self.near_bytes),
            (self.store == Some(true)).into(),
            self.report.as_ref().is_some_and(SafetyReport::is_unsafe).into(),
            self.store_refused.into(),
            self.draining.into(),
        ]
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("idemptx");
        let build = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The running version", Info::new(build));
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            request_time: Family::new_with_constructor(request_buckets),
            steps: Family::new_with_constructor(step_buckets),
            store_failures: Family::default(),
            orphans: Counter::default(),
            upstream_answers: Family::default(),
            upstream_time: Family::new_with_constructor(request_buckets),
            connections: Gauge::default(),
            accepted: Counter::default(),
            refused: Family::default(),
            own_answers: Family::default(),
            reloads: Family::default(),
            near_hits: Counter::default(),
            spans_dropped: Counter::default(),
            log_dropped: Counter::default(),
            upstream_up: Family::default(),
            ejections: Family::default(),
            store_findings: Family::default(),
            token_keys: Family::default(),
            keys_age: Family::default(),
            reading: Mutex::default(),
            current: Default::default(),
        };
        for result in ["taken", "refused"] {
            drop(metrics.reloads.get_or_create(&ReloadLabels { result }));
        }
        for result in StoreResult::FAILURES {
            drop(metrics.store_failures.get_or_create(&StoreFailureLabels { result }));
        }
        for reason in REFUSED_REASONS {
            drop(metrics.refused.get_or_create(&ReasonLabels { reason }));
        }
        for code in ProxyError::CODES {
            drop(metrics.own_answers.get_or_create(&CodeLabels { code }));
        }
        metrics.register(&mut registry);
        metrics.registry = registry;
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        let requests = "Requests by outcome; the reason is a problem's code, or why the request \
                        bypassed the engine";
        registry.register("requests", requests, self.requests.clone());
        let time = "Time from a request's head to its response's head";
        registry.register_with_unit("request", time, Unit::Seconds, self.request_time.clone());
        let steps = "Duration of store operations";
        registry.register_with_unit("store_step", steps, Unit::Seconds, self.steps.clone());
        let failures = "Store operations that failed, by result";
        registry.register("store_failures", failures, self.store_failures.clone());
        let orphans = "Claims that found an orphan: a lease that lapsed without a result";
        registry.register("orphans", orphans, self.orphans.clone());
        let answers = "Upstream responses by status class, and failures";
        registry.register("upstream_answers", answers, self.upstream_answers.clone());
        let time = "Time from sending a request to the upstream's response head";
        registry.register_with_unit("upstream", time, Unit::Seconds, self.upstream_time.clone());
        registry.register("connections", "Open client connections", self.connections.clone());
        let accepted = "Accepted client connections";
        registry.register("connections_accepted", accepted, self.accepted.clone());
        let refused = "Client connections refused, by reason";
        registry.register("connections_refused", refused, self.refused.clone());
        let own = "Problems that the gateway reported itself, by code: requests that it did not \
                   forward, and upstreams without an answer";
        registry.register("own_answers", own, self.own_answers.clone());
        let reloads = "Configuration reloads by result";
        registry.register("reloads", reloads, self.reloads.clone());
        let hits = "Claims and lookups answered by the near cache";
        registry.register("near_hits", hits, self.near_hits.clone());
        let spans = "Spans that were not exported";
        registry.register("spans_dropped", spans, self.spans_dropped.clone());
        let lines = "Log lines that were dropped, for want of a reader that is fast enough";
        registry.register("log_dropped", lines, self.log_dropped.clone());
        let up = "Whether an upstream address is available (1) or used as last resort (0)";
        registry.register("upstream_up", up, self.upstream_up.clone());
        let ejections = "Ejections of an upstream address, after failures in a row";
        registry.register("upstream_ejections", ejections, self.ejections.clone());
        let findings = "Findings about the store's configuration, by severity";
        registry.register("store_findings", findings, self.store_findings.clone());
        let keys = "Keys for tokens, by the URL that they are read from";
        registry.register("keys", keys, self.token_keys.clone());
        let age = "Time since keys for tokens were read; -1 before the first time";
        registry.register_with_unit("keys_age", age, Unit::Seconds, self.keys_age.clone());
        for ((name, help), gauge) in CURRENT.into_iter().zip(&self.current) {
            registry.register(name, help, gauge.clone());
        }
    }

    /// Encodes all metrics as Prometheus' text, version 0.0.4.
    pub(crate) fn plain_text(&self, current: &CurrentValues) -> Result<String, fmt::Error> {
        self.text(current).map(|text| exposition::plain(&text))
    }

    /// Encodes all metrics as OpenMetrics text.
    pub(crate) fn text(&self, current: &CurrentValues) -> Result<String, fmt::Error> {
        for (gauge, value) in self.current.iter().zip(current.values()) {
            gauge.set(value);
        }
        // These are counted elsewhere.
        self.near_hits.inner().store(current.near_hits, Ordering::Relaxed);
        self.spans_dropped.inner().store(current.spans_dropped, Ordering::Relaxed);
        self.log_dropped.inner().store(crate::logging::dropped(), Ordering::Relaxed);
        // Removes addresses of previous configurations; the lock keeps concurrent scrapes apart.
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        self.token_keys.clear();
        self.keys_age.clear();
        for (url, count, age) in &current.key_sets {
            let url = UrlLabels { url: url.clone() };
            let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            self.token_keys.get_or_create(&url).set(number(*count as u64));
            let age = age.map_or(-1, |age| number(age.as_secs()));
            self.keys_age.get_or_create(&url).set(age);
        }
        for (severity, name) in SEVERITIES {
            let findings = current.report.iter().flat_map(|report| &report.findings);
            let count = findings.filter(|finding| finding.severity == severity).count();
            let gauge = self.store_findings.get_or_create(&SeverityLabels { severity: name });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.upstream_up.clear();
        self.ejections.clear();
        for state in &current.addresses {
            let AddressState { upstream, address, .. } = state.clone();
            let labels = AddressLabels { upstream, address };
            self.upstream_up.get_or_create(&labels).set(state.is_up.into());
            let ejections = self.ejections.get_or_create(&labels);
            ejections.inner().store(state.ejections, Ordering::Relaxed);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        let end = text.rfind(EOF).unwrap_or(text.len());
        text.insert_str(end, &process::text(current.uptime));
        Ok(text)
    }

    /// Creates the counters of a route and its upstream at zero, before anything is counted.
    ///
    /// To Prometheus a counter that appears as 1 has not increased, so an alert would miss the
    /// first event, which may be the only one.
    pub(crate) fn announce(&self, route: &Arc<str>, upstream: &Arc<str>) {
        for (outcome, reason) in all_outcome_labels() {
            let labels = RequestLabels { route: Arc::clone(route), outcome, reason };
            drop(self.requests.get_or_create(&labels));
        }
        for answer in UpstreamResult::LABELS {
            let labels = UpstreamResultLabels { upstream: Arc::clone(upstream), answer };
            drop(self.upstream_answers.get_or_create(&labels));
        }
    }

    /// Counts a request with its labels `outcome` and `reason`.
    pub(crate) fn request(
        &self,
        route: &Arc<str>,
        (outcome, reason): (&'static str, &'static str),
        took: Duration,
    ) {
        let route = Arc::clone(route);
        let ended = RequestLabels { route: Arc::clone(&route), outcome, reason };
        self.requests.get_or_create(&ended).inc();
        self.request_time.get_or_create(&RouteLabels { route }).observe(took.as_secs_f64());
    }

    pub(crate) fn step(&self, operation: StoreOperation, result: StoreResult, took: Duration) {
        let ended = StepLabels { operation: operation.as_str(), result: result.as_str() };
        self.steps.get_or_create(&ended).observe(took.as_secs_f64());
        match result {
            StoreResult::Orphan => _ = self.orphans.inc(),
            StoreResult::Failed(_) => {
                let failed = StoreFailureLabels { result: result.as_str() };
                self.store_failures.get_or_create(&failed).inc();
            }
            _ => {}
        }
    }

    pub(crate) fn upstream(&self, upstream: &Arc<str>, answer: UpstreamResult, took: Duration) {
        let upstream = Arc::clone(upstream);
        let answered =
            UpstreamResultLabels { upstream: Arc::clone(&upstream), answer: answer.as_str() };
        self.upstream_answers.get_or_create(&answered).inc();
        self.upstream_time.get_or_create(&UpstreamLabels { upstream }).observe(took.as_secs_f64());
    }

    pub(crate) fn connection_opened(&self) {
        self.accepted.inc();
        self.connections.inc();
    }

    pub(crate) fn connection_refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub(crate) fn own_answer(&self, code: &'static str) {
        self.own_answers.get_or_create(&CodeLabels { code }).inc();
    }

    pub(crate) fn connection_closed(&self) {
        self.connections.dec();
    }

    pub(crate) fn reloaded(&self, taken: bool) {
        let result = if taken { "taken" } else { "refused" };
        self.reloads.get_or_create(&ReloadLabels { result }).inc();
    }

    /// The number of a route's requests with this outcome.
    pub(crate) fn count(
        &self,
        route: &Arc<str>,
        outcome: &'static str,
        reason: &'static str,
    ) -> u64 {
        let ended = RequestLabels { route: Arc::clone(route), outcome, reason };
        self.requests.get(&ended).map_or(0, |count| count.get())
    }

    /// The number of claims that found an orphan.
    pub(crate) fn orphans(&self) -> u64 {
        self.orphans.get()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: Arc<str>,
    outcome: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    operation: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreFailureLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamResultLabels {
    upstream: Arc<str>,
    answer: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    upstream: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AddressLabels {
    upstream: String,
    address: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SeverityLabels {
    severity: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UrlLabels {
    url: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    result: &'static str,
}

fn request_buckets() -> Histogram {
    Histogram::new(REQUEST_BUCKETS_SECS)
}

fn step_buckets() -> Histogram {
    Histogram::new(STEP_BUCKETS_SECS)
}

const SEVERITIES: [(Severity, &str); 4] = [
    (Severity::Note, "note"),
    (Severity::Warning, "warning"),
    (Severity::Unsafe, "unsafe"),
    (Severity::Fatal, "fatal"),
];
const EOF: &str = "# EOF";
const REFUSED_REASONS: [&str; 5] = ["accept", "limit", "malformed", "proxy-protocol", "tls"];
const CURRENT: [(&str, &str); 9] = [
    ("executing", "Handlers that run under a key"),
    ("waiting", "Requests that wait for another request's result"),
    ("unconfirmed", "Store operations without confirmation"),
    ("spool_bytes", "Bytes of request bodies in spool files"),
    ("near_bytes", "Bytes of responses in the near cache"),
    ("store_up", "Whether the store replied recently"),
    ("store_unsafe", "Whether the store can lose or delete records, as it was checked last"),
    ("store_refused", "Whether a policy refuses the store for that, so that requests get 503"),
    ("draining", "Whether the gateway is draining"),
];
const REQUEST_BUCKETS_SECS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// The first bucket holds memory's latencies, the last those of an unavailable store.
const STEP_BUCKETS_SECS: [f64; 12] =
    [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5];

#[cfg(test)]
mod tests;
