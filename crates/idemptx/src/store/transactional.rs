//! Stores that can settle within the application's own transaction.

#[cfg(any(feature = "postgres", feature = "sqlite"))]
use std::fmt;
#[cfg(feature = "postgres")]
use std::future::Future;
#[cfg(feature = "postgres")]
use std::pin::Pin;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
use idemptx_core::key::RecordId;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use idemptx_core::lease::Lease;
use idemptx_core::store::Store;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use idemptx_core::store::{Claim, ClaimRequest, ErrorKind, Settlement, StoreError};

#[cfg(feature = "postgres")]
use super::postgres::{OpenTransaction, PostgresTransaction};

/// A store whose records are in the application's own database, so that an operation's record is
/// committed together with what the operation did.
///
/// That makes it happen exactly once; the guide tells
/// [how to use it](https://github.com/idemptx/idemptx/blob/main/docs/guides/exactly-once.md).
/// An engine on such a store is made with
/// [`EngineBuilder::transactional`](crate::EngineBuilder::transactional).
///
/// A store around another one implements each method by doing to the settlement what it does in
/// [`Store::settle`], and calling the inner store's.
/// The defaults say that the store is in no database of that kind.
pub trait Transactional: Store {
    /// Whether this store can, as it is configured; an engine that should is not built otherwise.
    fn is_transactional(&self) -> bool {
        true
    }

    /// Begins a transaction on a session of the store's own, at READ COMMITTED.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Full`] when too many are open, [`ErrorKind::Invalid`] when the store is not in
    /// PostgreSQL, and the kinds of [`Store::claim`].
    #[cfg(feature = "postgres")]
    fn begin(&self) -> impl Future<Output = Result<OpenTransaction, StoreError>> + Send {
        std::future::ready(Err(elsewhere("PostgreSQL")))
    }

    /// Claims as [`Store::claim`] does, in a transaction: it counts once that is committed, and
    /// until then whoever claims the same record waits.
    ///
    /// # Errors
    ///
    /// As [`Store::claim`]; after any of them the transaction must be rolled back.
    /// [`ErrorKind::Invalid`] when the store is not in PostgreSQL.
    #[cfg(feature = "postgres")]
    fn claim_in_postgres(
        &self,
        transaction: PostgresTransaction<'_>,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> impl Future<Output = Result<Claim, StoreError>> + Send {
        let _ = (transaction, id, request);
        std::future::ready(Err(elsewhere("PostgreSQL")))
    }

    /// Settles as [`Store::settle`] does, in a transaction: it counts once that is committed.
    ///
    /// Unlike there, a settlement that is there already is [`ErrorKind::Fenced`], also if it has
    /// the lease's own token: what belongs to it was committed with it, and must not be again.
    ///
    /// # Errors
    ///
    /// As [`Store::settle`]; after any of them the transaction must be rolled back.
    /// [`ErrorKind::Invalid`] when the store is not in PostgreSQL.
    #[cfg(feature = "postgres")]
    fn settle_in_postgres(
        &self,
        transaction: PostgresTransaction<'_>,
        lease: &Lease,
        done: &Settlement,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        let _ = (transaction, lease, done);
        std::future::ready(Err(elsewhere("PostgreSQL")))
    }

    /// Claims as [`Store::claim`] does, in a transaction: it counts once that is committed.
    ///
    /// # Errors
    ///
    /// As [`Store::claim`]; after any of them the transaction must be rolled back.
    /// [`ErrorKind::Invalid`] when the transaction is not on the store's file.
    #[cfg(feature = "sqlite")]
    fn claim_in_sqlite(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        let _ = (transaction, id, request);
        Err(elsewhere("SQLite"))
    }

    /// Settles as [`Store::settle`] does, in a transaction: it counts once that is committed.
    ///
    /// Unlike there, a settlement that is there already is [`ErrorKind::Fenced`], also if it has
    /// the lease's own token: what belongs to it was committed with it, and must not be again.
    ///
    /// # Errors
    ///
    /// As [`Store::settle`]; after any of them the transaction must be rolled back.
    /// [`ErrorKind::Invalid`] when the transaction is not on the store's file.
    #[cfg(feature = "sqlite")]
    fn settle_in_sqlite(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<(), StoreError> {
        let _ = (transaction, lease, done);
        Err(elsewhere("SQLite"))
    }
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) fn elsewhere(database: &'static str) -> StoreError {
    StoreError::with_source(ErrorKind::Invalid, Elsewhere(database))
}

/// A transaction of a database that the store is not in.
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

/// A [`Transactional`] store of whatever kind, as an execution knows it.
pub(crate) trait AnyTransactional: Send + Sync {
    #[cfg(feature = "postgres")]
    fn begin(&self) -> Answered<'_, OpenTransaction>;

    #[cfg(feature = "postgres")]
    fn claim_in_postgres<'a>(
        &'a self,
        transaction: PostgresTransaction<'a>,
        id: &'a RecordId,
        request: &'a ClaimRequest,
    ) -> Answered<'a, Claim>;

    #[cfg(feature = "postgres")]
    fn settle_in_postgres<'a>(
        &'a self,
        transaction: PostgresTransaction<'a>,
        lease: &'a Lease,
        done: &'a Settlement,
    ) -> Answered<'a, ()>;

    #[cfg(feature = "sqlite")]
    fn claim_in_sqlite(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Claim, StoreError>;

    #[cfg(feature = "sqlite")]
    fn settle_in_sqlite(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<(), StoreError>;
}

/// The answer of such a store.
#[cfg(feature = "postgres")]
pub(crate) type Answered<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

impl<S: Transactional> AnyTransactional for S {
    #[cfg(feature = "postgres")]
    fn begin(&self) -> Answered<'_, OpenTransaction> {
        Box::pin(Transactional::begin(self))
    }

    #[cfg(feature = "postgres")]
    fn claim_in_postgres<'a>(
        &'a self,
        transaction: PostgresTransaction<'a>,
        id: &'a RecordId,
        request: &'a ClaimRequest,
    ) -> Answered<'a, Claim> {
        Box::pin(Transactional::claim_in_postgres(self, transaction, id, request))
    }

    #[cfg(feature = "postgres")]
    fn settle_in_postgres<'a>(
        &'a self,
        transaction: PostgresTransaction<'a>,
        lease: &'a Lease,
        done: &'a Settlement,
    ) -> Answered<'a, ()> {
        Box::pin(Transactional::settle_in_postgres(self, transaction, lease, done))
    }

    #[cfg(feature = "sqlite")]
    fn claim_in_sqlite(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        Transactional::claim_in_sqlite(self, transaction, id, request)
    }

    #[cfg(feature = "sqlite")]
    fn settle_in_sqlite(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<(), StoreError> {
        Transactional::settle_in_sqlite(self, transaction, lease, done)
    }
}
