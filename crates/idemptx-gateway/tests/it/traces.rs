//! Traces as a collector gets them, over OTLP.

mod collector;
mod context;
mod exporting;
mod requests;

use std::net::SocketAddr;

use collector::Collector;
use http::Request;
use http_body_util::Full;

use crate::support::in_process::{Running, send, simple, started};

/// A gateway in front of one upstream whose traces go to a collector; `more` goes into its route.
async fn traced(upstream: SocketAddr, collector: &Collector, more: &str) -> Running {
    started(&format!("{}{}", simple(upstream, more), collector.table())).await
}

/// Returns the metrics page.
async fn metrics(admin: SocketAddr) -> String {
    let request = Request::get("/metrics").body(Full::default()).unwrap();
    send(admin, request).await.text().to_owned()
}

const SHARED: &str = "policy = { scope = \"shared\" }";
