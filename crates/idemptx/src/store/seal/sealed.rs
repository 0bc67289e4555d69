//! The store around a store.

use bytes::Bytes;
use idemptx_core::description::Description;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::{Record, State};
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, ErrorKind, Inventory, Page, Query, RecordSnapshot,
    RecordSummary, Settlement, Store, StoreError, Watch,
};

use super::envelope::{self, NONCE_BYTES, SealContext, Unopened};
use super::keys::SealKeys;
use crate::store::safety::{Finding, SafetyCheck, SafetyReport, Severity};
use crate::store::transactional::Transactional;
#[cfg(feature = "postgres")]
use crate::store::{BoxFuture, postgres::PostgresTransaction};

/// Settings for sealing and opening results.
///
/// ```
/// use idemptx::store::AnyStore;
/// use idemptx::store::seal::{Seal, SealKeys};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let text = "1:4f6c64206b6579732073746179207468657265207768696c65206e6565646564";
/// let keys: SealKeys = text.parse()?;
/// let seal = Seal::with(keys).accept_unsealed(true);
/// let store = AnyStore::from_url("memory:")?.sealed(seal);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Seal {
    keys: SealKeys,
    accepts_unsealed: bool,
    compresses: bool,
}

impl Seal {
    /// Seals under the first of these keys, and opens under any of them.
    pub const fn with(keys: SealKeys) -> Self {
        Self { keys, accepts_unsealed: false, compresses: true }
    }

    /// Accepts results that were never sealed, which is needed until the records from before
    /// sealing have
    /// expired; off by default.
    ///
    /// # Security
    ///
    /// As long as it is on, a writer to the store can forge results.
    pub const fn accept_unsealed(mut self, accept: bool) -> Self {
        self.accepts_unsealed = accept;
        self
    }

    /// Compresses large payloads before they are sealed; on by default.
    ///
    /// # Security
    ///
    /// See the [module](super) for when to turn it off.
    pub const fn compress(mut self, compress: bool) -> Self {
        self.compresses = compress;
        self
    }

    /// Seals a settlement for the store.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] if the system has no randomness: the step can be tried again.
    pub(crate) fn settlement(
        &self,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<Settlement, StoreError> {
        let mut sealed = done.clone();
        if !is_bare(done.state) || !done.payload.is_empty() {
            let owner = SealContext::settling(lease, done.state);
            sealed.payload = self.payload(owner, &done.payload)?;
        }
        Ok(sealed)
    }

    /// Seals the description of a claim for the store.
    ///
    /// # Errors
    ///
    /// As [`settlement`](Self::settlement).
    fn claim_request(
        &self,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<ClaimRequest, StoreError> {
        let mut sealed = request.clone();
        if !request.description.is_empty() {
            let lease = Lease::granted(*id, request, 0, 0);
            let owner = SealContext::settling(&lease, State::Running);
            sealed.description = self.payload(owner, &request.description)?;
        }
        Ok(sealed)
    }

    fn payload(&self, owner: SealContext<'_>, payload: &[u8]) -> Result<Bytes, StoreError> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce)
            .map_err(|error| StoreError::with_source(ErrorKind::Internal, error))?;
        let sealed = envelope::seal(self.keys.first(), owner, payload, self.compresses, &nonce);
        sealed.ok_or_else(|| ErrorKind::Internal.into())
    }

    /// A record of the store as it was before it was sealed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] with an [`Unopened`] as its source.
    pub(crate) fn record(&self, mut record: Record) -> Result<Record, StoreError> {
        if is_bare(record.state) && record.payload.is_empty() {
            return Ok(record);
        }
        match envelope::open(&self.keys, SealContext::of(&record), &record.payload) {
            Ok(payload) => record.payload = payload,
            Err(Unopened::Unsealed) if self.accepts_unsealed => {}
            Err(why) => return Err(StoreError::with_source(ErrorKind::Corrupt, why)),
        }
        Ok(record)
    }

    /// Opens the description of a listed record, where all of its payload was read.
    ///
    /// What cannot be opened has none: the record is listed all the same, to be forgotten.
    fn listed(&self, entry: &mut RecordSummary) {
        let sealed = std::mem::take(&mut entry.payload_head);
        if sealed.is_empty() || sealed.len() as u64 != entry.payload_bytes {
            return;
        }
        entry.payload_head = match envelope::open(&self.keys, SealContext::listed(entry), &sealed) {
            Ok(payload) => payload.slice(..payload.len().min(Description::BYTES_MAX)),
            Err(Unopened::Unsealed) if self.accepts_unsealed => sealed,
            Err(_) => Bytes::new(),
        };
    }

    /// A verdict on this request with its record opened.
    fn claim(&self, request: &ClaimRequest, claim: Claim) -> Result<Claim, StoreError> {
        match claim {
            Claim::Granted(lease) => Ok(Claim::Granted(opened(lease, &request.description))),
            Claim::Found(RecordSnapshot::Settled(record)) => {
                let record = self.record(record)?;
                Ok(Claim::Found(RecordSnapshot::Settled(record)))
            }
            other => Ok(other),
        }
    }

    /// Opens the record of a snapshot.
    fn seen(&self, seen: RecordSnapshot) -> Result<RecordSnapshot, StoreError> {
        match seen {
            RecordSnapshot::Settled(record) => self.record(record).map(RecordSnapshot::Settled),
            other => Ok(other),
        }
    }

    /// Adds the sealing to a report.
    fn report(&self, mut report: SafetyReport) -> SafetyReport {
        report.guarantee += &format!(
            "; results are sealed with XChaCha20-Poly1305 under key {}",
            self.keys.first().id()
        );
        if self.accepts_unsealed {
            let forgeable = "results that are not sealed are accepted, so a writer \
                             to the store can forge them: turn it off when the last record from \
                             before sealing has expired";
            report.findings.push(Finding::new(Severity::Warning, forgeable));
        }
        SafetyReport::new(report.findings, report.guarantee)
    }
}

impl From<SealKeys> for Seal {
    fn from(keys: SealKeys) -> Self {
        Self::with(keys)
    }
}

/// A store that never sees a result in the clear; see the [module](super).
#[derive(Debug)]
pub struct Sealed<S> {
    store: S,
    seal: Seal,
}

impl<S> Sealed<S> {
    /// Seals what `store` is given to keep.
    pub fn new(store: S, seal: impl Into<Seal>) -> Self {
        Self { store, seal: seal.into() }
    }

    /// The store beneath, which sees what is sealed.
    #[must_use]
    pub const fn inner(&self) -> &S {
        &self.store
    }

    /// The store beneath.
    #[must_use]
    pub fn into_inner(self) -> S {
        self.store
    }
}

impl<S: Store> Store for Sealed<S> {
    async fn claim(&self, id: &RecordId, request: &ClaimRequest) -> Result<Claim, StoreError> {
        let sealed = self.seal.claim_request(id, request)?;
        self.seal.claim(request, self.store.claim(id, &sealed).await?)
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        let sealed = self.seal.settlement(lease, done)?;
        self.store.settle(lease, &sealed).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.store.release(lease).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        Ok(opened(self.store.renew(lease).await?, &lease.description))
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        self.store.lookup(id).await?.map(|seen| self.seal.seen(seen)).transpose()
    }

    fn recall(&self, id: &RecordId) -> Option<Record> {
        // One that cannot be opened is reported by the claim that follows.
        self.store.recall(id).and_then(|record| self.seal.record(record).ok())
    }

    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        self.store.watch(id).await
    }

    fn maintain(&self) {
        self.store.maintain();
    }

    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }
}

