//! Claims of a record that an open transaction has changed.

use std::time::{Duration, Instant};

use idemptx::store::postgres::PostgresStore;
use idemptx_core::key::RecordId;
use idemptx_core::store::{Claim, Store};
use idemptx_testkit::PostgresServer;

use crate::support::records::claim_request;

#[tokio::test]
async fn a_claim_does_not_wait_for_a_settlement_that_is_not_committed() {
    let server = PostgresServer::start(&[]);
    let builder = PostgresStore::builder(server.url()).lock_timeout(Duration::from_secs(20));
    let store = builder.timeout(Duration::from_secs(30)).connect().await.unwrap();
    let id = RecordId::from_bytes([1; RecordId::BYTES]);
    store.claim(&id, &claim_request()).await.unwrap();
    let handler = server.session().await;
    handler.simple_query("BEGIN; UPDATE idemptx.records SET state = 'D'").await.unwrap();
    let began = Instant::now();
    let claim = store.claim(&id, &claim_request()).await;
    assert!(!matches!(claim, Ok(Claim::Granted(_)) | Err(_)), "{claim:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "it waited for the lock");
    handler.simple_query("ROLLBACK").await.unwrap();
}
