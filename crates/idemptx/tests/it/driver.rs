//! One engine, clients that leave, and a store that fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "support/app.rs"]
mod app;
#[path = "support/http.rs"]
mod http_client;
#[path = "support/told_store.rs"]
mod told_store;

#[path = "driver/blocking.rs"]
mod blocking;
#[path = "driver/claims.rs"]
mod claims;
#[path = "driver/duplicates.rs"]
mod duplicates;
#[path = "driver/limits.rs"]
mod limits;
#[path = "driver/orphans.rs"]
mod orphans;
#[path = "driver/secrets.rs"]
mod secrets;
#[path = "driver/settling.rs"]
mod settling;

use idemptx::store::MemoryStore;
