//! Failovers under load by the dozen, and how many keys were executed twice.
//!
//! The numbers stand in `docs/guarantees.md`; to take them again:
//! `ROUNDS=50 cargo nextest run -p idemptx --all-features --run-ignored only counted`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use idemptx_testkit::PostgresServer;

use super::super::fixture::comes_to;
use super::brisk;
use crate::store_load::{Load, id};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, for many minutes"]
async fn promotions_of_postgresql_are_counted() {
    for (name, standby_names) in [("synchronous", "*"), ("asynchronous", "")] {
        count(name, standby_names).await;
    }
}

#[allow(clippy::print_stdout, reason = "the numbers are what this is run for")]
async fn count(name: &str, standby_names: &str) {
    let primary = PostgresServer::start(&[]);
    let standby = primary.asynchronous_standby();
    primary.configure("synchronous_standby_names", standby_names).await;
    let urls = [&primary, &standby];
    let mut handles = Vec::new();
    for _ in 0..3 {
        handles.push(Arc::new(brisk(&urls).connect().await.unwrap()));
    }
    let load = Load::start_slow(&handles, WORKERS, HANDLER, id);
    let rounds = rounds();
    let mut servers = [primary, standby];
    for _ in 0..rounds {
        let [primary, standby] = &mut servers;
        comes_to(primary, "SELECT count(*) FROM pg_stat_replication", 1).await;
        load.go_on_for(KEYS).await;
        // The standby hears of nothing more.
        standby.pause();
        primary.cut_standbys().await;
        tokio::time::sleep(LAG).await;
        tokio::task::block_in_place(|| primary.kill());
        standby.resume();
        standby.promote().await;
        tokio::task::block_in_place(|| primary.follow(standby));
        standby.configure("synchronous_standby_names", standby_names).await;
        servers.reverse();
    }
    let tally = load.stop().await;
    let [refused, unknown] =
        [&tally.refused, &tally.unknown].map(|count| count.load(Ordering::Relaxed));
    println!(
        "PostgreSQL | {name} | {rounds} promotions | {} keys | {} executed twice | \
         {refused} refused, {unknown} unknown",
        tally.executed(),
        tally.doubles(),
    );
}

fn rounds() -> u32 {
    std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(50)
}

const WORKERS: u64 = 24;
const KEYS: u64 = 36;
const HANDLER: Duration = Duration::from_millis(500);
/// Time during which the standby hears of nothing.
const LAG: Duration = Duration::from_secs(1);
