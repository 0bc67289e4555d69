//! What operators see of a running gateway, and do to it, over its admin listener.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "support/client.rs"]
mod client;
#[path = "support/operated.rs"]
mod gateway;
#[path = "support/redis.rs"]
mod redis;
#[path = "support/upstream.rs"]
mod upstream;

#[path = "operations/access.rs"]
mod access;
#[path = "operations/log.rs"]
mod log;
#[path = "operations/probes.rs"]
mod probes;
#[path = "operations/records.rs"]
mod records;
