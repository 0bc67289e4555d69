//! The black-box suite: the same tests for every target application, over real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod concurrency;
mod crashes;
mod endpoints;
mod front_doors;
mod on_redis;
mod policy;
mod processes;
mod refusals;
mod replay;
mod startup;
mod store_faults;
mod upgrades;
