//! What is counted, for Prometheus: `/metrics` on the admin listener, as OpenMetrics text.
//!
//! Labels are bounded: routes, upstreams and their addresses come from the configuration,
//! everything else from our own words. No key, client, path or header is a label.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use idemptx::{Bypass, Outcome};
use idemptx_core::store::ErrorKind;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// All counters of a gateway.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Ended, Counter>,
    request_time: Family<OfRoute, Histogram, fn() -> Histogram>,
    steps: Family<StepEnded, Histogram, fn() -> Histogram>,
    orphans: Counter,
    upstream_answers: Family<Answered, Counter>,
    upstream_time: Family<OfUpstream, Histogram, fn() -> Histogram>,
    connections: Gauge,
    accepted: Counter,
    reloads: Family<Reloaded, Counter>,
    near_hits: Counter,
    spans_dropped: Counter,
    upstream_up: Family<OfAddress, Gauge>,
    reading: Mutex<()>,
    now: [Gauge; 7],
}

/// Numbers that are read when they are asked for, and cost nothing until then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Now {
    /// Handlers that run under a key, or are about to.
    pub(crate) executing: usize,
    /// Requests that wait for another one's end.
    pub(crate) waiting: usize,
    /// Steps that the store has not confirmed.
    pub(crate) unconfirmed: usize,
    /// Bytes of bodies that wait in files.
    pub(crate) spooled: u64,
    /// Results that are held at hand, in bytes.
    pub(crate) near_bytes: usize,
    /// How many claims and lookups were answered from them.
    pub(crate) near_hits: u64,
    /// Spans that were not exported.
    pub(crate) spans_dropped: u64,
    /// Upstreams with their addresses, and whether those are tried in their turn.
    pub(crate) addresses: Vec<(String, String, bool)>,
    /// Whether the store has answered lately; `None` before it was asked.
    pub(crate) store: Option<bool>,
    /// Whether the gateway is about to end.
    pub(crate) draining: bool,
}

