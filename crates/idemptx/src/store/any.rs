//! A store chosen at run time.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::Record;
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, Inventory, Page, Query, RecordSnapshot, Settlement, Store,
    StoreError, Watch,
};

use super::dyn_store::DynStore;
use super::memory::MemoryStore;
use super::near::{NearCache, NearLimits};
#[cfg(feature = "postgres")]
use super::postgres::PostgresStore;
#[cfg(feature = "redis")]
use super::redis::RedisStore;
use super::safety::{SafetyCheck, SafetyReport};
#[cfg(feature = "seal")]
use super::seal::{Seal, Sealed};
#[cfg(feature = "sqlite")]
use super::sqlite::{self, SqliteStore};
use super::transactional::Transactional;

/// A store chosen at run time, with its decorators; clones share it.
///
/// Its steps are boxed futures, except those of the [`MemoryStore`].
/// An engine on a concrete store, such as [`MemoryStore`], needs no allocation for a step.
#[derive(Clone)]
pub struct AnyStore {
    store: Arc<dyn DynStore>,
    layer: Layer,
}

/// Outermost layer of a store.
#[derive(Clone)]
enum Layer {
    Base(StoreKind),
    Memory(MemoryStore),
    Near(Arc<NearCache<AnyStore>>),
    #[cfg(feature = "seal")]
    Sealed(Arc<Sealed<AnyStore>>),
}

/// Kind of database that holds the records of an [`AnyStore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreKind {
    /// The memory of this process.
    Memory,
    /// PostgreSQL.
    Postgres,
    /// Redis or Valkey.
    Redis,
    /// A SQLite file.
    Sqlite,
    /// A store of another crate.
    Other,
}

impl AnyStore {
    /// Wraps a store of another crate.
    pub fn new(store: impl Inventory + SafetyCheck + Transactional) -> Self {
        Self::base(store, StoreKind::Other)
    }

    fn base(store: impl DynStore, kind: StoreKind) -> Self {
        Self { store: Arc::new(store), layer: Layer::Base(kind) }
    }

    /// Opens the store of a URL: a file at once, a server with the first step.
    ///
    /// | URL | store |
    /// |---|---|
    /// | `memory:` | [`MemoryStore`] |
    /// | `postgres://[user[:password]@]host[:port]/database`, or `postgresql://…` | PostgreSQL |
    /// | `redis://[user:password@]host[:port][/database]`, `rediss://…` for TLS | Redis or Valkey |
    /// | `redis+unix:///path?db=number` | Redis through a socket file |
    /// | `redis+cluster://[user:password@]host[:port],…` | a Redis cluster |
    /// | `redis+sentinel://[user:password@]host[:port],…/service` | Redis behind sentinels |
    /// | `sqlite:path`, `sqlite:///path` | SQLite in a file, created if it does not exist |
    ///
    /// ```
    /// use idemptx::store::AnyStore;
    ///
    /// assert!(AnyStore::from_url("memory:").is_ok());
    /// assert!(AnyStore::from_url("mongodb://localhost").is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// [`UnknownStore`] if no store has the URL's scheme, or the rest of the URL is invalid.
    pub fn from_url(url: &str) -> Result<Self, UnknownStore> {
        let Some((scheme, _)) = url.split_once(':') else {
            return Err(UnknownStore(match FILE_ENDINGS.iter().any(|it| url.ends_with(it)) {
                true => UnknownStoreReason::File(url.to_owned()),
                false => UnknownStoreReason::Scheme,
            }));
        };
        match scheme {
            "memory" if matches!(url, "memory:" | "memory://") => Ok(MemoryStore::new().into()),
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => PostgresStore::open(url)
                .map(Self::from)
                .map_err(|error| UnknownStore(UnknownStoreReason::Unreadable(error.into()))),
            #[cfg(feature = "redis")]
            "redis" | "rediss" | "redis+unix" | "unix" | "valkey" | "valkeys" | "redis+cluster"
            | "rediss+cluster" | "redis+sentinel" | "rediss+sentinel" => RedisStore::open(url)
                .map(Self::from)
                .map_err(|error| UnknownStore(UnknownStoreReason::Unreadable(error.into()))),
            #[cfg(feature = "sqlite")]
            "sqlite" => {
                let path = sqlite::path_of(url)
                    .map_err(|error| UnknownStore(UnknownStoreReason::Unreadable(error.into())))?;
                SqliteStore::open(path)
                    .map(Self::from)
                    .map_err(|error| UnknownStore(UnknownStoreReason::Unopened(error.into())))
            }
            _ => Err(UnknownStore(
                feature_of(scheme)
                    .map_or(UnknownStoreReason::Scheme, UnknownStoreReason::NotBuiltIn),
            )),
        }
    }

