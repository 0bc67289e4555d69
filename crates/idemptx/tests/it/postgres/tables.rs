//! The tables: their creation, their permissions, and their rows across versions.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use idemptx::store::postgres::PostgresStore;
use idemptx::store::{AnyStore, SafetyCheck};
use idemptx_core::record::State;
use idemptx_core::store::{
    Claim, ErrorKind, Expected, Inventory, Query, RecordSnapshot, RecordStatus, Settlement, Store,
};
use idemptx_testkit::PostgresServer;
use tokio_postgres::IsolationLevel;

use super::fixture::{
    MINUTE, brief_claim_request, claim_request, comes_to, done, eventually, granted, granted_to,
    id, kind, number, patient, reason, settled, started,
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

/// A role that may make no schema makes the tables in one that was given to it.
#[tokio::test]
async fn tables_are_made_in_a_schema_that_is_there_already() {
    let server = PostgresServer::start(&[]);
    let schemas = "CREATE ROLE app LOGIN;
        CREATE SCHEMA shop AUTHORIZATION app;
        CREATE SCHEMA \"Shop's \"\"own\"\"\" AUTHORIZATION app;
        GRANT CREATE ON SCHEMA public TO app";
    server.session().await.batch_execute(schemas).await.unwrap();
    for schema in ["shop", "Shop's \"own\"", "public"] {
        let store = patient(server.url_of("app")).schema(schema).connect().await.unwrap();
        granted(&store, id(1)).await;
    }
}

#[tokio::test]
async fn a_role_that_could_not_end_its_claims_is_told_of_the_grants() {
    let (server, _store) = started(&[]).await;
    let session = server.session().await;
    let setup = "CREATE ROLE app LOGIN;
        GRANT USAGE ON SCHEMA idemptx TO app;
        GRANT SELECT, INSERT ON idemptx.records TO app;
        GRANT SELECT ON idemptx.records_version TO app";
    session.batch_execute(setup).await.unwrap();
    let store = patient(server.url_of("app")).migrate(false).connect().await.unwrap();
    let report = store.check().await.unwrap();
    assert!(report.is_fatal(), "{report:?}");
    assert!(report.findings[0].text.contains("GRANT UPDATE, DELETE ON"), "{report:?}");
    session.batch_execute("GRANT UPDATE ON idemptx.records TO app").await.unwrap();
    let report = store.check().await.unwrap();
    assert!(!report.is_unsafe(), "{report:?}");
    assert!(report.findings[0].text.contains("GRANT DELETE ON"), "{report:?}");
}

#[tokio::test]
async fn a_role_with_the_documented_grants_can_do_everything() {
    let server = PostgresServer::start(&[]);
    let app = || patient(server.url_of("app")).migrate(false);
    let session = server.session().await;
    session.batch_execute("CREATE ROLE app LOGIN").await.unwrap();

    let error = app().connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(reason(&error).contains("schema_sql"), "{}", reason(&error));

    session.batch_execute(&app().open().unwrap().schema_sql()).await.unwrap();
    let error = app().connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
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
    let additive = "INSERT INTO idemptx.records_version VALUES (999, 1)";
    session.batch_execute(additive).await.unwrap();
    // Of a later release, which has only added something.
    for migrate in [true, false] {
        let older = patient(server.url()).migrate(migrate).connect().await.unwrap();
        granted(&older, id(u64::from(migrate))).await;
    }
    let newer = "INSERT INTO idemptx.records_version VALUES (1000, 1000)";
    session.batch_execute(newer).await.unwrap();
    let error = PostgresStore::connect(server.url()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(reason(&error).contains("upgrade idemptx"), "{}", reason(&error));

    session.batch_execute("DROP SCHEMA idemptx CASCADE").await.unwrap();
    let wary = patient(server.url()).migrate(false).open().unwrap();
    let error = wary.claim(&id(1), &claim_request()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(reason(&error).contains("schema_sql"), "{}", reason(&error));
    drop(store);
}

/// Another process may need minutes for a large table.
#[tokio::test]
async fn a_migration_may_take_longer_than_an_attempt_to_connect() {
    let server = PostgresServer::start(&[]);
    let lock = "SELECT pg_advisory_lock(hashtextextended('idemptx \"idemptx\".\"records\"', 0))";
    let migrating = server.session().await;
    migrating.batch_execute(lock).await.unwrap();
    let brief = Duration::from_millis(400);
    let builder = PostgresStore::builder(server.url()).connect_timeout(brief).timeout(4 * brief);
    let connecting = tokio::spawn(builder.connect());
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    comes_to(&server, waits, 1).await;
    tokio::time::sleep(3 * brief).await;
    assert!(!connecting.is_finished());
    migrating.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    let store = connecting.await.unwrap().unwrap();
    granted(&store, id(1)).await;
}

#[tokio::test]
async fn a_migration_is_a_step_of_its_own() {
    let server = PostgresServer::start(&[]);
    let store = patient(server.url()).migrate(false).open().unwrap();
    assert_eq!(kind(store.claim(&id(1), &claim_request()).await), ErrorKind::Refused);
    let deploying = AnyStore::from(patient(server.url()).migrate(false).open().unwrap());
    for _ in 0..2 {
        deploying.migrate().await.unwrap();
    }
    eventually(async || store.claim(&id(1), &claim_request()).await).await.unwrap();
}

/// As on a standby that was promoted before it had them, or on a restored database.
#[tokio::test]
async fn tables_that_have_gone_are_made_again_and_the_step_goes_on() {
    let (server, store) = started(&[]).await;
    granted(&store, id(1)).await;
    let session = server.session().await;
    session.batch_execute("DROP SCHEMA idemptx CASCADE").await.unwrap();
    // On a session that knew the former ones, and on one that is opened without them.
    granted(&store, id(1)).await;
    session.batch_execute("DROP SCHEMA idemptx CASCADE").await.unwrap();
    server.cut_sessions().await;
    eventually(async || store.claim(&id(2), &claim_request()).await).await.unwrap();
    assert_eq!(number(&server, "SELECT count(*) FROM idemptx.records").await, 1);
}

/// Index entries of removed rows stay for as long as an older snapshot could see the rows.
#[tokio::test]
async fn a_sweep_does_not_pass_what_earlier_ones_have_removed() {
    let (server, store) = started(&["autovacuum = off"]).await;
    let mut long = server.session().await;
    let snapshot = long.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
    let snapshot = snapshot.start().await.unwrap();
    snapshot.query("SELECT count(*) FROM idemptx.records", &[]).await.unwrap();
    let expired = "INSERT INTO idemptx.records
            (fence, lease_until, expires_at, due_at, attempt, state, id, token, record)
        SELECT 1, now(), due, due, 1, 'R', int8send(n) || decode(repeat('00', 24), 'hex'), '', ''
        FROM (SELECT n, now() - interval '1 hour' + n * interval '1 microsecond' AS due
            FROM generate_series(1, 6000) AS n) AS expired";
    server.session().await.batch_execute(expired).await.unwrap();
    store.maintain();
    comes_to(&server, "SELECT count(*) FROM idemptx.records", 0).await;
    let mut expires = brief_claim_request();
    expires.retain = Duration::ZERO;
    granted_to(&store, id(1), &expires).await;
    let swept = eventually(async || {
        // The first sweep may still be running, beside which no other one starts.
        store.maintain();
        match number(&server, "SELECT count(*) FROM idemptx.records").await {
            0 => Ok(()),
            _ => Err(ErrorKind::Unavailable.into()),
        }
    });
    swept.await.unwrap();
    // Sessions hand in what they have counted when they end.
    drop(store);
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'idemptx'";
    comes_to(&server, sessions, 0).await;
    let read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'records_due'";
    let read = number(&server, read).await;
    // Each of the thirteen steps from the beginning would pass all that is gone: 45,000.
    assert!((6001..9000).contains(&read), "{read} index entries");
    snapshot.rollback().await.unwrap();
}

#[tokio::test]
async fn a_batch_of_large_replays_is_answered_in_parts() {
    let (server, store) = started(&["log_min_messages = log", "log_statement = all"]).await;
    let store = Arc::new(patient(server.url()).sessions(1).connect().await.unwrap_or(store));
    for number in 0..REPLAYS {
        let lease = granted(&store, id(number)).await;
        store.settle(&lease, &done(large(number))).await.unwrap();
    }
    let replays: Vec<_> = (0..REPLAYS)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { (number, settled(&store, id(number)).await) })
        })
        .collect();
    for replay in replays {
        let (number, record) = replay.await.unwrap();
        assert!(record.payload == large(number), "{number}");
    }
    let log = std::fs::read_to_string(server.directory().join("server.log")).unwrap();
    let batches = log.matches("-- Claims for a batch of requests").count();
    // The first goes alone, and four at a time fit into an answer.
    assert!(batches >= 7, "{batches} statements");
}