impl Now {
    /// In the order of [`NOW`].
    fn values(&self) -> [i64; 7] {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        [
            number(self.executing),
            number(self.waiting),
            number(self.unconfirmed),
            i64::try_from(self.spooled).unwrap_or(i64::MAX),
            number(self.near_bytes),
            (self.store == Some(true)).into(),
            self.draining.into(),
        ]
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("idemptx");
        let build = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The version that runs", Info::new(build));
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            request_time: Family::new_with_constructor(request_buckets),
            steps: Family::new_with_constructor(step_buckets),
            orphans: Counter::default(),
            upstream_answers: Family::default(),
            upstream_time: Family::new_with_constructor(request_buckets),
            connections: Gauge::default(),
            accepted: Counter::default(),
            reloads: Family::default(),
            near_hits: Counter::default(),
            spans_dropped: Counter::default(),
            upstream_up: Family::default(),
            reading: Mutex::default(),
            now: Default::default(),
        };
        metrics.register(&mut registry);
        metrics.registry = registry;
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        let requests = "Requests by what became of them; the reason is a problem's code, or why \
                        the request passed";
        registry.register("requests", requests, self.requests.clone());
        let time = "From a request's head to the head of its answer";
        registry.register_with_unit("request", time, Unit::Seconds, self.request_time.clone());
        let steps = "How long the store took for a step";
        registry.register_with_unit("store_step", steps, Unit::Seconds, self.steps.clone());
        let orphans = "Claims that met an operation whose owner had vanished";
        registry.register("orphans", orphans, self.orphans.clone());
        let answers = "Answers of upstreams by class of status, and why there was none";
        registry.register("upstream_answers", answers, self.upstream_answers.clone());
        let time = "From a request's first byte to the head of the upstream's answer";
        registry.register_with_unit("upstream", time, Unit::Seconds, self.upstream_time.clone());
        registry.register("connections", "Connections of clients", self.connections.clone());
        let accepted = "Connections of clients that were accepted";
        registry.register("connections_accepted", accepted, self.accepted.clone());
        let reloads = "Configurations that were read again, and whether they were taken";
        registry.register("reloads", reloads, self.reloads.clone());
        let hits = "Claims and lookups that were answered from results at hand";
        registry.register("near_hits", hits, self.near_hits.clone());
        let spans = "Spans that were not exported, for want of room or of a collector";
        registry.register("spans_dropped", spans, self.spans_dropped.clone());
        let up = "Whether an address is tried in its turn: it is neither sick nor down";
        registry.register("upstream_up", up, self.upstream_up.clone());
        for ((name, help), gauge) in NOW.into_iter().zip(&self.now) {
            registry.register(name, help, gauge.clone());
        }
    }

    /// Everything, as OpenMetrics text.
    pub(crate) fn text(&self, now: &Now) -> Result<String, fmt::Error> {
        for (gauge, value) in self.now.iter().zip(now.values()) {
            gauge.set(value);
        }
        // Counted elsewhere already.
        self.near_hits.inner().store(now.near_hits, Ordering::Relaxed);
        self.spans_dropped.inner().store(now.spans_dropped, Ordering::Relaxed);
        // Those of a former configuration are gone; nobody else reads meanwhile.
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        self.upstream_up.clear();
        for (upstream, address, is_up) in &now.addresses {
            let address = OfAddress { upstream: upstream.clone(), address: address.clone() };
            self.upstream_up.get_or_create(&address).set((*is_up).into());
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    pub(crate) fn request(&self, route: &Arc<str>, outcome: Option<&Outcome>, took: Duration) {
        let (outcome, reason) = words(outcome);
        let route = Arc::clone(route);
        let ended = Ended { route: Arc::clone(&route), outcome, reason };
        self.requests.get_or_create(&ended).inc();
        self.request_time.get_or_create(&OfRoute { route }).observe(took.as_secs_f64());
    }

    pub(crate) fn step(&self, operation: Operation, result: StepResult, took: Duration) {
        let ended = StepEnded { operation: operation.as_str(), result: result.as_str() };
        self.steps.get_or_create(&ended).observe(took.as_secs_f64());
        if result == StepResult::Orphan {
            self.orphans.inc();
        }
    }

    pub(crate) fn upstream(&self, upstream: &Arc<str>, answer: UpstreamAnswer, took: Duration) {
        let upstream = Arc::clone(upstream);
        let answered = Answered { upstream: Arc::clone(&upstream), answer: answer.as_str() };
        self.upstream_answers.get_or_create(&answered).inc();
        self.upstream_time.get_or_create(&OfUpstream { upstream }).observe(took.as_secs_f64());
    }

    pub(crate) fn connected(&self) {
        self.accepted.inc();
        self.connections.inc();
    }

    pub(crate) fn disconnected(&self) {
        self.connections.dec();
    }

    pub(crate) fn reloaded(&self, taken: bool) {
        let result = if taken { "taken" } else { "refused" };
        self.reloads.get_or_create(&Reloaded { result }).inc();
    }

    /// How many requests of a route ended so.
    pub(crate) fn count(
        &self,
        route: &Arc<str>,
        outcome: &'static str,
        reason: &'static str,
    ) -> u64 {
        let ended = Ended { route: Arc::clone(route), outcome, reason };
        self.requests.get(&ended).map_or(0, |count| count.get())
    }

    /// How often a claim met an orphan.
    pub(crate) fn orphans(&self) -> u64 {
        self.orphans.get()
    }
}

/// What a store was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Claim,
    Settle,
    Release,
    Renew,
    Lookup,
}

impl Operation {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Settle => "settle",
            Self::Release => "release",
            Self::Renew => "renew",
            Self::Lookup => "lookup",
        }
    }
}

