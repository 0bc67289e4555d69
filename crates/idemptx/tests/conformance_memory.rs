//! The memory store keeps the contract: by its own clock, and under simulated time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use idemptx::store::MemoryStore;
use idemptx_core::conformance::{self, Harness};
use idemptx_core::lease::Token;
use idemptx_core::time::{Clock, Timestamp, millis};

#[tokio::test]
async fn the_memory_store_passes_the_suite_by_its_own_clock() {
    conformance::run(&RealTime(MemoryStore::new())).await.assert_passed();
}

#[tokio::test]
async fn the_memory_store_passes_the_suite_under_simulated_time() {
    let clock = Arc::new(Simulated::default());
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let report = conformance::run(&SimulatedTime { store, clock }).await;
    report.assert_passed();
    assert_eq!(report.findings().len(), conformance::CASES.len());
}

struct RealTime(MemoryStore);

impl Harness for RealTime {
    type Store = MemoryStore;

    fn store(&self) -> &MemoryStore {
        &self.0
    }

    fn token(&self) -> Token {
        unique_token()
    }

    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
}

struct SimulatedTime {
    store: MemoryStore,
    clock: Arc<Simulated>,
}

impl Harness for SimulatedTime {
    type Store = MemoryStore;

    fn store(&self) -> &MemoryStore {
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

fn unique_token() -> Token {
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    let mut bytes = [0xA5; Token::BYTES];
    for (to, from) in bytes.iter_mut().zip(DRAWN.fetch_add(1, Ordering::Relaxed).to_be_bytes()) {
        *to = from;
    }
    Token::from_bytes(bytes)
}
