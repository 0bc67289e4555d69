//! The SQLite store keeps the contract of a store.

use std::time::Duration;

use idemptx::store::sqlite::SqliteStore;
use idemptx_core::conformance::{self, Harness};
use idemptx_core::lease::Token;

#[tokio::test]
async fn the_sqlite_store_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    // The contract is about verdicts, not about how soon a busy machine gives them.
    let patience = Duration::from_secs(30);
    let store = SqliteStore::builder(folder.path().join("records.db")).timeout(patience);
    let trial = Trial(store.open().unwrap());
    conformance::run(&trial).await.assert_passed();
    conformance::run_inventory(&trial).await.assert_passed();
}

struct Trial(SqliteStore);

impl Harness for Trial {
    type Store = SqliteStore;

    fn store(&self) -> &SqliteStore {
        &self.0
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
