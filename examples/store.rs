//! A store of your own, and the conformance suite that proves it:
//! `cargo run -p examples --bin store`. It logs each claim of another store.

use std::time::Duration;

use idemptx::{RecordId, Token, store::MemoryStore};
use idemptx_core::conformance::{self, Harness};
use idemptx_core::lease::Lease;
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, RecordSnapshot, Settlement, Store, StoreError, Watch,
};

#[derive(Debug)]
struct Logged<S>(S);

impl<S: Store> Store for Logged<S> {
    async fn claim(&self, id: &RecordId, request: &ClaimRequest) -> Result<Claim, StoreError> {
        let claim = self.0.claim(id, request).await;
        println!("{id}: {claim:?}");
        claim
    }
    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        self.0.settle(lease, done).await
    }
    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.0.release(lease).await
    }
    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        self.0.renew(lease).await
    }
    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        self.0.lookup(id).await
    }
    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        self.0.watch(id).await
    }
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
}

impl<S: Store> Harness for Logged<S> {
    type Store = Self;
    fn store(&self) -> &Self {
        self
    }
    fn token(&self) -> Token {
        let mut bytes = [0; Token::BYTES];
        getrandom::fill(&mut bytes).expect("the system has random bytes");
        Token::from_bytes(bytes)
    }
    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
}

#[tokio::main]
async fn main() {
    conformance::run(&Logged(MemoryStore::new())).await.assert_passed();
}
