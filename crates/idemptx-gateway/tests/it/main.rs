//! Integration tests of the gateway, over real sockets and in one binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

mod alerts;
mod allocations;
mod ambiguity;
mod attacks;
mod beginnings;
mod clients;
mod completions;
mod cut_streams;
mod deployment;
mod differential;
mod ejection;
mod envoy;
mod fleet;
mod grpc_calls;
mod guide;
mod health;
mod identity;
mod idle_clients;
mod inspector;
mod keys;
mod kubernetes;
mod limits;
mod malformed;
#[cfg(feature = "postgres")]
mod migrate;
mod monitoring;
mod openapi;
mod operations;
mod proxying;
mod request_ids;
mod rewriting;
mod running;
mod services;
mod shared_limits;
mod smuggling;
#[cfg(feature = "otel")]
mod traces;
mod trailers;
mod unix_sockets;
mod upgrades;
mod upstream_connections;
mod upstreams;
mod workers;
