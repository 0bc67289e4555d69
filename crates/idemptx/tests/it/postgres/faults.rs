//! Servers that crash, restart, cut their sessions, or are short of something.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idemptx::store::postgres::PostgresStore;
use idemptx_core::lease::Token;
use idemptx_core::store::{Claim, ErrorKind, RecordSnapshot, Store, StoreError};
use idemptx_testkit::PostgresServer;
use tokio::task::LocalSet;

use super::fixture::{
    PATIENCE, claim_request, done, eventually, granted, id, kind, number, patient, reason, settled,
    started,
};

/// Many clients claim and settle while the server ends, in each of its ways, six times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_acknowledged_is_lost_in_a_crash_or_a_restart() {
    let mut server = PostgresServer::start(&["fsync = on"]);
    let store = patient(server.url()).timeout(Duration::from_secs(1)).connect().await.unwrap();
    let store = Arc::new(store);
    let audit = Arc::new(Audit::default());
    for round in 1..=ENDS {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| tokio::spawn(work(store.clone(), audit.clone()))).collect();
        audit.reach(round * 500).await;
        match round % 3 {
            0 => server.stop(),
            1 => server.stop_immediately(),
            _ => server.kill(),
        }
        for client in clients {
            client.await.unwrap();
        }
        server.restart();
        eventually(async || store.lookup(&id(0)).await).await.unwrap();
    }
    let (claimed, settled) = audit.verify(&store).await;
    assert!(settled >= ENDS * 200, "{claimed} claims and {settled} results were acknowledged");
}

/// The settlements that the store acknowledged.
#[derive(Default)]
struct Audit {
    next: AtomicU64,
    count: AtomicU64,
    claimed: Mutex<HashMap<u64, Token>>,
    settled: Mutex<HashMap<u64, Token>>,
}

