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
//! ([`TraceContext`]).
//! What runs under a key has a task of its own: its trail travels with the request that is handed
//! to it, and the steps that follow it, on whichever thread, are known by their lease.
//!
//! Without the feature `otel` all of this is [`disabled`], and costs nothing.
//!
//! # Security
//!
//! No key, query, header's value or body is in a span.

#[cfg(feature = "otel")]
mod context;
#[cfg(not(feature = "otel"))]
mod disabled;
#[cfg(feature = "otel")]
mod export;
#[cfg(feature = "otel")]
mod lease_spans;
#[cfg(feature = "otel")]
mod spans;

#[cfg(feature = "otel")]
pub(crate) use self::context::TraceContext;
#[cfg(not(feature = "otel"))]
pub(crate) use self::disabled::{TraceContext, Tracer, UpstreamSpan};
#[cfg(feature = "otel")]
pub(crate) use self::spans::{Tracer, UpstreamSpan};
