//! Standbys: a promise that is taken back, and a failover.

use std::time::Duration;

use idemptx_core::store::{Claim, ErrorKind, RecordSnapshot, Store};
use idemptx_testkit::PostgresServer;

use super::fixture::{
    claim_request, comes_to, done, eventually, granted, id, kind, number, patient, reason, settled,
    started,
};

#[tokio::test]
async fn a_failover_to_a_synchronous_standby_loses_nothing_and_is_followed() {
    let mut primary = PostgresServer::start(&[]);
    let standby = primary.standby().await;
    let streams = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
    comes_to(&primary, streams, 1).await;
    let [first, second] = [standby.port(), primary.port()];
    let both = format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/postgres");
    let store = patient(both).connect().await.unwrap();
    let report = store.check().await.unwrap();
    assert!(!report.is_unsafe(), "{report:?}");
    assert!(report.guarantee.contains("a failover to a synchronous standby"), "{report:?}");

    let mut leases = Vec::new();
    for number in 0..40 {
        leases.push(granted(&store, id(number)).await);
    }
    for lease in &leases[..20] {
        store.settle(lease, &done("kept")).await.unwrap();
    }
    primary.kill();
    standby.promote().await;
    for number in 0..20 {
        let seen = eventually(async || store.lookup(&id(number)).await).await;
        assert!(
            matches!(seen, Ok(Some(RecordSnapshot::Settled(record))) if record.payload == "kept")
        );
    }
    for lease in &leases[20..] {
        assert!(matches!(
            store.claim(&lease.id, &claim_request()).await,
            Ok(Claim::Found(RecordSnapshot::Held(_)))
        ));
        store.settle(lease, &done("kept, too")).await.unwrap();
    }
    assert_eq!(settled(&store, id(39)).await.payload, "kept, too");
}

#[tokio::test]
async fn a_standby_that_nobody_waits_for_is_a_danger() {
    let (server, store) = started(&[]).await;
    let _standby = server.standby().await;
    server.configure("synchronous_standby_names", "").await;
    comes_to(&server, "SELECT count(*) FROM pg_stat_replication", 1).await;
    let fresh = patient(server.url()).connect().await.unwrap();
    let report = fresh.check().await.unwrap();
    assert!(report.is_unsafe());
    assert!(report.findings[0].text.contains("asynchronous"), "{report:?}");
    drop(store);
}

/// The server reports success all the same, with a warning before it.
#[tokio::test]
async fn a_wait_for_a_synchronous_standby_that_is_cancelled_is_an_unknown_outcome() {
    let (server, store) = started(&[]).await;
    granted(&store, id(1)).await;
    server.configure("synchronous_standby_names", "nobody").await;
    let store = std::sync::Arc::new(store);
    let claim = tokio::spawn({
        let store = store.clone();
        async move { store.claim(&id(2), &claim_request()).await }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    comes_to(&server, waits, 1).await;
    let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity \
                  WHERE wait_event = 'SyncRep'";
    assert_eq!(number(&server, cancel).await, 1);
    let error = claim.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(reason(&error).contains("standby"), "{error:?}");
}

#[tokio::test]
async fn a_wait_for_a_synchronous_standby_that_never_comes_ends_with_the_steps_time() {
    let (server, _store) = started(&["synchronous_standby_names = ''"]).await;
    let patience = Duration::from_secs(2);
    let store = patient(server.url()).timeout(patience).connect().await.unwrap();
    server.configure("synchronous_standby_names", "nobody").await;
    assert_eq!(kind(store.claim(&id(1), &claim_request()).await), ErrorKind::Unavailable);
}
