//! Failovers under load by the dozen, and how many keys were executed twice.
//!
//! The numbers stand in `docs/guarantees.md`; to take them again:
//! `ROUNDS=50 cargo nextest run -p idemptx --all-features --run-ignored only counted`,
//! where `ONLY=both` takes one of the settings.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use idemptx::store::redis::RedisStore;
use idemptx::store::redis::protocol::cluster::slot_of;
use idemptx_core::key::RecordId;
use idemptx_testkit::{RedisCluster, RedisSentinels};

use crate::store_load::{Load, id};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, for many minutes"]
async fn failovers_of_a_cluster_are_counted() {
    for (name, settings, replicas) in settings() {
        let mut cluster = RedisCluster::start(3, replicas, &["appendfsync no"]);
        let load = load(&format!("{}?{settings}", cluster.url()), |id| slot_of(id) < 5_461).await;
        let rounds = rounds();
        for round in 0..rounds {
            // The servers of the first shard take turns.
            let server = |turn| 3 * (turn % (1 + replicas));
            let (primary, replica) = (server(round as usize), server(round as usize + 1));
            load.go_on_for(KEYS).await;
            tokio::task::block_in_place(|| {
                cluster.node(replica).pause();
                cluster.node(primary).cut_replicas();
            });
            tokio::time::sleep(LAG).await;
            tokio::task::block_in_place(|| {
                cluster.node_mut(primary).kill();
                cluster.node(replica).resume();
                cluster.promote(replica);
                cluster.node_mut(primary).restart();
                cluster.wait_until("it is a replica", |it| it.node(primary).is_replica());
                cluster.wait_until_served();
            });
        }
        report("Cluster", name, rounds, load).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, for many minutes"]
async fn failovers_behind_sentinels_are_counted() {
    for (name, settings, replicas) in settings() {
        let mut servers = RedisSentinels::start(replicas, None);
        let load = load(&format!("{}?{settings}", servers.url()), |_| true).await;
        let rounds = rounds();
        for _ in 0..rounds {
            let primary = servers.primary();
            let replica = (primary + 1) % (1 + replicas);
            let others = (0..=replicas).filter(|it| ![primary, replica].contains(it));
            load.go_on_for(KEYS).await;
            tokio::task::block_in_place(|| {
                servers.server(replica).pause();
                servers.server(primary).cut_replicas();
            });
            tokio::time::sleep(LAG).await;
            if replicas > 1 {
                // Those that have received everything would be preferred, unless they are down.
                others.clone().for_each(|other| servers.server(other).pause());
                tokio::time::sleep(DOWN).await;
            }
            tokio::task::block_in_place(|| {
                servers.server_mut(primary).kill();
                servers.server(replica).resume();
                servers.wait_until_promoted(primary);
                others.for_each(|other| servers.server(other).resume());
                servers.server_mut(primary).restart();
                servers.wait_until_followed();
            });
        }
        report("Sentinel", name, rounds, load).await;
    }
}

async fn load(url: &str, is_wanted: fn(&RecordId) -> bool) -> Load {
    let mut handles = Vec::new();
    for _ in 0..3 {
        handles.push(Arc::new(RedisStore::connect(url).await.unwrap()));
    }
    let ids = move |number: u64| {
        let tried = (0..1 << 20).map(|again| id(number << 20 | again));
        tried.into_iter().find(is_wanted).unwrap()
    };
    Load::start_slow(&handles, WORKERS, HANDLER, ids)
}

#[allow(clippy::print_stdout, reason = "the numbers are what this is run for")]
async fn report(topology: &str, name: &str, rounds: u32, load: Load) {
    let tally = load.stop().await;
    let [refused, unknown] =
        [&tally.refused, &tally.unknown].map(|count| count.load(Ordering::Relaxed));
    println!(
        "{topology} | {name} | {rounds} failovers | {} keys | {} executed twice | \
         {refused} refused, {unknown} unknown",
        tally.executed(),
        tally.doubles(),
    );
}

fn settings() -> impl Iterator<Item = (&'static str, &'static str, usize)> {
    let only = std::env::var("ONLY").ok();
    SETTINGS.into_iter().filter(move |(name, ..)| only.as_ref().is_none_or(|only| only == name))
}

fn rounds() -> u32 {
    std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(50)
}

/// Names, parameters of the URL, and replicas of each primary.
///
/// The grace period leaves sentinels, which tell each other every two seconds, time to agree.
const SETTINGS: [(&str, &str, usize); 5] = [
    ("nothing set", "wait_replicas=0", 1),
    ("`wait_replicas`", "wait_replicas=1", 1),
    ("`failover_grace`", "failover_grace_ms=6000", 1),
    ("both", "wait_replicas=1&failover_grace_ms=6000", 1),
    // The replica that is promoted is away while the other one acknowledges.
    ("all of two", "wait_replicas=all&failover_grace_ms=6000", 2),
];
const WORKERS: u64 = 24;
const KEYS: u64 = 36;
const HANDLER: Duration = Duration::from_millis(500);
/// Time after which sentinels count a server that is silent as down, with some to spare.
const DOWN: Duration = Duration::from_millis(1200);
/// Time during which the replica that is promoted hears of nothing.
const LAG: Duration = Duration::from_secs(1);
