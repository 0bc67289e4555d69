//! OpenTelemetry traces: the time that a request spends in the gateway, the store and the upstream.
//!
//! ```text
//! POST /orders/**      the client's request, up to the response's head; child of the client's span
//!  ├─ claim            a store operation
//!  ├─ POST             a request to one upstream address, which receives this span's context
//!  └─ settle
//! ```
//!
//! The request's span is OpenTelemetry's current context in the request's task ([`TraceContext`]).
//! Requests under a key may run in another task: the context is attached to the request, and later
//! store operations, on any thread, find their parent by the lease.
//!
//! Without the feature `otel` the module [`disabled`] replaces all of this at no cost.
//!
//! # Security
//!
//! Spans contain no key, query, header value or body.

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
