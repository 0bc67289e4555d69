//! Makes HTTP APIs safe to retry.
//!
//! A client sends `Idempotency-Key`: the first request runs the handler, every retry gets the same
//! answer, byte for byte, and nothing is executed twice.
//!
//! # In five steps
//!
//! **1. Choose a store.**
//! [`MemoryStore`](store::MemoryStore) for one process, SQLite for the processes of one host,
//! Redis for a fleet, or [`AnyStore::from_url`](store::AnyStore::from_url) to leave it to the
//! configuration.
//!
//! **2. Choose a policy.**
//! [`Policy::draft`] follows the IETF draft; [`Policy::stripe`], [`Policy::payments`] and
//! [`Policy::idemptx`] are other starting points.
//! Say whose keys they are: by default a key is bound to the `Authorization` it was first used
//! with; [`EngineBuilder::scope`] takes the tenant from what authentication has verified.
//!
//! ```
//! use std::time::Duration;
//! use idemptx::{Engine, Policy, Scope, store::MemoryStore};
//!
//! #[derive(Clone)]
//! struct Tenant(String); // put into the extensions by authentication
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let policy = Policy::draft().into_builder().wait(Duration::from_secs(5)).build()?;
//! let engine = Engine::builder(MemoryStore::new())
//!     .policy(policy)
//!     .scope(|request| request.extensions.get().map(|Tenant(name)| Scope::new(name)))
//!     .build()?;
//! # Ok(()) }
//! ```
//!
//! **3. Put the layer around your service**, inside authentication: [`Engine::layer`], see
//! [`tower`]; for actix-web there is middleware, with the feature `actix`.
//! For jobs and messages there is [`Engine::run`].
//!
//! **4. Ask the store what it promises**, at start: [`Engine::check`].
//!
//! **5. Let it end**: when the server has stopped, [`Engine::drain`] waits for handlers whose
//! clients have gone.
//!
//! **Exactly once**, where a handler's effect is in the store's own database: what it does and its
//! record are committed together. See [`EngineBuilder::transactional`].
//!
//! A person decides about operations that are left in doubt: [`operator`].
//!
//! # What happens to a request under a key
//!
//! | under the key is | the same request | another request |
//! |---|---|---|
//! | nothing | is executed | is executed |
//! | a running execution | waits, or 409 `in-progress` | 422 `key-reused` |
//! | an execution that ended without a result | is executed again, or 409 `outcome-unknown` | 422 |
//! | a response | gets it again | 422; may replace a stored 400 or 422 |
//! | a response that was not kept | 409 `result-unavailable` | 422 |
//! | no verdict of the store | 503 `store-unavailable` | 503 |
//!
//! Responses with 5xx and with statuses such as 401, 409 and 429 give the key up: the next request
//! executes. A handler can say otherwise with `Idempotency-Outcome: store`, `release` or
//! `unknown`.
//!
//! # Features
//!
//! The memory store and the tower layer need none. A feature adds API and changes no behaviour.
//!
//! | feature | adds | pulls in |
//! |---|---|---|
//! | `actix` | the [middleware](actix) for actix-web, `Execution` as an extractor of it | `actix-web` |
//! | `axum` | `Execution` and `IdempotentTransaction` (with `postgres`) as axum extractors | `axum` |
//! | `conformance` | the test suite for your own store | |
//! | `postgres` | the PostgreSQL store, settlement in a `tokio-postgres` transaction | `tokio-postgres`, `rustls` |
//! | `redis` | the Redis and Valkey store | `redis`, `rustls` |
//! | `redis-protocol` | the commands and replies of that store, for your own Redis client | |
//! | `seal` | encrypted responses in the store | `chacha20poly1305`, `zstd` |
//! | `spool` | request bodies in temporary files above a size limit | `tempfile` |
//! | `sqlite` | the SQLite store, settlement in a `rusqlite` transaction | `rusqlite`, with SQLite linked statically |
//! | `tracing` | a span around each execution, an event with each outcome, metrics in its fields | `tracing` |

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "actix")]
pub mod actix;
mod run;
mod steps;

mod detachable;
mod drive;
mod engine;
mod execution;
mod lease_renewer;
pub mod operator;
mod retry;
mod single_flight;
#[cfg(feature = "spool")]
mod spool;
pub mod store;
mod time_limit;
mod tokens;
pub mod tower;
mod transaction;

pub use idemptx_core::exchange::{Directive, InvalidDirective, ProbeResult};
pub use idemptx_core::fingerprint::Fingerprint;
pub use idemptx_core::key::{Key, RecordId, Scope};
pub use idemptx_core::lease::Token;
pub use idemptx_core::outcome::{Bypass, Code, Outcome, Rejection};
pub use idemptx_core::policy::{
    ConfigError, KeySpace, OnOrphan, OnPanic, Policy, PolicyBuilder, Profile, ScopeRule,
};
pub use idemptx_core::problem::Problem;
pub use idemptx_core::response::StoredResponse;

pub use self::engine::{
    CheckError, Completed, Engine, EngineBuilder, EngineError, Load, Orphan, RouteBuilder,
};
pub use self::execution::Execution;
#[cfg(any(feature = "actix", feature = "axum"))]
pub use self::execution::NoExecution;
pub use self::operator::Operator;
pub use self::run::RunError;
#[cfg(feature = "spool")]
pub use self::spool::Spool;
pub use self::steps::StepError;
pub use self::tower::IdempotencyLayer;
#[cfg(all(feature = "axum", feature = "postgres"))]
pub use self::transaction::NoTransaction;
#[cfg(feature = "postgres")]
pub use self::transaction::{IdempotentTransaction, TransactionError};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use self::transaction::{SettleError, SettleIn};

/// The tutorial's examples are compiled as tests.
#[cfg(all(doctest, feature = "sqlite"))]
#[doc = include_str!("../../../docs/get-started/axum.md")]
struct AxumTutorial;

#[cfg(all(doctest, feature = "actix", feature = "sqlite"))]
#[doc = include_str!("../../../docs/get-started/actix.md")]
struct ActixTutorial;

/// So is the guide for operators.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guides/operators.md")]
struct OperatorsGuide;

/// So are the guide's.
#[cfg(all(doctest, feature = "axum", feature = "postgres", feature = "sqlite"))]
#[doc = include_str!("../../../docs/guides/exactly-once.md")]
struct ExactlyOnce;

/// So are those of the guide to the stores.
#[cfg(all(doctest, feature = "redis", feature = "seal"))]
#[doc = include_str!("../../../docs/guides/stores.md")]
struct Stores;
