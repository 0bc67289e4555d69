//! Middleware that makes an actix-web application safe to retry.
//!
//! ```
//! use actix_web::{App, HttpResponse, web};
//! use idemptx::{Engine, Execution, Policy, store::MemoryStore};
//!
//! async fn create_order(execution: Option<Execution>) -> HttpResponse {
//!     // The key for a call to another system:
//!     let _charge_key = execution.map(|it| it.derive("charge"));
//!     HttpResponse::Created().body("created")
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::builder(MemoryStore::new()).policy(Policy::draft()).build()?;
//! // For `HttpServer::new`, which calls it once for each worker:
//! let app = move || {
//!     App::new().wrap(engine.middleware()).route("/orders", web::post().to(create_order))
//! };
//! # drop(app());
//! # Ok(()) }
//! ```
//!
//! It translates, and decides nothing: a request goes through the [`tower`](crate::tower) layer, whose
//! module says what happens to it, where to put the layer, and how a handler decides about its
//! response.
//! A handler finds its [`Execution`](crate::Execution) as an extractor, and in the request's
//! extensions; what the tower layer leaves in the extensions of a response is in those of actix's.
//!
//! # What is actix's own
//!
//! - **Errors.** In actix an error is a response that has yet to be made. What an inner service
//!   gives as an error under a key is classified, stored and replayed as the response that it makes;
//!   without a key it is passed on as it is.
//!   As everywhere in actix, the middleware outside then meets an error, and not yet a response: so it
//!   does after a handler's panic, which is the refusal `handler-failed`.
//! - **Threads.** A worker of actix has a runtime of one thread, on which the handler goes on when its
//!   client leaves, as a local task that may spawn others.
//!   In a runtime of several threads, where a handler could be moved, requests are answered 500.
//! - **Extensions.** The engine's [`scope`](crate::EngineBuilder::scope) sees of the request's
//!   extensions what [`with_extension`](IdempotencyMiddleware::with_extension) names.
//! - **Trailers.** Actix sends none.
//! - **HTTP/2.** Actix runs each request in a separate task, and notices that its client has left only
//!   when it has something to send: until then a body that flows counts as flowing.
//! - **`Expect: 100-continue`.** Actix' server asks for the body before any middleware runs, so that a
//!   client whose body is too large hears of it only then.

mod bridge;
mod extractor;
mod message;
mod middleware;

pub use self::message::ProtectedBody;
pub use self::middleware::{IdempotencyMiddleware, IdempotencyService};
