//! Integration tests of the engine and its stores, in one binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

#[cfg(feature = "actix")]
mod actix;
#[cfg(feature = "actix")]
mod actix_server;
#[cfg(feature = "axum")]
mod allocations;
#[cfg(feature = "seal")]
mod conformance_decorated;
mod conformance_memory;
#[cfg(feature = "postgres")]
mod conformance_postgres;
#[cfg(feature = "redis")]
mod conformance_redis;
#[cfg(feature = "sqlite")]
mod conformance_sqlite;
mod driver;
mod engine_run;
#[cfg(all(feature = "redis", feature = "postgres"))]
mod fault_schedules;
#[cfg(all(feature = "redis", feature = "postgres", feature = "sqlite"))]
mod model;
mod near;
#[cfg(all(feature = "redis", feature = "postgres", feature = "sqlite"))]
mod operators;
#[cfg(all(feature = "postgres", feature = "redis"))]
mod passwords;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
mod postgres_locks;
#[cfg(feature = "axum")]
mod random_stacks;
#[cfg(feature = "redis")]
mod redis_cluster;
#[cfg(feature = "redis")]
mod redis_engine;
#[cfg(feature = "redis")]
mod redis_failover;
#[cfg(feature = "redis")]
mod redis_faults;
#[cfg(feature = "redis")]
mod redis_listing;
#[cfg(feature = "redis")]
mod redis_protocol;
#[cfg(feature = "redis")]
mod redis_sentinel;
#[cfg(all(feature = "seal", feature = "sqlite"))]
mod sealed;
mod steps;
#[cfg(all(feature = "postgres", feature = "redis"))]
mod store_connections;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod store_load;
mod tower_layer;
#[cfg(all(feature = "axum", feature = "postgres", feature = "seal", feature = "sqlite"))]
mod transactional;
