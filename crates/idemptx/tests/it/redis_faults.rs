//! The Redis store against failures and settings of a real server.

mod tls;

use std::sync::Arc;
use std::time::Duration;

use idemptx::store::Severity;
use idemptx::store::redis::RedisStore;
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::{Record, State};
use idemptx_core::store::{
    Claim, ErrorKind, Expected, RecordSnapshot, Settlement, Store, StoreError,
};
use idemptx_testkit::RedisServer;

use crate::support::records::{
    PATIENCE, claim_request, done, eventually, granted, id, reason, soon,
};

#[tokio::test]
async fn a_hit_is_one_command_and_a_new_key_is_two() {
    let (server, store) = started(&[]);
    let lease = granted(&store, id(1)).await;
    store.settle(&lease, &done("first")).await.unwrap();
    let before = ["set", "get", "evalsha", "eval"].map(|name| server.calls(name));
    for _ in 0..5 {
        assert_eq!(settled(store.claim(&id(1), &claim_request()).await), "first");
    }
    let after_hits = ["set", "get", "evalsha", "eval"].map(|name| server.calls(name));
    assert_eq!(after_hits, [before[0] + 5, before[1], before[2], before[3]]);

    let lease = granted(&store, id(2)).await;
    store.settle(&lease, &done("second")).await.unwrap();
    let after_new = ["set", "get", "evalsha", "eval"].map(|name| server.calls(name));
    // The script's own SET is counted among them.
    assert_eq!(after_new, [after_hits[0] + 2, after_hits[1], after_hits[2] + 1, after_hits[3]]);
}

#[tokio::test]
async fn a_server_that_compares_settles_without_a_script_unless_somebody_waits() {
    let server = RedisServer::start_valkey(&[]);
    let store = RedisStore::open(server.url()).unwrap();
    let lease = granted(&store, id(1)).await;
    store.settle(&lease, &done("first")).await.unwrap();
    assert_eq!(["set", "evalsha", "eval"].map(|name| server.calls(name)), [2, 0, 0]);
    assert_eq!(settled(store.claim(&id(1), &claim_request()).await), "first");
    // Sent again it finds its own result, and another's claim fences it.
    store.settle(&lease, &done("first")).await.unwrap();
    let mut other = lease;
    other.token = Token::from_bytes([9; Token::BYTES]);
    let error = store.settle(&other, &done("other")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);

    let lease = granted(&store, id(2)).await;
    let watch = store.watch(&id(2)).await.unwrap();
    store.settle(&lease, &done("second")).await.unwrap();
    tokio::time::timeout(PATIENCE, watch).await.expect("nobody was told");
}

/// Uses one thread, on which each command could be written before the next task sends one.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn commands_of_tasks_that_are_ready_together_are_few_writes() {
    let (server, store) = started(&[]);
    granted(&store, id(0)).await;
    let store = Arc::new(store);
    let before = server.reads();
    let claims: Vec<_> = (1..=32)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for _ in 0..100 {
                    store.claim(&id(task), &claim_request()).await.unwrap();
                }
            })
        })
        .collect();
    for claim in claims {
        claim.await.unwrap();
    }
    let reads = server.reads() - before;
    assert!(reads < 1600, "3,200 claims, or more commands, came in {reads} reads");
}

#[tokio::test]
async fn a_crash_is_unavailability_and_what_was_acknowledged_survives_it() {
    let (mut server, store) = started(&[]);
    let lease = granted(&store, id(1)).await;
    server.kill();
    assert_eq!(store.settle(&lease, &done("kept")).await.unwrap_err().kind(), UNAVAILABLE);
    // The connection is known to be lost now, so nothing of this one is sent.
    assert_eq!(store.claim(&id(2), &claim_request()).await.unwrap_err().kind(), REFUSED);
    server.restart();
    eventually(async || store.settle(&lease, &done("kept")).await).await.unwrap();
    assert_eq!(settled(store.claim(&id(1), &claim_request()).await), "kept");
}

