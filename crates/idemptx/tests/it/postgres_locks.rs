//! Claims of a record that an open transaction has changed.

use std::time::{Duration, Instant};

use idemptx::store::postgres::PostgresStore;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Token;
use idemptx_core::store::{Claim, ClaimRequest, Store};
use idemptx_testkit::PostgresServer;

#[tokio::test]
async fn a_claim_does_not_wait_for_a_settlement_that_is_not_committed() {
    let server = PostgresServer::start(&[]);
    let builder = PostgresStore::builder(server.url()).lock_timeout(Duration::from_secs(20));
    let store = builder.timeout(Duration::from_secs(30)).connect().await.unwrap();
    let id = RecordId::from_bytes([1; RecordId::BYTES]);
    store.claim(&id, &request(1)).await.unwrap();
    let handler = server.session().await;
    handler.simple_query("BEGIN; UPDATE idemptx.records SET state = 'D'").await.unwrap();
    let began = Instant::now();
    let claim = store.claim(&id, &request(2)).await;
    assert!(!matches!(claim, Ok(Claim::Granted(_)) | Err(_)), "{claim:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "it waited for the lock");
    handler.simple_query("ROLLBACK").await.unwrap();
}

fn request(number: u8) -> ClaimRequest {
    let fingerprint =
        Fingerprint { config: 1, digest: [2; 32], binding: [3; 16], operation: [4; 16] };
    let (term, retain) = (Duration::from_secs(60), Duration::from_secs(600));
    ClaimRequest::new(Token::from_bytes([number; Token::BYTES]), fingerprint, term, retain)
}
