//! Several processes and several steps about the same records.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use idemptx::store::postgres::PostgresStore;
use idemptx_core::store::{Claim, ClaimRequest, ErrorKind, Expected, RecordSnapshot, Store};
use idemptx_testkit::PostgresServer;

use super::fixture::{
    PATIENCE, brief_claim_request, claim_request, comes_to, done, granted, granted_to, id, kind,
    number, patient, settled, started,
};

/// Two processes claim every key, many at once and each in a different order; half of the keys
/// are new and half are orphans.
#[tokio::test]
async fn of_two_processes_that_bid_for_the_same_keys_exactly_one_is_granted_each() {
    if let Ok(url) = std::env::var(CONTENDER_URL) {
        return contend(url).await;
    }
    let (server, store) = started(&[]).await;
    for number in 0..KEYS / 2 {
        let mut orphan = brief_claim_request();
        orphan.token = orphaned().token;
        granted_to(&store, id(number), &orphan).await;
    }
    let name = "postgres::contention::of_two_processes_that_bid_for_the_same_keys_exactly_one_is_granted_each";
    let contenders: Vec<_> = (0..2)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .env(CONTENDER_URL, server.url())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut grants = vec![0; usize::try_from(KEYS).unwrap()];
    for contender in contenders {
        let output = contender.wait_with_output().unwrap();
        assert!(output.status.success());
        let said = String::from_utf8(output.stdout).unwrap();
        for key in said.lines().filter_map(|line| line.strip_prefix("granted ")) {
            grants[key.parse::<usize>().unwrap()] += 1;
        }
    }
    assert!(grants.iter().all(|grants| *grants == 1), "{grants:?}");
    for number in 0..KEYS {
        let Ok(Some(RecordSnapshot::Held(holder))) = store.lookup(&id(number)).await else {
            panic!()
        };
        assert_eq!(holder.attempt, if number < KEYS / 2 { 2 } else { 1 });
    }
}

#[allow(clippy::print_stdout, reason = "it is how a process tells the one that started it")]
async fn contend(url: String) {
    let store = Arc::new(patient(url).connect().await.unwrap());
    let offset = u64::from(std::process::id()) * 7;
    let bidders: Vec<_> = (0..KEYS)
        .map(|place| {
            let (store, number) = (store.clone(), (place * 11 + offset) % KEYS);
            tokio::spawn(async move {
                let expected = Expected::Orphan(orphaned().token);
                let claim_request = if number < KEYS / 2 {
                    claim_request().expecting(expected)
                } else {
                    claim_request()
                };
                match store.claim(&id(number), &claim_request).await.unwrap() {
                    Claim::Granted(_) => println!("granted {number}"),
                    Claim::Found(RecordSnapshot::Held(holder)) => {
                        assert!(!holder.is_orphan(), "{number}")
                    }
                    other => panic!("{other:?}"),
                }
            })
        })
        .collect();
    for bidder in bidders {
        bidder.await.unwrap();
    }
}

/// The claim request that is the same in every process.
fn orphaned() -> ClaimRequest {
    let mut claim_request = claim_request();
    claim_request.token = idemptx_core::lease::Token::from_bytes([0xAA; 16]);
    claim_request
}

#[tokio::test]
async fn a_record_that_is_locked_costs_neither_its_companions_nor_much_time() {
    let server = PostgresServer::start(&[]);
    let lock_timeout = Duration::from_millis(100);
    let store = patient(server.url()).sessions(1).lock_timeout(lock_timeout).connect().await;
    let store = Arc::new(store.unwrap());
    let leases = [granted(&store, id(1)).await, granted(&store, id(2)).await];

    let mut locking = server.session().await;
    let transaction = locking.transaction().await.unwrap();
    let lock = "SELECT 1 FROM idemptx.records WHERE id = $1 FOR UPDATE";
    transaction.query(lock, &[&&leases[0].id.as_bytes()[..]]).await.unwrap();
    // A claim that has not been committed locks its key, too, though nobody sees it yet.
    let insert = "INSERT INTO idemptx.records SELECT fence, lease_until, expires_at, due_at, \
                  response_until, attempt, awaited, state, $2, token, record, response \
                  FROM idemptx.records WHERE id = $1";
    let (from, to) = (&leases[1].id.as_bytes()[..], &id(3).as_bytes()[..].to_vec());
    transaction.query(insert, &[&from, to]).await.unwrap();

    let began = Instant::now();
    let settlements: Vec<_> = leases
        .iter()
        .map(|lease| {
            let (store, lease) = (store.clone(), lease.clone());
            tokio::spawn(async move { store.settle(&lease, &done("done")).await })
        })
        .collect();
    let claims: Vec<_> = (3..=12)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { store.claim(&id(number), &claim_request()).await })
        })
        .collect();
    let mut outcomes = Vec::new();
    for settlement in settlements {
        outcomes.push(settlement.await.unwrap());
    }
    assert_eq!(kind(outcomes.remove(0)), ErrorKind::Refused);
    outcomes.remove(0).unwrap();
    for (place, claim) in claims.into_iter().enumerate() {
        match claim.await.unwrap() {
            Err(error) if place == 0 => assert_eq!(error.kind(), ErrorKind::Refused),
            Ok(Claim::Granted(_)) if place > 0 => {}
            other => panic!("{place}: {other:?}"),
        }
    }
    assert!(began.elapsed() >= lock_timeout);

    transaction.rollback().await.unwrap();
    store.settle(&leases[0], &done("done")).await.unwrap();
    granted(&store, id(3)).await;
}

#[tokio::test]
async fn batches_of_two_stores_that_overlap_do_not_wait_for_each_other_for_ever() {
    let server = PostgresServer::start(&["deadlock_timeout = '50ms'"]);
    // Whoever waits for another waits until the server notices that they wait for each other.
    let store = async || patient(server.url()).lock_timeout(PATIENCE).connect().await.unwrap();
    let stores = [Arc::new(store().await), Arc::new(store().await)];
    for round in 0..ROUNDS {
        let passages: Vec<_> = (0..128)
            .map(|place| {
                let store = stores[place % 2].clone();
                // The two go through the same keys in opposite orders.
                let key = if place % 2 == 0 { place / 2 } else { 63 - place / 2 };
                let id = id(round * 1000 + key as u64);
                tokio::spawn(async move {
                    if let Claim::Granted(lease) = store.claim(&id, &claim_request()).await.unwrap()
                    {
                        store.settle(&lease, &done("once")).await.unwrap();
                    }
                })
            })
            .collect();
        for passage in passages {
            passage.await.unwrap();
        }
        for key in 0..64 {
            assert_eq!(settled(&stores[0], id(round * 1000 + key)).await.payload, "once");
        }
    }
    // Sessions hand in what they have counted when they end.
    drop(stores);
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
    comes_to(&server, sessions, 1).await;
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'";
    assert_eq!(number(&server, deadlocks).await, 0);
}

#[tokio::test]
async fn a_blocked_runtime_does_not_keep_another_from_renewing() {
    let (_server, store) = started(&[]).await;
    let store: Arc<PostgresStore> = Arc::new(store);
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

const CONTENDER_URL: &str = "IDEMPTX_TEST_CONTENDER_URL";
const KEYS: u64 = 1000;
const ROUNDS: u64 = 8;