    /// Returns the time limit that a step of the store at a URL has, unless the URL sets another;
    /// `None` for a store without one, or without the feature that brings it.
    #[must_use]
    pub fn default_step_limit(url: &str) -> Option<Duration> {
        match url.split_once(':').and_then(|(scheme, _)| feature_of(scheme))? {
            #[cfg(feature = "postgres")]
            "postgres" => Some(super::postgres::STEP_LIMIT),
            #[cfg(feature = "redis")]
            "redis" => Some(super::redis::STEP_LIMIT),
            #[cfg(feature = "sqlite")]
            "sqlite" => Some(sqlite::STEP_LIMIT),
            _ => None,
        }
    }

    /// Adds a cache of results in this process, so that a replay needs no round trip; see
    /// [`near`](super::near).
    ///
    /// A second call replaces the limits.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = idemptx::store::AnyStore::from_url("memory:")?.near(64 << 20);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn near(self, limits: impl Into<NearLimits>) -> Self {
        let store = match self.layer {
            Layer::Near(near) => near.inner().clone(),
            _ => self,
        };
        let near = Arc::new(NearCache::new(store, limits));
        Self { store: near.clone(), layer: Layer::Near(near) }
    }

    /// Seals results before they reach the store; see [`seal`](super::seal).
    ///
    /// The results in the [near](Self::near) cache are not sealed, in either order of the calls.
    /// A second call replaces the keys.
    #[cfg(feature = "seal")]
    #[must_use]
    pub fn sealed(self, seal: impl Into<Seal>) -> Self {
        let store = match self.layer {
            Layer::Near(near) => {
                return near.inner().clone().sealed(seal).near(near.limits().clone());
            }
            Layer::Sealed(sealed) => sealed.inner().clone(),
            Layer::Base(_) | Layer::Memory(_) => self,
        };
        let sealed = Arc::new(Sealed::new(store, seal));
        Self { store: sealed.clone(), layer: Layer::Sealed(sealed) }
    }

    /// Returns the [near](Self::near) cache, if there is one.
    #[must_use]
    pub fn near_cache(&self) -> Option<&NearCache<Self>> {
        match &self.layer {
            Layer::Near(near) => Some(near),
            _ => None,
        }
    }

    /// Returns the kind of database beneath all decorators.
    #[must_use]
    pub fn kind(&self) -> StoreKind {
        match &self.layer {
            Layer::Base(kind) => *kind,
            Layer::Memory(_) => StoreKind::Memory,
            Layer::Near(near) => near.inner().kind(),
            #[cfg(feature = "seal")]
            Layer::Sealed(sealed) => sealed.inner().kind(),
        }
    }
}

impl From<MemoryStore> for AnyStore {
    fn from(store: MemoryStore) -> Self {
        Self { store: Arc::new(store.clone()), layer: Layer::Memory(store) }
    }
}

#[cfg(feature = "postgres")]
impl From<PostgresStore> for AnyStore {
    fn from(store: PostgresStore) -> Self {
        Self::base(store, StoreKind::Postgres)
    }
}

#[cfg(feature = "redis")]
impl From<RedisStore> for AnyStore {
    fn from(store: RedisStore) -> Self {
        Self::base(store, StoreKind::Redis)
    }
}

#[cfg(feature = "sqlite")]
impl From<SqliteStore> for AnyStore {
    fn from(store: SqliteStore) -> Self {
        Self::base(store, StoreKind::Sqlite)
    }
}

impl fmt::Debug for AnyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

