//! The transaction that the engine ends for a handler.

use std::fmt;
use std::sync::Arc;

use idemptx_core::store::StoreError;
use tokio::sync::MappedMutexGuard;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use crate::execution::Execution;
use crate::store::postgres::OpenTransaction;

/// A transaction on the store's own PostgreSQL database, which the engine commits together with the
/// operation's record once the handler has succeeded, and rolls back otherwise.
///
/// With the feature `axum` it is an extractor:
///
/// ```no_run
/// # #[cfg(feature = "axum")]
/// # mod handler {
/// use axum::http::StatusCode;
/// use idemptx::{IdempotentTransaction, TransactionError};
///
/// # struct AppError;
/// # impl From<TransactionError> for AppError { fn from(_: TransactionError) -> Self { Self } }
/// # impl axum::response::IntoResponse for AppError {
/// #     fn into_response(self) -> axum::response::Response {
/// #         StatusCode::INTERNAL_SERVER_ERROR.into_response()
/// #     }
/// # }
/// async fn create_order(tx: IdempotentTransaction, item: String) -> Result<StatusCode, AppError> {
///     tx.execute("INSERT INTO orders (item) VALUES ($1)", &[&item]).await?;
///     Ok(StatusCode::CREATED)
/// }
/// # }
/// ```
///
/// Elsewhere [`Execution::begin`] gives it.
///
/// It is committed after a response with a status below 400 that the policy stores, even when the
/// client has gone; in all other cases nothing of it remains.
/// A commit whose answer is lost is found out about: the client gets the stored response if there
/// is one, and may try again if there is none.
///
/// It begins at READ COMMITTED, under the settings of the server and of the role, and nothing that
/// it changes of its session remains for the next.
/// A statement that commits it or rolls it back makes the execution fail.
pub struct IdempotentTransaction {
    open: Arc<OpenTransaction>,
    execution: Execution,
}

impl IdempotentTransaction {
    pub(crate) const fn new(open: Arc<OpenTransaction>, execution: Execution) -> Self {
        Self { open, execution }
    }

    /// The execution that it is part of.
    #[must_use]
    pub const fn execution(&self) -> &Execution {
        &self.execution
    }

    /// Runs a statement, and returns the number of rows that it changed.
    ///
    /// # Errors
    ///
    /// [`TransactionError::Database`] with the server's answer, after which nothing more can be
    /// done in the transaction; [`TransactionError::Finished`] once it has ended.
    ///
    /// # Cancel safety
    ///
    /// The statement may have been run or not.
    pub async fn execute(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, TransactionError> {
        Ok(self.client().await?.execute(statement, parameters).await?)
    }

    /// Runs a statement, and gives its rows.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute).
    ///
    /// # Cancel safety
    ///
    /// As [`execute`](Self::execute).
    pub async fn query(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, TransactionError> {
        Ok(self.client().await?.query(statement, parameters).await?)
    }

    /// Runs a statement that has exactly one row, and gives it.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute), and for another number of rows.
    ///
    /// # Cancel safety
    ///
    /// As [`execute`](Self::execute).
    pub async fn query_one(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, TransactionError> {
        Ok(self.client().await?.query_one(statement, parameters).await?)
    }

    /// Runs a statement that has one row at most, and gives it.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute), and for more rows.
    ///
    /// # Cancel safety
    ///
    /// As [`execute`](Self::execute).
    pub async fn query_opt(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, TransactionError> {
        Ok(self.client().await?.query_opt(statement, parameters).await?)
    }

    /// Runs statements without parameters, separated by semicolons.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute).
    ///
    /// # Cancel safety
    ///
    /// As [`execute`](Self::execute).
    ///
    /// # Security
    ///
    /// Nothing is escaped: values from a client belong into the parameters of
    /// [`execute`](Self::execute).
    pub async fn batch_execute(&self, statements: &str) -> Result<(), TransactionError> {
        Ok(self.client().await?.batch_execute(statements).await?)
    }

    /// Undoes everything, so that the handler's response is settled without it; another transaction
    /// may then be begun.
    ///
    /// # Cancel safety
    ///
    /// It is rolled back all the same.
    pub async fn rollback(self) {
        self.execution.pending().rolled_back();
        self.open.roll_back().await;
    }

    async fn client(&self) -> Result<MappedMutexGuard<'_, Client>, TransactionError> {
        self.open.client().await.ok_or(TransactionError::Finished)
    }
}

impl Execution {
    /// Begins a transaction on the store's own database, which the engine ends.
    ///
    /// # Errors
    ///
    /// [`TransactionError::NotTransactional`] unless the engine is
    /// [transactional](crate::EngineBuilder::transactional),
    /// [`TransactionError::Begun`] while the execution has one already, and
    /// [`TransactionError::Store`] if none can be begun now.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves none.
    pub async fn begin(&self) -> Result<IdempotentTransaction, TransactionError> {
        let store = self.transactions().ok_or(TransactionError::NotTransactional)?;
        let open = self.pending().begin(store).await?;
        Ok(IdempotentTransaction::new(open, self.clone()))
    }
}

impl fmt::Debug for IdempotentTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotentTransaction")
            .field("execution", &self.execution)
            .finish_non_exhaustive()
    }
}

/// A transaction that cannot go on, or cannot be begun.
#[derive(Debug)]
#[non_exhaustive]
pub enum TransactionError {
    /// The engine was not made with
    /// [`EngineBuilder::transactional`](crate::EngineBuilder::transactional), or the execution is
    /// not under a claim.
    NotTransactional,
    /// The execution has a transaction already.
    Begun,
    /// The transaction, or the handler, has ended.
    Finished,
    /// The transaction could not be begun.
    Store(StoreError),
    /// The database refused a statement.
    Database(tokio_postgres::Error),
}

impl fmt::Display for TransactionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotTransactional => {
                "the execution can have no transaction: is there a key, and was its engine made \
                 with `EngineBuilder::transactional`?"
            }
            Self::Begun => "the execution has a transaction already",
            Self::Finished => "the transaction has ended",
            Self::Store(_) => "no transaction can be begun now",
            Self::Database(_) => "the database refused a statement",
        })
    }
}

impl std::error::Error for TransactionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Database(error) => Some(error),
            Self::NotTransactional | Self::Begun | Self::Finished => None,
        }
    }
}

impl From<tokio_postgres::Error> for TransactionError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error)
    }
}
