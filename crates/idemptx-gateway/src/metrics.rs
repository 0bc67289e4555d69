//! Metrics for Prometheus: `/metrics` on the admin listener, as OpenMetrics text.
//!
//! Labels are bounded: routes, upstreams and their addresses come from the configuration,
//! everything else from constants. No key, client, path or header is a label.

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

/// The gateway's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request_time: Family<RouteLabels, Histogram, fn() -> Histogram>,
    steps: Family<StepLabels, Histogram, fn() -> Histogram>,
    orphans: Counter,
    upstream_answers: Family<UpstreamResultLabels, Counter>,
    upstream_time: Family<UpstreamLabels, Histogram, fn() -> Histogram>,
    connections: Gauge,
    accepted: Counter,
    reloads: Family<ReloadLabels, Counter>,
    near_hits: Counter,
    spans_dropped: Counter,
    upstream_up: Family<AddressLabels, Gauge>,
    reading: Mutex<()>,
    current: [Gauge; 7],
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
    /// Upstreams with their addresses, and whether each is available.
    pub(crate) addresses: Vec<(String, String, bool)>,
    /// Whether the store replied recently; `None` before the first query.
    pub(crate) store: Option<bool>,
    pub(crate) draining: bool,
}

impl CurrentValues {
    /// The values in the order of [`CURRENT`].
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
        registry.register("build", "The running version", Info::new(build));
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
            current: Default::default(),
        };
        metrics.register(&mut registry);
        metrics.registry = registry;
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        let requests = "Requests by outcome; the reason is a problem's code, or why the \
                        request bypassed the engine", bypass_reason(*bypass)),
        // Unprotected routes, and requests that match no route.
        _ => ("passed", "unprotected-route"),
    }
}

/// The values of `reason` for requests that bypass the engine.
pub(crate) const BYPASS_REASONS: [&str; 9] = [
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

const fn bypass_reason(bypass: Bypass) -> &'static str {
    match bypass {
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
struct ReloadLabels {
    result: &'static str,
}

fn request_buckets() -> Histogram {
    Histogram::new(REQUEST_BUCKETS_SECS)
}

fn step_buckets() -> Histogram {
    Histogram::new(STEP_BUCKETS_SECS)
}

const CURRENT: [(&str, &str); 7] = [
    ("executing", "Handlers that run under a key"),
    ("waiting", "Requests that wait for another request's result"),
    ("unconfirmed", "Store operations without confirmation"),
    ("spool_bytes", "Bytes of request bodies in spool files"),
    ("near_bytes", "Bytes of responses in the near cache"),
    ("store_up", "Whether the store replied recently"),
    ("draining", "Whether the gateway is draining"),
];
const REQUEST_BUCKETS_SECS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// The first bucket holds memory's latencies, the last those of an unavailable store.
const STEP_BUCKETS_SECS: [f64; 12] =
    [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5];

#[cfg(test)]
mod tests;
