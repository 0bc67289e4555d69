//! A store that is sealed, or held near, keeps the contract as it does by itself.

use std::time::Duration;

use idemptx::store::near::NearCache;
use idemptx::store::seal::{SealKey, SealKeys, Sealed};
use idemptx::store::{AnyStore, MemoryStore};
use idemptx_core::conformance::{self, Harness};
use idemptx_core::lease::Token;
use idemptx_core::store::{Inventory, Store};

use crate::support::records::token;

#[tokio::test]
async fn memory_keeps_the_contract_decorated() {
    keeps_the_contract(MemoryStore::new).await;
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn sqlite_keeps_the_contract_decorated() {
    use idemptx::store::sqlite::SqliteStore;

    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::builder(folder.path().join("records.db")).timeout(PATIENCE);
    keeps_the_contract(|| store.clone().open().unwrap()).await;
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn redis_keeps_the_contract_decorated() {
    use idemptx::store::redis::RedisStore;

    let server = idemptx_testkit::RedisServer::start(&[]);
    let store = || RedisStore::builder(server.url()).timeout(PATIENCE).open().unwrap();
    keeps_the_contract(store).await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn postgres_keeps_the_contract_decorated() {
    use idemptx::store::postgres::PostgresStore;

    let server = idemptx_testkit::PostgresServer::start(&[]);
    let builder = || PostgresStore::builder(server.url()).timeout(PATIENCE).lock_timeout(PATIENCE);
    builder().connect().await.unwrap();
    keeps_the_contract(|| builder().open().unwrap()).await;
}

#[tokio::test]
async fn a_store_chosen_by_url_keeps_the_contract_decorated() {
    let store = AnyStore::from_url("memory:").unwrap();
    run(store.sealed(keys()).near(BYTES_MAX)).await;
}

/// Sealed, near, and near over sealed; at the same time, for they mostly wait.
async fn keeps_the_contract<S: Inventory>(store: impl Fn() -> S) {
    tokio::join!(
        run(Sealed::new(store(), keys())),
        run_and_list(NearCache::new(store(), BYTES_MAX)),
        run(NearCache::new(Sealed::new(store(), keys()), BYTES_MAX)),
    );
}

async fn run<S: Store>(store: S) {
    conformance::run(&Trial(store)).await.assert_passed();
}

/// Not for what is sealed, whose sizes are others.
async fn run_and_list<S: Inventory>(store: S) {
    let trial = Trial(store);
    conformance::run(&trial).await.assert_passed();
    conformance::run_inventory(&trial).await.assert_passed();
}

struct Trial<S>(S);

impl<S: Store> Harness for Trial<S> {
    type Store = S;

    fn store(&self) -> &S {
        &self.0
    }

    fn token(&self) -> Token {
        token()
    }

    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
}

fn keys() -> SealKeys {
    let mut secret = [0; SealKey::BYTES];
    getrandom::fill(&mut secret).unwrap();
    SealKeys::new(SealKey::new(1, &secret).unwrap())
}

const BYTES_MAX: usize = 64 << 20;
/// A long time, since the contract covers verdicts, not how soon a busy machine gives them.
const PATIENCE: Duration = Duration::from_secs(30);
