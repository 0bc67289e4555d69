//! The store as operators see it: every step is timed, counted and told.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use idemptx::operator::{Inventory, Page, Query};
use idemptx::store::{SafetyCheck, SafetyReport};
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, ErrorKind, RecordSnapshot, Settlement, Store, StoreError,
    Watch,
};

use super::Observer;
use crate::admin::story::Event;
use crate::metrics::{Operation, StepResult};

/// A store, observed.
#[derive(Debug)]
pub(crate) struct Observed<S> {
    store: S,
    observer: Arc<Observer>,
}

impl<S> Observed<S> {
    pub(crate) const fn new(store: S, observer: Arc<Observer>) -> Self {
        Self { store, observer }
    }

    /// The store itself, for operators' calls.
    pub(crate) const fn inner(&self) -> &S {
        &self.store
    }

    pub(crate) const fn observer(&self) -> &Arc<Observer> {
        &self.observer
    }

    async fn step<T>(
        &self,
        operation: Operation,
        (id, lease): (&RecordId, Option<&Lease>),
        step: impl Future<Output = Result<T, StoreError>>,
        told: impl FnOnce(&T) -> (StepResult, Option<Event>),
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let span = self.observer.traces.step(operation, lease);
        let answer = step.await;
        if !answer.as_ref().is_err_and(|error| error.kind().is_transient()) {
            self.observer.health.answered();
            if let (Operation::Settle | Operation::Release, Some(lease)) = (operation, lease) {
                self.observer.traces.over(lease);
            }
        }
        if self.observer.eyes.is_none() && !span.is_recording() {
            return answer;
        }
        let took = began.elapsed();
        let (result, event) = match &answer {
            Ok(answer) => told(answer),
            Err(error) => (StepResult::Failed(error.kind()), Some(failed(error.kind()))),
        };
        span.end(result);
        let Some(eyes) = &self.observer.eyes else { return answer };
        eyes.metrics.step(operation, result, took);
        if let Some(event) = event {
            eyes.story.tell(id, event);
        }
        answer
    }
}

impl<S: Store> Store for Observed<S> {
    async fn claim(
        &self,
        id: &RecordId,
        claim_request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        let claimed = self.store.claim(id, claim_request);
        self.step(Operation::Claim, (id, None), claimed, |claim| match claim {
            Claim::Granted(lease) => {
                (StepResult::Ok, Some(Event::Claimed { attempt: lease.attempt }))
            }
            Claim::Found(RecordSnapshot::Held(holder)) if holder.is_orphan() => {
                (StepResult::Orphan, Some(Event::MetOrphan))
            }
            Claim::Found(RecordSnapshot::Held(_)) => (StepResult::Held, Some(Event::MetHolder)),
            // What becomes of the request is told at its end.
            _ => (StepResult::Settled, None),
        })
        .await
        .inspect(|claim| {
            if let Claim::Granted(lease) = claim {
                self.observer.traces.granted(lease);
            }
        })
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        let settled = self.store.settle(lease, done);
        let told = |(): &()| (StepResult::Ok, Some(Event::Settled(done.state)));
        self.step(Operation::Settle, (&lease.id, Some(lease)), settled, told).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let released = self.store.release(lease);
        let told = |(): &()| (StepResult::Ok, Some(Event::Released));
        self.step(Operation::Release, (&lease.id, Some(lease)), released, told).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        let renewed = self.store.renew(lease);
        let told = |_: &Lease| (StepResult::Ok, Some(Event::Renewed));
        self.step(Operation::Renew, (&lease.id, Some(lease)), renewed, told).await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        let told = |seen: &Option<RecordSnapshot>| match seen {
            Some(RecordSnapshot::Held(holder)) if holder.is_orphan() => (StepResult::Orphan, None),
            Some(RecordSnapshot::Held(_)) => (StepResult::Held, None),
            Some(_) => (StepResult::Settled, None),
            None => (StepResult::Ok, None),
        };
        self.step(Operation::Lookup, (id, None), self.store.lookup(id), told).await
    }

    fn watch(&self, id: &RecordId) -> impl Future<Output = Option<Watch>> + Send {
        self.store.watch(id)
    }

    fn maintain(&self) {
        self.store.maintain();
    }

    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }
}

impl<S: Inventory> Inventory for Observed<S> {
    fn list(&self, query: &Query) -> impl Future<Output = Result<Page, StoreError>> + Send {
        self.store.list(query)
    }
}

impl<S: SafetyCheck> SafetyCheck for Observed<S> {
    async fn check(&self) -> Result<SafetyReport, StoreError> {
        self.store.check().await
    }
}

const fn failed(kind: ErrorKind) -> Event {
    match kind {
        ErrorKind::Fenced => Event::Fenced,
        kind => Event::Failed(kind),
    }
}
