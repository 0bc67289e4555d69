//! The store around a store.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::{Record, State};
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, Inventory, Page, Query, RecordSnapshot, Settlement, Store,
    StoreError, Watch,
};
use idemptx_core::time::Clock;

use super::cache::Cache;
use crate::store::memory::SinceEpoch;
use crate::store::safety::{SafetyCheck, SafetyReport};
use crate::store::transactional::Transactional;

/// Limits of the cache: its size, and its hold time.
#[derive(Clone, Debug)]
#[must_use]
pub struct NearLimits {
    bytes_max: usize,
    hold: Duration,
    clock: Arc<dyn Clock>,
}

impl NearLimits {
    /// At most so many bytes, for one second.
    pub fn bytes(bytes_max: usize) -> Self {
        Self { bytes_max, hold: HOLD, clock: Arc::new(SinceEpoch::new()) }
    }

    /// Sets the hold time of a result, which is also how long a change by another process may go
    /// unnoticed.
    pub const fn hold(mut self, hold: Duration) -> Self {
        self.hold = hold;
        self
    }

    /// Measures the hold time by another clock, such as one of simulated time.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
}

/// 64 MiB, for one second.
impl Default for NearLimits {
    fn default() -> Self {
        Self::bytes(BYTES_MAX)
    }
}

/// At most so many bytes, for one second.
impl From<usize> for NearLimits {
    fn from(bytes_max: usize) -> Self {
        Self::bytes(bytes_max)
    }
}

/// A store with a cache of results in this process; see the [module](super).
pub struct NearCache<S> {
    store: S,
    cache: Cache,
    limits: NearLimits,
    hits: AtomicU64,
}

impl<S> NearCache<S> {
    /// Adds a cache to `store`.
    pub fn new(store: S, limits: impl Into<NearLimits>) -> Self {
        let limits = limits.into();
        let cache = Cache::new(limits.bytes_max, limits.hold, limits.clock.clone());
        Self { store, cache, limits, hits: AtomicU64::new(0) }
    }

    /// The store beneath.
    #[must_use]
    pub const fn inner(&self) -> &S {
        &self.store
    }

    /// Returns the limits.
    pub const fn limits(&self) -> &NearLimits {
        &self.limits
    }

    /// Forgets a record that was changed without this store.
    ///
    /// An answer that is still on its way from the store is not held either.
    pub fn forget(&self, id: &RecordId) {
        self.cache.forget(id);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.cache.clear();
    }

    /// Returns the number of claims and lookups answered by the cache, for metrics.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    fn recall_counted(&self, id: &RecordId) -> Option<Record> {
        let record = self.cache.recall(id)?;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(record)
    }

    /// Returns the approximate size in bytes, including expired results that are not swept yet.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.cache.bytes()
    }
}

impl<S: Store> NearCache<S> {
    /// Claims in the store, and holds the result that it says is there.
    async fn ask_to_claim(
        &self,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        // Dropped before the request is sent, and again when it is answered or given up:
        // nothing that was read before the record was replaced stays.
        let _replacing = request.expected.map(|_| Replacing::new(&self.cache, id));
        let ticket = self.cache.ticket(id);
        let claim = self.store.claim(id, request).await;
        match &claim {
            Ok(Claim::Found(RecordSnapshot::Settled(record))) => {
                self.cache.insert(ticket, record.clone(), None);
            }
            _ => self.cache.forget(id),
        }
        claim
    }

    async fn ask_for(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        let ticket = self.cache.ticket(id);
        let seen = self.store.lookup(id).await;
        match &seen {
            Ok(Some(RecordSnapshot::Settled(record))) => {
                self.cache.insert(ticket, record.clone(), None);
            }
            _ => self.cache.forget(id),
        }
        seen
    }
}

impl<S: Store> Store for NearCache<S> {
    /// Answers from the cache without an allocation; the future of the store is boxed.
    async fn claim(&self, id: &RecordId, request: &ClaimRequest) -> Result<Claim, StoreError> {
        if request.expected.is_none()
            && let Some(record) = self.recall_counted(id)
        {
            return Ok(Claim::Found(RecordSnapshot::Settled(record)));
        }
        Box::pin(self.ask_to_claim(id, request)).await
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        let ticket = self.cache.ticket(&lease.id);
        let settled = self.store.settle(lease, done).await;
        match settled {
            Ok(()) if done.state != State::Unknown => {
                let retain =
                    if done.state == State::Completed { done.retain } else { done.key_retain };
                self.cache.insert(ticket, Record::settled(lease, done), Some(retain));
            }
            _ => self.cache.forget(&lease.id),
        }
        settled
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let _replacing = Replacing::new(&self.cache, &lease.id);
        self.store.release(lease).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        self.store.renew(lease).await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        match self.recall_counted(id) {
            Some(record) => Ok(Some(RecordSnapshot::Settled(record))),
            None => Box::pin(self.ask_for(id)).await,
        }
    }

    fn recall(&self, id: &RecordId) -> Option<Record> {
        self.recall_counted(id).or_else(|| self.store.recall(id))
    }

    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        self.store.watch(id).await
    }

    fn maintain(&self) {
        self.cache.sweep();
        self.store.maintain();
    }

    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }
}

impl<S: Inventory> Inventory for NearCache<S> {
    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        self.store.list(query).await
    }
}

// Steps in a transaction pass by the cache: whether the transaction commits is not known here.
impl<S: Transactional + 'static> Transactional for NearCache<S> {
    fn decorated(&self) -> Option<&dyn Transactional> {
        Some(&self.store)
    }
}

impl<S: SafetyCheck> SafetyCheck for NearCache<S> {
    async fn check(&self) -> Result<SafetyReport, StoreError> {
        let mut report = self.store.check().await?;
        report.guarantee += &format!(
            "; results are held in this process for {} ms, for which a change by another process \
             may go unnoticed",
            self.limits.hold.as_millis()
        );
        Ok(report)
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        self.store.migrate().await
    }
}

impl<S: fmt::Debug> fmt::Debug for NearCache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NearCache")
            .field("store", &self.store)
            .field("bytes_max", &self.limits.bytes_max)
            .field("hold", &self.limits.hold)
            .finish_non_exhaustive()
    }
}

/// A step that may replace or remove a record, however it ends.
struct Replacing<'a> {
    cache: &'a Cache,
    id: RecordId,
}

impl<'a> Replacing<'a> {
    fn new(cache: &'a Cache, id: &RecordId) -> Self {
        cache.forget(id);
        Self { cache, id: *id }
    }
}

impl Drop for Replacing<'_> {
    fn drop(&mut self) {
        self.cache.forget(&self.id);
    }
}

const BYTES_MAX: usize = 64 << 20;
/// Short enough for what another process replaces meanwhile.
const HOLD: Duration = Duration::from_secs(1);
