//! The stores that come with this crate; the contract is [`idemptx_core::store::Store`].
//!
//! | store | seen by | survives | for |
//! |---|---|---|---|
//! | [`MemoryStore`] | one process | nothing | tests, and services of a single process |
//! | [`PostgresStore`](postgres::PostgresStore) | every process | a crash of the process, of PostgreSQL and of its host | fleets whose operations must never run twice |
//! | [`RedisStore`](redis::RedisStore) | every process | a crash of the process; of Redis as far as its configuration goes | fleets |
//! | [`SqliteStore`](sqlite::SqliteStore) | every process of a host | a crash of the process and of the machine | services on one host |
//!
//! [`AnyStore::from_url`] picks one at run time.
//!
//! Around any of them goes [`near`], which answers retries without a round trip, and `seal`
//! (feature `seal`), which lets no store see a response.

mod any;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod connection;
mod dyn_store;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod listing;
mod memory;
pub mod near;
mod notifier;
#[cfg(test)]
mod notifier_tests;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod per_runtime;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis-protocol")]
pub mod redis;
mod safety;
#[cfg(feature = "seal")]
pub mod seal;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod server_access;
#[cfg(feature = "sqlite")]
pub mod sqlite;
mod transactional;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod url_settings;

// Named here for the files that tests compile once more, with those of shuttle in their place.
use std::sync;
use tokio::sync as tasks;

pub use self::any::{AnyStore, StoreKind, UnknownStore};
pub use self::dyn_store::BoxFuture;
pub use self::memory::{MemoryStore, MemoryStoreBuilder};
pub use self::safety::{Finding, SafetyCheck, SafetyReport, Severity};
pub use self::transactional::Transactional;
