//! Makes HTTP APIs safe to retry.

pub mod store;