/// Sizes are those of what is sealed.
impl<S: Inventory> Inventory for Sealed<S> {
    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        let mut page = self.store.list(query).await?;
        page.entries.iter_mut().for_each(|entry| self.seal.listed(entry));
        Ok(page)
    }
}

impl<S: Transactional + 'static> Transactional for Sealed<S> {
    fn decorated(&self) -> Option<&dyn Transactional> {
        Some(&self.store)
    }

    #[cfg(feature = "postgres")]
    fn claim_in_postgres<'a>(
        &'a self,
        transaction: PostgresTransaction<'a>,
        id: &'a RecordId,
        request: &'a ClaimRequest,
    ) -> BoxFuture<'a, Result<Claim, StoreError>> {
        Box::pin(async move {
            let sealed = self.seal.claim_request(id, request)?;
            let claimed = self.store.claim_in_postgres(transaction, id, &sealed).await?;
            self.seal.claim(request, claimed)
        })
    }

    #[cfg(feature = "postgres")]
    fn settle_in_postgres<'a>(
        &'a self,
        transaction: PostgresTransaction<'a>,
        lease: &'a Lease,
        done: &'a Settlement,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let sealed = self.seal.settlement(lease, done)?;
            self.store.settle_in_postgres(transaction, lease, &sealed).await
        })
    }

    #[cfg(feature = "sqlite")]
    fn claim_in_sqlite(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        let sealed = self.seal.claim_request(id, request)?;
        self.seal.claim(request, self.store.claim_in_sqlite(transaction, id, &sealed)?)
    }

    #[cfg(feature = "sqlite")]
    fn settle_in_sqlite(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<(), StoreError> {
        let sealed = self.seal.settlement(lease, done)?;
        self.store.settle_in_sqlite(transaction, lease, &sealed)
    }
}

impl<S: SafetyCheck> SafetyCheck for Sealed<S> {
    async fn check(&self) -> Result<SafetyReport, StoreError> {
        self.store.check().await.map(|report| self.seal.report(report))
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        self.store.migrate().await
    }
}

/// Returns the lease of a sealed claim with its description in the clear.
fn opened(mut lease: Lease, description: &Bytes) -> Lease {
    lease.description = description.clone();
    lease
}

/// Returns true if a record in this state may have no payload, and nothing to seal.
///
/// One that has a payload all the same is sealed like any other.
const fn is_bare(state: State) -> bool {
    matches!(state, State::Unknown | State::ResponseExpired)
}
