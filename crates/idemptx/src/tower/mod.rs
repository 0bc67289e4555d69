//! A [`tower_layer::Layer`] that makes an HTTP service safe to retry: axum, hyper, tonic.
//!
//! ```
//! use axum::{Extension, Json, Router, routing::post};
//! use idemptx::{Engine, Execution, Policy, store::MemoryStore};
//!
//! async fn create_order(execution: Option<Extension<Execution>>) -> Json<&'static str> {
//!     // The key for a call to another system:
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
//! - Inside authentication and rate limits, which must run on every request, replays included.
//! - Inside CORS, which answers preflights itself.
//! - Inside compression, so that stored bytes are not encoded for one client.
//! - Outside all effects that must happen once.
//!
//! Apply it once.
//! Where a request meets a second layer of the same engine, the inner one passes it.
//!
//! # What it does to a request under a key
//!
//! It reads the body to its end, within the policy's limit, and hashes it on the way; claims the
//! record; runs the handler; stores the response; and only then sends it.
//! A response that is larger than the policy's limit, or [live](idemptx_core::response::is_live) as
//! an event stream is, is passed on while it is made, and a retry learns that the operation has
//! happened.
//! A key that such a response releases is held until its body has ended.
//!
//! The [`Outcome`](crate::Outcome) of the exchange is in the response's extensions, and in its
//! [body](ResponseBody::outcome): metrics and logs need no hook.
//! That of a refusal has its [`Rejection`](crate::Rejection), too.
//! Under a key the [`RecordId`](idemptx_core::key::RecordId) is beside it, which logs may name.
//!
//! A handler decides about its response itself with a [`Directive`](crate::Directive) in the
//! response's extensions, or with the field `Idempotency-Outcome: store`, `release` or `unknown`
//! among the headers or trailers, which the layer removes.
//! A value that cannot be read counts as `unknown`, and leaves an
//! [`InvalidDirective`](crate::InvalidDirective) in the response's extensions.
//! What it has decided with [`Execution::set_outcome`](crate::Execution::set_outcome) counts also if
//! it then fails, and of a response that breaks off, `store` and `unknown` count: there is nothing to
//! replay then, and nothing executes again.
//!
//! With [`NotReplayable`] in its extensions, a response is given and never replayed.
//!
//! In shadow mode a handler's panic, and a body that breaks off, reach the layers outside as they
//! would without this layer.
//!
//! # Which task the handler runs in
//!
//! In the task of the request, as without the layer: tracing spans and task-locals of the layers
//! outside are there.
//!
//! When the client leaves, a server drops the request's future.
//! A handler that runs under a key then goes on in a task of the runtime, and its response is
//! stored, so that a retry gets it.
//! Spans and task-locals of the layers *outside* do not move along: after the client has left, the
//! handler runs without them.
//! Code that depends on them to its end, such as a task-local with the user, belongs *inside*:
//!
//! ```
//! # use axum::{Router, extract::Request, middleware::{Next, from_fn}, response::Response};
//! # use idemptx::{Engine, store::MemoryStore};
//! tokio::task_local! { static USER: String; }
//!
//! async fn with_user(request: Request, next: Next) -> Response {
//!     USER.scope("alice".to_owned(), next.run(request)).await
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let engine = Engine::builder(MemoryStore::new()).build()?;
//! // The last layer is the outermost: `with_user` is inside of the engine.
//! let app: Router = Router::new().layer(from_fn(with_user)).layer(engine.layer());
//! # Ok(()) }
//! ```
//!
//! A runtime that shuts down drops the handler, too: the claim lapses into an orphan, which the
//! policy's `on_orphan` deals with.
//! Call [`Engine::drain`](crate::Engine::drain) before.
//!
//! # Bodies that are cut off
//!
//! A body that breaks off claims nothing, and runs nothing.
//! Over HTTP/2 half a body without `Content-Length` can look like a whole one:
//! [`require_end_stream`] tells them apart.
//!
//! # Nested routers
//!
//! The path counts as the client sent it.
//! Inside axum's `Router::nest` the layer takes it from axum's `OriginalUri`, for which it has the
//! feature `axum`, on by default: without that feature, put the layer around the outermost router.

mod body;
mod capture;
mod end_stream;
mod future;
mod layer;
mod live;
mod marker;
mod service;
#[cfg(feature = "spool")]
mod spooling;

pub use self::body::{BodyError, RequestBody, ResponseBody};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use self::body::{Read, read};
pub use self::capture::NotReplayable;
pub use self::end_stream::{EndStreamBody, require_end_stream};
pub use self::future::ResponseFuture;
pub use self::layer::IdempotencyLayer;
pub use self::service::Idempotency;
