//! A store chosen by URL.

mod boxed;
mod transactional;

use std::error::Error as StdError;
use std::fmt;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, Inventory, Page, Query, RecordSnapshot, Settlement, Store,
    StoreError, Watch,
};

pub use self::boxed::BoxedStore;
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

/// One of the stores of this crate, chosen at run time.
#[derive(Debug)]
#[non_exhaustive]
pub enum AnyStore {
    /// `memory:`
    Memory(MemoryStore),
    /// Any of these with results close at hand: [`near`](Self::near).
    Near(Box<NearCache<BoxedStore>>),
    /// `postgres://`, `postgresql://`
    #[cfg(feature = "postgres")]
    Postgres(Box<PostgresStore>),
    /// `redis://`, `rediss://`, `redis+unix://`
    #[cfg(feature = "redis")]
    Redis(Box<RedisStore>),
    /// Any of these with sealed results: [`sealed`](Self::sealed).
    #[cfg(feature = "seal")]
    Sealed(Box<Sealed<BoxedStore>>),
    /// `sqlite:path`
    #[cfg(feature = "sqlite")]
    Sqlite(Box<SqliteStore>),
}

impl AnyStore {
    /// The store that a URL names; a server is not connected to yet, a file is opened.
    ///
    /// | URL | store |
    /// |---|---|
    /// | `memory:` | [`MemoryStore`] |
    /// | `postgres://[user[:password]@]host[:port]/database`, or `postgresql://…` | PostgreSQL |
    /// | `redis://[user:password@]host[:port][/database]`, `rediss://…` for TLS | Redis or Valkey |
    /// | `redis+unix:///path?db=number` | the same through a socket file |
    /// | `sqlite:path`, `sqlite:///path` | SQLite in a file, which is made if there is none |
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
    /// [`UnknownStore`] if no store answers to the URL's scheme, or the store cannot read the rest.
    pub fn from_url(url: &str) -> Result<Self, UnknownStore> {
        let (scheme, _) = url.split_once(':').unwrap_or((url, ""));
        match scheme {
            "memory" if matches!(url, "memory:" | "memory://") => {
                Ok(Self::Memory(MemoryStore::new()))
            }
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => PostgresStore::open(url)
                .map(|store| Self::Postgres(Box::new(store)))
                .map_err(|error| UnknownStore(UnknownStoreReason::Unreadable(error.into()))),
            #[cfg(feature = "redis")]
            "redis" | "rediss" | "redis+unix" | "unix" | "valkey" | "valkeys" => {
                RedisStore::open(url)
                    .map(|store| Self::Redis(Box::new(store)))
                    .map_err(|error| UnknownStore(UnknownStoreReason::Unreadable(error.into())))
            }
            #[cfg(feature = "sqlite")]
            "sqlite" => {
                let path = sqlite::path_of(url)
                    .map_err(|error| UnknownStore(UnknownStoreReason::Unreadable(error.into())))?;
                SqliteStore::open(path)
                    .map(|store| Self::Sqlite(Box::new(store)))
                    .map_err(|error| UnknownStore(UnknownStoreReason::Unopened(error.into())))
            }
            _ => Err(UnknownStore(
                feature_of(scheme)
                    .map_or(UnknownStoreReason::Scheme, UnknownStoreReason::NotBuiltIn),
            )),
        }
    }

