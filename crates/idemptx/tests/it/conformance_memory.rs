//! The memory store keeps the contract by its own clock and under simulated time, and the suite
//! notices stores that do not.

use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idemptx::store::MemoryStore;
use idemptx_core::conformance::{self, CASES, Harness, INVENTORY_CASES, Report};
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::State;
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, ErrorKind, Expected, Inventory, Page, Query, RecordSnapshot,
    RecordStatus, RecordStatuses, RecordSummary, Settlement, Store, StoreError, Watch,
};
use idemptx_core::time::{Clock, Timestamp, millis};

#[tokio::test]
async fn the_memory_store_passes_the_suite_by_its_own_clock() {
    let store = MemoryStore::builder().bytes_max(BYTES_MAX).build();
    let trial = RealTime(store.clone(), store);
    conformance::run(&trial).await.assert_passed();
    conformance::run_inventory(&trial).await.assert_passed();
}

#[tokio::test]
async fn the_memory_store_passes_the_suite_under_simulated_time() {
    let report = simulated(|store| store).await;
    report.assert_passed();
    assert_eq!(report.findings().len(), CASES.len());
}

#[tokio::test]
async fn the_memory_store_lists_what_it_holds_under_simulated_time() {
    let clock = Arc::new(Simulated::default());
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let report = conformance::run_inventory(&SimulatedTime { store, clock }).await;
    report.assert_passed();
    assert_eq!(report.findings().len(), INVENTORY_CASES.len());
}

#[tokio::test]
async fn the_suite_notices_every_kind_of_faulty_store() {
    for (fault, noticed_by) in [
        (Fault::GrantsTwice, "claims::a_live_claim_is_held_against_another_token"),
        (Fault::ForgivesFormerOwners, "settlements::a_settlement_after_a_takeover_is_fenced"),
        (Fault::LosesTheLastByte, "settlements::a_payload_of_one_byte_comes_back"),
        (Fault::NeverLapses, "claims::a_lapsed_claim_is_an_orphan_and_not_given_away_unasked"),
        (Fault::ClaimsWhereItLooks, "lookups::a_lookup_claims_nothing"),
        (Fault::NeverWakes, "watching::a_watch_ends_after_a_settlement"),
        (Fault::GrantsTwice, "histories::a_few_records_behave_as_in_a_map"),
        (Fault::ForgivesFormerOwners, "histories::a_few_records_behave_as_in_a_map"),
    ] {
        let last = Mutex::default();
        let report = simulated(|store| Faulty { store, fault, last }).await;
        let noticed = report.failures().any(|finding| finding.case == noticed_by);
        assert!(noticed, "{fault:?} passed {noticed_by}\n{report}");
    }
}

#[tokio::test]
async fn the_suite_notices_every_kind_of_faulty_listing() {
    for (fault, noticed_by) in [
        (Fault::HidesTheLastOfAPage, "listing::pages_of_any_size_come_to_everything"),
        (Fault::ListsWhateverThereIs, "listing::only_states_that_are_asked_for_are_listed"),
        (Fault::ListsTheDead, "listing::only_the_record_that_is_asked_for_is_listed"),
        (Fault::NeverLapses, "listing::an_orphan_is_listed_as_orphaned"),
        (Fault::HidesTheLastOfAPage, "histories::a_few_records_are_listed_as_in_a_map"),
    ] {
        let clock = Arc::new(Simulated::default());
        let store = MemoryStore::builder().clock(clock.clone()).build();
        let store = Faulty { store, fault, last: Mutex::default() };
        let report = conformance::run_inventory(&SimulatedTime { store, clock }).await;
        let noticed = report.failures().any(|finding| finding.case == noticed_by);
        assert!(noticed, "{fault:?} passed {noticed_by}\n{report}");
    }
}

struct RealTime(MemoryStore, MemoryStore);

impl Harness for RealTime {
    type Store = MemoryStore;

    fn store(&self) -> &MemoryStore {
        &self.0
    }

    fn other_handle(&self) -> Option<&MemoryStore> {
        Some(&self.1)
    }

    fn token(&self) -> Token {
        unique_token()
    }

    async fn refuse(&self, refuses: bool) -> bool {
        fill(self.store(), refuses).await;
        true
    }

    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
}

struct SimulatedTime<S> {
    store: S,
    clock: Arc<Simulated>,
}

impl<S: Store> Harness for SimulatedTime<S> {
    type Store = S;

    fn store(&self) -> &S {
        &self.store
    }

    fn token(&self) -> Token {
        unique_token()
    }

