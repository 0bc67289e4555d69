//! Operations that the store has not confirmed.
//!
//! They are kept in memory only: if the process dies before the store is back, a claim lapses into an
//! orphan, which the policy deals with. A journal on disk would have to survive the same crash.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use idemptx_core::lease::Lease;
use idemptx_core::record::Record;
use idemptx_core::store::{ErrorKind, Settlement, Store, StoreError};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{Instant, sleep};

use super::{Heartbeat, Shared};
use crate::retry::{Backoff, retry_until};
use crate::single_flight::{Leader, Update};
use crate::time_limit::limited;

/// An operation to repeat until the store confirms it.
#[derive(Debug)]
pub(crate) enum BackgroundTask {
    /// Releases a claim by its token.
    ///
    /// A fence of zero stands for a claim that may not have been granted, or not yet.
    Release { lease: Lease, heartbeat: Option<Heartbeat> },
    /// Settles a record; lease and leadership are kept until then.
    Settle { lease: Lease, done: Settlement, heartbeat: Option<Heartbeat>, leader: Option<Leader> },
}

impl BackgroundTask {
    fn payload_bytes(&self) -> usize {
        match self {
            Self::Release { .. } => 0,
            Self::Settle { done, .. } => done.payload.len(),
        }
    }

    /// Returns `true` for the release of a claim that may never have been granted.
    fn is_unacknowledged(&self) -> bool {
        matches!(self, Self::Release { lease, .. } if lease.fence == 0)
    }
}

/// Counts the operations that the store has not confirmed.
#[derive(Debug)]
pub(super) struct Journal {
    /// Results, and releases of granted claims.
    entries: AtomicUsize,
    payload_bytes: AtomicUsize,
    /// Releases of claims that may never have been granted, until confirmed.
    unacknowledged: AtomicUsize,
    /// Releases of such claims, until the second one is over.
    pub(super) lingering: AtomicUsize,
    idle: Notify,
    /// Turns at the store.
    turns: Semaphore,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            entries: AtomicUsize::default(),
            payload_bytes: AtomicUsize::default(),
            unacknowledged: AtomicUsize::default(),
            lingering: AtomicUsize::default(),
            idle: Notify::new(),
            turns: Semaphore::new(OPERATIONS_AT_ONCE_MAX),
        }
    }
}

impl Journal {
    pub(super) fn is_full(&self) -> bool {
        self.entries.load(Ordering::Relaxed) >= ENTRIES_MAX
            || self.payload_bytes.load(Ordering::Relaxed) >= PAYLOAD_BYTES_MAX
    }

    pub(super) fn unconfirmed(&self) -> usize {
        self.entries.load(Ordering::Acquire) + self.unacknowledged.load(Ordering::Acquire)
    }

    pub(super) async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.unconfirmed() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Counts a task; returns `false` if it is refused.
    pub(super) fn admit(&self, task: &BackgroundTask) -> bool {
        if task.is_unacknowledged() {
            if self.lingering.fetch_add(1, Ordering::Relaxed) >= UNACKNOWLEDGED_MAX {
                self.lingering.fetch_sub(1, Ordering::Relaxed);
                return false;
            }
            self.unacknowledged.fetch_add(1, Ordering::Relaxed);
        } else {
            self.entries.fetch_add(1, Ordering::Relaxed);
            self.payload_bytes.fetch_add(task.payload_bytes(), Ordering::Relaxed);
        }
        true
    }

    fn confirm(&self, counter: &AtomicUsize) {
        counter.fetch_sub(1, Ordering::Release);
        self.idle.notify_waiters();
    }

    /// Repeats an operation until the store confirms or refuses it, for at most `patience`.
    async fn repeat<T, F>(
        &self,
        patience: Duration,
        operation: impl Fn() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let deadline = Instant::now() + patience;
        retry_until(
            deadline,
            BACKOFF,
            |kind| !is_refusal(kind),
            |_| async {
                // Never closed; and without a turn the operation may be sent all the same.
                let _turn = self.turns.acquire().await;
                limited(OPERATION_TIMEOUT, operation()).await
            },
        )
        .await
    }
}

/// Runs tasks until the engine is gone and the last one is done.
pub(super) async fn run<S: Store>(
    shared: Arc<Shared<S>>,
    mut inbox: mpsc::UnboundedReceiver<BackgroundTask>,
) {
    let mut running = tokio::task::JoinSet::new();
    while let Some(task) = inbox.recv().await {
        while running.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        running.spawn_local(async move { perform(&shared, task).await });
    }
    while running.join_next().await.is_some() {}
}

async fn perform<S: Store>(shared: &Shared<S>, task: BackgroundTask) {
    let (journal, payload_bytes) = (&shared.journal, task.payload_bytes());
    match task {
        BackgroundTask::Release { lease, .. } if lease.fence == 0 => {
            release_unacknowledged(shared, &lease).await;
        }
        BackgroundTask::Release { lease, heartbeat } => {
            // As long as a settlement: a claim that is not released is an orphan in the end, whose key
            // some policies refuse for months.
            drop(journal.repeat(SETTLE_FOR_MAX, || shared.store.release(&lease)).await);
            drop(heartbeat);
            journal.confirm(&journal.entries);
        }
        BackgroundTask::Settle { lease, done, heartbeat, leader } => {
            let patience = done.key_retain.min(SETTLE_FOR_MAX);
            let settled = journal.repeat(patience, || shared.store.settle(&lease, &done)).await;
            drop(heartbeat);
            if let Some(leader) = leader {
                leader.complete(&match settled {
                    Ok(()) => Update::Settled(Record::settled(&lease, &done)),
                    Err(_) => Update::Changed,
                });
            }
            journal.payload_bytes.fetch_sub(payload_bytes, Ordering::Relaxed);
            journal.confirm(&journal.entries);
        }
    }
}

/// Releases a claim that may not have been granted: once, and again when a term has passed.
///
/// A claim may still be on its way to the store, in the buffer of a connection that is given up for
/// example, and be granted after a release that found nothing.
/// A drain does not wait for the second release: the first one is confirmed.
async fn release_unacknowledged<S: Store>(shared: &Shared<S>, lease: &Lease) {
    let journal = &shared.journal;
    let patience = lease.term.max(RELEASE_FOR_MIN) * 2;
    let released = journal.repeat(patience, || shared.store.release(lease)).await;
    journal.confirm(&journal.unacknowledged);
    if released.is_ok() {
        sleep(lease.term).await;
        drop(journal.repeat(patience, || shared.store.release(lease)).await);
    }
    journal.lingering.fetch_sub(1, Ordering::Relaxed);
}

/// Returns `true` if repeating the operation cannot change its outcome.
const fn is_refusal(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Fenced | ErrorKind::Corrupt)
}

/// Beyond these many unconfirmed operations, or bytes of them, new claims are refused.
pub(super) const ENTRIES_MAX: usize = 10_000;
const PAYLOAD_BYTES_MAX: usize = 256 << 20;
pub(super) const UNACKNOWLEDGED_MAX: usize = 10_000;
/// The number of operations that are with the store at a time; the others pause or wait.
const OPERATIONS_AT_ONCE_MAX: usize = 64;
const OPERATION_TIMEOUT: Duration = Duration::from_secs(2);
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
const RELEASE_FOR_MIN: Duration = Duration::from_secs(30);
/// After an hour without an answer an operation is given up; the claim lapses into an orphan.
const SETTLE_FOR_MAX: Duration = Duration::from_secs(3600);
