//! The store that targets share: the one that `IDEMPTX_STORE` names, with its failures.

use std::fs::{File, OpenOptions};

use idemptx_testkit::PostgresServer;
use tempfile::TempDir;

use crate::RedisServer;

/// The name of the store that the suite is run over: `redis`, `sqlite` or `postgres`.
#[must_use]
pub fn store_under_test() -> String {
    std::env::var("IDEMPTX_STORE").unwrap_or_else(|_| "redis".into())
}

/// A store that several targets can use, of the test's own, and gone when dropped.
#[derive(Debug)]
pub enum SharedStore {
    /// Redis.
    Redis(RedisServer),
    /// A file of SQLite.
    Sqlite(SqliteFile),
    /// PostgreSQL.
    Postgres(Postgres),
}

impl SharedStore {
    /// Starts a store that need not keep anything when it is killed.
    pub async fn start() -> Self {
        match store_under_test().as_str() {
            "redis" => Self::Redis(RedisServer::start().await),
            _ => Self::durable().await,
        }
    }

    /// Starts a store that keeps everything it has acknowledged when it is killed.
    pub async fn durable() -> Self {
        Self::named(&store_under_test()).await
    }

    /// Starts a durable store of the named kind.
    ///
    /// # Panics
    ///
    /// If there is none of the name.
    pub async fn named(name: &str) -> Self {
        match name {
            "redis" => Self::Redis(RedisServer::durable().await),
            "sqlite" => Self::Sqlite(SqliteFile::new()),
            "postgres" => Self::Postgres(Postgres(PostgresServer::start(&[]), "")),
            other => panic!("no store {other}"),
        }
    }

    /// A place where one will be, once [`restart`](Self::restart) is called.
    pub async fn absent() -> Self {
        let mut store = Self::start().await;
        store.kill();
        store
    }

    /// Returns the URL for targets.
    #[must_use]
    pub fn url(&self) -> String {
        match self {
            Self::Redis(redis) => redis.url(),
            Self::Sqlite(file) => file.url(),
            Self::Postgres(server) => server.0.url() + server.1,
        }
    }

    /// Kills the store at once; a file, which cannot be killed, is kept from being written.
    pub fn kill(&mut self) {
        match self {
            Self::Redis(redis) => redis.kill(),
            Self::Sqlite(file) => file.lock(),
            Self::Postgres(server) => server.0.kill(),
        }
    }

    /// Starts it again, with what it has kept.
    pub async fn restart(&mut self) {
        match self {
            Self::Redis(redis) => redis.restart().await,
            Self::Sqlite(file) => file.unlock(),
            Self::Postgres(server) => server.0.restart(),
        }
    }

    /// Freezes it.
    pub fn pause(&mut self) {
        match self {
            Self::Redis(redis) => redis.pause(),
            Self::Sqlite(file) => file.lock(),
            Self::Postgres(server) => server.0.pause(),
        }
    }

    /// Lets it go on.
    pub fn resume(&mut self) {
        match self {
            Self::Redis(redis) => redis.resume(),
            Self::Sqlite(file) => file.unlock(),
            Self::Postgres(server) => server.0.resume(),
        }
    }

    /// Closes the connections of all its clients.
    ///
    /// # Panics
    ///
    /// If it has none.
    pub async fn disconnect_all(&mut self) {
        match self {
            Self::Redis(redis) => redis.disconnect_all().await,
            Self::Postgres(server) => server.0.cut_sessions().await,
            Self::Sqlite(_) => panic!("a file has no connections"),
        }
    }

    /// Sets it up so that it may lose what it has acknowledged, and returns the words that a
    /// complaint about that must contain.
    ///
    /// # Panics
    ///
    /// If it cannot be brought to.
    pub async fn endanger(&mut self) -> &'static [&'static str] {
        match self {
            Self::Redis(redis) => {
                redis.configure("maxmemory", "100mb").await;
                redis.configure("maxmemory-policy", "allkeys-lru").await;
                &["maxmemory-policy", "noeviction"]
            }
            Self::Postgres(server) => {
                // Where the server's own default is weak, the store's sessions raise it.
                server.1 = "?options=-csynchronous_commit%3Doff";
                &["synchronous_commit"]
            }
            Self::Sqlite(_) => panic!("nobody can make a file forget"),
        }
    }

    /// Everything it holds, as text.
    ///
    /// # Panics
    ///
    /// If it cannot be read.
    pub async fn contents(&mut self) -> String {
        match self {
            Self::Redis(redis) => redis.contents().await,
            Self::Sqlite(file) => file.contents(),
            Self::Postgres(server) => {
                let select = "SELECT string_agg(encode(id || token || record || \
                              coalesce(response, ''), 'escape'), ' ') FROM idemptx.records";
                let session = server.0.session().await;
                session.query_one(select, &[]).await.expect("the records").get(0)
            }
        }
    }
}

/// An SQLite file in a temporary folder.
#[derive(Debug)]
pub struct SqliteFile {
    directory: TempDir,
    turn: Option<File>,
}

impl SqliteFile {
    pub(crate) fn new() -> Self {
        Self { directory: TempDir::new().expect("a temporary directory"), turn: None }
    }

    pub(crate) fn url(&self) -> String {
        format!("sqlite:{}", self.directory.path().join("records.db").display())
    }

    /// Takes the turn that every writer needs, and keeps it.
    fn lock(&mut self) {
        let path = self.directory.path().join("records.db-turn");
        let opened = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = opened.expect("the file beside the database");
        file.lock().expect("the turn");
        self.turn = Some(file);
    }

    fn unlock(&mut self) {
        self.turn = None;
    }

    fn contents(&self) -> String {
        let files = ["records.db", "records.db-wal"];
        let bytes = files.map(|name| std::fs::read(self.directory.path().join(name)));
        let bytes = bytes.map(|bytes| bytes.expect("the file can be read")).concat();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A PostgreSQL server of the test's own, and what targets add to its URL.
#[derive(Debug)]
pub struct Postgres(PostgresServer, &'static str);
