//! Transactions of the application's, whichever store its records are in.

#[cfg(any(feature = "postgres", feature = "sqlite"))]
use idemptx_core::key::RecordId;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use idemptx_core::lease::Lease;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use idemptx_core::store::{Claim, ClaimRequest, Settlement, StoreError};

use super::{AnyStore, BoxedStore};
#[cfg(feature = "postgres")]
use crate::store::postgres::{OpenTransaction, PostgresTransaction};
#[cfg(feature = "postgres")]
use crate::store::transactional::AnyTransactional;
use crate::store::transactional::Transactional;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use crate::store::transactional::elsewhere;

/// Calls the chosen store, if it is in the database of the transaction or has one beneath it that
/// may be.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
macro_rules! chosen {
    ($any:expr, $kind:ident, $database:literal, $store:ident => $call:expr $(, $awaited:tt)?) => {
        match $any {
            AnyStore::$kind($store) => $call $(.$awaited)?,
            AnyStore::Near($store) => $call $(.$awaited)?,
            #[cfg(feature = "seal")]
            AnyStore::Sealed($store) => $call $(.$awaited)?,
            _ => Err(elsewhere($database)),
        }
    };
}

impl Transactional for AnyStore {
    fn is_transactional(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Near(store) => store.is_transactional(),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.is_transactional(),
            #[cfg(feature = "redis")]
            Self::Redis(_) => false,
            #[cfg(feature = "seal")]
            Self::Sealed(store) => store.is_transactional(),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(store) => store.is_transactional(),
        }
    }

    #[cfg(feature = "postgres")]
    async fn begin(&self) -> Result<OpenTransaction, StoreError> {
        chosen!(self, Postgres, "PostgreSQL", store => Transactional::begin(&**store), await)
    }

    #[cfg(feature = "postgres")]
    async fn claim_in_postgres(
        &self,
        transaction: PostgresTransaction<'_>,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        chosen!(self, Postgres, "PostgreSQL", store => {
            Transactional::claim_in_postgres(&**store, transaction, id, request)
        }, await)
    }

    #[cfg(feature = "postgres")]
    async fn settle_in_postgres(
        &self,
        transaction: PostgresTransaction<'_>,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<(), StoreError> {
        chosen!(self, Postgres, "PostgreSQL", store => {
            Transactional::settle_in_postgres(&**store, transaction, lease, done)
        }, await)
    }

    #[cfg(feature = "sqlite")]
    fn claim_in_sqlite(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        chosen!(self, Sqlite, "SQLite", store => {
            Transactional::claim_in_sqlite(&**store, transaction, id, request)
        })
    }

    #[cfg(feature = "sqlite")]
    fn settle_in_sqlite(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<(), StoreError> {
        chosen!(self, Sqlite, "SQLite", store => {
            Transactional::settle_in_sqlite(&**store, transaction, lease, done)
        })
    }
}

/// By way of [`AnyTransactional`], whose futures are boxed and have no type of their own.
impl Transactional for BoxedStore {
    fn is_transactional(&self) -> bool {
        self.get().is_transactional()
    }

    #[cfg(feature = "postgres")]
    async fn begin(&self) -> Result<OpenTransaction, StoreError> {
        AnyTransactional::begin(self.get()).await
    }

    #[cfg(feature = "postgres")]
    async fn claim_in_postgres(
        &self,
        transaction: PostgresTransaction<'_>,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        AnyTransactional::claim_in_postgres(self.get(), transaction, id, request).await
    }

    #[cfg(feature = "postgres")]
    async fn settle_in_postgres(
        &self,
        transaction: PostgresTransaction<'_>,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<(), StoreError> {
        AnyTransactional::settle_in_postgres(self.get(), transaction, lease, done).await
    }

    #[cfg(feature = "sqlite")]
    fn claim_in_sqlite(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        Transactional::claim_in_sqlite(self.get(), transaction, id, request)
    }

    #[cfg(feature = "sqlite")]
    fn settle_in_sqlite(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<(), StoreError> {
        Transactional::settle_in_sqlite(self.get(), transaction, lease, done)
    }
}
