//! A [`tower_layer::Layer`] that makes an HTTP service safe to retry: axum, hyper, tonic.
//!
//! ```
//! use axum::{Extension, Json, Router, routing::post};
//! use idemptx::{Engine, Execution, Policy, store::MemoryStore};
//!
//! async fn create_order(execution: Option<Extension<Execution>>) -> Json<&'static str> {
//!     // Pass a key of your own on to the systems you call:
//!     let _charge_key = execution.map(|Extension(it)| it.derive("charge"));
//!     Json("created")
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::builder(MemoryStore::new()).policy(Policy::draft()).build()?;
//! let app: Router = Router::new()
//!     .route("/orders", post(create_order))
//!     .layer(engine.layer());
//! # Ok(()) }
//! ```
//!
//! # Where to put it
//!
//! Inside authentication and rate limits, which must run on every request, replays included.
//! Inside CORS, which answers preflights itself.
//! Inside compression, so that stored bytes are not encoded for one client.
//! Outside everything whose effects must happen once.
//!
//! # What it does to a request under a key
//!
//! The body is read to its end, within the policy's limit, and hashed on the way; the record is
//! claimed; the handler runs in a task of its own, which a client that leaves does not cancel; its
//! response is stored and only then sent.
//! A response that is larger than the policy's limit, or an event stream, is passed through live,
//! and a retry is told that the operation happened.
//!
//! How the exchange ended stands in the response's extensions, as an
//! [`Outcome`](crate::Outcome): metrics and logs need no hook.
//! Under a key the [`RecordId`](idemptx_core::key::RecordId) is beside it, which logs may name.

mod body;
mod future;
mod layer;
mod service;
#[cfg(feature = "spool")]
mod spooling;

pub use self::body::{BodyError, RequestBody, ResponseBody};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use self::body::{Read, read};
pub use self::future::ResponseFuture;
pub use self::layer::IdempotencyLayer;
pub use self::service::Idempotency;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use self::service::is_live;
