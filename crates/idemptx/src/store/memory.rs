//! Records in this process' memory.

mod digest;
mod epoch_clock;
mod expiry_queue;
mod list_slots;
mod shard;
mod slot;

use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::Record;
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, ErrorKind, RecordSnapshot, Settlement, Store, StoreError,
    Watch,
};
use idemptx_core::time::{Clock, Timestamp};

use super::notifier::Notifier;
use super::transactional::Transactional;

pub(super) use self::digest::Seeded;
pub(super) use self::epoch_clock::SinceEpoch;
use self::shard::Shard;

/// Keeps records in this process' memory, for as long as the process lives.
///
/// Other processes do not see them: with several workers, or several hosts, every process
/// would execute a key once.
///
/// # Limits
///
/// A claim of a new key is refused with [`ErrorKind::Full`] once the records take
/// [`bytes_max`](MemoryStoreBuilder::bytes_max); nothing is ever evicted to make room.
/// What has been claimed can always be settled, over the limit if need be: a completed operation
/// is never refused its record, and the next new keys are, until room has come back.
///
/// Memory is given back as records expire: a few of them with every step, all of them by
/// [`sweep`](Self::sweep), which is worth a call every few seconds where the traffic may stop.
///
/// # Payloads
///
/// A payload is kept as the [`Bytes`](bytes::Bytes) it came in, and a replay clones that handle
/// only.
/// Give it a buffer of exactly its size, as
/// [`StoredResponse::encode`](idemptx_core::response::StoredResponse) does: a slice of a larger
/// buffer keeps all of that in memory, which no limit here can see.
///
/// # Examples
///
/// ```
/// use idemptx::store::MemoryStore;
///
/// let store = MemoryStore::builder().bytes_max(64 << 20).build();
/// assert_eq!(store.bytes(), 0);
/// ```
///
/// Its clones are handles to the same records.
#[derive(Clone)]
pub struct MemoryStore(Arc<MemoryRecords>);

impl MemoryStore {
    /// A store of at most 256 MiB.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A store with other limits.
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder { bytes_max: BYTES_MAX, clock: None }
    }

    /// Returns the size of the records with their payloads, to within a few percent.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of records, including expired ones that are not swept yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Returns true if there are no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives the memory of everything back that has expired.
    ///
    /// Never holds a lock for more than some hundred records.
    pub fn sweep(&self) {
        for shard in &self.0.shards {
            while self.0.step(shard, |shard, now| shard.sweep(now, SWEEP_BATCH)) {}
        }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("bytes", &self.bytes())
            .field("bytes_max", &self.0.bytes_max)
            .finish_non_exhaustive()
    }
}

/// The limits of a [`MemoryStore`], and its clock.
#[derive(Clone, Debug)]
#[must_use]
pub struct MemoryStoreBuilder {
    bytes_max: usize,
    clock: Option<Arc<dyn Clock>>,
}

impl MemoryStoreBuilder {
    /// Refuses new keys once the records take this much; 256 MiB by default.
    pub fn bytes_max(mut self, bytes_max: usize) -> Self {
        self.bytes_max = bytes_max;
        self
    }

    /// Judges leases and retentions by another clock, such as one of simulated time.
    ///
    /// Fences grow with it: a clock whose origin moves between two lives of the process, unlike the
    /// Unix epoch that is the origin of the store's own, makes the fences of the second start
    /// below those of the first.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// The store, empty.
    #[must_use]
    pub fn build(self) -> MemoryStore {
        let seeded = Seeded::new();
        MemoryStore(Arc::new(MemoryRecords {
            shards: std::array::from_fn(|_| Mutex::new(Shard::new(seeded))),
            seeded,
            bytes: AtomicUsize::new(0),
            bytes_max: self.bytes_max,
            clock: self.clock.unwrap_or_else(|| Arc::new(SinceEpoch::new())),
            notifier: Arc::default(),
        }))
    }
}

/// Nothing here waits: every step is done when its future is polled for the first time.
impl Store for MemoryStore {
    async fn claim(&self, id: &RecordId, request: &ClaimRequest) -> Result<Claim, StoreError> {
        let claim = || {
            self.0.step(self.0.shard(id), |shard, now| {
                let room = self.0.bytes_max.saturating_sub(self.bytes());
                shard.claim(id, request, now, room)
            })
        };
        match claim() {
            Err(ErrorKind::Full) => {
                // What has expired in other shards makes room as well.
                self.sweep();
                Ok(claim()?)
            }
            verdict => Ok(verdict?),
        }
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        let shard = self.0.shard(&lease.id);
        self.0.step(shard, |shard, now| shard.settle(lease, done, now))?;
        self.0.notifier.notify(&lease.id);
        Ok(())
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let shard = self.0.shard(&lease.id);
        self.0.step(shard, |shard, now| shard.release(lease, now))?;
        self.0.notifier.notify(&lease.id);
        Ok(())
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        let shard = self.0.shard(&lease.id);
        Ok(self.0.step(shard, |shard, now| shard.renew(lease, now))?)
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        Ok(self.0.step(self.0.shard(id), |shard, now| shard.lookup(id, now)))
    }

    fn recall(&self, id: &RecordId) -> Option<Record> {
        match self.0.step(self.0.shard(id), |shard, now| shard.lookup(id, now)) {
            Some(RecordSnapshot::Settled(record)) => Some(record),
            _ => None,
        }
    }

    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        Some(self.0.notifier.watch(*id).into_watch())
    }

    fn maintain(&self) {
        self.sweep();
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.watch = true;
        capabilities
    }
}

impl Transactional for MemoryStore {}

struct MemoryRecords {
    shards: [Mutex<Shard>; SHARDS],
    seeded: Seeded,
    /// Total size of the shards, exact while no step runs.
    bytes: AtomicUsize,
    bytes_max: usize,
    clock: Arc<dyn Clock>,
    notifier: Arc<Notifier>,
}

impl MemoryRecords {
    /// Returns the shard of a record, which cannot be predicted without the seed.
    #[allow(clippy::indexing_slicing, reason = "the remainder is a valid position")]
    fn shard(&self, id: &RecordId) -> &Mutex<Shard> {
        // A map takes the lowest bits for itself, and the highest.
        let middle = (self.seeded.hash_one(id) >> 32) as usize;
        &self.shards[middle % SHARDS]
    }

    /// Takes one atomic step on a shard, at one point in time.
    fn step<T>(&self, shard: &Mutex<Shard>, step: impl FnOnce(&mut Shard, Timestamp) -> T) -> T {
        let mut shard = lock(shard);
        let before = shard.bytes();
        let now = self.clock.now();
        shard.sweep(now, SWEEP_SHARE);
        let result = step(&mut shard, now);
        shard.trim();
        let after = shard.bytes();
        if after >= before {
            self.bytes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
        result
    }
}

/// No code of ours panics in a step, and one that did would leave a shard as it was or with the
/// step done.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

const BYTES_MAX: usize = 256 << 20;
/// Enough that steps of different records rarely meet, few enough to be swept at once.
const SHARDS: usize = 64;
/// Expired records that a step removes: more than the one it may add, so they never pile up.
const SWEEP_SHARE: usize = 4;
/// Expired records that a sweep removes before it gives the lock back.
const SWEEP_BATCH: usize = 256;

#[cfg(test)]
mod tests;
