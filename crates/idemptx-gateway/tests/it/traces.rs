//! Traces as a collector gets them, over OTLP.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "traces/collector.rs"]
mod collector;
#[path = "traces/context.rs"]
mod context;
#[path = "traces/exporting.rs"]
mod exporting;
#[path = "traces/requests.rs"]
mod requests;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "gateway/support/mod.rs"]
mod support;

use std::net::SocketAddr;

use collector::Collector;
use http::Request;
use http_body_util::Full;
use support::{Running, send, simple, started};

/// A gateway in front of one upstream whose traces go to a collector; `more` goes into its route.
async fn traced(upstream: SocketAddr, collector: &Collector, more: &str) -> Running {
    started(&format!("{}{}", simple(upstream, more), collector.table())).await
}

/// What the gateway tells operators in numbers.
async fn metrics(admin: SocketAddr) -> String {
    let request = Request::get("/metrics").body(Full::default()).unwrap();
    send(admin, request).await.text().to_owned()
}

const SHARED: &str = "policy = { scope = \"shared\" }";
