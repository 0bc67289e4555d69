//! A memory store that does as a test tells it.
//!
//! The file that takes it in also brings [`MemoryStore`] into scope.
#![allow(dead_code, reason = "no file of tests uses all of it")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{
    Bid, Capabilities, Claim, ErrorKind, Seen, Settlement, Store, StoreError, Watch,
};
use idemptx_core::time::{Clock, Timestamp};
use tokio::sync::{Semaphore, watch};

use super::MemoryStore;

/// A step of a store.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Claim,
    Settle,
    Release,
    Renew,
    Lookup,
}

/// What a store is told to do with a step.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// As always.
    Obey,
    /// Not to do it.
    Fail(ErrorKind),
    /// To do it, and not to say so.
    Forget(ErrorKind),
    /// To do it when the gate opens, whether or not anybody still waits for it.
    Late(Gate),
    /// To do it at once, and to say so when the gate opens.
    Slow(Gate),
}

/// Shut until opened.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    pub(crate) fn shut() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    pub(crate) fn open(&self) {
        self.0.close();
    }

    pub(crate) async fn opened(&self) {
        // Nobody gives permits: all wait until it is closed.
        drop(self.0.acquire().await);
    }
}

/// Memory whose steps fail, hang and are counted; its clones are the same store.
#[derive(Clone, Debug)]
pub(crate) struct ToldStore(Arc<Told>);

#[derive(Debug)]
struct Told {
    memory: MemoryStore,
    ahead: Arc<Ahead>,
    next: Mutex<[VecDeque<Order>; STEPS]>,
    always: Mutex<[Order; STEPS]>,
    began: watch::Sender<[usize; STEPS]>,
    done: watch::Sender<[usize; STEPS]>,
}

impl ToldStore {
    pub(crate) fn new() -> Self {
        let ahead = Arc::new(Ahead::default());
        Self(Arc::new(Told {
            memory: MemoryStore::builder().clock(ahead.clone()).build(),
            ahead,
            next: Mutex::default(),
            always: Mutex::new(std::array::from_fn(|_| Order::Obey)),
            began: watch::Sender::new([0; STEPS]),
            done: watch::Sender::new([0; STEPS]),
        }))
    }

    /// What it has in truth.
    pub(crate) fn memory(&self) -> &MemoryStore {
        &self.0.memory
    }

    /// Tells what to do with the next such step, or the one after those told of before.
    pub(crate) fn next(&self, step: Step, order: Order) {
        self.0.next.lock().unwrap()[step as usize].push_back(order);
    }

    /// Tells what to do with all such steps from now on.
    pub(crate) fn always(&self, step: Step, order: Order) {
        self.0.always.lock().unwrap()[step as usize] = order;
    }

    /// Moves the store's clock on.
    pub(crate) fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap();
        self.0.ahead.millis.fetch_add(by, Ordering::SeqCst);
    }

    /// How often a step was asked for.
    pub(crate) fn calls(&self, step: Step) -> usize {
        self.0.began.borrow()[step as usize]
    }

    /// Every step that was ever asked for.
    pub(crate) fn all_calls(&self) -> usize {
        self.0.began.borrow().iter().sum()
    }

    /// Resolves when a step has been asked for so often.
    pub(crate) async fn called(&self, step: Step, times: usize) {
        reached(&self.0.began, step, times).await;
    }

    /// Resolves when a step has taken place so often, heard of or not.
    pub(crate) async fn done(&self, step: Step, times: usize) {
        reached(&self.0.done, step, times).await;
    }

    async fn take<T: Send + 'static>(
        &self,
        step: Step,
        act: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let next = self.0.next.lock().unwrap()[step as usize].pop_front();
        let order = next.unwrap_or_else(|| self.0.always.lock().unwrap()[step as usize].clone());
        self.0.began.send_modify(|counts| counts[step as usize] += 1);
        let told = self.clone();
        let act = async move {
            let outcome = act.await;
            told.0.done.send_modify(|counts| counts[step as usize] += 1);
            outcome
        };
        match order {
            Order::Obey => act.await,
            Order::Fail(kind) => Err(kind.into()),
            Order::Forget(kind) => act.await.and(Err(kind.into())),
            Order::Late(gate) => {
                let act = async move {
                    gate.opened().await;
                    act.await
                };
                tokio::spawn(act).await.unwrap()
            }
            Order::Slow(gate) => {
                let outcome = act.await;
                gate.opened().await;
                outcome
            }
        }
    }
}

impl Store for ToldStore {
    async fn claim(&self, id: &RecordId, bid: &Bid) -> Result<Claim, StoreError> {
        let (memory, id, bid) = (self.0.memory.clone(), *id, bid.clone());
        self.take(Step::Claim, async move { memory.claim(&id, &bid).await }).await
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        let (memory, lease, done) = (self.0.memory.clone(), lease.clone(), done.clone());
        self.take(Step::Settle, async move { memory.settle(&lease, &done).await }).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let (memory, lease) = (self.0.memory.clone(), lease.clone());
        self.take(Step::Release, async move { memory.release(&lease).await }).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        let (memory, lease) = (self.0.memory.clone(), lease.clone());
        self.take(Step::Renew, async move { memory.renew(&lease).await }).await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Seen>, StoreError> {
        let (memory, id) = (self.0.memory.clone(), *id);
        self.take(Step::Lookup, async move { memory.lookup(&id).await }).await
    }

    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        self.0.memory.watch(id).await
    }

    fn capabilities(&self) -> Capabilities {
        self.0.memory.capabilities()
    }
}

/// The monotonic clock, and as far ahead of it as a test likes.
#[derive(Debug)]
struct Ahead {
    began: std::time::Instant,
    millis: AtomicU64,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { began: std::time::Instant::now(), millis: AtomicU64::new(1) }
    }
}

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        let ahead = Duration::from_millis(self.millis.load(Ordering::SeqCst));
        Timestamp::default().after(self.began.elapsed() + ahead)
    }
}

async fn reached(counts: &watch::Sender<[usize; STEPS]>, step: Step, times: usize) {
    let enough = |counts: &[usize; STEPS]| counts[step as usize] >= times;
    let mut counts = counts.subscribe();
    let reached = tokio::time::timeout(PATIENCE, counts.wait_for(enough)).await;
    assert!(reached.is_ok(), "{step:?} was not seen {times} times");
}

const STEPS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(20);