fn large(number: u64) -> Vec<u8> {
    vec![u8::try_from(number).unwrap(); 1 << 20]
}

const REPLAYS: u64 = 32;

/// A standby that is promoted may have a clock that is behind.
#[tokio::test]
async fn a_lease_ends_a_term_after_it_was_seen_though_the_clock_went_back() {
    let (server, store) = started(&[]).await;
    let mut request = claim_request();
    request.term = Duration::from_millis(50);
    let lease = granted_to(&store, id(1), &request).await;
    let back = "UPDATE idemptx.records SET lease_until = lease_until + interval '1 day',
        expires_at = expires_at + interval '1 day'";
    server.session().await.batch_execute(back).await.unwrap();
    let takeover = claim_request().expecting(Expected::Orphan(lease.token));
    let successor = eventually(async || match store.claim(&id(1), &takeover).await? {
        Claim::Granted(lease) => Ok(lease),
        Claim::Found(RecordSnapshot::Held(holder)) => {
            assert!(holder.remaining <= request.term, "{holder:?}");
            Err(ErrorKind::Unavailable.into())
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(successor.await.unwrap().attempt, 2);
}

/// Once the clock is right again the result would be gone too early, and be executed once more.
#[tokio::test]
async fn a_result_is_kept_as_long_as_it_was_though_the_clock_went_back() {
    let (server, store) = started(&[]).await;
    let lease = granted_to(&store, id(1), &claim_request()).await;
    store.settle(&lease, &done("kept")).await.unwrap();
    let session = server.session().await;
    let back = "UPDATE idemptx.records SET expires_at = expires_at + interval '1 day'";
    session.batch_execute(back).await.unwrap();
    let kept = "SELECT expires_at::text FROM idemptx.records";
    let before = session.query_one(kept, &[]).await.unwrap();
    assert_eq!(settled(&store, id(1)).await.payload, "kept");
    let claim = store.claim(&id(1), &claim_request()).await.unwrap();
    assert!(matches!(claim, Claim::Found(RecordSnapshot::Settled(_))), "{claim:?}");
    let after = session.query_one(kept, &[]).await.unwrap();
    assert_eq!(after.get::<_, String>(0), before.get::<_, String>(0));
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
        assert_eq!(kind(patient(url).connect().await), ErrorKind::Refused);
    }
}

/// A reason without a meaning of its own leaves no doubt either: nothing was sent.
#[tokio::test]
async fn a_session_that_cannot_be_opened_is_a_certain_refusal() {
    let server = PostgresServer::start(&[]);
    let unknown_setting = patient(format!("{}?options=-c%20nonsense%3D1", server.url()));
    for builder in [unknown_setting, patient(server.url()).schema("pg_temp")] {
        let store = builder.open().unwrap();
        assert_eq!(kind(store.claim(&id(1), &claim_request()).await), ErrorKind::Refused);
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