    /// The same store with results close at hand, so that a replay needs no round trip; see
    /// [`near`](super::near).
    ///
    /// Said again, the limits are replaced.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = idemptx::store::AnyStore::from_url("memory:")?.near(64 << 20);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn near(self, limits: impl Into<NearLimits>) -> Self {
        let store = match self {
            Self::Near(near) => near.into_parts().0,
            other => BoxedStore::new(other),
        };
        Self::Near(Box::new(NearCache::new(store, limits)))
    }

    /// The same store with results that are sealed before they reach it; see [`seal`](super::seal).
    ///
    /// Whichever is said first, what is [near](Self::near) is not sealed.
    /// Said again, the keys are replaced.
    #[cfg(feature = "seal")]
    #[must_use]
    pub fn sealed(self, seal: impl Into<Seal>) -> Self {
        match self {
            Self::Near(near) => {
                let (store, limits) = near.into_parts();
                store.into_inner().sealed(seal).near(limits)
            }
            Self::Sealed(sealed) => Self::Sealed(Box::new(Sealed::new(sealed.into_inner(), seal))),
            other => Self::Sealed(Box::new(Sealed::new(BoxedStore::new(other), seal))),
        }
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
            UnknownStoreReason::Scheme => {
                f.write_str("no such store: use `memory:`")?;
                f.write_str(match cfg!(feature = "redis") {
                    true => ", `redis://host:port/db`, `rediss://…`, `redis+unix:///path`",
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
            UnknownStoreReason::Scheme | UnknownStoreReason::NotBuiltIn(_) => None,
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
        "redis" | "rediss" | "redis+unix" | "unix" | "valkey" | "valkeys" => Some("redis"),
        "sqlite" => Some("sqlite"),
        _ => None,
    }
}

/// Calls the chosen store.
///
/// The futures of a remote store are boxed: they are large, and memory's would be no smaller.
/// Those of a near one are small, and box what is not.
macro_rules! chosen {
    ($any:expr, $store:ident => $call:expr, awaited) => {
        match $any {
            AnyStore::Memory($store) => $call.await,
            AnyStore::Near($store) => $call.await,
            #[cfg(feature = "postgres")]
            AnyStore::Postgres($store) => Box::pin($call).await,
            #[cfg(feature = "redis")]
            AnyStore::Redis($store) => Box::pin($call).await,
            #[cfg(feature = "seal")]
            AnyStore::Sealed($store) => Box::pin($call).await,
            #[cfg(feature = "sqlite")]
            AnyStore::Sqlite($store) => Box::pin($call).await,
        }
    };
    ($any:expr, $store:ident => $call:expr) => {
        match $any {
            AnyStore::Memory($store) => $call,
            AnyStore::Near($store) => $call,
            #[cfg(feature = "postgres")]
            AnyStore::Postgres($store) => $call,
            #[cfg(feature = "redis")]
            AnyStore::Redis($store) => $call,
            #[cfg(feature = "seal")]
            AnyStore::Sealed($store) => $call,
            #[cfg(feature = "sqlite")]
            AnyStore::Sqlite($store) => $call,
        }
    };
}

impl Store for AnyStore {
    async fn claim(&self, id: &RecordId, request: &ClaimRequest) -> Result<Claim, StoreError> {
        chosen!(self, store => store.claim(id, request), awaited)
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        chosen!(self, store => store.settle(lease, done), awaited)
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        chosen!(self, store => store.release(lease), awaited)
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        chosen!(self, store => store.renew(lease), awaited)
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        chosen!(self, store => store.lookup(id), awaited)
    }

    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        chosen!(self, store => store.watch(id), awaited)
    }

    fn maintain(&self) {
        chosen!(self, store => store.maintain());
    }

    fn capabilities(&self) -> Capabilities {
        chosen!(self, store => store.capabilities())
    }
}

impl Inventory for AnyStore {
    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        chosen!(self, store => store.list(query), awaited)
    }
}

impl SafetyCheck for AnyStore {
    async fn check(&self) -> Result<SafetyReport, StoreError> {
        match self {
            Self::Memory(store) => SafetyCheck::check(store).await,
            Self::Near(store) => SafetyCheck::check(&**store).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => SafetyCheck::check(&**store).await,
            #[cfg(feature = "redis")]
            Self::Redis(store) => SafetyCheck::check(&**store).await,
            #[cfg(feature = "seal")]
            Self::Sealed(store) => SafetyCheck::check(&**store).await,
            #[cfg(feature = "sqlite")]
            Self::Sqlite(store) => SafetyCheck::check(&**store).await,
        }
    }
}
