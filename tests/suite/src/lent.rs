//! The store of a target whose test does not say which.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::postgres_server::PostgresServer;
use crate::store::SqliteFile;
use crate::store_under_test;

/// A store for one target; memory if there is none.
#[derive(Debug)]
pub(crate) enum Lent {
    Sqlite(SqliteFile),
    Postgres(Database),
}

impl Lent {
    /// One of the kind that the suite is run over.
    pub(crate) async fn new() -> Option<Self> {
        match store_under_test().as_str() {
            "sqlite" => Some(Self::Sqlite(SqliteFile::new())),
            "postgres" => Some(Self::Postgres(Database::new().await)),
            _ => None,
        }
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(file) => file.url(),
            Self::Postgres(database) => database.url.clone(),
        }
    }
}

/// A database on a server that the tests of a process share: a server for each would take minutes.
#[derive(Debug)]
pub(crate) struct Database {
    url: String,
    _server: Arc<PostgresServer>,
}

impl Database {
    async fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let server = server();
        let name = format!("target_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let url = server.create_database(&name).await;
        Self { url, _server: server }
    }
}

/// The one that is there, for as long as anybody uses it, or a new one.
fn server() -> Arc<PostgresServer> {
    static SERVER: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());
    let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(PostgresServer::start(&[]));
        *shared = Arc::downgrade(&server);
        server
    })
}
