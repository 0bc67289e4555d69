//! What a real PostgreSQL can do to the store, and what the store makes of it.
#![cfg(feature = "postgres")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "postgres/contention.rs"]
mod contention;
#[path = "postgres/faults.rs"]
mod faults;
#[path = "support/postgres_server.rs"]
mod postgres_server;
#[path = "postgres/server_settings.rs"]
mod server_settings;
#[path = "postgres/standby.rs"]
mod standby;
#[path = "postgres/steps.rs"]
mod steps;
#[path = "postgres/tables.rs"]
mod tables;
#[path = "postgres/wake_ups.rs"]
mod wake_ups;
