//! The stores in which processes keep their records.

use std::any::Any;
use std::time::Duration;

use idemptx::operator::{Operator, RecordStatus, RecordView};
use idemptx::store::AnyStore;
use idemptx::store::postgres::PostgresStore;
use idemptx::store::redis::RedisStore;
use idemptx::store::sqlite::SqliteStore;
use idemptx::{Key, Policy, PolicyBuilder, RecordId, Scope};
use idemptx_testkit::PostgresServer;
use idemptx_testkit::RedisServer;

use super::MemoryStore;
use crate::support::app::{App, engine};

/// The records of a store, which every process opens for itself.
pub(crate) struct Environment {
    open: Box<dyn Fn() -> AnyStore + Send + Sync>,
    _kept: Box<dyn Any + Send + Sync>,
}

impl Environment {
    pub(crate) fn memory() -> Self {
        let store = MemoryStore::new();
        Self { open: Box::new(move || AnyStore::from(store.clone())), _kept: Box::new(()) }
    }

    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records.db");
        let open = move || {
            let store = SqliteStore::builder(&path).timeout(PATIENCE).open();
            AnyStore::from(store.unwrap())
        };
        Self { open: Box::new(open), _kept: Box::new(folder) }
    }

    pub(crate) fn postgres() -> Self {
        let server = PostgresServer::start(&[]);
        let url = server.url();
        let open = move || {
            let store = PostgresStore::builder(&url).timeout(PATIENCE).connect_timeout(PATIENCE);
            AnyStore::from(store.lock_timeout(PATIENCE).open().unwrap())
        };
        Self { open: Box::new(open), _kept: Box::new(server) }
    }

    pub(crate) fn redis() -> Self {
        let server = RedisServer::start(&[]);
        let url = server.url();
        let open = move || {
            let store = RedisStore::builder(&url).timeout(PATIENCE).connect_timeout(PATIENCE);
            AnyStore::from(store.open().unwrap())
        };
        Self { open: Box::new(open), _kept: Box::new(server) }
    }

    pub(crate) fn open(&self) -> AnyStore {
        (self.open)()
    }

    /// A process whose handlers answer at once.
    pub(crate) fn process(
        &self,
        change: impl FnOnce(PolicyBuilder) -> PolicyBuilder,
    ) -> App<AnyStore> {
        App::quick(engine(self.open(), |policy| change(patient(policy))))
    }

    pub(crate) fn operator(&self) -> Operator<AnyStore> {
        let policy = patient(Policy::draft().into_builder()).build().unwrap();
        Operator::new(self.open(), policy).unwrap()
    }

    /// Leaves the orphan of a process that began to execute under the key and ended.
    pub(crate) async fn orphan(&self, key: &'static str) -> RecordView {
        let store = self.open();
        let vanishes = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap();
            runtime.block_on(async {
                let app = App::slow(engine(store, |policy| patient(policy).lease(LEASE)));
                app.client(key);
                app.runs.reach(1).await;
            });
            runtime.shutdown_background();
        };
        tokio::task::spawn_blocking(vanishes).await.unwrap();
        self.comes_to(key, RecordStatus::Orphaned).await
    }

    /// Looks up a key until its record has this status, since nothing announces it.
    pub(crate) async fn comes_to(&self, key: &str, status: RecordStatus) -> RecordView {
        let operator = self.operator();
        let comes = async {
            loop {
                match operator.lookup(&id(&operator, key)).await.unwrap() {
                    Some(sighting) if sighting.status == status => return sighting,
                    _ => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, comes).await.unwrap()
    }
}

/// The record of a key.
pub(crate) fn id(operator: &Operator<AnyStore>, key: &str) -> RecordId {
    operator.ids(&Scope::shared(), &Key::new(key, 255).unwrap(), None)[0]
}

/// Long, because the machine may be slow.
fn patient(policy: PolicyBuilder) -> PolicyBuilder {
    policy.claim_timeout(PATIENCE).settle_timeout(PATIENCE)
}

const LEASE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);
