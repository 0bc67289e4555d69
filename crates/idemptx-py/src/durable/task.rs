//! The tasks that an event loop polls, and their outputs.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use idemptx::store::{AnyStore, SafetyCheck, SafetyReport};
use idemptx_core::key::RecordId;
use idemptx_core::store::{ErrorKind, RecordSnapshot, Store, StoreError, Watch};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};
use tokio::time::timeout;

use super::native_store::Source;
use crate::step::{Step, StoreCall, Verdict, with_sources};

/// A pending operation.
pub(super) struct Task {
    pub(super) work: Work,
    pub(super) asked: Asked,
}

pub(super) type Work = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// The Python objects that receive a task's output.
pub(super) enum Asked {
    /// A step that waits for the store to be opened.
    Opening {
        step: Py<Step>,
        future: Py<PyAny>,
    },
    Step {
        step: Py<Step>,
        future: Py<PyAny>,
    },
    Report {
        future: Py<PyAny>,
    },
    Watch {
        future: Py<PyAny>,
        wake: Py<PyAny>,
    },
    /// A watched claim, whose end calls `wake`.
    End {
        wake: Py<PyAny>,
    },
}

/// The output of a task.
pub(super) enum Outcome {
    Opened(Result<Arc<AnyStore>, String>),
    Verdict(Result<Verdict, StoreError>),
    Report(Result<SafetyReport, String>),
    Watching(Option<Watch>),
    Ended,
}

impl Asked {
    /// Returns the future that the task resolves.
    pub(super) const fn future(&self) -> Option<&Py<PyAny>> {
        match self {
            Self::Opening { future, .. }
            | Self::Step { future, .. }
            | Self::Report { future }
            | Self::Watch { future, .. } => Some(future),
            Self::End { .. } => None,
        }
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(future) = self.future() {
            visit.call(future)?;
        }
        match self {
            Self::Opening { step, .. } | Self::Step { step, .. } => visit.call(step),
            Self::Watch { wake, .. } | Self::End { wake } => visit.call(wake),
            Self::Report { .. } => Ok(()),
        }
    }
}

/// Opens the store, within the time limit of a claim.
pub(super) fn open(source: Arc<Source>, limit: Duration) -> Work {
    Box::pin(async move {
        let opened = timeout(limit, source.opened()).await;
        let slow = |_| Err(format!("it was not opened within {} ms", limit.as_millis()));
        Outcome::Opened(opened.unwrap_or_else(slow))
    })
}

/// Performs a step within a time limit.
pub(super) fn perform(store: Arc<AnyStore>, call: StoreCall, limit: Duration) -> Work {
    Box::pin(async move { Outcome::Verdict(verdict(&store, &call, limit).await) })
}

/// Queries the store's guarantees.
pub(super) fn check(source: Arc<Source>) -> Work {
    Box::pin(async move {
        Outcome::Report(match source.opened().await {
            Ok(store) => SafetyCheck::check(&*store).await.map_err(|error| with_sources(&error)),
            Err(failure) => Err(failure),
        })
    })
}

/// Begins to watch a record.
pub(super) fn watch(store: Arc<AnyStore>, id: RecordId) -> Work {
    Box::pin(async move { Outcome::Watching(store.watch(&id).await) })
}

/// Completes when a watched claim ends.
pub(super) fn end(watch: Watch) -> Work {
    Box::pin(async move {
        watch.await;
        Outcome::Ended
    })
}

pub(super) async fn verdict(
    store: &AnyStore,
    call: &StoreCall,
    limit: Duration,
) -> Result<Verdict, StoreError> {
    let step = async {
        match call {
            StoreCall::Claim(id, claim_request) => {
                store.claim(id, claim_request).await.map(Verdict::from)
            }
            StoreCall::Lookup(id, _) => store.lookup(id).await.map(Verdict::from),
            StoreCall::Renew(lease) => store.renew(lease).await.map(|_| Verdict::Done),
            StoreCall::Release(lease) => store.release(lease).await.map(|()| Verdict::Done),
            StoreCall::Settle(lease, done) => {
                store.settle(lease, done).await.map(|()| Verdict::Done)
            }
            // These stores mark a record when it is watched, so a lookup suffices.
            StoreCall::Watch(id) => store.lookup(id).await.map(|seen| match seen {
                Some(RecordSnapshot::Held(_)) => Verdict::Done,
                _ => Verdict::Absent,
            }),
        }
    };
    match timeout(limit, step).await {
        Ok(verdict) => verdict,
        Err(_) => {
            let text = format!("no answer within {} ms", limit.as_millis());
            Err(StoreError::with_source(ErrorKind::Unavailable, text))
        }
    }
}
