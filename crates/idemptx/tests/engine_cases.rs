//! The engine between a client that leaves, a handler that needs its task, and a slow store.
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
#[path = "support/scripted_body.rs"]
mod scripted_body;
#[path = "support/told_store.rs"]
mod told_store;

#[path = "engine_cases/callers_task.rs"]
mod callers_task;
#[path = "engine_cases/clients_that_leave.rs"]
mod clients_that_leave;
#[path = "engine_cases/front_door.rs"]
mod front_door;
#[path = "engine_cases/outcomes.rs"]
mod outcomes;

use idemptx::store::MemoryStore;
