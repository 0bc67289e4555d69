//! The settings from which a durable store is opened.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idemptx::store::AnyStore;
use idemptx::store::postgres::{InvalidSetting, PostgresStore, SynchronousCommit};
use idemptx::store::redis::{InvalidUrl, RedisStore};
use idemptx::store::sqlite::SqliteStore;
use pyo3::Python;

/// The settings from which a store is opened.
#[derive(Clone)]
pub(super) enum StoreConfig {
    Sqlite {
        path: PathBuf,
        timeout: Option<Duration>,
    },
    /// The store itself, which has no session.
    Postgres(Arc<PostgresStore>),
    Redis(Redis),
}

/// A cluster, or servers behind sentinels: asyncio's own transport knows single servers only.
#[derive(Clone)]
pub(super) struct Redis {
    pub(super) url: String,
    pub(super) prefix: String,
    pub(super) timeout: Option<Duration>,
}

/// The settings that [`PostgresStoreBuilder`](idemptx::store::postgres::PostgresStoreBuilder)
/// explains.
#[derive(Clone)]
pub(super) struct Postgres {
    pub(super) url: String,
    pub(super) schema: Option<String>,
    pub(super) table: Option<String>,
    pub(super) migrate: bool,
    pub(super) pooled: bool,
    pub(super) sessions: Option<usize>,
    pub(super) synchronous_commit: Option<SynchronousCommit>,
    pub(super) timeout: Option<Duration>,
    pub(super) ca_certificates: Option<Vec<u8>>,
}

impl StoreConfig {
    /// Makes the store; a file is read and written over it.
    pub(super) fn open(&self) -> Result<AnyStore, Box<dyn Error + Send + Sync>> {
        Ok(match self {
            Self::Sqlite { path, timeout } => {
                let builder = SqliteStore::builder(path);
                let builder = match timeout {
                    Some(timeout) => builder.timeout(*timeout),
                    None => builder,
                };
                AnyStore::from(builder.open()?)
            }
            // It learns of the server what the statements for other drivers depend on.
            Self::Postgres(store) => AnyStore::from(store.another()),
            Self::Redis(settings) => AnyStore::from(settings.open()?),
        })
    }

    /// Returns an error text if a parent process of a fork had the file open.
    ///
    /// SQLite keeps a list of the locks that its process has on a file. A child inherits the list,
    /// but not the locks, and would take for locked what is not.
    pub(super) fn is_inherited(&self, _attached: Python<'_>) -> Option<String> {
        let Self::Sqlite { path, .. } = self else { return None };
        let here = std::process::id();
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let process = *opened.entry(resolved(path)).or_insert(here);
        (process != here).then(|| {
            format!(
                "sqlite file {}: process {process}, from which this one was forked, has opened it, \
                 and SQLite's locks do not survive that; use the backend only after the fork (in \
                 the lifespan, not at import), or spawn the workers",
                path.display()
            )
        })
    }
}

impl Redis {
    pub(super) fn open(&self) -> Result<RedisStore, InvalidUrl> {
        let builder = RedisStore::builder(&self.url).prefix(&self.prefix);
        let builder = match self.timeout {
            Some(timeout) => builder.timeout(timeout),
            None => builder,
        };
        builder.open()
    }
}

impl Postgres {
    pub(super) fn open(&self) -> Result<PostgresStore, InvalidSetting> {
        let mut builder =
            PostgresStore::builder(&self.url).migrate(self.migrate).pooled(self.pooled);
        if let Some(schema) = &self.schema {
            builder = builder.schema(schema);
        }
        if let Some(table) = &self.table {
            builder = builder.table(table);
        }
        if let Some(sessions) = self.sessions {
            builder = builder.sessions(sessions);
        }
        if let Some(level) = self.synchronous_commit {
            builder = builder.synchronous_commit(level);
        }
        if let Some(timeout) = self.timeout {
            builder = builder.timeout(timeout);
        }
        if let Some(pem) = &self.ca_certificates {
            builder = builder.ca_certificates(pem.as_slice());
        }
        builder.open()
    }
}

/// Returns a file's canonical path, also for a file that does not exist yet.
fn resolved(path: &Path) -> PathBuf {
    let in_folder = || {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        Some(fs::canonicalize(folder).ok()?.join(path.file_name()?))
    };
    fs::canonicalize(path).ok().or_else(in_folder).unwrap_or_else(|| path.to_owned())
}

/// The process that opened each file first: this one, or a parent from before a fork.
static OPENED: Mutex<BTreeMap<PathBuf, u32>> = Mutex::new(BTreeMap::new());