    async fn sleep(&self, wait: Duration) {
        self.clock.0.fetch_add(millis(wait), Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Simulated(AtomicU64);

impl Clock for Simulated {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// A memory store with one thing wrong.
#[derive(Debug)]
struct Faulty {
    store: MemoryStore,
    fault: Fault,
    /// The last page listed.
    last: Mutex<Vec<RecordSummary>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    GrantsTwice,
    ForgivesFormerOwners,
    LosesTheLastByte,
    NeverLapses,
    ClaimsWhereItLooks,
    NeverWakes,
    HidesTheLastOfAPage,
    ListsWhateverThereIs,
    ListsTheDead,
}

impl Store for Faulty {
    async fn claim(
        &self,
        id: &RecordId,
        claim_request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        match self.store.claim(id, claim_request).await? {
            Claim::Found(RecordSnapshot::Held(holder)) if self.fault == Fault::GrantsTwice => {
                Ok(Claim::Granted(Lease::granted(*id, claim_request, holder.fence, holder.attempt)))
            }
            verdict => Ok(verdict),
        }
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        let mut done = done.clone();
        if self.fault == Fault::LosesTheLastByte {
            done.payload.truncate(done.payload.len().saturating_sub(1));
        }
        match self.store.settle(lease, &done).await {
            Err(error)
                if error.kind() == ErrorKind::Fenced
                    && self.fault == Fault::ForgivesFormerOwners =>
            {
                Ok(())
            }
            verdict => verdict,
        }
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.store.release(lease).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        self.store.renew(lease).await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        let mut seen = self.store.lookup(id).await?;
        match &mut seen {
            None if self.fault == Fault::ClaimsWhereItLooks => {
                let claim_request = ClaimRequest::new(unique_token(), FINGERPRINT, HOUR, HOUR);
                self.store.claim(id, &claim_request).await?;
            }
            Some(RecordSnapshot::Held(holder)) if self.fault == Fault::NeverLapses => {
                holder.remaining += HOUR;
            }
            _ => {}
        }
        Ok(seen)
    }

    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        match self.fault {
            Fault::NeverWakes => Some(Box::pin(pending())),
            _ => self.store.watch(id).await,
        }
    }

    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }
}

impl Inventory for Faulty {
    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        let mut asked = query.clone();
        if self.fault == Fault::ListsWhateverThereIs {
            asked.statuses = RecordStatuses::ALL;
        }
        let mut page = self.store.list(&asked).await?;
        match self.fault {
            Fault::HidesTheLastOfAPage => drop(page.entries.pop()),
            Fault::ListsTheDead => page.entries.append(&mut self.last.lock().unwrap()),
            Fault::NeverLapses => {
                for entry in &mut page.entries {
                    entry.claim.remaining += HOUR;
                    entry.status = RecordStatus::Running;
                }
            }
            _ => {}
        }
        self.last.lock().unwrap().clone_from(&page.entries);
        Ok(page)
    }
}

async fn simulated<S: Store>(store: impl FnOnce(MemoryStore) -> S) -> Report {
    let clock = Arc::new(Simulated::default());
    let store = store(MemoryStore::builder().clock(clock.clone()).build());
    conformance::run(&SimulatedTime { store, clock }).await
}

/// Settles a result that takes all the room there is, or gives it up.
async fn fill(store: &impl Store, fills: bool) {
    let id = RecordId::from_bytes([0xF1; RecordId::BYTES]);
    let mut request = ClaimRequest::new(unique_token(), FINGERPRINT, HOUR, HOUR);
    if let Ok(Some(RecordSnapshot::Settled(former))) = store.lookup(&id).await {
        request = request.expecting(Expected::Settled(former.token));
    }
    let Ok(Claim::Granted(lease)) = store.claim(&id, &request).await else { panic!("not granted") };
    let done = Settlement::new(State::Completed, vec![0; BYTES_MAX].into(), HOUR, HOUR);
    let filled =
        if fills { store.settle(&lease, &done).await } else { store.release(&lease).await };
    filled.unwrap();
}

fn unique_token() -> Token {
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    let mut bytes = [0xA5; Token::BYTES];
    for (to, from) in bytes.iter_mut().zip(DRAWN.fetch_add(1, Ordering::Relaxed).to_be_bytes()) {
        *to = from;
    }
    Token::from_bytes(bytes)
}

const FINGERPRINT: Fingerprint =
    Fingerprint { config: 1, digest: [2; 32], binding: [3; 16], operation: [4; 16] };
/// More than the suite writes.
const BYTES_MAX: usize = 64 << 20;
const HOUR: Duration = Duration::from_secs(3600);
