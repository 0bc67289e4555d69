//! The Redis store on real clusters.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use idemptx::store::redis::RedisStore;
use idemptx::store::redis::protocol::cluster::slot_of;
use idemptx_core::key::RecordId;
use idemptx_core::record::State;
use idemptx_core::store::{Claim, Inventory, Query, RecordSnapshot, Settlement, Store};
use idemptx_testkit::{RedisCluster, RedisServer};

use crate::store_load::{Load, Tally, id, request, result};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_migrate_under_load_cost_no_request_and_run_nothing_twice() {
    let cluster = RedisCluster::start(3, 0, &["appendfsync no"]);
    let handles = handles(&cluster, 2).await;
    // Few slots, so that each has keys in every state while it is on its way.
    let busy: Vec<u16> = (0..4).map(|number| slot_of(&id(number))).collect();
    let load = Load::start(&handles, 8, {
        let busy = busy.clone();
        move |number| id_in(&busy, number)
    });
    load.go_on_for(100).await;
    for round in 0..2 {
        for slot in &busy {
            let to = (cluster.owner(*slot) + 1 + round) % 3;
            if to != cluster.owner(*slot) {
                tokio::task::block_in_place(|| {
                    cluster.migrate(*slot, to, || std::thread::sleep(Duration::from_millis(1)));
                });
            }
            load.go_on_for(20).await;
        }
    }
    let tally = load.stop().await;
    assert_eq!(tally.doubles(), 0);
    assert_eq!(failures(&tally), (0, 0), "{:?}", tally.reasons());
    assert!(redirects(&cluster) > 0, "nothing was asked of the wrong node");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_killed_is_replaced_and_the_others_notice_nothing() {
    let own = ["appendfsync no", "cluster-require-full-coverage no"];
    let mut cluster = RedisCluster::start(3, 1, &own);
    let handles = handles(&cluster, 2).await;
    let dying = cluster.owner(0);
    let owner_of: Vec<usize> = (0..SLOTS).map(|slot| usize::from(slot >= THIRD)).collect();
    let is_dying = move |id: &RecordId| owner_of[usize::from(slot_of(id))] == 0;
    let concerned = {
        let is_dying = is_dying.clone();
        Load::start(&handles, 4, move |number| id_where(number, &is_dying))
    };
    let unconcerned =
        Load::start(&handles, 4, move |number| id_where(number | 1 << 63, |id| !is_dying(id)));
    concerned.go_on_for(200).await;
    cluster.node_mut(dying).kill();
    // Both go on: the one after the promotion, the other all the time.
    concerned.go_on_for(200).await;
    unconcerned.go_on_for(200).await;
    let (concerned, unconcerned) = (concerned.stop().await, unconcerned.stop().await);
    assert_eq!(failures(&unconcerned), (0, 0), "{:?}", unconcerned.reasons());
    assert_eq!(unconcerned.doubles(), 0);
    assert!(concerned.executed() >= 400);
    // What the replica had not received: a claim or a result of each worker at most.
    assert!(concerned.doubles() <= 4, "{}", concerned.doubles());

    // The old primary comes back as a replica, and takes no claim.
    cluster.node_mut(dying).restart();
    cluster.wait_until_served();
    let later = id_where(1 << 62, |id| slot_of(id) < THIRD);
    assert!(matches!(handles[0].claim(&later, &request()).await, Ok(Claim::Granted(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_else_works_on_a_cluster_too() {
    let cluster = RedisCluster::start(3, 0, &[]);
    let [owner, other] = <[_; 2]>::try_from(handles(&cluster, 2).await).unwrap();
    waiters_are_woken(&cluster, &owner, &other).await;
    scripts_are_sent_again(&cluster, &owner).await;
    responses_that_are_kept_apart_migrate(&cluster, &owner).await;
    records_are_listed_while_slots_migrate(&cluster, &owner).await;
    the_check_tells_of_the_weakest_primary(&cluster, &owner).await;
    the_least_rights_suffice(&cluster).await;
}

async fn waiters_are_woken(cluster: &RedisCluster, owner: &RedisStore, other: &RedisStore) {
    let lease = granted(owner, &id(1)).await;
    let watch = other.watch(&id(1)).await.unwrap();
    owner.settle(&lease, &result(&lease)).await.unwrap();
    soon(watch).await;
    let node = cluster.node(cluster.owner(slot_of(&id(1))));
    assert_eq!((node.calls("ssubscribe"), node.calls("spublish")), (1, 1));

    // A slot that goes away ends its subscriptions: who waits looks again.
    granted(owner, &id(2)).await;
    let watch = other.watch(&id(2)).await.unwrap();
    let slot = slot_of(&id(2));
    let to = (cluster.owner(slot) + 1) % 3;
    cluster.migrate(slot, to, || {});
    soon(watch).await;
    let watch = other.watch(&id(2)).await.unwrap();
    assert_eq!(cluster.node(to).calls("ssubscribe"), 1);
    drop(watch);
}

async fn scripts_are_sent_again(cluster: &RedisCluster, store: &RedisStore) {
    let lease = granted(store, &id(3)).await;
    for node in cluster.running() {
        redis::cmd("SCRIPT").arg("FLUSH").exec(&mut node.connection()).unwrap();
    }
    store.renew(&lease).await.unwrap();
    store.settle(&lease, &result(&lease)).await.unwrap();
}

/// Two keys of which one is missing cannot be had from a slot that is being migrated.
async fn responses_that_are_kept_apart_migrate(cluster: &RedisCluster, store: &RedisStore) {
    let lease = granted(store, &id(4)).await;
    let (short, long) = (Duration::from_secs(60), Duration::from_secs(120));
    let apart = Settlement::new(State::Completed, "kept apart".into(), short, long);
    let slot = slot_of(&id(4));
    let to = (cluster.owner(slot) + 1) % 3;
    store.settle(&lease, &apart).await.unwrap();
    cluster.migrate(slot, to, || {});
    for _ in 0..2 {
        let found = store.claim(&id(4), &request()).await.unwrap();
        assert!(
            matches!(&found, Claim::Found(RecordSnapshot::Settled(record))
            if record.payload == "kept apart"),
            "{found:?}"
        );
        let seen = store.lookup(&id(4)).await.unwrap();
        assert!(
            matches!(&seen, Some(RecordSnapshot::Settled(record))
            if record.payload == "kept apart"),
            "{seen:?}"
        );
    }
}

async fn records_are_listed_while_slots_migrate(cluster: &RedisCluster, store: &RedisStore) {
    for number in 1_000..1_200 {
        granted(store, &id(number)).await;
    }
    let mut listed = HashMap::<RecordId, u32>::new();
    let mut after = None;
    for page in 0.. {
        let found = store.list(&Query::all().limit(20).after(after)).await.unwrap();
        found.entries.iter().for_each(|entry| *listed.entry(entry.id).or_default() += 1);
        if page == 3 {
            let slot = slot_of(&id(1_000));
            cluster.migrate(slot, (cluster.owner(slot) + 2) % 3, || {});
        }
        after = found.next;
        if after.is_none() {
            break;
        }
    }
    let missing = (1_000..1_200).filter(|number| !listed.contains_key(&id(*number))).count();
    assert_eq!(missing, 0);
}

async fn the_check_tells_of_the_weakest_primary(cluster: &RedisCluster, store: &RedisStore) {
    let report = store.check().await.unwrap();
    assert!(report.findings.is_empty(), "{report:?}");
    let expected = " cluster of 3 primaries at cluster 127.0.0.1:";
    assert!(report.guarantee.contains(expected), "{}", report.guarantee);
    assert!(report.guarantee.contains("no replicas; no eviction"), "{}", report.guarantee);
    cluster.node(1).configure("maxmemory-policy", "allkeys-lru");
    let report = store.check().await.unwrap();
    assert!(report.is_unsafe());
    assert!(report.guarantee.contains("allkeys-lru may delete claims"), "{}", report.guarantee);
    cluster.node(1).configure("maxmemory-policy", "noeviction");

    let alone = RedisStore::connect(format!("redis://127.0.0.1:{}", cluster.node(0).port())).await;
    let report = alone.unwrap().check().await.unwrap();
    assert!(report.is_fatal());
    assert!(report.findings[0].text.contains("redis+cluster://"), "{report:?}");
}

async fn the_least_rights_suffice(cluster: &RedisCluster) {
    for node in cluster.running() {
        let mut user = redis::cmd("ACL");
        user.arg("SETUSER").arg("app").arg("on").arg(">secret");
        user.arg(LEAST_RIGHTS.split(' ').collect::<Vec<_>>());
        user.exec(&mut node.connection()).unwrap();
    }
    let url = cluster.url().replace("://", "://app:secret@");
    let store = RedisStore::connect(url).await.unwrap();
    for number in 10..20 {
        let lease = granted(&store, &id(number)).await;
        let watch = store.watch(&id(number)).await.unwrap();
        store.renew(&lease).await.unwrap();
        store.settle(&lease, &result(&lease)).await.unwrap();
        soon(watch).await;
    }
}

#[tokio::test]
async fn a_server_outside_of_a_cluster_is_refused_with_what_it_says() {
    let server = RedisServer::start(&[]);
    let url = format!("redis+cluster://127.0.0.1:{}", server.port());
    let error = RedisStore::connect(url).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("cluster support disabled"), "{source}");
}

async fn handles(cluster: &RedisCluster, count: usize) -> Vec<Arc<RedisStore>> {
    let mut handles = Vec::new();
    for _ in 0..count {
        let store = RedisStore::builder(cluster.url()).timeout(STEP_LIMIT).connect().await;
        handles.push(Arc::new(store.unwrap()));
    }
    handles
}

async fn granted(store: &RedisStore, id: &RecordId) -> idemptx_core::lease::Lease {
    match store.claim(id, &request()).await {
        Ok(Claim::Granted(lease)) => lease,
        other => panic!("{other:?}"),
    }
}

async fn soon(watch: impl Future<Output = ()>) {
    tokio::time::timeout(STEP_LIMIT, watch).await.expect("nobody was woken");
}

fn failures(tally: &Tally) -> (u64, u64) {
    (tally.refused.load(Ordering::Relaxed), tally.unknown.load(Ordering::Relaxed))
}

/// Number of refusals that led elsewhere.
fn redirects(cluster: &RedisCluster) -> u64 {
    let count = |node: &RedisServer| {
        let stats: String =
            redis::cmd("INFO").arg("errorstats").query(&mut node.connection()).unwrap();
        let of = |code: &str| {
            let line = stats
                .lines()
                .find_map(|line| line.strip_prefix(&format!("errorstat_{code}:count=")));
            line.map_or(0, |count| count.trim().parse::<u64>().unwrap())
        };
        of("MOVED") + of("ASK")
    };
    cluster.running().map(count).sum()
}

/// Returns an id in one of these slots, a different one for each number.
fn id_in(slots: &[u16], number: u64) -> RecordId {
    id_where(number, |id| slots.contains(&slot_of(id)))
}

/// Returns an id of a kind, a different one for each number.
fn id_where(number: u64, is_wanted: impl Fn(&RecordId) -> bool) -> RecordId {
    let tried = (0..1 << 20).map(|again: u64| {
        let mut bytes = *id(number).as_bytes();
        bytes[24..].copy_from_slice(&again.to_be_bytes());
        RecordId::from_bytes(bytes)
    });
    tried.into_iter().find(is_wanted).unwrap()
}

const SLOTS: u16 = 16_384;
/// The first slot of the second of three primaries.
const THIRD: u16 = 5_461;
/// Patience with a busy machine.
const STEP_LIMIT: Duration = Duration::from_secs(10);
const LEAST_RIGHTS: &str = "resetkeys ~idem:* resetchannels &idem:* -@all +set +get +getrange \
                            +setrange +del +pexpire +pttl +time +eval +evalsha +cluster|slots \
                            +asking +hello +spublish +ssubscribe";