impl Audit {
    async fn reach(&self, count: u64) {
        let reached = async {
            while self.count.load(Ordering::Relaxed) < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("too little was acknowledged");
    }

    async fn verify(&self, store: &PostgresStore) -> (u64, u64) {
        let claimed = self.claimed.lock().unwrap().clone();
        let settled = self.settled.lock().unwrap().clone();
        for (number, token) in &claimed {
            let found = eventually(async || store.lookup(&id(*number)).await).await.unwrap();
            let (held_by, result) = match found {
                Some(RecordSnapshot::Held(holder)) => (holder.token, None),
                Some(RecordSnapshot::Settled(record)) => (record.token, Some(record.payload)),
                other => panic!("{number} was acknowledged and is {other:?}"),
            };
            assert_eq!(held_by, *token);
            if settled.contains_key(number) {
                assert_eq!(result.expect("a result that was acknowledged"), number.to_string());
            }
        }
        (claimed.len() as u64, settled.len() as u64)
    }
}

/// Claims and settles one key after the other, until the server is gone.
async fn work(store: Arc<PostgresStore>, audit: Arc<Audit>) {
    loop {
        let number = audit.next.fetch_add(1, Ordering::Relaxed);
        let lease = match store.claim(&id(number), &claim_request()).await {
            Ok(Claim::Granted(lease)) => lease,
            Ok(other) => panic!("{other:?}"),
            Err(error) => return assert!(error.kind().is_transient(), "{error:?}"),
        };
        audit.claimed.lock().unwrap().insert(number, lease.token);
        audit.count.fetch_add(1, Ordering::Relaxed);
        match store.settle(&lease, &done(number.to_string())).await {
            Ok(()) => audit.settled.lock().unwrap().insert(number, lease.token),
            Err(error) => return assert!(error.kind().is_transient(), "{error:?}"),
        };
        audit.count.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_server_that_restarted_while_nobody_asked_costs_no_request() {
    let (mut server, store) = started(&[]).await;
    let lease = granted(&store, id(1)).await;
    server.stop();
    server.restart();
    granted(&store, id(2)).await;
    store.settle(&lease, &done("kept")).await.unwrap();
    assert_eq!(settled(&store, id(1)).await.payload, "kept");
}

#[tokio::test]
async fn a_store_may_be_opened_before_its_server_is_there() {
    let mut server = PostgresServer::start(&[]);
    server.stop();
    let store = PostgresStore::open(server.url()).unwrap();
    let error = store.claim(&id(1), &claim_request()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(reason(&error).contains(&server.port().to_string()), "{}", reason(&error));
    assert_eq!(kind(PostgresStore::connect(server.url()).await), ErrorKind::Refused);
    server.restart();
    let claim = eventually(async || store.claim(&id(1), &claim_request()).await).await;
    assert!(matches!(claim, Ok(Claim::Granted(_))), "{claim:?}");
}

#[tokio::test]
async fn sessions_that_are_cut_again_and_again_lose_no_step() {
    let (server, store) = started(&[]).await;
    let store = Rc::new(store);
    let clients = LocalSet::new();
    for client in 0..CLIENTS {
        clients.spawn_local(passages(store.clone(), client * 1000));
    }
    let cutting = async {
        for _ in 0..10 {
            server.cut_sessions().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    clients.run_until(cutting).await;
    clients.await;
}

/// Runs twenty operations, one after the other, each of which must be stored in the end.
async fn passages(store: Rc<PostgresStore>, first: u64) {
    for number in first..first + 20 {
        // The same claim request each time: what is sent again is granted again.
        let claim_request = claim_request();
        let claim = eventually(async || store.claim(&id(number), &claim_request).await).await;
        let Ok(Claim::Granted(lease)) = claim else { panic!("{claim:?}") };
        assert_eq!(lease.attempt, 1);
        let result = done(number.to_string());
        eventually(async || store.settle(&lease, &result).await).await.unwrap();
        let seen = eventually(async || store.lookup(&id(number)).await).await;
        let Ok(Some(RecordSnapshot::Settled(record))) = seen else { panic!("{seen:?}") };
        assert_eq!(record.payload, number.to_string());
    }
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_an_unknown_outcome() {
    let (server, patient_store) = started(&[]).await;
    let lease = granted(&patient_store, id(1)).await;
    let limits = "timeout_ms=1000&connect_timeout_ms=20000";
    let store = PostgresStore::builder(format!("{}?{limits}", server.url()));
    let store = store.lock_timeout(PATIENCE).open().unwrap();
    eventually(async || store.lookup(&id(1)).await).await.unwrap();

    let mut locking = server.session().await;
    let transaction = locking.transaction().await.unwrap();
    transaction.batch_execute("LOCK TABLE idemptx.records").await.unwrap();
    assert_eq!(kind(store.claim(&id(2), &claim_request()).await), ErrorKind::Unavailable);
    // Refused, while the lock keeps a new session from being prepared.
    assert!(kind(store.settle(&lease, &done("done")).await).is_transient());
    assert!(kind(store.lookup(&id(1)).await).is_transient());
    transaction.rollback().await.unwrap();
    eventually(async || store.settle(&lease, &done("done")).await).await.unwrap();
    assert_eq!(settled(&patient_store, id(1)).await.payload, "done");
}

#[tokio::test]
async fn a_server_without_room_for_more_sessions_is_used_with_those_there_are() {
    let server = PostgresServer::start(&["max_connections = 5"]);
    let make = "CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE postgres TO app";
    server.session().await.batch_execute(make).await.unwrap();
    // Three of the five are kept for superusers, whose sessions before this end in their own time.
    let store = eventually(async || patient(server.url_of("app")).connect().await).await;
    let store = Arc::new(store.unwrap());
    let connected = eventually(async || {
        let opened = tokio_postgres::connect(&server.url_of("app"), tokio_postgres::NoTls).await;
        opened.map_err(|error| StoreError::with_source(ErrorKind::Refused, error))
    });
    let (other, connection) = connected.await.unwrap();
    tokio::spawn(connection);
    let claims: Vec<_> = (0..32)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { granted(&store, id(number)).await })
        })
        .collect();
    for claim in claims {
        claim.await.unwrap();
    }
    let error = patient(server.url_of("app")).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    assert!(!other.is_closed());
}

#[tokio::test]
async fn a_server_that_takes_no_writes_is_left_until_it_does() {
    let (server, store) = started(&[]).await;
    granted(&store, id(1)).await;
    server.configure("default_transaction_read_only", "on").await;
    let refused = async || match store.claim(&id(2), &claim_request()).await {
        Err(error) => assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}"),
        other => panic!("{other:?}"),
    };
    refused().await;
    refused().await;
    server.configure("default_transaction_read_only", "off").await;
    let claim = eventually(async || store.claim(&id(3), &claim_request()).await).await;
    assert!(matches!(claim, Ok(Claim::Granted(_))), "{claim:?}");
    assert_eq!(number(&server, "SELECT count(*) FROM idemptx.records").await, 2);
}

const CLIENTS: u64 = 16;
const ENDS: u64 = 6;
