//! Histories that a generator thinks of, on every store, against a map of records.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use idemptx::operator::Inventory;
use idemptx::store::MemoryStore;
use idemptx::store::postgres::PostgresStore;
use idemptx::store::redis::RedisStore;
use idemptx::store::sqlite::SqliteStore;
use idemptx_core::conformance::{self, Harness, Life, Replaceable, Step};
use idemptx_core::lease::Token;
use idemptx_core::record::State;
use idemptx_core::time::{Clock, Timestamp, millis};
use idemptx_testkit::PostgresServer;
use idemptx_testkit::RedisServer;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::support::records::token;

#[test]
fn memory_behaves_as_a_map() {
    let clock = Arc::new(Simulated::default());
    let store = MemoryStore::builder().clock(clock.clone()).build();
    behaves_as_a_map(&Trial { store, clock: Some(clock) }, 256);
}

#[test]
fn sqlite_behaves_as_a_map() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::builder(folder.path().join("records.db")).timeout(PATIENCE);
    behaves_as_a_map(&Trial { store: store.open().unwrap(), clock: None }, REAL_TIME_CASES);
}

#[test]
fn postgres_behaves_as_a_map() {
    let server = PostgresServer::start(&[]);
    let store = PostgresStore::builder(server.url()).timeout(PATIENCE).connect_timeout(PATIENCE);
    let store = store.lock_timeout(PATIENCE).open().unwrap();
    behaves_as_a_map(&Trial { store, clock: None }, REAL_TIME_CASES);
}

#[test]
fn redis_behaves_as_a_map() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::builder(server.url()).timeout(PATIENCE).connect_timeout(PATIENCE);
    behaves_as_a_map(&Trial { store: store.open().unwrap(), clock: None }, REAL_TIME_CASES);
}

fn behaves_as_a_map<S: Inventory>(trial: &Trial<S>, cases: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config =
        Config { cases, max_shrink_iters: SHRINKS, failure_persistence: None, ..Config::default() };
    let histories = prop::collection::vec(step(), 1..STEPS);
    let ran = TestRunner::new(config).run(&histories, |steps| {
        runtime.block_on(conformance::play(trial, &steps)).map_err(TestCaseError::fail)
    });
    assert!(ran.is_ok(), "{}", ran.unwrap_err());
}

fn step() -> impl Strategy<Value = Step> {
    let life = prop_oneof![8 => Just(Life::Stays), 1 => Just(Life::Lapses), 1 => Just(Life::Ends)];
    let expected = prop_oneof![
        Just(None),
        (0..3_u8).prop_map(|actor| Some(Replaceable::Orphan(actor))),
        (0..3_u8).prop_map(|actor| Some(Replaceable::Settled(actor))),
    ];
    let state =
        prop_oneof![Just(State::Completed), Just(State::NotReplayable), Just(State::Unknown)];
    (0..8, 0..4_u8, 0..3_u8, expected, state, life).prop_map(
        |(kind, record, actor, expected, state, life)| match kind {
            0..=3 => Step::Claim { record, actor, expected, life },
            4 => Step::Settle { record, actor, state, life },
            5 => Step::Release { record, actor },
            6 => Step::Renew { record, actor },
            _ => Step::Lookup { record },
        },
    )
}

/// A store by its own clock, or by one that is turned on.
struct Trial<S> {
    store: S,
    clock: Option<Arc<Simulated>>,
}

impl<S: Inventory> Harness for Trial<S> {
    type Store = S;

    fn store(&self) -> &S {
        &self.store
    }

    fn token(&self) -> Token {
        token()
    }

    async fn sleep(&self, wait: Duration) {
        match &self.clock {
            Some(clock) => drop(clock.0.fetch_add(millis(wait), Ordering::Relaxed)),
            None => tokio::time::sleep(wait).await,
        }
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(20)
    }
}

#[derive(Debug, Default)]
struct Simulated(AtomicU64);

impl Clock for Simulated {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed))
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
/// Most of their time is spent in waiting for what is brief.
const REAL_TIME_CASES: u32 = 24;
const STEPS: usize = 60;
/// A failing history on a real store takes its time with every attempt.
const SHRINKS: u32 = 64;
