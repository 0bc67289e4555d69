//! The processor for Envoy's filter `envoy.filters.http.ext_proc`, instead of the gateway's own
//! forwarding.
//!
//! Envoy opens a call for each request and sends it in phases, each of which waits for an answer:
//!
//! ```text
//! request headers ─▶ route, key ─▶ none: the call ends, Envoy goes on alone
//!       │ continue
//! request body ────▶ claim ─────▶ replay, 409, 422, 503 …: an immediate response
//!       │ continue                 (for Envoy the request goes to the service only now)
//! response headers ▶ a local reply: was anything sent?
//!       │ continue
//! response body ───▶ settled ───▶ continue: Envoy sends what it has kept to the client
//! ```
//!
//! To the engine, Envoy is a handler: one that is called by answering the phase that holds the
//! request, and whose response is the next phase. So nothing here makes protocol decisions.
//!
//! # Security
//!
//! A call that ends without an error, or an answer out of turn, makes Envoy go on without the
//! processor. So every failure ends a call with an error, and only [`Dialogue`] answers.

#[cfg(any(test, fuzzing))]
pub(crate) mod calls;
mod dialogue;
mod grpc;
mod handler;
mod messages;
mod processor;
mod server;
mod translate;

use self::dialogue::Dialogue;
pub(crate) use self::server::ExtProcServer;

#[cfg(test)]
mod tests;
