//! A memory store that follows a script: its operations fail, stall and are counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use idemptx::store::MemoryStore;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, ErrorKind, RecordSnapshot, Settlement, Store, StoreError,
    Watch,
};
use idemptx_core::time::{Clock, Timestamp};
use tokio::sync::{Semaphore, watch};

/// An operation of a store.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// [`Store::claim`].
    Claim,
    /// [`Store::settle`].
    Settle,
    /// [`Store::release`].
    Release,
    /// [`Store::renew`].
    Renew,
    /// [`Store::lookup`].
    Lookup,
}

/// The scripted behavior of one operation.
#[derive(Clone, Debug)]
pub enum Behavior {
    /// Performs it.
    Succeed,
    /// Fails without performing it.
    Fail(ErrorKind),
    /// Performs it, and fails nevertheless.
    LoseReply(ErrorKind),
    /// Performs it when the gate opens, even if the caller has left.
    DelayOperation(Gate),
    /// Performs it at once, and replies when the gate opens.
    DelayReply(Gate),
}

/// A gate that is closed until a test opens it.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    /// Creates a closed gate.
    pub fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Opens it for good.
    pub fn open(&self) {
        self.0.close();
    }

    /// Waits until it is open.
    pub async fn opened(&self) {
        // No permit is ever issued: closing the semaphore ends every wait.
        drop(self.0.acquire().await);
    }
}

/// A memory store whose operations follow a script; its clones share one store.
#[derive(Clone, Debug)]
pub struct ScriptedStore(Arc<Script>);

#[derive(Debug)]
struct Script {
    memory: MemoryStore,
    clock: Arc<AdjustableClock>,
    next: Mutex<[VecDeque<Behavior>; OPERATIONS]>,
    always: Mutex<[Behavior; OPERATIONS]>,
    started: watch::Sender<[usize; OPERATIONS]>,
    performed: watch::Sender<[usize; OPERATIONS]>,
}

impl Default for ScriptedStore {
    fn default() -> Self {
        Self::new()
    }
}

impl ScriptedStore {
    /// Creates an empty store that succeeds.
    pub fn new() -> Self {
        let clock = Arc::new(AdjustableClock::default());
        Self(Arc::new(Script {
            memory: MemoryStore::builder().clock(clock.clone()).build(),
            clock,
            next: Mutex::default(),
            always: Mutex::new(std::array::from_fn(|_| Behavior::Succeed)),
            started: watch::Sender::new([0; OPERATIONS]),
            performed: watch::Sender::new([0; OPERATIONS]),
        }))
    }

    /// Returns the store with the records, which follows no script.
    pub fn memory(&self) -> &MemoryStore {
        &self.0.memory
    }

    /// Adds the behavior of the next such operation that has none yet.
    pub fn next(&self, operation: Operation, behavior: Behavior) {
        self.0.next.lock().unwrap()[operation as usize].push_back(behavior);
    }

    /// Sets the behavior of all such operations without one of their own.
    pub fn always(&self, operation: Operation, behavior: Behavior) {
        self.0.always.lock().unwrap()[operation as usize] = behavior;
    }

    /// Moves the store's clock forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap();
        self.0.clock.ahead_millis.fetch_add(by, Ordering::SeqCst);
    }

    /// Returns the number of calls of an operation.
    pub fn calls(&self, operation: Operation) -> usize {
        self.0.started.borrow()[operation as usize]
    }

    /// Returns the number of calls of all operations.
    pub fn total_calls(&self) -> usize {
        self.0.started.borrow().iter().sum()
    }

    /// Waits until an operation was called this many times.
    pub async fn called(&self, operation: Operation, times: usize) {
        reached(&self.0.started, operation, times).await;
    }

    /// Waits until an operation was performed this many times, whatever its caller got.
    pub async fn performed(&self, operation: Operation, times: usize) {
        reached(&self.0.performed, operation, times).await;
    }

    async fn follow<T: Send + 'static>(
        &self,
        operation: Operation,
        perform: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let index = operation as usize;
        let next = self.0.next.lock().unwrap()[index].pop_front();
        let behavior = next.unwrap_or_else(|| self.0.always.lock().unwrap()[index].clone());
        self.0.started.send_modify(|counts| counts[index] += 1);
        let script = Arc::clone(&self.0);
        let perform = async move {
            let outcome = perform.await;
            script.performed.send_modify(|counts| counts[index] += 1);
            outcome
        };
        match behavior {
            Behavior::Succeed => perform.await,
            Behavior::Fail(kind) => Err(kind.into()),
            Behavior::LoseReply(kind) => perform.await.and(Err(kind.into())),
            Behavior::DelayOperation(gate) => {
                let delayed = async move {
                    gate.opened().await;
                    perform.await
                };
                tokio::spawn(delayed).await.unwrap()
            }
            Behavior::DelayReply(gate) => {
                let outcome = perform.await;
                gate.opened().await;
                outcome
            }
        }
    }
}

impl Store for ScriptedStore {
    async fn claim(
        &self,
        id: &RecordId,
        claim_request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        let (memory, id, claim_request) = (self.0.memory.clone(), *id, claim_request.clone());
        self.follow(Operation::Claim, async move { memory.claim(&id, &claim_request).await }).await
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        let (memory, lease, done) = (self.0.memory.clone(), lease.clone(), done.clone());
        self.follow(Operation::Settle, async move { memory.settle(&lease, &done).await }).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let (memory, lease) = (self.0.memory.clone(), lease.clone());
        self.follow(Operation::Release, async move { memory.release(&lease).await }).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        let (memory, lease) = (self.0.memory.clone(), lease.clone());
        self.follow(Operation::Renew, async move { memory.renew(&lease).await }).await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        let (memory, id) = (self.0.memory.clone(), *id);
        self.follow(Operation::Lookup, async move { memory.lookup(&id).await }).await
    }

    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        self.0.memory.watch(id).await
    }

    fn capabilities(&self) -> Capabilities {
        self.0.memory.capabilities()
    }
}

/// The monotonic clock, moved forward by tests.
#[derive(Debug)]
struct AdjustableClock {
    started: Instant,
    ahead_millis: AtomicU64,
}

impl Default for AdjustableClock {
    fn default() -> Self {
        Self { started: Instant::now(), ahead_millis: AtomicU64::new(1) }
    }
}

impl Clock for AdjustableClock {
    fn now(&self) -> Timestamp {
        let ahead = Duration::from_millis(self.ahead_millis.load(Ordering::SeqCst));
        Timestamp::default().after(self.started.elapsed() + ahead)
    }
}

async fn reached(counts: &watch::Sender<[usize; OPERATIONS]>, operation: Operation, times: usize) {
    let enough = |counts: &[usize; OPERATIONS]| counts[operation as usize] >= times;
    let mut counts = counts.subscribe();
    let reached = tokio::time::timeout(WAIT_MAX, counts.wait_for(enough)).await;
    assert!(reached.is_ok(), "fewer than {times} times: {operation:?}");
}

const OPERATIONS: usize = 5;
const WAIT_MAX: Duration = Duration::from_secs(20);
