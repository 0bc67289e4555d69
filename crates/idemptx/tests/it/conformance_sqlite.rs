//! The SQLite store keeps the contract of a store.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;

use idemptx::store::sqlite::SqliteStore;
use idemptx_core::conformance::{self, Harness};
use idemptx_core::key::RecordId;
use idemptx_core::lease::Token;
use rusqlite::Connection;

use crate::support::records::token;

#[tokio::test]
async fn the_sqlite_store_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    // The contract is about verdicts, not about how soon a busy machine gives them.
    let patience = Duration::from_secs(30);
    let file = folder.path().join("records.db");
    drop(SqliteStore::open(&file).unwrap());
    let open = || SqliteStore::builder(file.clone()).timeout(patience).open().unwrap();
    let other = Mutex::new(Connection::open(&file).unwrap());
    let trial = Trial(open(), open(), other, file.clone());
    conformance::run(&trial).await.assert_passed();
    conformance::run_inventory(&trial).await.assert_passed();
}

/// The store, twice, a connection that is not the store's, and the file.
struct Trial(SqliteStore, SqliteStore, Mutex<Connection>, PathBuf);

impl Harness for Trial {
    type Store = SqliteStore;

    fn store(&self) -> &SqliteStore {
        &self.0
    }

    fn other_handle(&self) -> Option<&SqliteStore> {
        Some(&self.1)
    }

    fn token(&self) -> Token {
        token()
    }

    async fn overwrite(&self, id: &RecordId, bytes: Bytes) -> bool {
        let update = "UPDATE records SET record = ?2 WHERE id = ?1";
        let other = self.2.lock().unwrap();
        other.execute(update, rusqlite::params![id.as_bytes(), &bytes[..]]).unwrap() == 1
    }

    async fn refuse(&self, refuses: bool) -> bool {
        // A file that is not where it was is not written.
        let (file, elsewhere) = (&self.3, self.3.with_extension("elsewhere"));
        let (from, to) = if refuses { (file, &elsewhere) } else { (&elsewhere, file) };
        std::fs::rename(from, to).unwrap();
        true
    }

    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
}
