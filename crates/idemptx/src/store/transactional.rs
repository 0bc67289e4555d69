//! Stores that can settle within a transaction of the application.

#[cfg(any(feature = "postgres", feature = "sqlite"))]
use std::fmt;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
use idemptx_core::key::RecordId;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use idemptx_core::lease::Lease;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use idemptx_core::store::{Claim, ClaimRequest, ErrorKind, Settlement, StoreError};

#[cfg(feature = "postgres")]
use super::dyn_store::BoxFuture;
#[cfg(feature = "postgres")]
use super::postgres::{OpenTransaction, PostgresTransaction};

/// A store whose records are in the application's own database, so that the record of an operation
/// is committed together with the operation's effects.
///
/// Such an operation happens exactly once; the guide shows
/// [how to use it](https://github.com/idemptx/idemptx/blob/main/docs/guides/exactly-once.md).
/// [`EngineBuilder::transactional`](crate::EngineBuilder::transactional) makes an engine on such a
/// store.
///
/// The default methods forward to the [decorated](Self::decorated) store, and without one they
/// fail: a decorator overrides those whose claims or settlements it changes.
pub trait Transactional: Send + Sync {
    /// The store that this one decorates.
    fn decorated(&self) -> Option<&dyn Transactional> {
        None
    }

    /// Returns true if the store supports transactions in its present configuration; an engine
    /// that requires them is not built otherwise.
    fn is_transactional(&self) -> bool {
        self.decorated().is_some_and(|store| store.is_transactional())
    }

    /// Begins a transaction on a session of the store, at READ COMMITTED.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Full`] when too many are open, [`ErrorKind::Invalid`] when the store is not in
    /// PostgreSQL, and the kinds of [`Store::claim`](idemptx_core::store::Store::claim).
    #[cfg(feature = "postgres")]
    fn begin(&self) -> BoxFuture<'_, Result<OpenTransaction, StoreError>> {
        match self.decorated() {
            Some(store) => store.begin(),
            None => Box::pin(std::future::ready(Err(elsewhere("PostgreSQL")))),
        }
    }

    /// Claims as [`Store::claim`](idemptx_core::store::Store::claim) does, in a transaction: the
    /// claim takes effect with the commit, and other claims of the record wait for that.
    ///
    /// # Errors
    ///
    /// As `Store::claim`; after any of them the transaction must be rolled back.
    /// [`ErrorKind::Invalid`] when the store is not in PostgreSQL.
    #[cfg(feature = "postgres")]
    fn claim_in_postgres<'a>(
        &'a self,
        transaction: PostgresTransaction<'a>,
        id: &'a RecordId,
        request: &'a ClaimRequest,
    ) -> BoxFuture<'a, Result<Claim, StoreError>> {
        match self.decorated() {
            Some(store) => store.claim_in_postgres(transaction, id, request),
            None => Box::pin(std::future::ready(Err(elsewhere("PostgreSQL")))),
        }
    }

    /// Settles as [`Store::settle`](idemptx_core::store::Store::settle) does, in a transaction: the
    /// settlement takes effect with the commit.
    ///
    /// Unlike there, an existing settlement is [`ErrorKind::Fenced`] even under the lease's own
    /// token: its effects were committed with it, and must not be committed again.
    ///
    /// # Errors
    ///
    /// As `Store::settle`; after any of them the transaction must be rolled back.
    /// [`ErrorKind::Invalid`] when the store is not in PostgreSQL.
    #[cfg(feature = "postgres")]
    fn settle_in_postgres<'a>(
        &'a self,
        transaction: PostgresTransaction<'a>,
        lease: &'a Lease,
        done: &'a Settlement,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        match self.decorated() {
            Some(store) => store.settle_in_postgres(transaction, lease, done),
            None => Box::pin(std::future::ready(Err(elsewhere("PostgreSQL")))),
        }
    }

    /// Claims as [`claim_in_postgres`](#method.claim_in_postgres) does, on the store's SQLite file.
    ///
    /// # Errors
    ///
    /// As [`Store::claim`](idemptx_core::store::Store::claim); after any of them the transaction
    /// must be rolled back.
    /// [`ErrorKind::Invalid`] when the transaction is not on the store's file.
    #[cfg(feature = "sqlite")]
    fn claim_in_sqlite(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        match self.decorated() {
            Some(store) => store.claim_in_sqlite(transaction, id, request),
            None => Err(elsewhere("SQLite")),
        }
    }

    /// Settles as [`settle_in_postgres`](#method.settle_in_postgres) does, on the store's SQLite
    /// file.
    ///
    /// # Errors
    ///
    /// As [`Store::settle`](idemptx_core::store::Store::settle); after any of them the transaction
    /// must be rolled back.
    /// [`ErrorKind::Invalid`] when the transaction is not on the store's file.
    #[cfg(feature = "sqlite")]
    fn settle_in_sqlite(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<(), StoreError> {
        match self.decorated() {
            Some(store) => store.settle_in_sqlite(transaction, lease, done),
            None => Err(elsewhere("SQLite")),
        }
    }
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
fn elsewhere(database: &'static str) -> StoreError {
    StoreError::with_source(ErrorKind::Invalid, Elsewhere(database))
}

/// A transaction in a database that does not hold the store's records.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[derive(Debug)]
struct Elsewhere(&'static str);

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store's records are not in {}", self.0)
    }
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl std::error::Error for Elsewhere {}
