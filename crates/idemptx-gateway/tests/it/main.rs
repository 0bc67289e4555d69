//! The gateway over real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod ambiguity;
mod health;
mod identity;
mod limits;
mod malformed;
mod proxying;
#[path = "../../../idemptx/tests/support/redis_server.rs"]
mod redis_server;
mod running;
mod support;
