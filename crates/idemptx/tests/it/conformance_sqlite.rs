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
    let file = folder.path().join("records.db");
    let open = || SqliteStore::builder(file.clone()).timeout(patience).open().unwrap();
    let trial = Trial(open(), open());
    conformance::run(&trial).await.assert_passed();
    conformance::run_inventory(&trial).await.assert_passed();
}

struct Trial(SqliteStore, SqliteStore);

impl Harness for Trial {
    type Store = SqliteStore;

    fn store(&self) -> &SqliteStore {
        &self.0
    }

    fn other_handle(&self) -> Option<&SqliteStore> {
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
