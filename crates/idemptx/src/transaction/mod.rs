//! Exactly once: what a handler does in a transaction of the store's own database, and the record
//! of it, are committed together.
//!
//! [The guide](https://github.com/idemptx/idemptx/blob/main/docs/guides/exactly-once.md) tells when
//! to use what.

#[cfg(all(feature = "tower", any(feature = "postgres", feature = "sqlite")))]
mod by_hand;
mod effects;
#[cfg(all(feature = "axum", feature = "postgres"))]
mod extract;
#[cfg(feature = "postgres")]
mod idempotent;

#[cfg(all(feature = "tower", any(feature = "postgres", feature = "sqlite")))]
pub use self::by_hand::{SettleError, SettleIn};
pub(crate) use self::effects::{Effects, PendingEffects};
#[cfg(all(feature = "axum", feature = "postgres"))]
pub use self::extract::NoTransaction;
#[cfg(all(feature = "axum", feature = "postgres"))]
pub(crate) use self::extract::Unclaimed;
#[cfg(feature = "postgres")]
pub use self::idempotent::{IdempotentTransaction, TransactionError};
