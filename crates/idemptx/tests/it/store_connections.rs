//! The stores and servers that fall silent or fail over, and more runtimes than usual.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use idemptx::store::postgres::PostgresStore;
use idemptx::store::redis::RedisStore;
use idemptx_core::key::RecordId;
use idemptx_core::record::State;
use idemptx_core::store::{Claim, ErrorKind, Expected, RecordSnapshot, Settlement, Store};
use idemptx_testkit::faulty_proxy::{Direction, Fault};
use idemptx_testkit::{FaultyProxy, PostgresServer, RedisServer};
use tokio::time::{sleep, timeout};

use crate::support::records::{claim_request, id};

#[tokio::test]
async fn a_silent_redis_is_left_after_one_time_out_even_if_every_caller_gives_up_earlier() {
    let server = RedisServer::start(&[]);
    let proxy = FaultyProxy::to(server.port()).await;
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let store = RedisStore::builder(url).timeout(Duration::from_millis(600)).open().unwrap();
    store.claim(&id(0), &claim_request()).await.unwrap();
    proxy.plan(Direction::ToClient, 0, Fault::Stall);
    let began = Instant::now();
    let mut number = 1;
    while timeout(Duration::from_millis(200), store.claim(&id(number), &claim_request()))
        .await
        .is_err()
    {
        number += 1;
        assert!(began.elapsed() < Duration::from_secs(5), "still on the silent connection");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_wait_for_a_standby_do_not_pile_up_sessions() {
    let server = PostgresServer::start(&[]);
    let builder = PostgresStore::builder(server.url()).timeout(Duration::from_millis(300));
    let store = Arc::new(builder.connect().await.unwrap());
    let session = server.session().await;
    for statement in
        ["ALTER SYSTEM SET synchronous_standby_names = 'away'", "SELECT pg_reload_conf()"]
    {
        session.simple_query(statement).await.unwrap();
    }
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let until = Instant::now() + Duration::from_secs(6);
                while Instant::now() < until {
                    let _ = store.claim(&fresh_id(), &claim_request()).await;
                    sleep(Duration::from_millis(20)).await;
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'idemptx'";
    let sessions: i64 = session.query_one(count, &[]).await.unwrap().get(0);
    // Four sessions for statements, as many that wait for their answer, and one for wake-ups.
    assert!(sessions <= 9, "{sessions} sessions");
}

#[test]
fn connections_of_many_runtimes_stay_open() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::builder(server.url()).timeout(Duration::from_secs(30)).open().unwrap();
    let runtimes: Vec<_> = (0..24)
        .map(|_| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap())
        .collect();
    let round = || {
        for runtime in &runtimes {
            runtime.block_on(async { store.claim(&fresh_id(), &claim_request()).await.unwrap() });
        }
        server.connections()
    };
    let (first, second) = (round(), round());
    // The connection that asks is counted, too.
    assert_eq!(second, first + 1);
}

#[test]
fn the_connection_of_a_runtime_that_ended_is_closed() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::builder(server.url()).timeout(Duration::from_secs(30)).open().unwrap();
    for _ in 0..4 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { store.claim(&fresh_id(), &claim_request()).await.unwrap() });
    }
    let clients: redis::InfoDict =
        redis::cmd("INFO").arg("clients").query(&mut server.connection()).unwrap();
    assert_eq!(clients.get::<u64>("connected_clients"), Some(1));
}

#[tokio::test]
async fn a_full_redis_still_answers_replays_and_refuses_new_keys_for_certain() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::open(server.url()).unwrap();
    let Claim::Granted(lease) = store.claim(&id(1), &claim_request()).await.unwrap() else {
        panic!()
    };
    let retain = Duration::from_secs(600);
    let done = Settlement::new(State::Completed, Bytes::from_static(b"kept"), retain, retain);
    store.settle(&lease, &done).await.unwrap();
    server.configure("maxmemory", "1");
    match store.claim(&id(1), &claim_request()).await {
        Ok(Claim::Found(RecordSnapshot::Settled(record))) => assert_eq!(record.payload, "kept"),
        other => panic!("not replayed: {other:?}"),
    }
    for _ in 0..20 {
        let refused = store.claim(&fresh_id(), &claim_request()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
        assert!(refused.retry_after().is_some());
    }
}

/// A replica that is promoted may have a clock that is behind.
#[tokio::test]
async fn a_redis_lease_ends_a_term_after_it_was_seen_though_the_clock_went_back() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::open(server.url()).unwrap();
    let (mut request, next) = (claim_request(), claim_request());
    request.term = Duration::from_millis(50);
    let Ok(Claim::Granted(lease)) = store.claim(&id(1), &request).await else { panic!() };
    let mut connection = server.connection();
    let [key]: [String; 1] =
        redis::cmd("KEYS").arg("*").query::<Vec<_>>(&mut connection).unwrap().try_into().unwrap();
    redis::cmd("PEXPIRE").arg(key).arg(86_400_000).exec(&mut connection).unwrap();
    let takeover = next.expecting(Expected::Orphan(lease.token));
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match store.claim(&id(1), &takeover).await.unwrap() {
            Claim::Granted(successor) => break assert_eq!(successor.attempt, 2),
            Claim::Found(RecordSnapshot::Held(holder)) => {
                assert!(holder.remaining <= request.term, "{holder:?}");
                assert!(Instant::now() < deadline, "the lease never ends");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_claim_that_is_refused_only_when_it_is_sent_again_stays_unknown() {
    let server = RedisServer::start(&[]);
    let proxy = FaultyProxy::to(server.port()).await;
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let store = RedisStore::builder(url).timeout(Duration::from_secs(30)).open().unwrap();
    let store = Arc::new(store);
    store.claim(&id(0), &claim_request()).await.unwrap();
    proxy.plan(Direction::ToClient, 0, Fault::Stall);
    let lost_request = claim_request();
    let claim = tokio::spawn({
        let (store, request) = (store.clone(), lost_request.clone());
        async move { store.claim(&id(1), &request).await }
    });
    proxy.wait_for_fault().await;
    server.configure("min-replicas-to-write", "1");
    proxy.disconnect();
    assert_eq!(claim.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    let refused = store.claim(&id(2), &claim_request()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    server.configure("min-replicas-to-write", "0");
    let found = store.lookup(&id(1)).await;
    let Ok(Some(RecordSnapshot::Held(claim))) = found else { panic!("{found:?}") };
    assert_eq!(claim.token, lost_request.token);
}

fn fresh_id() -> RecordId {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut bytes = [0; RecordId::BYTES];
    let number = COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    bytes.iter_mut().zip(number).for_each(|(to, from)| *to = from);
    RecordId::from_bytes(bytes)
}