/// What it answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepResult {
    /// Done, or granted.
    Ok,
    /// Somebody holds the record.
    Held,
    /// Nobody holds it any more, and nobody has settled it.
    Orphan,
    /// There is a result.
    Settled,
    Failed(ErrorKind),
}

impl StepResult {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Held => "held",
            Self::Orphan => "orphan",
            Self::Settled => "settled",
            Self::Failed(ErrorKind::Unavailable) => "unavailable",
            Self::Failed(ErrorKind::Refused) => "refused",
            Self::Failed(ErrorKind::Fenced) => "fenced",
            Self::Failed(ErrorKind::Corrupt) => "corrupt",
            Self::Failed(ErrorKind::Full) => "full",
            Self::Failed(ErrorKind::Invalid) => "invalid",
            Self::Failed(_) => "internal",
        }
    }
}

/// What came of a request to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpstreamAnswer {
    Status(StatusCode),
    /// It was not sent.
    Unsent,
    /// It was sent, and the connection broke.
    Broken,
    /// It was sent, and no answer came in time.
    Late,
}

impl UpstreamAnswer {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Status(status) => match status.as_u16() {
                100..200 => "1xx",
                200..300 => "2xx",
                300..400 => "3xx",
                400..500 => "4xx",
                _ => "5xx",
            },
            Self::Unsent => "unsent",
            Self::Broken => "broken",
            Self::Late => "late",
        }
    }
}

/// What a request came to, in two words: the kind, and the reason where there are several.
pub(crate) const fn words(outcome: Option<&Outcome>) -> (&'static str, &'static str) {
    match outcome {
        Some(Outcome::Executed { stored: true, .. }) => ("executed", ""),
        Some(Outcome::Executed { stored: false, .. }) => ("unstored", ""),
        Some(Outcome::Replayed) => ("replayed", ""),
        Some(Outcome::Refused(code)) => ("refused", code.as_str()),
        Some(Outcome::Bypassed(passed)) => ("passed", passed_as(*passed)),
        // Where no policy is: unprotected routes, and what finds no route.
        _ => ("passed", "unprotected-route"),
    }
}

/// Every reason for which a request passes.
pub(crate) const PASSED: [&str; 9] = [
    "not-http",
    "method",
    "no-key",
    "large-body",
    "store-unavailable",
    "would-refuse",
    "would-replay",
    "unprotected-route",
    "other",
];

const fn passed_as(passed: Bypass) -> &'static str {
    match passed {
        Bypass::NotHttp => "not-http",
        Bypass::Method { .. } => "method",
        Bypass::NoKey => "no-key",
        Bypass::LargeBody => "large-body",
        Bypass::Unprotected => "store-unavailable",
        Bypass::WouldRefuse(_) => "would-refuse",
        Bypass::WouldReplay => "would-replay",
        _ => "other",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    route: Arc<str>,
    outcome: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRoute {
    route: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepEnded {
    operation: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    upstream: Arc<str>,
    answer: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfUpstream {
    upstream: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAddress {
    upstream: String,
    address: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reloaded {
    result: &'static str,
}

fn request_buckets() -> Histogram {
    Histogram::new(REQUEST_BUCKETS_SECS)
}

fn step_buckets() -> Histogram {
    Histogram::new(STEP_BUCKETS_SECS)
}

const NOW: [(&str, &str); 7] = [
    ("executing", "Executions under a key"),
    ("waiting", "Requests that wait for another one's end"),
    ("unconfirmed", "Steps that the store has not confirmed"),
    ("spool_bytes", "Bodies that wait in files"),
    ("near_bytes", "Results that are held at hand"),
    ("store_up", "Whether the store has answered lately"),
    ("draining", "Whether the gateway is about to end"),
];
const REQUEST_BUCKETS_SECS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// Memory answers in less than the first, a store that is away in the last.
const STEP_BUCKETS_SECS: [f64; 12] =
    [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5];

#[cfg(test)]
mod tests;
