//! Records store operations and completed requests: for metrics, the inspector and the log.
//!
//! The library has no hooks for it: a request's result comes from its
//! [`Outcome`](idemptx::Outcome), and the store is wrapped in a [`RecordedStore`].

mod access_log;
pub(crate) mod event_log;
mod outage;
mod readiness;
mod recorded_store;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use idemptx::Outcome;

pub(crate) use self::access_log::{AccessLine, AnsweredBy};
use self::event_log::{Event, EventLog};
use self::outage::Outage;
pub(crate) use self::readiness::Readiness;
pub(crate) use self::recorded_store::{RecordedStore, connect, poll};
use crate::config::Log;
use crate::logging::LogRate;
use crate::metrics::Metrics;
use crate::network::ClientAddress;
use crate::observation::{CompletedRequest, UpstreamResult};
use crate::traces::Tracer;

/// Records everything that happens; shared by all connections.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// `None` without an admin listener, since nothing would read it.
    admin: Option<AdminState>,
    log: Log,
    /// The limit of lines about refused connections, which anyone can cause.
    refusals: LogRate,
    /// The limit of lines about connections that the system does not give.
    accept_failures: LogRate,
    /// The limit of lines about steps that the store did not answer in time.
    late_steps: LogRate,
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
    pub(crate) fn without_admin(log: Log) -> Self {
        Self {
            admin: None,
            log,
            refusals: LogRate::default(),
            accept_failures: LogRate::default(),
            late_steps: LogRate::default(),
            readiness: Readiness::new(),
            outage: Outage::default(),
            traces: Tracer::disabled(),
        }
    }

    /// Returns a recorder that feeds an admin listener as well.
    pub(crate) fn with_admin(log: Log) -> Self {
        let admin = AdminState { metrics: Metrics::new(), event_log: EventLog::new() };
        Self { admin: Some(admin), ..Self::without_admin(log) }
    }

    /// Adds tracing.
    pub(crate) fn with_traces(self, traces: Tracer) -> Self {
        Self { traces, ..self }
    }

    pub(crate) fn metrics(&self) -> Option<&Metrics> {
        self.admin.as_ref().map(|admin| &admin.metrics)
    }

    /// Returns the settings of the log.
    pub(crate) const fn log(&self) -> Log {
        self.log
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
        let Some(AdminState { metrics, event_log }) = &self.admin else { return };
        let took = request_completed.began.elapsed();
        if let Some(error) = request_completed.own {
            metrics.own_answer(error.code());
        }
        if let Some(route) = request_completed.route {
            metrics.request(route, request_completed.labels(), took);
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

    /// Records the result of a request to an upstream.
    pub(crate) fn upstream(&self, upstream: &Arc<str>, answer: UpstreamResult, began: Instant) {
        if let Some(metrics) = self.metrics() {
            metrics.upstream(upstream, answer, began.elapsed());
        }
    }

    /// Records a client connection, which ends when the return value is dropped.
    pub(crate) fn connection_opened(self: &Arc<Self>) -> OpenConnection {
        if let Some(metrics) = self.metrics() {
            metrics.connection_opened();
        }
        OpenConnection(Arc::clone(self))
    }

    /// Records a client connection that was refused: for want of a place or of a TLS handshake, or
    /// for bytes that are no request.
    pub(crate) fn connection_refused(&self, client: ClientAddress, reason: &'static str) {
        if self.log.access
            && let Some(suppressed) = self.refusals.admit()
        {
            let client = tracing::field::display(client);
            tracing::info!(target: "idemptx::access", client, reason, "connection refused{suppressed}");
        }
        if let Some(metrics) = self.metrics() {
            metrics.connection_refused(reason);
        }
    }

    /// Records that the system gives no connection, most likely for want of file descriptors.
    pub(crate) fn accept_failed(&self, what: &str, error: &io::Error) {
        if let Some(suppressed) = self.accept_failures.admit() {
            tracing::warn!("cannot accept {what}: {error}{suppressed}");
        }
        if let Some(metrics) = self.metrics() {
            metrics.connection_refused("accept");
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
