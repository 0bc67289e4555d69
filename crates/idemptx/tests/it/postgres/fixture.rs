//! Claims, settlements and servers that the tests share.

use std::time::{Duration, Instant};

use idemptx::store::postgres::{PostgresStore, PostgresStoreBuilder};
use idemptx_core::store::ClaimRequest;
use idemptx_testkit::PostgresServer;

pub(crate) use crate::support::records::{
    MINUTE, PATIENCE, claim_request, done, eventually, granted, granted_to, id, kind, reason,
    settled, soon,
};

pub(crate) async fn started(configuration: &[&str]) -> (PostgresServer, PostgresStore) {
    let server = PostgresServer::start(configuration);
    let store = patient(server.url()).connect().await.unwrap();
    (server, store)
}

/// A store that a busy machine does not lead to give up.
pub(crate) fn patient(url: String) -> PostgresStoreBuilder {
    PostgresStore::builder(url).timeout(PATIENCE).connect_timeout(PATIENCE)
}

/// A claim request whose lease lapses at once.
pub(crate) fn brief_claim_request() -> ClaimRequest {
    let mut brief = claim_request();
    brief.term = Duration::ZERO;
    brief
}

/// Returns the number that a query yields.
pub(crate) async fn number(server: &PostgresServer, query: &str) -> i64 {
    server.session().await.query_one(query, &[]).await.unwrap().get(0)
}

/// Waits until a query comes to a number.
pub(crate) async fn comes_to(server: &PostgresServer, query: &str, expected: i64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = number(server, query).await;
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{query}: {found} instead of {expected}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
