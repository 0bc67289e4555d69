//! Failovers that forget what was acknowledged, and the precautions against them.

mod counted;

use std::time::Duration;

use idemptx::store::redis::RedisStore;
use idemptx::store::redis::protocol::cluster::slot_of;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{Claim, ErrorKind, RecordSnapshot, Store, StoreError};
use idemptx_testkit::{FaultyProxy, LoneSentinel, RedisCluster, RedisServer};

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
    refused_as_promoted(&other, &unknown).await;
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

/// Two servers that take writes and never hear of each other, as two halves of a network have them.
#[tokio::test]
async fn a_server_that_was_replaced_unawares_has_another_grace_period_when_it_is_back() {
    let [old, new] = [RedisServer::start(&[]), RedisServer::start(&[])];
    let (way, later_way) = (FaultyProxy::to(old.port()).await, FaultyProxy::to(old.port()).await);
    let guarded = async |way: &FaultyProxy| {
        let store = RedisStore::builder(format!("redis://127.0.0.1:{}", way.port()));
        store.failover_grace(GRACE).connect().await.unwrap()
    };
    let (store, later) = (guarded(&way).await, guarded(&later_way).await);
    eventually(&store, &id(1)).await;
    eventually(&later, &id(2)).await;
    way.lead_to(new.port());
    old.cut_clients();
    let lease = eventually(&store, &id(3)).await;

    // One that comes later has been nowhere else since the promotion, which is over.
    later_way.lead_to(new.port());
    old.cut_clients();
    until(async || match later.claim(&id(4), &request()).await {
        Err(error) => {
            assert!(!is_of_grace(&error), "{error:?}");
            false
        }
        claim => matches!(claim, Ok(Claim::Granted(_))),
    })
    .await;

    // The old one has the history it had, and nothing of what was acknowledged meanwhile.
    way.lead_to(old.port());
    new.cut_clients();
    refused_as_promoted(&store, &id(5)).await;
    let other = guarded(&way).await;
    refused_as_promoted(&other, &id(3)).await;
    until(async || store.renew(&lease).await.is_ok()).await;
    assert!(matches!(
        other.claim(&id(3), &request()).await,
        Ok(Claim::Found(RecordSnapshot::Held(held))) if held.token == lease.token
    ));
    eventually(&other, &id(5)).await;
}

/// The store is not used meanwhile, and its connections stay up: only the sentinel knows.
#[tokio::test]
async fn a_server_that_is_promoted_again_has_another_grace_period_although_nothing_else_changed() {
    let server = RedisServer::start(&[]);
    let mut sentinel = LoneSentinel::naming(server.port(), 5);
    let store = RedisStore::builder(sentinel.url()).failover_grace(GRACE);
    let store = store.connect().await.unwrap();
    eventually(&store, &id(1)).await;
    sentinel.name(server.port(), 8);
    let granted = (2..).map(id);
    let refused = async {
        for id in granted {
            match store.claim(&id, &request()).await {
                Err(error) if is_of_grace(&error) => return,
                Err(error) => assert!(error.kind().is_transient(), "{error:?}"),
                Ok(claim) => assert!(matches!(claim, Claim::Granted(_))),
            }
            pause().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("no grace period");
    eventually(&store, &id(0)).await;
    // Whoever has heard less changes nothing.
    sentinel.name(server.port(), 7);
    let late = RedisStore::builder(sentinel.url()).failover_grace(GRACE);
    let late = late.connect().await.unwrap();
    assert!(matches!(
        late.claim(&RecordId::from_bytes([7; 32]), &request()).await,
        Ok(Claim::Granted(_))
    ));
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

/// As many as are connected, and one that joins from its first claim on.
#[tokio::test]
async fn all_replicas_are_those_that_are_connected_and_at_least_one() {
    let primary = RedisServer::start(&["repl-diskless-sync-delay 0"]);
    let follow = format!("replicaof 127.0.0.1 {}", primary.port());
    let store = RedisStore::connect(format!("{}?wait_replicas=all", primary.url())).await.unwrap();
    let error = store.claim(&id(1), &request()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(reason(&error).contains("or there is none"), "{}", reason(&error));
    let first = RedisServer::start(&[&follow]);
    until(async || store.claim(&id(2), &request()).await.is_ok()).await;
    let mut second = RedisServer::start(&[&follow]);
    until(async || replicas(&primary) == 2).await;
    until(async || store.claim(&id(3), &request()).await.is_ok()).await;
    assert!(store.check().await.unwrap().guarantee.contains("any of 2 connected replicas"));
    // Both have to have it, whichever of them would be enough for a count of one.
    second.pause();
    assert!(store.claim(&id(4), &request()).await.is_err());
    second.resume();
    until(async || store.claim(&id(5), &request()).await.is_ok()).await;
    second.kill();
    until(async || replicas(&primary) == 1).await;
    granted(&store, &id(6)).await;
    drop(first);
}

#[tokio::test]
async fn a_store_that_waits_for_the_disk_stores_nothing_before() {
    let server = RedisServer::start_valkey(&["appendonly yes", "appendfsync always"]);
    let store = RedisStore::connect(waiting_for_the_disk(&server)).await.unwrap();
    let lease = granted(&store, &id(1)).await;
    store.settle(&lease, &result(&lease)).await.unwrap();
    assert!(!store.check().await.unwrap().is_fatal());
    assert!(server.calls("waitaof") >= 2);
    let off = RedisServer::start_valkey(&["appendonly no"]);
    let refused = RedisStore::connect(waiting_for_the_disk(&off)).await;
    assert!(reason(&refused.unwrap_err()).contains("appendonly yes"));
}

/// As Redis before 7.2.
#[tokio::test]
async fn a_store_that_waits_for_the_disk_is_refused_by_a_server_that_cannot() {
    let server = RedisServer::start_valkey(&["appendonly yes", "rename-command WAITAOF ''"]);
    let opened = RedisStore::open(waiting_for_the_disk(&server)).unwrap();
    let error = RedisStore::connect(waiting_for_the_disk(&server)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(reason(&error).contains("Redis 7.2"), "{}", reason(&error));
    let report = opened.check().await.unwrap();
    assert!(report.is_fatal() && report.findings[0].text.contains("WAITAOF"));
    let error = opened.claim(&id(1), &request()).await.unwrap_err();
    assert!(reason(&error).contains("unknown command"), "{}", reason(&error));
}

fn waiting_for_the_disk(server: &RedisServer) -> String {
    format!("{}?wait_aof=true", server.url())
}

fn replicas(primary: &RedisServer) -> usize {
    let mut connection = redis::Client::open(primary.url()).unwrap().get_connection().unwrap();
    let info: redis::InfoDict =
        redis::cmd("INFO").arg("replication").query(&mut connection).unwrap();
    info.get("connected_slaves").unwrap()
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

/// Waits until a claim is refused because of a grace period.
async fn refused_as_promoted(store: &RedisStore, id: &RecordId) {
    let refused = async {
        loop {
            match store.claim(id, &request()).await {
                Err(error) if is_of_grace(&error) => return error,
                Err(error) => assert!(error.kind().is_transient(), "{error:?}"),
                other => panic!("{other:?}"),
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, refused).await.expect("no grace period");
    assert!(refused.retry_after().is_some_and(|wait| wait <= GRACE), "{refused:?}");
}

fn is_of_grace(error: &StoreError) -> bool {
    error.kind() == ErrorKind::Refused && reason(error).contains("promoted")
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
