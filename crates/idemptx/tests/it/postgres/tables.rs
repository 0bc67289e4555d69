//! The tables: their creation, their permissions, and their rows across versions.

use std::time::Duration;

use bytes::Bytes;
use idemptx::store::postgres::PostgresStore;
use idemptx_core::record::State;
use idemptx_core::store::{
    Claim, ErrorKind, Expected, Inventory, Query, RecordSnapshot, RecordStatus, Settlement, Store,
};
use idemptx_testkit::PostgresServer;

use super::fixture::{
    MINUTE, brief_claim_request, claim_request, comes_to, done, granted, granted_to, id, kind,
    number, patient, reason, settled, started,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_start_at_once_make_the_tables_once() {
    let server = PostgresServer::start(&[]);
    let starting: Vec<_> = (0..8)
        .map(|number| {
            let builder = patient(server.url());
            tokio::spawn(async move {
                let store = builder.connect().await.unwrap();
                granted(&store, id(number)).await;
            })
        })
        .collect();
    for start in starting {
        start.await.unwrap();
    }
    assert_eq!(number(&server, "SELECT count(*) FROM idemptx.records_version").await, 1);
}

#[tokio::test]
async fn names_of_any_characters_are_names() {
    let (server, plain) = started(&[]).await;
    let odd = patient(server.url()).schema("Shop's \"own\"").table("to; DROP TABLE {records} ä");
    let odd = odd.connect().await.unwrap();
    let lease = granted(&odd, id(1)).await;
    granted(&plain, id(1)).await;
    let watch = odd.watch(&id(1)).await.unwrap();
    odd.settle(&lease, &done("odd")).await.unwrap();
    watch.await;
    assert_eq!(settled(&odd, id(1)).await.payload, "odd");
    assert!(matches!(plain.lookup(&id(1)).await, Ok(Some(RecordSnapshot::Held(_)))));
}

#[tokio::test]
async fn a_role_with_the_documented_grants_can_do_everything() {
    let server = PostgresServer::start(&[]);
    let app = || patient(server.url_of("app")).migrate(false);
    let session = server.session().await;
    session.batch_execute("CREATE ROLE app LOGIN").await.unwrap();

    let error = app().connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(reason(&error).contains("schema_sql"), "{}", reason(&error));

    session.batch_execute(&app().open().unwrap().schema_sql()).await.unwrap();
    let error = app().connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(reason(&error).contains("grants"), "{}", reason(&error));

    session.batch_execute(GRANTS).await.unwrap();
    let store = app().connect().await.unwrap();
    let lease = granted(&store, id(1)).await;
    let watch = store.watch(&id(1)).await.unwrap();
    store.renew(&lease).await.unwrap();
    store.settle(&lease, &done("done")).await.unwrap();
    watch.await;
    let next =
        granted_to(&store, id(1), &claim_request().expecting(Expected::Settled(lease.token))).await;
    store.release(&next).await.unwrap();
    assert_eq!(store.sweep().await.unwrap(), 0);
    assert_eq!(store.list(&Query::all()).await.unwrap().entries, []);
    assert!(!store.check().await.unwrap().is_unsafe());
    // It has no right to make what is there already.
    patient(server.url_of("app")).connect().await.unwrap();
}

#[tokio::test]
async fn tables_that_are_missing_or_of_a_later_release_are_named_with_what_to_do() {
    let (server, store) = started(&[]).await;
    let session = server.session().await;
    let newer = "INSERT INTO idemptx.records_version (version) VALUES (1000)";
    session.batch_execute(newer).await.unwrap();
    let error = PostgresStore::connect(server.url()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(reason(&error).contains("upgrade idemptx"), "{}", reason(&error));

    session.batch_execute("DROP TABLE idemptx.records").await.unwrap();
    let error = store.claim(&id(1), &claim_request()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(reason(&error).contains("schema_sql"), "{}", reason(&error));
}

#[tokio::test]
async fn tables_of_the_first_version_are_read_with_all_that_is_in_them() {
    let server = PostgresServer::start(&[]);
    let session = server.session().await;
    let schema = include_str!("../../../../../docs/reference/postgres.sql");
    session.batch_execute(schema).await.unwrap();
    let rows = include_str!("../../fixtures/postgres/1.sql");
    session.batch_execute(rows).await.unwrap();
    let store = patient(server.url()).migrate(false).connect().await.unwrap();

    assert_eq!(settled(&store, id(1)).await.payload, "the first response");
    let Ok(Claim::Found(RecordSnapshot::Held(holder))) =
        store.claim(&id(2), &claim_request()).await
    else {
        panic!()
    };
    assert!(holder.is_orphan() && holder.attempt == 2, "{holder:?}");
    assert_eq!(settled(&store, id(3)).await.payload, "a response apart");
    assert_eq!(settled(&store, id(4)).await.state, State::ResponseExpired);
    let expected = Expected::Orphan(holder.token);
    let lease = granted_to(&store, id(2), &claim_request().expecting(expected)).await;
    assert!(lease.fence > holder.fence && lease.attempt == 3, "{lease:?}");
}

/// If this fails, keep the fixture of the rows as they were, and add another and a migration.
#[tokio::test]
async fn this_version_writes_what_the_golden_rows_have() {
    let (server, store) = started(&[]).await;
    let mut first = claim_request();
    first.token = idemptx_core::lease::Token::from_bytes([0xA1; 16]);
    let lease = granted_to(&store, id(1), &first).await;
    store.settle(&lease, &done("the first response")).await.unwrap();
    let record: Vec<u8> = server
        .session()
        .await
        .query_one("SELECT record FROM idemptx.records", &[])
        .await
        .unwrap()
        .get(0);
    let golden = include_str!("../../fixtures/postgres/1.sql");
    // Everything but the fence, which is the time.
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for part in [&record[..51], &record[59..]] {
        assert!(golden.contains(&hex(part)), "{}", hex(part));
    }
}

#[tokio::test]
async fn whoever_is_unknown_to_the_server_is_told_so() {
    let server = PostgresServer::start(&[]);
    for url in [server.url_of("stranger"), server.url().replace("/postgres", "/nowhere")] {
        assert_eq!(kind(patient(url).connect().await), ErrorKind::Internal);
    }
}

#[tokio::test]
async fn what_is_no_record_of_the_key_is_refused_and_left_as_it_is() {
    let (server, store) = started(&[]).await;
    let lease = granted(&store, id(1)).await;
    granted(&store, id(2)).await;
    let session = server.session().await;
    for (spoil, params) in [
        // Another key's record.
        ("UPDATE idemptx.records SET record = overlay(record placing 'x' from 5) WHERE id = $1", 1),
        ("UPDATE idemptx.records SET record = 'nonsense' WHERE id = $1", 2),
    ] {
        session.execute(spoil, &[&&id(params).as_bytes()[..]]).await.unwrap();
        assert_eq!(kind(store.claim(&id(params), &claim_request()).await), ErrorKind::Corrupt);
        assert_eq!(kind(store.lookup(&id(params)).await), ErrorKind::Corrupt);
        let mut other = lease.clone();
        other.id = id(params);
        other.token = claim_request().token;
        assert_ne!(kind(store.settle(&other, &done("x")).await), ErrorKind::Unavailable);
    }
    let page = store.list(&Query::all()).await.unwrap();
    assert_eq!(page.entries, []);
    assert_eq!(page.unreadable.len(), 2);
    assert_eq!(number(&server, "SELECT count(*) FROM idemptx.records").await, 2);
}

#[tokio::test]
async fn what_has_expired_is_swept_and_what_somebody_is_busy_with_is_not_waited_for() {
    let (server, store) = started(&[]).await;
    let mut expires = brief_claim_request();
    expires.retain = Duration::ZERO;
    for number in 0..1200 {
        expires.token = claim_request().token;
        granted_to(&store, id(number), &expires).await;
    }
    let lease = granted(&store, id(5000)).await;
    let halves =
        Settlement::new(State::Completed, Bytes::from_static(b"gone"), Duration::ZERO, 10 * MINUTE);
    store.settle(&lease, &halves).await.unwrap();
    granted(&store, id(5001)).await;

    let mut locking = server.session().await;
    let transaction = locking.transaction().await.unwrap();
    let lock = "SELECT 1 FROM idemptx.records WHERE id = $1 FOR UPDATE";
    transaction.query(lock, &[&&id(7).as_bytes()[..]]).await.unwrap();
    assert_eq!(store.sweep().await.unwrap(), 1200);
    assert_eq!(number(&server, "SELECT count(*) FROM idemptx.records").await, 3);
    assert_eq!(number(&server, "SELECT count(response) FROM idemptx.records").await, 0);
    transaction.rollback().await.unwrap();

    store.maintain();
    comes_to(&server, "SELECT count(*) FROM idemptx.records", 2).await;
    match store.lookup(&id(5000)).await {
        Ok(Some(RecordSnapshot::Settled(record))) => {
            assert_eq!(record.state, State::ResponseExpired);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(store.sweep().await.unwrap(), 0);
}

/// The plans are made for an empty table; it must not matter that it grows.
#[tokio::test]
async fn no_statement_scans_the_table_and_settling_touches_no_index() {
    let (server, store) = started(&["autovacuum = off"]).await;
    let statistics = "FROM pg_stat_user_tables WHERE relname = 'records'";
    for number in 0..300 {
        let lease = granted(&store, id(number)).await;
        let lease = store.renew(&lease).await.unwrap();
        store.lookup(&id(number)).await.unwrap();
        drop(store.watch(&id(number)).await.unwrap());
        store.settle(&lease, &done("x".repeat(300))).await.unwrap();
        settled(&store, id(number)).await;
    }
    let orphan = granted_to(&store, id(300), &brief_claim_request()).await;
    let owner =
        granted_to(&store, id(300), &claim_request().expecting(Expected::Orphan(orphan.token)))
            .await;
    store.release(&owner).await.unwrap();
    store.sweep().await.unwrap();
    for query in
        [Query::all().limit(10), Query::of([RecordStatus::Completed]), Query::all().only(id(7))]
    {
        assert!(!store.list(&query).await.unwrap().entries.is_empty());
    }
    // Sessions hand in what they have counted when they end.
    drop(store);
    comes_to(&server, &format!("SELECT n_tup_ins {statistics}"), 301).await;
    // Of making the two indexes.
    assert_eq!(number(&server, &format!("SELECT seq_scan {statistics}")).await, 2);
    let updates = number(&server, &format!("SELECT n_tup_upd {statistics}")).await;
    let in_place = number(&server, &format!("SELECT n_tup_hot_upd {statistics}")).await;
    assert!(in_place * 10 >= updates * 9, "{in_place} of {updates} updates touched no index");
}

/// A transaction that has no number has written nothing, and waits for no disk.
#[tokio::test]
async fn a_replay_a_refusal_and_a_lookup_write_nothing() {
    let (server, store) = started(&["autovacuum = off"]).await;
    let lease = granted(&store, id(1)).await;
    store.settle(&lease, &done("done")).await.unwrap();
    granted(&store, id(2)).await;
    let transactions = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8";
    let before = number(&server, transactions).await;
    for _ in 0..20 {
        settled(&store, id(1)).await;
        assert!(matches!(
            store.claim(&id(2), &claim_request()).await,
            Ok(Claim::Found(RecordSnapshot::Held(_)))
        ));
        assert!(store.lookup(&id(1)).await.unwrap().is_some());
        assert_eq!(store.list(&Query::all()).await.unwrap().entries.len(), 2);
    }
    assert_eq!(number(&server, transactions).await, before);
    granted(&store, id(3)).await;
    assert_eq!(number(&server, transactions).await, before + 1);
}

/// The grants, as the documentation of the store lists them.
const GRANTS: &str = "GRANT USAGE ON SCHEMA idemptx TO app;
    GRANT SELECT, INSERT, UPDATE, DELETE ON idemptx.records TO app;
    GRANT SELECT ON idemptx.records_version TO app";
