//! The Redis store keeps the contract of a store.

use std::time::Duration;

use bytes::Bytes;

use idemptx::store::redis::RedisStore;
use idemptx::store::redis::protocol::cluster::slot_of;
use idemptx_core::conformance::{self, Harness};
use idemptx_core::key::RecordId;
use idemptx_core::lease::Token;
use idemptx_testkit::{RedisCluster, RedisSentinels, RedisServer};

use crate::support::records::token;

#[tokio::test]
async fn the_redis_store_keeps_the_contract() {
    let server = RedisServer::start(&[]);
    keeps_the_contract(&server.url(), || vec![&server], |_| &server).await;
}

#[tokio::test]
async fn the_redis_store_keeps_the_contract_on_valkey() {
    let server = RedisServer::start_valkey(&[]);
    keeps_the_contract(&server.url(), || vec![&server], |_| &server).await;
}

#[tokio::test]
async fn the_redis_store_keeps_the_contract_on_a_cluster() {
    let cluster = RedisCluster::start(3, 0, &["appendfsync no"]);
    let owner = |id: &RecordId| cluster.node(cluster.owner(slot_of(id)));
    keeps_the_contract(&cluster.url(), || cluster.running().collect(), owner).await;
}

#[tokio::test]
async fn the_redis_store_keeps_the_contract_behind_sentinels() {
    let servers = RedisSentinels::start(1, None);
    let primary = || servers.server(servers.primary());
    keeps_the_contract(&servers.url(), || vec![primary()], |_| primary()).await;
}

async fn keeps_the_contract<'s>(
    url: &str,
    primaries: impl Fn() -> Vec<&'s RedisServer> + Sync,
    owner: impl Fn(&RecordId) -> &'s RedisServer + Sync,
) {
    // The contract is about verdicts, not about how soon a busy machine gives them.
    let patience = Duration::from_secs(20);
    let connect = || RedisStore::builder(url).prefix(PREFIX).timeout(patience).connect();
    let handles = [connect().await.unwrap(), connect().await.unwrap()];
    let trial = Trial { handles, primaries: &primaries, owner: &owner };
    conformance::run(&trial).await.assert_passed();
    conformance::run_inventory(&trial).await.assert_passed();
}

struct Trial<'t, 's> {
    handles: [RedisStore; 2],
    primaries: &'t (dyn Fn() -> Vec<&'s RedisServer> + Sync),
    owner: &'t (dyn Fn(&RecordId) -> &'s RedisServer + Sync),
}

impl Harness for Trial<'_, '_> {
    type Store = RedisStore;

    fn store(&self) -> &RedisStore {
        &self.handles[0]
    }

    fn other_handle(&self) -> Option<&RedisStore> {
        Some(&self.handles[1])
    }

    fn token(&self) -> Token {
        token()
    }

    async fn overwrite(&self, id: &RecordId, bytes: Bytes) -> bool {
        let mut connection = (self.owner)(id).connection();
        let key = format!("{PREFIX}{{{id}}}");
        let mut set = redis::cmd("SET");
        set.arg(&key).arg(&bytes[..]).arg("XX").arg("KEEPTTL");
        set.query::<Option<String>>(&mut connection).unwrap().is_some()
    }

    async fn refuse(&self, refuses: bool) -> bool {
        for server in (self.primaries)() {
            server.configure("min-replicas-to-write", if refuses { "9" } else { "0" });
        }
        true
    }

    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
}

/// Any text: scripts read it out of their keys and arguments.
const PREFIX: &str = "an app's: ";
