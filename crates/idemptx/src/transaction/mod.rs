//! Exactly once: what a handler does in a transaction of the store's own database, and the record
//! of it, are committed together.
//!
//! [The guide](https://github.com/idemptx/idemptx/blob/main/docs/guides/exactly-once.md) compares
//! the ways.

#[cfg(all(feature = "axum", feature = "postgres"))]
mod extract;
#[cfg(feature = "postgres")]
mod idempotent;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod manual;
mod pending;

#[cfg(all(feature = "axum", feature = "postgres"))]
pub use self::extract::NoTransaction;
#[cfg(feature = "postgres")]
pub use self::idempotent::{IdempotentTransaction, TransactionError};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use self::manual::{SettleError, SettleIn};
pub(crate) use self::pending::{Effects, PendingEffects};
