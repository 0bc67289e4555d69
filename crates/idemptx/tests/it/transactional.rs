//! Operations that happen exactly once: their effects and their records are committed together.
#![cfg(all(feature = "axum", feature = "postgres", feature = "seal", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "support/http.rs"]
mod http_client;
#[path = "support/postgres_server.rs"]
mod postgres_server;

#[path = "transactional/by_hand.rs"]
mod by_hand;
#[path = "transactional/commit.rs"]
mod commit;
#[cfg(feature = "seal")]
#[path = "transactional/decorated.rs"]
mod decorated;
#[path = "transactional/extractor.rs"]
mod extractor;
#[path = "transactional/killed.rs"]
mod killed;
#[path = "transactional/processes.rs"]
mod processes;
#[path = "transactional/proxy.rs"]
mod proxy;
#[path = "transactional/shop.rs"]
mod shop;
#[path = "transactional/steps.rs"]
mod steps;