#[tokio::test]
async fn a_server_that_restarted_while_nobody_asked_costs_no_request() {
    let (mut server, store) = started(&[]);
    granted(&store, id(1)).await;
    server.kill();
    server.restart();
    granted(&store, id(2)).await;
}

#[tokio::test]
async fn a_store_may_be_opened_before_its_server_is_there() {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let store = RedisStore::open(server.url()).unwrap();
    let error = store.claim(&id(1), &claim_request()).await.unwrap_err();
    assert_eq!(error.kind(), REFUSED);
    assert!(reason(&error).contains(&server.port().to_string()), "{}", reason(&error));
    assert_eq!(RedisStore::connect(server.url()).await.unwrap_err().kind(), REFUSED);
    server.restart();
    assert!(matches!(
        eventually(async || store.claim(&id(1), &claim_request()).await).await,
        Ok(Claim::Granted(_))
    ));
}

#[tokio::test]
async fn late_answers_of_a_paused_server_reach_nobody() {
    let (server, patient) = started(&[]);
    for number in 0..32 {
        let lease = granted(&patient, id(number)).await;
        patient.settle(&lease, &done(format!("response {number}"))).await.unwrap();
    }
    let store = RedisStore::open(format!("{}?timeout_ms=100", server.url())).unwrap();
    eventually(async || store.lookup(&id(0)).await).await.unwrap();
    let connections = server.connections();
    server.pause();
    for number in 0..8 {
        let error = store.lookup(&id(number)).await.unwrap_err();
        // Refused, while no new connection can be opened.
        assert!(error.kind().is_transient(), "{error:?}");
    }
    server.resume();
    for number in 8..32 {
        let seen = eventually(async || store.lookup(&id(number)).await).await.unwrap();
        assert!(matches!(seen, Some(RecordSnapshot::Settled(record))
            if record.payload == format!("response {number}")));
    }
    assert!(server.connections() > connections + 1, "the connection was replaced");
}

#[tokio::test]
async fn cancelled_steps_harm_neither_other_steps_nor_the_connection() {
    let (server, store) = started(&[]);
    for number in 0..32 {
        let lease = granted(&store, id(number)).await;
        store.settle(&lease, &done(format!("response {number}"))).await.unwrap();
    }
    let connections = server.connections();
    for number in 0..32 {
        let other = id((number + 1) % 32);
        let cancelled = claim_request();
        tokio::select! {
            biased;
            _ = store.claim(&other, &cancelled) => {}
            // Lets the command out, but does not wait for its answer.
            () = tokio::task::yield_now() => {}
        }
        let answer = settled(store.claim(&id(number), &claim_request()).await);
        assert_eq!(answer, format!("response {number}"));
    }
    // Looking at the number takes a connection, too.
    assert_eq!(server.connections(), connections + 1);
}

