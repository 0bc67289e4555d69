//! Records store operations and completed requests: for metrics, the inspector and the log.
//!
//! The library has no hooks for it: a request's result comes from its
//! [`Outcome`](idemptx::Outcome), and the store is wrapped in a [`RecordedStore`].

pub(crate) mod event_log;
mod outage;
mod readiness;
mod recorded_store;

use std::sync::Arc;
use std::time::Duration;

use idemptx::Outcome;

use self::event_log::{Event, EventLog};
use self::outage::Outage;
pub(crate) use self::readiness::Readiness;
pub(crate) use self::recorded_store::{RecordedStore, poll};
use crate::metrics::Metrics;
use crate::observation::{CompletedRequest, UpstreamResult, outcome_labels, short_id};
use crate::traces::Tracer;

/// Records everything that happens; shared by all connections.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// `None` without an admin listener, since nothing would read it.
    admin: Option<AdminState>,
    /// Logs requests at `info` instead of `debug`.
    log_access: bool,
    readiness: Readiness,
    outage: Outage,
    traces: Tracer,
}

#[derive(Debug)]
struct AdminState {
    metrics: Metrics,
    event_log: EventLog,
}

impl Recorder {
    /// Returns a recorder that writes the log only.
    pub(crate) fn without_admin(log_access: bool) -> Self {
        Self {
            admin: None,
            log_access,
            readiness: Readiness::new(),
            outage: Outage::default(),
            traces: Tracer::disabled(),
        }
    }

    /// Returns a recorder that feeds an admin listener as well.
    pub(crate) fn with_admin(log_access: bool) -> Self {
        let admin = AdminState { metrics: Metrics::new(), event_log: EventLog::new() };
        Self { admin: Some(admin), ..Self::without_admin(log_access) }
    }

    /// Adds tracing.
    pub(crate) fn with_traces(self, traces: Tracer) -> Self {
        Self { traces, ..self }
    }

    pub(crate) fn metrics(&self) -> Option<&Metrics> {
        self.admin.as_ref().map(|admin| &admin.metrics)
    }

    pub(crate) const fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    pub(crate) const fn traces(&self) -> &Tracer {
        &self.traces
    }

    pub(crate) fn event_log(&self) -> Option<&EventLog> {
        self.admin.as_ref().map(|admin| &admin.event_log)
    }

    /// Records a completed request.
    pub(crate) fn request_completed(&self, request_completed: &CompletedRequest<'_>) {
        let took = request_completed.began.elapsed();
        self.log(request_completed, took);
        let Some(AdminState { metrics, event_log }) = &self.admin else { return };
        if let Some(code) = request_completed.own {
            metrics.own_answer(code);
        }
        if let Some(route) = request_completed.route {
            metrics.request(route, request_completed.outcome, took);
        }
        let Some(id) = request_completed.record else { return };
        match request_completed.outcome {
            Some(Outcome::Replayed | Outcome::Fenced { code: None, .. }) => {
                event_log.record_replayed(id, request_completed.began);
            }
            Some(Outcome::Refused(code) | Outcome::Fenced { code: Some(code), .. }) => {
                event_log.record(id, Event::Refused(*code));
            }
            Some(Outcome::Executed { stored, .. }) => {
                event_log.record(id, Event::Executed { stored: *stored });
            }
            _ => {}
        }
    }

    /// Logs one line for a request.
    ///
    /// # Security
    ///
    /// It contains neither the query nor header values nor bodies, at any level.
    fn log(&self, request_completed: &CompletedRequest<'_>, took: Duration) {
        let (outcome, reason) = outcome_labels(request_completed.outcome);
        let attempt = match request_completed.outcome {
            Some(Outcome::Executed { attempt, .. } | Outcome::Fenced { attempt, .. }) => {
                Some(*attempt)
            }
            _ => None,
        };
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "idemptx::access",
                    method = request_completed.method.as_str(),
                    path = request_completed.path,
                    client = %request_completed.client,
                    route = request_completed.route.map(|it| &**it),
                    upstream = request_completed.upstream,
                    status = request_completed.status,
                    code = request_completed.own,
                    outcome,
                    reason = (!reason.is_empty()).then_some(reason),
                    attempt,
                    record = request_completed.record.map(short_id),
                    took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                )
            };
        }
        if self.log_access {
            line!(info);
        } else {
            line!(debug);
        }
    }

    /// Records the result of a request to an upstream.
    pub(crate) fn upstream(&self, upstream: &Arc<str>, answer: UpstreamResult, took: Duration) {
        if let Some(metrics) = self.metrics() {
            metrics.upstream(upstream, answer, took);
        }
    }

    /// Records a client connection, which ends when the return value is dropped.
    pub(crate) fn connection_opened(self: &Arc<Self>) -> OpenConnection {
        if let Some(metrics) = self.metrics() {
            metrics.connection_opened();
        }
        OpenConnection(Arc::clone(self))
    }

    /// Records a client connection that was refused, for want of a place or of a TLS handshake.
    pub(crate) fn connection_refused(&self, reason: &'static str) {
        if let Some(metrics) = self.metrics() {
            metrics.connection_refused(reason);
        }
    }

    /// Records a configuration reload.
    pub(crate) fn reloaded(&self, taken: bool) {
        if let Some(metrics) = self.metrics() {
            metrics.reloaded(taken);
        }
    }
}

/// Counts as an open connection until dropped.
#[derive(Debug)]
pub(crate) struct OpenConnection(Arc<Recorder>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if let Some(metrics) = self.0.metrics() {
            metrics.connection_closed();
        }
    }
}
