//! Reports of outcomes: the application's function, and `tracing`.

use std::fmt;
use std::sync::Arc;
#[cfg(feature = "tracing")]
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

#[cfg(feature = "tracing")]
use http::HeaderMap;
#[cfg(feature = "tracing")]
use idemptx_core::exchange::{InvalidDirective, Operation};
use idemptx_core::key::RecordId;
use idemptx_core::outcome::Outcome;
#[cfg(feature = "tracing")]
use idemptx_core::policy::Policy;
use idemptx_core::store::Store;

use super::Inner;

/// The end of a request, for [`EngineBuilder::observe`](crate::EngineBuilder::observe).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Completed {
    /// The outcome.
    pub outcome: Outcome,
    /// The record of the request's key; `None` for a request without a valid key.
    pub record: Option<RecordId>,
    /// The time from the request's head to the outcome.
    pub took: Duration,
}

pub(super) type ObserveFn = Arc<dyn Fn(&Completed) + Send + Sync>;

/// A request whose outcome will be reported.
///
/// Without an observer it costs a branch.
#[derive(Clone)]
pub(crate) struct Observation(Option<Box<Observed>>);

#[derive(Clone)]
struct Observed {
    observe: Option<ObserveFn>,
    began: Instant,
}

impl Observation {
    /// Begins with a request's head.
    pub(crate) fn begin<S: Store>(engine: &Inner<S>) -> Self {
        let observe = engine.observer();
        let is_observed = observe.is_some() || is_traced();
        // Boxed, because it is a part of every request's future.
        Self(is_observed.then(|| Box::new(Observed { observe, began: Instant::now() })))
    }

    /// Reports the outcome.
    pub(crate) fn end(&self, outcome: &Outcome, record: Option<RecordId>) {
        let Some(observed) = &self.0 else { return };
        let Observed { observe, began } = &**observed;
        let completed = Completed { outcome: outcome.clone(), record, took: began.elapsed() };
        #[cfg(feature = "tracing")]
        trace(&completed);
        if let Some(observe) = observe {
            observe(&completed);
        }
    }
}

impl fmt::Debug for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observation").finish_non_exhaustive()
    }
}

/// Warns, once in this process for each, of keys that protect less than their clients believe.
#[cfg(feature = "tracing")]
pub(crate) fn warn_of_key(policy: &Policy, operation: &Operation, headers: &HeaderMap) {
    static PLACEHOLDER: Once = Once::new();
    static SESSION: Once = Once::new();
    if !PLACEHOLDER.is_completed() && policy.warns_of_key(operation.key()) {
        PLACEHOLDER.call_once(|| {
            tracing::warn!(
                target: "idemptx",
                "a client sends a placeholder as its key, such as `undefined`: every client with this \
                 fault sends the same key; `on_placeholder_key` can refuse it"
            );
        });
    }
    if !SESSION.is_completed()
        && policy.scope.as_ref().is_some_and(|scope| scope.misses_session(headers))
    {
        SESSION.call_once(|| {
            tracing::warn!(
                target: "idemptx",
                "a request with a key has cookies, and none of the headers to which keys are bound: \
                 if its session is in a cookie, make that the scope"
            );
        });
    }
}

/// Warns of a response whose `Idempotency-Outcome` cannot be read, now and then.
#[cfg(feature = "tracing")]
pub(crate) fn warn_of_directive(invalid: InvalidDirective) {
    static WARNING: Warning = Warning::new();
    if WARNING.is_due() {
        tracing::warn!(target: "idemptx", "{invalid}: the outcome counts as unknown");
    }
}

/// Warns of a request body that cannot be written to its file, now and then.
#[cfg(all(feature = "spool", feature = "tracing"))]
pub(crate) fn warn_of_spool(directory: &std::path::Path, error: &std::io::Error) {
    static WARNING: Warning = Warning::new();
    if WARNING.is_due() {
        let directory = directory.display();
        tracing::warn!(
            target: "idemptx",
            "large requests are refused: no file can be written in {directory}: {error}"
        );
    }
}

/// A warning that every request may cause, and is logged once in ten seconds.
#[cfg(feature = "tracing")]
struct Warning(Mutex<Option<Instant>>);

#[cfg(feature = "tracing")]
impl Warning {
    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| last.elapsed() >= Duration::from_secs(10));
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

/// Emits an event with the outcome, and the metrics of `tracing-opentelemetry`.
#[cfg(feature = "tracing")]
fn trace(completed: &Completed) {
    let (outcome, code, attempt) = match &completed.outcome {
        Outcome::Bypassed(_) => ("bypassed", None, None),
        Outcome::Executed { attempt, stored: true } => ("executed", None, Some(*attempt)),
        Outcome::Executed { attempt, stored: false } => ("unstored", None, Some(*attempt)),
        Outcome::Fenced { attempt, code } => ("fenced", *code, Some(*attempt)),
        Outcome::Replayed => ("replayed", None, None),
        Outcome::Refused(code) => ("refused", Some(*code), None),
        _ => ("other", None, None),
    };
    tracing::debug!(
        target: "idemptx",
        outcome,
        code = code.map(idemptx_core::outcome::Code::as_str),
        attempt,
        record = completed.record.map(tracing::field::display),
        monotonic_counter.idemptx_requests = 1_u64,
        histogram.idemptx_request_seconds = completed.took.as_secs_f64(),
        "request completed"
    );
}

/// Returns `true` where anybody receives the event of an outcome.
fn is_traced() -> bool {
    #[cfg(feature = "tracing")]
    return tracing::enabled!(target: "idemptx", tracing::Level::DEBUG);
    #[cfg(not(feature = "tracing"))]
    return false;
}
