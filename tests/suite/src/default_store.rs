//! The store of a target whose test names none.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use idemptx_testkit::PostgresServer;

use crate::store::SqliteFile;
use crate::store_under_test;

/// The store of one target; without one the target uses memory.
#[derive(Debug)]
pub(crate) enum DefaultStore {
    Sqlite(SqliteFile),
    Postgres(Database),
}

impl DefaultStore {
    /// Creates one of the kind under test.
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

/// A database on a server that all tests of a process share, because a server each takes minutes.
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

/// Returns the server in use, or starts one.
fn server() -> Arc<PostgresServer> {
    static SERVER: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());
    let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(PostgresServer::start(&[]));
        *shared = Arc::downgrade(&server);
        server
    })
}
