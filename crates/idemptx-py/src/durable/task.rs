//! What an event loop waits for, and what came of it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use idemptx::store::{AnyStore, SafetyCheck, SafetyReport};
use idemptx_core::key::RecordId;
use idemptx_core::store::{ErrorKind, RecordSnapshot, Store, StoreError, Watch};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};
use tokio::time::timeout;

use super::depot::Source;
use crate::step::{Job, Step, Verdict, with_sources};

/// Something that is under way.
pub(super) struct Task {
    pub(super) work: Work,
    pub(super) asked: Asked,
}

pub(super) type Work = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Who asked, and what is to be told.
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
    /// The end of a claim.
    End {
        wake: Py<PyAny>,
    },
}

/// What came of it.
pub(super) enum Outcome {
    Opened(Result<Arc<AnyStore>, String>),
    Verdict(Result<Verdict, StoreError>),
    Report(Result<SafetyReport, String>),
    Watching(Option<Watch>),
    Ended,
}

impl Asked {
    /// The future that is resolved at its end.
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

/// Opens the store, for as long as a claim may wait.
pub(super) fn open(source: Arc<Source>, limit: Duration) -> Work {
    Box::pin(async move {
        let opened = timeout(limit, source.opened()).await;
        let slow = |_| Err(format!("it was not opened within {} ms", limit.as_millis()));
        Outcome::Opened(opened.unwrap_or_else(slow))
    })
}

/// Performs a step, for as long as the rules allow.
pub(super) fn perform(store: Arc<AnyStore>, job: Job, limit: Duration) -> Work {
    Box::pin(async move { Outcome::Verdict(verdict(&store, &job, limit).await) })
}

/// Asks the store what it promises.
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

/// Goes on to watch it.
pub(super) fn end(watch: Watch) -> Work {
    Box::pin(async move {
        watch.await;
        Outcome::Ended
    })
}

pub(super) async fn verdict(
    store: &AnyStore,
    job: &Job,
    limit: Duration,
) -> Result<Verdict, StoreError> {
    let step = async {
        match job {
            Job::Claim(id, claim_request) => {
                store.claim(id, claim_request).await.map(Verdict::from)
            }
            Job::Lookup(id, _) => store.lookup(id).await.map(Verdict::from),
            Job::Renew(lease) => store.renew(lease).await.map(|_| Verdict::Done),
            Job::Release(lease) => store.release(lease).await.map(|()| Verdict::Done),
            Job::Settle(lease, done) => store.settle(lease, done).await.map(|()| Verdict::Done),
            // Whoever watches marks the record, too.
            Job::Watch(id) => store.lookup(id).await.map(|seen| match seen {
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
