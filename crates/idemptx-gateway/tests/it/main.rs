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
mod ambiguity;
mod attacks;
mod clients;
mod deployment;
mod differential;
mod envoy;
mod fleet;
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
mod rewriting;
mod running;
mod services;
mod smuggling;
#[cfg(feature = "otel")]
mod traces;
mod trailers;
mod upgrades;
mod upstreams;