#[tokio::test]
async fn exhausted_memory_refuses_new_claims_and_lets_everything_else_through() {
    let (server, store) = started(&["maxmemory-policy noeviction"]);
    let [settles, releases, renews] =
        [granted(&store, id(1)).await, granted(&store, id(2)).await, granted(&store, id(3)).await];
    server.configure("maxmemory", "1");
    let error = store.claim(&id(4), &claim_request()).await.unwrap_err();
    assert_eq!(error.kind(), REFUSED);
    assert!(error.retry_after().is_some());
    assert!(reason(&error).contains("OOM"), "{}", reason(&error));
    store.settle(&settles, &done("kept")).await.unwrap();
    store.release(&releases).await.unwrap();
    store.renew(&renews).await.unwrap();
    assert!(store.watch(&id(3)).await.is_some());
    assert!(matches!(store.lookup(&id(1)).await, Ok(Some(RecordSnapshot::Settled(_)))));
    server.configure("maxmemory", "0");
    granted(&store, id(2)).await;
    granted(&store, id(4)).await;
    assert_eq!(settled(store.claim(&id(1), &claim_request()).await), "kept");
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_sent_again() {
    let (server, store) = started(&[]);
    let lease = granted(&store, id(1)).await;
    store.renew(&lease).await.unwrap();
    redis::cmd("SCRIPT").arg("FLUSH").exec(&mut server.connection()).unwrap();
    store.renew(&lease).await.unwrap();
    assert_eq!(server.calls("eval"), 2);
    store.renew(&lease).await.unwrap();
    assert_eq!(server.calls("eval"), 2);
}

#[tokio::test]
async fn a_user_with_the_least_rights_can_do_everything() {
    let user = "user app on >secret resetkeys ~idem:* resetchannels &idem:* -@all \
                +set +get +getrange +setrange +del +pexpire +pttl +time +eval +evalsha +publish \
                +hello +subscribe";
    let server = RedisServer::start(&[user]);
    let url = format!("redis://app:secret@127.0.0.1:{}", server.port());
    let store = RedisStore::connect(url).await.unwrap();
    let lease = granted(&store, id(1)).await;
    let watch = store.watch(&id(1)).await.unwrap();
    assert!(matches!(
        store.claim(&id(1), &claim_request()).await,
        Ok(Claim::Found(RecordSnapshot::Held(_)))
    ));
    store.renew(&lease).await.unwrap();
    store.settle(&lease, &done("done")).await.unwrap();
    soon(watch).await;
    let released = granted(&store, id(2)).await;
    store.release(&released).await.unwrap();
    // It may not ask about the server, which is no failure of the check.
    let report = store.check().await.unwrap();
    assert_eq!(report.findings[0].severity, Severity::Warning);
}

#[tokio::test]
async fn a_wrong_password_is_named_and_not_shown() {
    let server = RedisServer::start(&["user app on >secret ~* &* +@all"]);
    let url = format!("redis://app:hunter2@127.0.0.1:{}", server.port());
    let error = RedisStore::connect(url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(reason(&error).contains("password"), "{}", reason(&error));
    assert!(!format!("{error:?} {}", reason(&error)).contains("hunter2"));
}

#[tokio::test]
async fn a_database_that_the_server_does_not_have_is_refused_on_connecting() {
    let server = RedisServer::start(&[]);
    let url = format!("redis://127.0.0.1:{}/99", server.port());
    let store = RedisStore::open(url).unwrap();
    let error = store.claim(&id(1), &claim_request()).await.unwrap_err();
    // Nothing was sent to it, so there is nothing to release.
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(reason(&error).contains("DB index is out of range"), "{}", reason(&error));
}

#[tokio::test]
async fn a_password_that_is_missing_is_noticed_on_connecting() {
    let server = RedisServer::start(&["requirepass secret"]);
    let error = RedisStore::connect(server.url()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(reason(&error).contains("NOAUTH"), "{}", reason(&error));
    assert!(reason(&error).contains(&server.port().to_string()), "{}", reason(&error));
}

#[tokio::test]
async fn a_right_that_is_missing_is_named() {
    let server = RedisServer::start(&["user app on >secret ~other:* &* +@all"]);
    let url = format!("redis://app:secret@127.0.0.1:{}", server.port());
    let error = RedisStore::open(url).unwrap().claim(&id(1), &claim_request()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(reason(&error).contains("permission"), "{}", reason(&error));
}

#[tokio::test]
async fn a_socket_and_a_database_are_reached_by_their_url() {
    let server = RedisServer::start(&[]);
    let url = format!("redis+unix://{}?db=3", server.socket().display());
    let by_socket = RedisStore::connect(url).await.unwrap();
    granted(&by_socket, id(1)).await;
    let by_port = RedisStore::connect(format!("{}/3", server.url())).await.unwrap();
    assert!(matches!(
        by_port.claim(&id(1), &claim_request()).await,
        Ok(Claim::Found(RecordSnapshot::Held(_)))
    ));
    let elsewhere = RedisStore::connect(server.url()).await.unwrap();
    granted(&elsewhere, id(1)).await;
    let prefixed = RedisStore::builder(server.url()).prefix("other:").open().unwrap();
    granted(&prefixed, id(1)).await;
}

#[tokio::test]
async fn what_is_no_record_of_the_id_is_corrupt_and_left_alone() {
    let (server, store) = started(&[]);
    let mut connection = server.connection();
    let lease = granted(&store, id(1)).await;
    let moved = Record::running(&lease).encode();
    let mut newer = moved.clone();
    newer[0] += 1;
    for (number, value, kind) in [
        (2, moved, CORRUPT),
        // A later release can read it.
        (1, newer, ErrorKind::Full),
        (3, b"hello".to_vec(), CORRUPT),
        (4, Vec::new(), CORRUPT),
    ] {
        let key = key(id(number));
        redis::cmd("SET").arg(&key).arg(&value).exec(&mut connection).unwrap();
        let expected = claim_request().expecting(Expected::Orphan(lease.token));
        for claim_request in [claim_request(), expected] {
            assert_eq!(store.claim(&id(number), &claim_request).await.unwrap_err().kind(), kind);
        }
        assert_eq!(store.lookup(&id(number)).await.unwrap_err().kind(), kind);
        let stored: Vec<u8> = redis::cmd("GET").arg(&key).query(&mut connection).unwrap();
        assert_eq!(stored, value);
    }
    redis::cmd("HSET").arg(key(id(5))).arg("field").arg(1).exec(&mut connection).unwrap();
    let foreign = Lease::granted(id(5), &claim_request(), 1, 1);
    assert_eq!(store.claim(&id(5), &claim_request()).await.unwrap_err().kind(), CORRUPT);
    assert_eq!(store.lookup(&id(5)).await.unwrap_err().kind(), CORRUPT);
    assert_eq!(store.settle(&foreign, &done("x")).await.unwrap_err().kind(), CORRUPT);
    assert_eq!(store.release(&foreign).await.unwrap_err().kind(), CORRUPT);
    let fields: u32 = redis::cmd("HLEN").arg(key(id(5))).query(&mut connection).unwrap();
    assert_eq!(fields, 1);
}

#[tokio::test]
async fn a_response_that_expires_before_its_key_leaves_a_spent_record() {
    let (server, store) = started(&[]);
    let mut connection = server.connection();
    let lease = granted(&store, id(1)).await;
    let (retain, key_retain) = (Duration::from_secs(100), Duration::from_secs(1000));
    let done = Settlement::new(State::Completed, "response".into(), retain, key_retain);
    store.settle(&lease, &done).await.unwrap();
    assert_eq!(settled(store.claim(&id(1), &claim_request()).await), "response");

    let response = format!("{}:response", key(id(1)));
    let left = |name: &str, connection: &mut redis::Connection| -> u64 {
        redis::cmd("TTL").arg(name).query(connection).unwrap()
    };
    assert!((1..=100).contains(&left(&response, &mut connection)));
    assert!((101..=1000).contains(&left(&key(id(1)), &mut connection)));
    redis::cmd("DEL").arg(&response).exec(&mut connection).unwrap();
    match store.claim(&id(1), &claim_request()).await {
        Ok(Claim::Found(RecordSnapshot::Settled(record))) => {
            assert_eq!(record.state, State::ResponseExpired);
            assert_eq!(record.token, lease.token);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn two_stores_see_each_others_claims_and_wake_each_other() {
    let (server, here) = started(&[]);
    let there = RedisStore::connect(server.url()).await.unwrap();
    let lease = granted(&here, id(1)).await;
    assert!(matches!(
        there.claim(&id(1), &claim_request()).await,
        Ok(Claim::Found(RecordSnapshot::Held(_)))
    ));
    let woken_by_settling = there.watch(&id(1)).await.unwrap();
    here.settle(&lease, &done("for both")).await.unwrap();
    soon(woken_by_settling).await;
    assert_eq!(settled(there.claim(&id(1), &claim_request()).await), "for both");

    let lease = granted(&here, id(2)).await;
    let woken_by_release = there.watch(&id(2)).await.unwrap();
    here.release(&lease).await.unwrap();
    soon(woken_by_release).await;
    granted(&there, id(2)).await;
}

#[tokio::test]
async fn whoever_waits_for_an_orphan_is_woken_by_its_successor() {
    let (_server, store) = started(&[]);
    let mut brief = claim_request();
    brief.term = Duration::ZERO;
    let Ok(Claim::Granted(orphan)) = store.claim(&id(1), &brief).await else { panic!() };
    let watch = store.watch(&id(1)).await.unwrap();
    let successor =
        match store.claim(&id(1), &claim_request().expecting(Expected::Orphan(orphan.token))).await
        {
            Ok(Claim::Granted(lease)) => lease,
            other => panic!("{other:?}"),
        };
    assert_eq!(successor.attempt, 2);
    assert!(successor.fence > orphan.fence);
    assert_eq!(store.settle(&orphan, &done("late")).await.unwrap_err().kind(), ErrorKind::Fenced);
    store.settle(&successor, &done("done")).await.unwrap();
    soon(watch).await;
}

#[tokio::test]
async fn a_watch_on_a_record_that_nobody_claims_resolves_at_once() {
    let (_server, store) = started(&[]);
    soon(store.watch(&id(1)).await.unwrap()).await;
}

#[tokio::test]
async fn a_lost_subscription_wakes_whoever_relied_on_it() {
    let (mut server, store) = started(&[]);
    granted(&store, id(1)).await;
    let watch = store.watch(&id(1)).await.unwrap();
    server.kill();
    soon(watch).await;
    assert!(store.watch(&id(1)).await.is_none());
}

#[tokio::test]
async fn a_blocked_runtime_does_not_keep_another_from_renewing() {
    let (_server, store) = started(&[]);
    let store = Arc::new(store);
    let lease = granted(&store, id(1)).await;
    let keeper = std::thread::spawn({
        let store = store.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async { store.renew(&lease).await })
        }
    });
    // This blocks the runtime of the test, as a handler may that never awaits.
    keeper.join().unwrap().unwrap();
}

#[tokio::test]
async fn the_check_says_in_one_line_what_a_server_promises() {
    let (server, store) = started(&["appendfsync everysec"]);
    let report = store.check().await.unwrap();
    assert!(!report.is_unsafe(), "{report:?}");
    let guarantee = format!(
        "at 127.0.0.1:{}/0: claims survive a crash of Redis up to the last second \
         (appendonly everysec); no replicas; no eviction",
        server.port()
    );
    assert!(report.guarantee.ends_with(&guarantee), "{}", report.guarantee);
    assert!(store.capabilities().durable);

    server.configure("maxmemory-policy", "volatile-lru");
    server.configure("appendonly", "no");
    let report = store.check().await.unwrap();
    assert!(report.is_unsafe());
    assert!(!report.is_fatal());
    assert!(!store.capabilities().durable);
}

fn started(configuration: &[&str]) -> (RedisServer, RedisStore) {
    let server = RedisServer::start(configuration);
    let store = RedisStore::builder(server.url()).timeout(PATIENCE).open().unwrap();
    (server, store)
}

fn key(id: RecordId) -> String {
    format!("idem:{{{id}}}")
}

fn settled(claim: Result<Claim, StoreError>) -> String {
    match claim {
        Ok(Claim::Found(RecordSnapshot::Settled(record))) => {
            String::from_utf8(record.payload.to_vec()).unwrap()
        }
        other => panic!("not settled: {other:?}"),
    }
}

const UNAVAILABLE: ErrorKind = ErrorKind::Unavailable;
const REFUSED: ErrorKind = ErrorKind::Refused;
const CORRUPT: ErrorKind = ErrorKind::Corrupt;
