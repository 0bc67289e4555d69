//! A store whose operations are timed, counted, traced and logged.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::Either;
use idemptx::operator::{Inventory, Page, Query};
use idemptx::store::{SafetyCheck, SafetyReport};
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::Record;
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, ErrorKind, RecordSnapshot, Settlement, Store, StoreError,
    Watch,
};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use tokio_util::context::TokioContext;

use super::Recorder;
use crate::observation::{StoreOperation, StoreResult};
use crate::recorder::event_log::Event;
use crate::workers;

/// A store that reports its operations to a [`Recorder`].
#[derive(Debug)]
pub(crate) struct RecordedStore<S> {
    store: S,
    recorder: Arc<Recorder>,
    /// The runtime that has the store's connections for all threads that serve clients.
    runtime: Option<Handle>,
}

impl<S> RecordedStore<S> {
    pub(crate) const fn new(store: S, recorder: Arc<Recorder>) -> Self {
        Self { store, recorder, runtime: None }
    }

    /// Has the store's connections in the current runtime, not in that of each thread.
    ///
    /// For a server to which a connection is dear, and which takes what several requests ask for in
    /// one statement.
    pub(crate) fn in_current_runtime(mut self) -> Self {
        self.runtime = Handle::try_current().ok();
        self
    }

    /// Returns a future that finds the runtime which has the connections.
    fn connected<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F, S> {
        match self.runtime.as_ref().filter(|_| workers::is_worker()) {
            Some(runtime) => Either::Left(TokioContext::new(future, runtime.clone())),
            None => Either::Right(future),
        }
    }

    /// The inner store, for calls of operators.
    pub(crate) const fn inner(&self) -> &S {
        &self.store
    }

    pub(crate) const fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    async fn step<T>(
        &self,
        operation: StoreOperation,
        (id, lease): (&RecordId, Option<&Lease>),
        step: impl Future<Output = Result<T, StoreError>>,
        describe: impl FnOnce(&T) -> (StoreResult, Option<Event>),
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let span = self.recorder.traces.start_step(operation, lease);
        let recorder = &*self.recorder;
        let mut running = RunningStep { recorder, operation, id, began, is_answered: false };
        let answer = self.connected(step).await;
        running.is_answered = true;
        drop(running);
        match &answer {
            Err(error) if error.kind().is_transient() => self.recorder.outage.failed(error),
            _ => self.recorder.outage.answered(),
        }
        if !answer.as_ref().is_err_and(|error| error.kind().is_transient()) {
            self.recorder.readiness.store_answered();
            if let (StoreOperation::Settle | StoreOperation::Release, Some(lease)) =
                (operation, lease)
            {
                self.recorder.traces.lease_ended(lease);
            }
        }
        if self.recorder.admin.is_none() && !span.is_recording() {
            return answer;
        }
        let took = began.elapsed();
        let (result, event) = match &answer {
            Ok(answer) => describe(answer),
            Err(error) => (StoreResult::Failed(error.kind()), Some(failed(error.kind()))),
        };
        span.end(result);
        let Some(admin) = &self.recorder.admin else { return answer };
        admin.metrics.step(operation, result, took);
        if let Some(event) = event {
            admin.event_log.record(id, event);
        }
        answer
    }
}

/// A step that has no answer yet; dropped, it was given up at the policy's time limit.
struct RunningStep<'a> {
    recorder: &'a Recorder,
    operation: StoreOperation,
    id: &'a RecordId,
    began: Instant,
    is_answered: bool,
}

impl Drop for RunningStep<'_> {
    fn drop(&mut self) {
        // One that only reads may have been dropped because nobody waits for it any more.
        if self.is_answered || self.operation == StoreOperation::Lookup {
            return;
        }
        let (operation, took) = (self.operation, self.began.elapsed());
        if let Some(suppressed) = self.recorder.late_steps.admit() {
            let (operation, took_ms) = (operation.as_str(), took.as_millis());
            tracing::warn!(
                operation,
                took_ms,
                "the store did not answer within the policy's time limit{suppressed}"
            );
        }
        let Some(admin) = &self.recorder.admin else { return };
        let kind = ErrorKind::Unavailable;
        admin.metrics.step(operation, StoreResult::Failed(kind), took);
        admin.event_log.record(self.id, failed(kind));
    }
}

