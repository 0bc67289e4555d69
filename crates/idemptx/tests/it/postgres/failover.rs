//! Failovers between servers of one URL.

mod counted;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use idemptx::store::postgres::{PostgresStore, PostgresStoreBuilder};
use idemptx_core::store::{ErrorKind, Store};
use idemptx_testkit::PostgresServer;

use super::fixture::{PATIENCE, claim_request, comes_to, eventually, granted, id, patient, reason};
use crate::store_load::{self, Load};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_under_load_loses_nothing_and_runs_nothing_twice() {
    let mut primary = PostgresServer::start(&[]);
    let standby = primary.standby().await;
    comes_to(&primary, STREAMS, 1).await;
    let mut handles = Vec::new();
    for _ in 0..3 {
        handles.push(Arc::new(brisk(&[&primary, &standby]).connect().await.unwrap()));
    }
    let load = Load::start(&handles, 12, store_load::id);
    load.go_on_for(60).await;
    primary.kill();
    standby.promote().await;
    load.go_on_for(60).await;
    let tally = load.stop().await;
    assert_eq!(tally.doubles(), 0, "of {}: {:?}", tally.executed(), tally.reasons());
    let failed = tally.refused.load(Ordering::Relaxed) + tally.unknown.load(Ordering::Relaxed);
    assert!(failed > 0, "nothing met the failover");
}

/// As hosted servers do it, which keep their connections.
#[tokio::test]
async fn a_primary_that_refuses_writes_is_left_within_the_step_that_it_refused() {
    let primary = PostgresServer::start(&[]);
    let standby = primary.standby().await;
    comes_to(&primary, STREAMS, 1).await;
    let store = patient(url(&[&primary, &standby])).connect().await.unwrap();
    let lease = granted(&store, id(1)).await;
    standby.promote().await;
    primary.configure("default_transaction_read_only", "on").await;
    granted(&store, id(2)).await;
    store.renew(&lease).await.unwrap();
    comes_to(&standby, RECORDS, 2).await;
    comes_to(&primary, RECORDS, 1).await;
}

/// It accepts connections, as its system does for it, and never answers.
#[tokio::test]
async fn a_server_that_hangs_does_not_keep_the_next_one_from_being_asked() {
    let primary = PostgresServer::start(&[]);
    let standby = primary.standby().await;
    comes_to(&primary, STREAMS, 1).await;
    let store = brisk(&[&primary, &standby]).connect().await.unwrap();
    granted(&store, id(1)).await;
    primary.pause();
    standby.promote().await;
    eventually(async || store.claim(&id(2), &claim_request()).await).await.unwrap();
    let late = brisk(&[&primary, &standby]).connect_timeout(PATIENCE / 10);
    granted(&late.connect().await.unwrap(), id(3)).await;
}

#[tokio::test]
async fn a_primary_that_was_replaced_is_left_although_it_takes_writes() {
    let primary = PostgresServer::start(&[]);
    let mut standby = primary.standby().await;
    comes_to(&primary, STREAMS, 1).await;
    let store = brisk(&[&primary, &standby]).connect().await.unwrap();
    granted(&store, id(1)).await;
    // It waits for a standby that is none any more.
    standby.promote().await;
    let claimed = eventually(async || store.claim(&id(2), &claim_request()).await).await;
    claimed.unwrap();
    comes_to(&standby, RECORDS, 2).await;
    primary.configure("synchronous_standby_names", "").await;
    standby.stop();
    let refusal = "was promoted in its place";
    // The one that meets the end of the standby's sessions is in doubt.
    let refused = eventually(async || match store.claim(&id(3), &claim_request()).await {
        Err(error) if error.kind() == ErrorKind::Refused && reason(&error).contains(refusal) => {
            Ok(())
        }
        Err(error) => Err(error),
        Ok(claim) => panic!("{claim:?}"),
    });
    refused.await.unwrap();
    standby.restart();
    eventually(async || store.claim(&id(3), &claim_request()).await).await.unwrap();
    comes_to(&standby, RECORDS, 3).await;
}

/// A store whose steps end soon, so that it turns to the other server.
fn brisk(servers: &[&PostgresServer]) -> PostgresStoreBuilder {
    PostgresStore::builder(url(servers))
        .timeout(Duration::from_secs(1))
        .connect_timeout(Duration::from_secs(5))
}

fn url(servers: &[&PostgresServer]) -> String {
    let hosts: Vec<_> =
        servers.iter().map(|server| format!("127.0.0.1:{}", server.port())).collect();
    format!("postgres://postgres@{}/postgres", hosts.join(","))
}

const RECORDS: &str = "SELECT count(*) FROM idemptx.records";
const STREAMS: &str = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
