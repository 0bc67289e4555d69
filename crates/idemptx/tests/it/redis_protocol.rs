//! The Redis store's dialogue, held over a plain connection: scripts and transactions come to the
//! same.
#![cfg(feature = "redis")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "redis_protocol/cases.rs"]
mod cases;
#[path = "redis_protocol/console.rs"]
mod console;
#[path = "redis_protocol/old_server.rs"]
mod old_server;
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "redis_protocol/side_by_side.rs"]
mod side_by_side;
