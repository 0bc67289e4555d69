//! The PostgreSQL store keeps the contract of a store.

use std::time::Duration;

use idemptx::store::postgres::{PostgresStore, PostgresStoreBuilder};
use idemptx_core::conformance::{self, Harness};
use idemptx_core::lease::Token;
use idemptx_testkit::PgBouncer;
use idemptx_testkit::PostgresServer;

#[tokio::test]
async fn the_postgres_store_keeps_the_contract() {
    let server = PostgresServer::start(&[]);
    keeps_the_contract(|| PostgresStore::builder(server.url())).await;
}

#[tokio::test]
async fn it_keeps_the_contract_with_everything_that_comes_at_once_in_one_batch() {
    let server = PostgresServer::start(&[]);
    keeps_the_contract(|| PostgresStore::builder(server.socket_url()).sessions(1)).await;
}

#[tokio::test]
async fn it_keeps_the_contract_behind_a_pooler_in_transaction_mode() {
    let server = PostgresServer::start(&[]);
    let pooler = PgBouncer::start(&server);
    keeps_the_contract(|| PostgresStore::builder(pooler.url()).pooled(true)).await;
}

async fn keeps_the_contract(builder: impl Fn() -> PostgresStoreBuilder) {
    // The contract is about verdicts, not about how soon a busy machine gives them.
    let patience = Duration::from_secs(20);
    let connect =
        || builder().timeout(patience).connect_timeout(patience).lock_timeout(patience).connect();
    let trial = Trial(connect().await.unwrap(), connect().await.unwrap());
    conformance::run(&trial).await.assert_passed();
    conformance::run_inventory(&trial).await.assert_passed();
}

struct Trial(PostgresStore, PostgresStore);

impl Harness for Trial {
    type Store = PostgresStore;

    fn store(&self) -> &PostgresStore {
        &self.0
    }

    fn other_handle(&self) -> Option<&PostgresStore> {
        Some(&self.1)
    }

    fn token(&self) -> Token {
        let mut bytes = [0; Token::BYTES];
        getrandom::fill(&mut bytes).unwrap();
        Token::from_bytes(bytes)
    }

    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
}
