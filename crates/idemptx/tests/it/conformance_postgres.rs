//! The PostgreSQL store keeps the contract of a store.

use std::time::{Duration, Instant};

use bytes::Bytes;

use idemptx::store::postgres::{PostgresStore, PostgresStoreBuilder};
use idemptx_core::conformance::{self, Harness};
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::store::{Claim, ClaimRequest, Store, StoreError};
use idemptx_testkit::PgBouncer;
use idemptx_testkit::PostgresServer;

use crate::support::records::{FINGERPRINT, MINUTE, token};

#[tokio::test]
async fn the_postgres_store_keeps_the_contract() {
    let server = PostgresServer::start(&[]);
    keeps_the_contract(&server, || PostgresStore::builder(server.url())).await;
}

#[tokio::test]
async fn it_keeps_the_contract_with_everything_that_comes_at_once_in_one_batch() {
    let server = PostgresServer::start(&[]);
    keeps_the_contract(&server, || PostgresStore::builder(server.socket_url()).sessions(1)).await;
}

#[tokio::test]
async fn it_keeps_the_contract_behind_a_pooler_in_transaction_mode() {
    let server = PostgresServer::start(&[]);
    let pooler = PgBouncer::start(&server);
    keeps_the_contract(&server, || PostgresStore::builder(pooler.url()).pooled(true)).await;
}

async fn keeps_the_contract(server: &PostgresServer, builder: impl Fn() -> PostgresStoreBuilder) {
    // The contract is about verdicts, not about how soon a busy machine gives them.
    let patience = Duration::from_secs(20);
    let connect =
        || builder().timeout(patience).connect_timeout(patience).lock_timeout(patience).connect();
    let trial = Trial(connect().await.unwrap(), connect().await.unwrap(), server);
    conformance::run(&trial).await.assert_passed();
    conformance::run_inventory(&trial).await.assert_passed();
}

struct Trial<'s>(PostgresStore, PostgresStore, &'s PostgresServer);

impl Harness for Trial<'_> {
    type Store = PostgresStore;

    fn store(&self) -> &PostgresStore {
        &self.0
    }

    fn other_handle(&self) -> Option<&PostgresStore> {
        Some(&self.1)
    }

    fn token(&self) -> Token {
        token()
    }

    async fn overwrite(&self, id: &RecordId, bytes: Bytes) -> bool {
        let update = "UPDATE idemptx.records SET record = $2 WHERE id = $1";
        let session = self.2.session().await;
        session.execute(update, &[&&id.as_bytes()[..], &&bytes[..]]).await.unwrap() == 1
    }

    async fn refuse(&self, refuses: bool) -> bool {
        let value = if refuses { "on" } else { "off" };
        self.2.configure("default_transaction_read_only", value).await;
        // Sessions are told of it one after the other.
        let expected = |claim: &Result<Claim, StoreError>| claim.is_err() == refuses;
        for store in [&self.0, &self.1] {
            let deadline = Instant::now() + Duration::from_secs(20);
            let (id, request) = probe(self.token());
            while !expected(&store.claim(&id, &request).await) {
                assert!(Instant::now() < deadline, "the server goes on");
            }
            let _ = store.release(&Lease::granted(id, &request, 0, 1)).await;
        }
        true
    }

    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
}

fn probe(token: Token) -> (RecordId, ClaimRequest) {
    let mut id = [0xB0; RecordId::BYTES];
    id[..Token::BYTES].copy_from_slice(token.as_bytes());
    (RecordId::from_bytes(id), ClaimRequest::new(token, FINGERPRINT, MINUTE, MINUTE))
}
