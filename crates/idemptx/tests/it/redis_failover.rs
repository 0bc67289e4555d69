//! Failovers that forget what was acknowledged, and the precautions against them.

mod counted;

use std::time::Duration;

use idemptx::store::redis::RedisStore;
use idemptx::store::redis::protocol::cluster::slot_of;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{Claim, ErrorKind, RecordSnapshot, Store, StoreError};
use idemptx_testkit::{RedisCluster, RedisServer};

use crate::store_load::{id, request, result};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_promoted_replica_has_not_received_is_put_back_by_those_who_know() {
    let mut cluster = RedisCluster::start(3, 1, &["appendfsync no"]);
    let [owner, other] = [guarded(&cluster).await, guarded(&cluster).await];
    let mut first_shard = (0..).map(id).filter(|id| slot_of(id) < 5_461);
    let mut next = || first_shard.next().unwrap();
    let (running, completed, unknown, fresh) = (next(), next(), next(), next());
    // The store has never been used with a grace period, so it begins with one.
    let before = eventually(&owner, &next()).await;
    eventually(&other, &next()).await;

    // The replica hears of nothing from now on.
    cluster.node(3).pause();
    cluster.node(0).cut_replicas();
    let lease = granted(&owner, &running).await;
    let done = granted(&owner, &completed).await;
    owner.settle(&done, &result(&done)).await.unwrap();
    cluster.node_mut(0).kill();
    cluster.node(3).resume();
    cluster.promote(3);

    // Nothing new is granted meanwhile, what is there is served, and the owner keeps its claim.
    let refused = async {
        loop {
            match other.claim(&unknown, &request()).await {
                Err(error) if reason(&error).contains("promoted") => return error,
                Err(error) => assert!(error.kind().is_transient(), "{error:?}"),
                other => panic!("{other:?}"),
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, refused).await.expect("no grace period");
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert!(refused.retry_after().is_some_and(|wait| wait <= GRACE), "{refused:?}");
    let renewed = async { while owner.renew(&lease).await.is_err() {} };
    tokio::time::timeout(PATIENCE, renewed).await.expect("the claim is lost");
    owner.renew(&before).await.unwrap();
    assert!(matches!(
        other.claim(&running, &request()).await,
        Ok(Claim::Found(RecordSnapshot::Held(held))) if held.token == lease.token
    ));
    until(async || {
        matches!(other.claim(&completed, &request()).await,
            Ok(Claim::Found(RecordSnapshot::Settled(record))) if record.token == done.token)
    })
    .await;

    // Afterwards everything goes on.
    eventually(&other, &fresh).await;
    owner.settle(&lease, &result(&lease)).await.unwrap();
    assert!(matches!(
        other.claim(&running, &request()).await,
        Ok(Claim::Found(RecordSnapshot::Settled(record))) if record.token == lease.token
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_whose_claim_was_forgotten_is_stored_during_the_grace_period() {
    let mut server = RedisServer::start(&["appendonly no"]);
    let store = RedisStore::builder(server.url()).failover_grace(GRACE);
    let store = store.connect().await.unwrap();
    let lease = eventually(&store, &id(1)).await;
    server.kill();
    server.restart();
    let settled = async { while store.settle(&lease, &result(&lease)).await.is_err() {} };
    tokio::time::timeout(PATIENCE, settled).await.expect("the result is lost");
    assert!(matches!(
        store.claim(&id(1), &request()).await,
        Ok(Claim::Found(RecordSnapshot::Settled(record))) if record.token == lease.token
    ));
    // A server that has all it had is no other server.
    eventually(&store, &id(2)).await;
    let later = RedisStore::builder(server.url()).failover_grace(GRACE);
    granted(&later.connect().await.unwrap(), &id(3)).await;
}

#[tokio::test]
async fn a_claim_that_too_few_replicas_have_is_given_up() {
    let primary = RedisServer::start(&["repl-diskless-sync-delay 0"]);
    let replica = RedisServer::start(&[&format!("replicaof 127.0.0.1 {}", primary.port())]);
    let store = RedisStore::connect(format!("{}?wait_replicas=1", primary.url())).await.unwrap();
    until(async || store.claim(&id(1), &request()).await.is_ok()).await;
    let lease = granted(&store, &id(2)).await;
    replica.pause();
    let asked = request();
    let error = store.claim(&id(3), &asked).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(reason(&error).contains("fewer than 1 replicas"), "{}", reason(&error));
    // As an engine does with a claim in doubt.
    store.release(&Lease::granted(id(3), &asked, 1, 1)).await.unwrap();
    assert_eq!(store.lookup(&id(3)).await.unwrap(), None);
    let error = store.settle(&lease, &result(&lease)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // The second time nothing is written, and yet it is not taken for acknowledged.
    assert!(store.settle(&lease, &result(&lease)).await.is_err());
    replica.resume();
    until(async || store.settle(&lease, &result(&lease)).await.is_ok()).await;
    granted(&store, &id(3)).await;
}

async fn guarded(cluster: &RedisCluster) -> RedisStore {
    let store = RedisStore::builder(cluster.url()).timeout(STEP_LIMIT).failover_grace(GRACE);
    store.connect().await.unwrap()
}

async fn granted(store: &RedisStore, id: &RecordId) -> Lease {
    match store.claim(id, &request()).await {
        Ok(Claim::Granted(lease)) => lease,
        other => panic!("{other:?}"),
    }
}

/// Claims a record, as soon as that is granted.
async fn eventually(store: &RedisStore, id: &RecordId) -> Lease {
    let claimed = async {
        loop {
            match store.claim(id, &request()).await {
                Ok(Claim::Granted(lease)) => return lease,
                Err(error) if error.kind().is_transient() => pause().await,
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, claimed).await.expect("it is never granted")
}

async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !condition().await {
            pause().await;
        }
    };
    tokio::time::timeout(PATIENCE, holds).await.expect("it never holds");
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

fn reason(error: &StoreError) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

/// Long enough for a busy machine to do everything in it.
const GRACE: Duration = Duration::from_secs(4);
const STEP_LIMIT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);
