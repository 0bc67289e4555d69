//! Traces, for OpenTelemetry: where one request's time went, here and behind us.
//!
//! ```text
//! POST /orders/**      the client's request, to the head of its answer; child of the client's span
//!  ├─ claim            a step of the store
//!  ├─ POST             a request to one address of the upstream, which is told of this span
//!  └─ settle
//! ```
//!
//! A request's own task carries the span of the request along as OpenTelemetry's current context
//! ([`Trail`]).
//! What runs under a key has a task of its own: its trail travels with the request that is handed
//! to it, and the steps that follow it, on whichever thread, are known by their lease.
//!
//! Without the feature `otel` all of this is [`absent`], and costs nothing.
//!
//! # Security
//!
//! No key, query, header's value or body is in a span.

#[cfg(not(feature = "otel"))]
mod absent;
#[cfg(feature = "otel")]
mod export;
#[cfg(feature = "otel")]
mod leases;
#[cfg(feature = "otel")]
mod spans;
#[cfg(feature = "otel")]
mod trail;

#[cfg(not(feature = "otel"))]
pub(crate) use self::absent::{Sending, Traces, Trail};
#[cfg(feature = "otel")]
pub(crate) use self::spans::{Sending, Traces};
#[cfg(feature = "otel")]
pub(crate) use self::trail::Trail;
