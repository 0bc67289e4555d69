//! The store that keeps its records in PostgreSQL.

mod batch;
mod check;
mod connection;
mod failure;
mod hub;
mod layout;
mod migration;
mod notify;
mod row;
mod settings;
mod statement;
mod store;

pub use self::settings::{InvalidSetting, SynchronousCommit};
pub use self::store::{PostgresStore, PostgresStoreBuilder};