impl<S: Store> Store for RecordedStore<S> {
    async fn claim(
        &self,
        id: &RecordId,
        claim_request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        let claimed = self.store.claim(id, claim_request);
        self.step(StoreOperation::Claim, (id, None), claimed, |claim| match claim {
            Claim::Granted(lease) => {
                (StoreResult::Ok, Some(Event::Claimed { attempt: lease.attempt }))
            }
            Claim::Found(RecordSnapshot::Held(holder)) if holder.is_orphan() => {
                (StoreResult::Orphan, Some(Event::MetOrphan))
            }
            Claim::Found(RecordSnapshot::Held(_)) => (StoreResult::Held, Some(Event::MetHolder)),
            // The event follows when the request completes.
            _ => (StoreResult::Settled, None),
        })
        .await
        .inspect(|claim| {
            if let Claim::Granted(lease) = claim {
                self.recorder.traces.lease_granted(lease);
            }
        })
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        let settled = self.store.settle(lease, done);
        let describe = |(): &()| (StoreResult::Ok, Some(Event::Settled(done.state)));
        self.step(StoreOperation::Settle, (&lease.id, Some(lease)), settled, describe).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let released = self.store.release(lease);
        let describe = |(): &()| (StoreResult::Ok, Some(Event::Released));
        self.step(StoreOperation::Release, (&lease.id, Some(lease)), released, describe).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        let renewed = self.store.renew(lease);
        let describe = |_: &Lease| (StoreResult::Ok, Some(Event::Renewed));
        self.step(StoreOperation::Renew, (&lease.id, Some(lease)), renewed, describe).await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        let describe = |seen: &Option<RecordSnapshot>| match seen {
            Some(RecordSnapshot::Held(holder)) if holder.is_orphan() => (StoreResult::Orphan, None),
            Some(RecordSnapshot::Held(_)) => (StoreResult::Held, None),
            Some(_) => (StoreResult::Settled, None),
            None => (StoreResult::Ok, None),
        };
        self.step(StoreOperation::Lookup, (id, None), self.store.lookup(id), describe).await
    }

    /// Is no operation of the store: it answers from what this process has.
    fn recall(&self, id: &RecordId) -> Option<Record> {
        self.store.recall(id)
    }

    fn watch(&self, id: &RecordId) -> impl Future<Output = Option<Watch>> + Send {
        self.connected(self.store.watch(id))
    }

    fn maintain(&self) {
        let _connected = self.runtime.as_ref().map(Handle::enter);
        self.store.maintain();
    }

    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }
}

impl<S: Inventory> Inventory for RecordedStore<S> {
    fn list(&self, query: &Query) -> impl Future<Output = Result<Page, StoreError>> + Send {
        self.store.list(query)
    }
}

impl<S: SafetyCheck> SafetyCheck for RecordedStore<S> {
    async fn check(&self) -> Result<SafetyReport, StoreError> {
        self.store.check().await
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        self.store.migrate().await
    }
}

/// Opens the connection that this thread has to the store, if it has one of its own.
pub(crate) async fn connect<S: Store>(store: &RecordedStore<S>) {
    if store.runtime.is_none() {
        // Not counted: it is nobody's request. What fails now is tried again by the first.
        let _ = timeout(POLL_INTERVAL, store.inner().lookup(&ABSENT)).await;
    }
}

/// Queries the store now and then when requests do not, so that its state is known.
pub(crate) async fn poll<S: Store>(store: Arc<RecordedStore<S>>) {
    loop {
        let readiness = store.recorder().readiness();
        if !readiness.store_answered_within(POLL_INTERVAL) {
            readiness.store_asked();
            // Any reply is noted on its way through the recorded store.
            let _ = timeout(POLL_INTERVAL, store.lookup(&ABSENT)).await;
        }
        sleep(POLL_INTERVAL).await;
    }
}

const fn failed(kind: ErrorKind) -> Event {
    match kind {
        ErrorKind::Fenced => Event::Fenced,
        kind => Event::Failed(kind),
    }
}

const ABSENT: RecordId = RecordId::from_bytes([0; RecordId::BYTES]);
const POLL_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::io;

    use idemptx::{Engine, Policy};
    use idemptx_testkit::ScriptedStore;
    use idemptx_testkit::scripted_store::{Behavior, Gate, Operation};

    use super::*;
    use crate::config::Log;
    use crate::metrics::CurrentValues;

    #[tokio::test]
    async fn a_step_that_is_given_up_at_the_policys_time_limit_is_counted_as_a_failure() {
        let store = ScriptedStore::new();
        store.next(Operation::Claim, Behavior::DelayReply(Gate::closed()));
        let recorder = Arc::new(Recorder::with_admin(Log::default()));
        let policy = Policy::draft().into_builder().claim_timeout(Duration::from_millis(20));
        let engine = Engine::builder(RecordedStore::new(store, Arc::clone(&recorder)))
            .policy(policy.build().unwrap());
        let engine = engine.build().unwrap();
        let ran = engine.run("k", b"tea", async |_| Ok::<_, io::Error>(1)).await;
        assert!(ran.is_err());
        let text = recorder.metrics().unwrap().text(&CurrentValues::default()).unwrap();
        for series in [
            "idemptx_store_step_seconds_count{operation=\"claim\",result=\"unavailable\"} 1\n",
            "idemptx_store_failures_total{result=\"unavailable\"} 1\n",
        ] {
            assert!(text.contains(series), "{series} in\n{text}");
        }
    }
}