impl Store for AnyStore {
    async fn claim(&self, id: &RecordId, request: &ClaimRequest) -> Result<Claim, StoreError> {
        match &self.layer {
            // It never waits, so that a box would be made in vain.
            Layer::Memory(memory) => Store::claim(memory, id, request).await,
            _ => self.store.claim(id, request).await,
        }
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        match &self.layer {
            Layer::Memory(memory) => Store::settle(memory, lease, done).await,
            _ => self.store.settle(lease, done).await,
        }
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.store.release(lease).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        self.store.renew(lease).await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        self.store.lookup(id).await
    }

    fn recall(&self, id: &RecordId) -> Option<Record> {
        self.store.recall(id)
    }

    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        self.store.watch(id).await
    }

    fn maintain(&self) {
        self.store.maintain();
    }

    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }
}

impl Inventory for AnyStore {
    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        self.store.list(query).await
    }
}

impl SafetyCheck for AnyStore {
    async fn check(&self) -> Result<SafetyReport, StoreError> {
        self.store.check().await
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        self.store.migrate().await
    }
}

impl Transactional for AnyStore {
    fn decorated(&self) -> Option<&dyn Transactional> {
        Some(&*self.store)
    }
}

/// A URL that names no store, or one that cannot be opened.
///
/// Its text never repeats the URL, which may hold a password.
#[derive(Debug)]
pub struct UnknownStore(UnknownStoreReason);

#[derive(Debug)]
#[cfg_attr(
    not(all(feature = "redis", feature = "sqlite")),
    allow(dead_code, reason = "the memory store has nothing to be read or opened")
)]
enum UnknownStoreReason {
    Scheme,
    /// The name of a file, without a scheme.
    File(String),
    /// The feature that the store needs.
    NotBuiltIn(&'static str),
    Unreadable(Box<dyn StdError + Send + Sync>),
    Unopened(Box<dyn StdError + Send + Sync>),
}

impl fmt::Display for UnknownStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            UnknownStoreReason::Unreadable(_) => f.write_str("the store's URL cannot be read"),
            UnknownStoreReason::Unopened(_) => f.write_str("the store cannot be opened"),
            UnknownStoreReason::NotBuiltIn(feature) => {
                write!(f, "this program was built without the feature `{feature}` for that store")
            }
            UnknownStoreReason::File(name) => {
                write!(f, "`{name}` is no URL: did you mean `sqlite:{name}`?")
            }
            UnknownStoreReason::Scheme => {
                f.write_str("no such store: use `memory:`")?;
                f.write_str(match cfg!(feature = "redis") {
                    true => {
                        ", `redis://host:port/db`, `rediss://…`, `redis+unix:///path`, \
                              `redis+cluster://…`, `redis+sentinel://…`"
                    }
                    false => ", enable the feature `redis` for `redis://…`",
                })?;
                f.write_str(match cfg!(feature = "postgres") {
                    true => ", `postgres://host/db`",
                    false => ", enable the feature `postgres` for `postgres://…`",
                })?;
                f.write_str(match cfg!(feature = "sqlite") {
                    true => ", or `sqlite:PATH`",
                    false => ", or enable the feature `sqlite` for `sqlite:PATH`",
                })
            }
        }
    }
}

impl StdError for UnknownStore {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.0 {
            UnknownStoreReason::Scheme
            | UnknownStoreReason::File(_)
            | UnknownStoreReason::NotBuiltIn(_) => None,
            UnknownStoreReason::Unreadable(source) | UnknownStoreReason::Unopened(source) => {
                Some(source.as_ref())
            }
        }
    }
}

/// Returns the feature that brings the store of a URL's scheme.
fn feature_of(scheme: &str) -> Option<&'static str> {
    match scheme {
        "postgres" | "postgresql" => Some("postgres"),
        "redis" | "rediss" | "redis+unix" | "unix" | "valkey" | "valkeys" | "redis+cluster"
        | "rediss+cluster" | "redis+sentinel" | "rediss+sentinel" => Some("redis"),
        "sqlite" => Some("sqlite"),
        _ => None,
    }
}

const FILE_ENDINGS: [&str; 3] = [".db", ".sqlite", ".sqlite3"];
