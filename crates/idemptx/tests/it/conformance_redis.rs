//! The Redis store keeps the contract of a store.

use std::time::Duration;

use bytes::Bytes;

use idemptx::store::redis::RedisStore;
use idemptx_core::conformance::{self, Harness};
use idemptx_core::key::RecordId;
use idemptx_core::lease::Token;
use idemptx_testkit::RedisServer;

use crate::support::records::token;

#[tokio::test]
async fn the_redis_store_keeps_the_contract() {
    let server = RedisServer::start(&[]);
    // The contract is about verdicts, not about how soon a busy machine gives them.
    let patience = Duration::from_secs(20);
    let connect = || RedisStore::builder(server.url()).timeout(patience).connect();
    let trial = Trial(connect().await.unwrap(), connect().await.unwrap(), &server);
    conformance::run(&trial).await.assert_passed();
    conformance::run_inventory(&trial).await.assert_passed();
}

struct Trial<'s>(RedisStore, RedisStore, &'s RedisServer);

impl Harness for Trial<'_> {
    type Store = RedisStore;

    fn store(&self) -> &RedisStore {
        &self.0
    }

    fn other_handle(&self) -> Option<&RedisStore> {
        Some(&self.1)
    }

    fn token(&self) -> Token {
        token()
    }

    async fn overwrite(&self, id: &RecordId, bytes: Bytes) -> bool {
        let mut connection = self.2.connection();
        let key = format!("idem:{{{id}}}");
        let mut set = redis::cmd("SET");
        set.arg(&key).arg(&bytes[..]).arg("XX").arg("KEEPTTL");
        set.query::<Option<String>>(&mut connection).unwrap().is_some()
    }

    async fn refuse(&self, refuses: bool) -> bool {
        self.2.configure("min-replicas-to-write", if refuses { "1" } else { "0" });
        true
    }

    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
}
