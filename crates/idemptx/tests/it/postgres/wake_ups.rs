//! Notifications at the end of a claim.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use idemptx::store::Transactional;
use idemptx::store::postgres::ParameterStyle;
use idemptx_core::store::{Claim, ErrorKind, Expected, RecordSnapshot, Store};
use idemptx_testkit::PostgresServer;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use super::fixture::{
    brief_claim_request, claim_request, done, granted, granted_to, id, kind, patient, settled,
    soon, started,
};

#[tokio::test]
async fn whoever_waits_in_another_process_is_woken() {
    let (server, here) = started(&[]).await;
    let there = patient(server.url()).connect().await.unwrap();
    let lease = granted(&here, id(1)).await;
    assert!(matches!(
        there.claim(&id(1), &claim_request()).await,
        Ok(Claim::Found(RecordSnapshot::Held(_)))
    ));
    let woken_by_settling = there.watch(&id(1)).await.unwrap();
    here.settle(&lease, &done("for both")).await.unwrap();
    soon(woken_by_settling).await;
    assert_eq!(settled(&there, id(1)).await.payload, "for both");

    let lease = granted(&here, id(2)).await;
    let woken_by_release = there.watch(&id(2)).await.unwrap();
    here.release(&lease).await.unwrap();
    soon(woken_by_release).await;
    granted(&there, id(2)).await;
}

#[tokio::test]
async fn whoever_waits_for_an_orphan_is_woken_by_its_successor() {
    let (_server, store) = started(&[]).await;
    let orphan = granted_to(&store, id(1), &brief_claim_request()).await;
    let watch = store.watch(&id(1)).await.unwrap();
    let successor =
        granted_to(&store, id(1), &claim_request().expecting(Expected::Orphan(orphan.token))).await;
    assert_eq!(successor.attempt, 2);
    assert!(successor.fence > orphan.fence);
    assert_eq!(kind(store.settle(&orphan, &done("late")).await), ErrorKind::Fenced);
    store.settle(&successor, &done("done")).await.unwrap();
    soon(watch).await;
}

#[tokio::test]
async fn a_watch_on_a_record_that_nobody_claims_resolves_at_once() {
    let (_server, store) = started(&[]).await;
    soon(store.watch(&id(1)).await.unwrap()).await;
}

#[tokio::test]
async fn only_the_end_of_an_awaited_claim_is_told() {
    let (server, store) = started(&[]).await;
    let (_listening, told) = listening(&server).await;
    for number in 0..8 {
        let lease = granted(&store, id(number)).await;
        match number % 2 {
            0 => store.settle(&lease, &done("done")).await.unwrap(),
            _ => store.release(&lease).await.unwrap(),
        }
    }
    let lease = granted(&store, id(9)).await;
    let watch = store.watch(&id(9)).await.unwrap();
    store.settle(&lease, &done("done")).await.unwrap();
    soon(watch).await;
    // Notifications come in the order of the commits.
    let all = async {
        while told.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    };
    soon(all).await;
    assert_eq!(told.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_lost_session_wakes_whoever_relied_on_it() {
    let (mut server, store) = started(&[]).await;
    granted(&store, id(1)).await;
    let watch = store.watch(&id(1)).await.unwrap();
    server.cut_sessions().await;
    soon(watch).await;
    let watch = store.watch(&id(1)).await.unwrap();
    server.kill();
    soon(watch).await;
    assert!(store.watch(&id(1)).await.is_none());
}

#[tokio::test]
async fn without_sessions_of_its_own_a_store_watches_nothing_and_wakes_those_that_do() {
    let (server, watching) = started(&[]).await;
    let pooled = patient(server.url()).pooled(true).connect().await.unwrap();
    assert!(!pooled.capabilities().watch);
    let lease = granted(&pooled, id(1)).await;
    assert!(pooled.watch(&id(1)).await.is_none());
    let watch = watching.watch(&id(1)).await.unwrap();
    pooled.settle(&lease, &done("done")).await.unwrap();
    soon(watch).await;
}

/// A wake-up is a hint: without the right to send it, what was settled stays settled.
#[tokio::test]
async fn a_role_that_may_not_notify_settles_all_the_same_and_is_told_of_the_grant() {
    let (server, watching) = started(&[]).await;
    let session = server.session().await;
    let setup = "CREATE ROLE app LOGIN;
        GRANT USAGE ON SCHEMA idemptx TO app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON idemptx.records TO app;
        GRANT SELECT ON idemptx.records_version TO app;
        REVOKE EXECUTE ON FUNCTION pg_catalog.pg_notify(text, text) FROM PUBLIC";
    session.batch_execute(setup).await.unwrap();
    let store = patient(server.url_of("app")).migrate(false).connect().await.unwrap();
    for number in 0..4 {
        let lease = granted(&store, id(number)).await;
        // Someone waits for the second and the fourth.
        let _watch = if number % 2 == 1 { watching.watch(&id(number)).await } else { None };
        match number {
            0 | 1 => store.settle(&lease, &done("done")).await.unwrap(),
            _ => store.release(&lease).await.unwrap(),
        }
    }
    assert_eq!(settled(&watching, id(1)).await.payload, "done");
    granted(&watching, id(3)).await;

    let lease = granted(&store, id(5)).await;
    let _watch = watching.watch(&id(5)).await.unwrap();
    let (mut client, connection) =
        tokio_postgres::connect(&server.url_of("app"), NoTls).await.unwrap();
    tokio::spawn(connection);
    let transaction = client.transaction().await.unwrap();
    store.settle_in_postgres((&transaction).into(), &lease, &done("within")).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(settled(&watching, id(5)).await.payload, "within");

    let report = store.check().await.unwrap();
    let grant = "GRANT EXECUTE ON FUNCTION pg_catalog.pg_notify";
    assert!(report.findings.iter().any(|it| it.text.contains(grant)), "{report:?}");
    let lease = granted(&store, id(6)).await;
    let statement = store.settle_statement(&lease, &done("x"), None, ParameterStyle::Numbered).text;
    assert!(!statement.contains("pg_notify"), "{statement}");
    let another = store.another();
    let statement =
        another.settle_statement(&lease, &done("x"), None, ParameterStyle::Numbered).text;
    assert!(!statement.contains("pg_notify"), "{statement}");
    assert!(watching.check().await.unwrap().findings.is_empty());
}

#[tokio::test]
async fn whoever_waits_for_a_settlement_in_a_transaction_is_woken_by_its_commit() {
    let (server, store) = started(&[]).await;
    let (_listening, told) = listening(&server).await;
    let lease = granted(&store, id(1)).await;
    let watch = store.watch(&id(1)).await.unwrap();
    let mut client = server.session().await;
    let transaction = client.transaction().await.unwrap();
    store.settle_in_postgres((&transaction).into(), &lease, &done("within")).await.unwrap();
    assert_eq!(told.load(Ordering::Relaxed), 0);
    transaction.commit().await.unwrap();
    soon(watch).await;
    assert_eq!(settled(&store, id(1)).await.payload, "within");
}

/// Counts notifications until the client is dropped.
async fn listening(server: &PostgresServer) -> (Client, Arc<AtomicUsize>) {
    let (client, mut connection) = tokio_postgres::connect(&server.url(), NoTls).await.unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    let count = told.clone();
    tokio::spawn(async move {
        while let Some(Ok(message)) =
            std::future::poll_fn(|context| connection.poll_message(context)).await
        {
            if let AsyncMessage::Notification(_) = message {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    client.batch_execute("LISTEN \"idemptx.records\"").await.unwrap();
    (client, told)
}
