//! The Redis store behind real sentinels.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use idemptx::store::redis::RedisStore;
use idemptx_core::store::{Claim, ErrorKind, Store};
use idemptx_testkit::RedisSentinels;

use crate::store_load::{Load, id, request, result};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_server_the_sentinels_promote_is_followed_under_load() {
    let mut servers = RedisSentinels::start(2, None);
    let handles = [connected(&servers).await, connected(&servers).await];
    let load = Load::start(&handles, 4, id);
    load.go_on_for(100).await;

    // In an orderly way, where the old primary becomes a replica.
    let promoted = tokio::task::block_in_place(|| servers.failover());
    tokio::task::block_in_place(|| servers.wait_until_followed());
    // The old primary takes writes until the sentinels get to it; the store has left it before.
    let before = servers.server(promoted).calls("set");
    let followed = async {
        while servers.server(promoted).calls("set") == before {
            load.go_on_for(1).await;
        }
    };
    tokio::time::timeout(PATIENCE, followed).await.expect("the old primary is still asked");

    // And in a crash.
    servers.server_mut(promoted).kill();
    load.go_on_for(100).await;
    let tally = load.stop().await;
    // Between the promotion and the last process that hears of it, two servers grant claims: how
    // many keys that concerns is counted elsewhere.
    assert!(tally.doubles() < tally.executed() / 2, "{} of {}", tally.doubles(), tally.executed());
    assert!(tally.unknown.load(Ordering::Relaxed) > 0, "{:?}", tally.reasons());
    let report = handles[0].check().await.unwrap();
    assert!(report.guarantee.contains(" behind sentinels at "), "{}", report.guarantee);
}

/// Its connections stay up and silent, so that only a sentinel can tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_was_replaced_is_left_although_its_connections_stay_up() {
    let servers = RedisSentinels::start(1, Some("guard"));
    let wrong = servers.url().replace("sentinel_password=guard", "sentinel_password=x");
    let error = RedisStore::connect(wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(reason(&error).contains("password is wrong"), "{}", reason(&error));
    let unknown = servers.url().replace(RedisSentinels::SERVICE, "other");
    let error = RedisStore::connect(unknown).await.unwrap_err();
    assert!(reason(&error).contains("service `other`"), "{}", reason(&error));

    // A step that is sent to the old primary has no answer for longer than the test takes.
    let store = RedisStore::builder(servers.url()).timeout(Duration::from_secs(600));
    let store = store.connect().await.unwrap();
    let lease = granted(&store, 1).await;
    let old = servers.primary();
    servers.server(old).pause();
    tokio::task::block_in_place(|| servers.wait_until_promoted(old));
    let done = result(&lease);
    let settled = tokio::time::timeout(PATIENCE, async {
        // What is sent before the sentinel that the store listens to has heard of it is given up.
        let settle = || tokio::time::timeout(GIVEN_UP_AFTER, store.settle(&lease, &done));
        while !matches!(settle().await, Ok(Ok(()))) {}
        granted(&store, 2).await
    });
    settled.await.expect("the old primary is still asked");
    servers.server(old).resume();
}

async fn connected(servers: &RedisSentinels) -> Arc<RedisStore> {
    Arc::new(RedisStore::connect(servers.url()).await.unwrap())
}

async fn granted(store: &RedisStore, number: u64) -> idemptx_core::lease::Lease {
    match store.claim(&id(number), &request()).await {
        Ok(Claim::Granted(lease)) => lease,
        other => panic!("{other:?}"),
    }
}

fn reason(error: &idemptx_core::store::StoreError) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

const GIVEN_UP_AFTER: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(60);
