//! What a real PostgreSQL can do to the store, and what the store makes of it.
#![cfg(feature = "postgres")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "support/authority.rs"]
mod authority;
#[path = "postgres/behind_a_pooler.rs"]
mod behind_a_pooler;
#[path = "postgres/contention.rs"]
mod contention;
#[path = "postgres/crashes.rs"]
mod crashes;
#[path = "postgres/faults.rs"]
mod faults;
#[path = "postgres/full_disk.rs"]
mod full_disk;
#[path = "support/pooler.rs"]
mod pooler;
#[path = "support/postgres_server.rs"]
mod postgres_server;
#[path = "postgres/server_settings.rs"]
mod server_settings;
#[path = "support/small_disk.rs"]
mod small_disk;
#[path = "postgres/standby.rs"]
mod standby;
#[path = "postgres/steps.rs"]
mod steps;
#[path = "postgres/tables.rs"]
mod tables;
#[path = "postgres/wake_ups.rs"]
mod wake_ups;
#[path = "support/wire.rs"]
mod wire;
