//! Settling in a transaction that the application has begun, and commits itself.

use std::convert::Infallible;
use std::fmt;
#[cfg(feature = "postgres")]
use std::pin::Pin;

use bytes::Bytes;
use http::{HeaderValue, Response};
use http_body::Body;
use idemptx_core::lease::Lease;
use idemptx_core::record::State;
use idemptx_core::response::{StorableParts, is_live};
use idemptx_core::response_headers::IDEMPOTENCY_OUTCOME;
use idemptx_core::store::{
    Claim, ClaimRequest, ErrorKind, Expected, RecordSnapshot, Settlement, StoreError,
};
use serde::Serialize;

use crate::execution::Execution;
use crate::steps::{KeptStep, StepError};
use crate::store::Transactional;
use crate::tower::{BodyError, Read, ResponseBody, read};

impl Execution {
    /// Settles the operation with its response, in the application's own transaction on the store's
    /// database: when that commits, the operation has happened and has its answer.
    ///
    /// Gives back the response to be returned once the transaction **is committed**; it may be
    /// changed no more.
    /// The transaction is a [`tokio_postgres::Transaction`], for which this is a future, or a
    /// [`rusqlite::Transaction`], for which it is not:
    ///
    /// ```no_run
    /// # #[cfg(feature = "postgres")]
    /// # async fn example(
    /// #     execution: idemptx::Execution,
    /// #     tx: tokio_postgres::Transaction<'_>,
    /// #     response: http::Response<axum::body::Body>,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// let response = execution.settle_in(&tx, response).await?;
    /// tx.commit().await?;
    /// # Ok(()) }
    /// # #[cfg(feature = "sqlite")]
    /// # fn example_of_sqlite(
    /// #     execution: idemptx::Execution,
    /// #     tx: rusqlite::Transaction<'_>,
    /// #     response: http::Response<axum::body::Body>,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// let response = execution.settle_in(&tx, response)?;
    /// tx.commit()?;
    /// # Ok(()) }
    /// ```
    ///
    /// A transaction of PostgreSQL should be at READ COMMITTED, which it is by default: at other
    /// levels it fails whenever the lease was renewed meanwhile.
    ///
    /// It must have settled before the handler returns, in any task.
    ///
    /// # Errors
    ///
    /// After any [`SettleError`] the transaction must be rolled back, and the handler should fail:
    /// the client then gets the result of another execution, if there was one, and may
    /// otherwise try again.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it may have settled or not: roll the transaction back.
    pub fn settle_in<'a, T, B>(
        &'a self,
        transaction: &'a T,
        response: Response<B>,
    ) -> T::Settled<'a, B>
    where
        T: SettleIn,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        transaction.settle(self, response)
    }

    /// Keeps the result of a [step](Self::step) in the application's own transaction on the store's
    /// database, in which the step has done what it does: both are there once that commits.
    ///
    /// [Recall](Self::recall) it first.
    /// As [`settle_in`](Self::settle_in), this is a future for PostgreSQL, and none for SQLite:
    ///
    /// ```no_run
    /// # #[cfg(feature = "postgres")]
    /// # async fn example(
    /// #     execution: idemptx::Execution,
    /// #     client: &mut tokio_postgres::Client,
    /// # ) -> Result<i64, Box<dyn std::error::Error>> {
    /// if let Some(number) = execution.recall("order").await? {
    ///     return Ok(number);
    /// }
    /// let tx = client.transaction().await?;
    /// let insert = "INSERT INTO orders DEFAULT VALUES RETURNING number";
    /// let number: i64 = tx.query_one(insert, &[]).await?.get(0);
    /// execution.step_in(&tx, "order", &number).await?;
    /// tx.commit().await?;
    /// # Ok(number)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// After any [`StepError`] the transaction must be rolled back; after [`StepError::Kept`] the
    /// result of a quicker execution can be recalled.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it may have been kept or not: roll the transaction back.
    pub fn step_in<'a, T: SettleIn, V: Serialize>(
        &'a self,
        transaction: &'a T,
        label: &str,
        value: &V,
    ) -> T::Kept<'a> {
        transaction.keep(self, self.kept_step(label, value))
    }

    fn recorder(&self) -> Result<(&Lease, &dyn Transactional), SettleError> {
        match (self.lease(), self.transactions()) {
            (Some(lease), Some(store)) => Ok((lease, &**store)),
            _ => Err(SettleError::NotTransactional),
        }
    }
}

/// A transaction of the application's that an operation can be settled in; see
/// [`Execution::settle_in`].
pub trait SettleIn: sealed::PrivateSettle {
    /// The result of settling: a response or a [`SettleError`], at once or as a future.
    type Settled<'a, B: 'static>
    where
        Self: 'a;

    /// The result of keeping a step: nothing or a [`StepError`], at once or as a future.
    type Kept<'a>
    where
        Self: 'a;

    #[doc(hidden)]
    fn keep<'a>(
        &'a self,
        execution: &'a Execution,
        step: Result<KeptStep, StepError<Infallible>>,
    ) -> Self::Kept<'a>;

    #[doc(hidden)]
    fn settle<'a, B>(
        &'a self,
        execution: &'a Execution,
        response: Response<B>,
    ) -> Self::Settled<'a, B>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>;
}

mod sealed {
    pub trait PrivateSettle {}

    #[cfg(feature = "postgres")]
    impl PrivateSettle for tokio_postgres::Transaction<'_> {}

    #[cfg(feature = "sqlite")]
    impl PrivateSettle for rusqlite::Transaction<'_> {}
}

#[cfg(feature = "postgres")]
impl SettleIn for tokio_postgres::Transaction<'_> {
    type Settled<'a, B: 'static>
        = Pin<Box<dyn Future<Output = Result<Response<ResponseBody<B>>, SettleError>> + Send + 'a>>
    where
        Self: 'a;

    type Kept<'a>
        = Pin<Box<dyn Future<Output = Result<(), StepError<Infallible>>> + Send + 'a>>
    where
        Self: 'a;

    fn keep<'a>(
        &'a self,
        execution: &'a Execution,
        step: Result<KeptStep, StepError<Infallible>>,
    ) -> Self::Kept<'a> {
        Box::pin(async move {
            let KeptStep { id, request, done } = step?;
            let store = execution.transactions().ok_or(StepError::NotTransactional)?;
            let mut claim = store.claim_in_postgres(self.into(), &id, &request).await?;
            if let Some(takeover) = takeover(&claim, &request) {
                claim = store.claim_in_postgres(self.into(), &id, &takeover).await?;
            }
            match claim {
                Claim::Granted(lease) => {
                    Ok(store.settle_in_postgres(self.into(), &lease, &done).await?)
                }
                _ => Err(StepError::Kept),
            }
        })
    }

    fn settle<'a, B>(
        &'a self,
        execution: &'a Execution,
        response: Response<B>,
    ) -> Self::Settled<'a, B>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        Box::pin(async move {
            let (lease, store) = execution.recorder()?;
            let (done, response) = settlement(execution, response).await?;
            let settling = execution.pending().begin_manual_settlement()?;
            match store.settle_in_postgres(self.into(), lease, &done).await {
                Ok(()) => Ok(response),
                Err(error) => {
                    execution.pending().restore_manual_settlement(settling);
                    Err(error.into())
                }
            }
        })
    }
}

#[cfg(feature = "sqlite")]
impl SettleIn for rusqlite::Transaction<'_> {
    type Settled<'a, B: 'static>
        = Result<Response<ResponseBody<B>>, SettleError>
    where
        Self: 'a;

    type Kept<'a>
        = Result<(), StepError<Infallible>>
    where
        Self: 'a;

    fn keep<'a>(
        &'a self,
        execution: &'a Execution,
        step: Result<KeptStep, StepError<Infallible>>,
    ) -> Self::Kept<'a> {
        let KeptStep { id, request, done } = step?;
        let store = execution.transactions().ok_or(StepError::NotTransactional)?;
        let mut claim = store.claim_in_sqlite(self, &id, &request)?;
        if let Some(takeover) = takeover(&claim, &request) {
            claim = store.claim_in_sqlite(self, &id, &takeover)?;
        }
        match claim {
            Claim::Granted(lease) => Ok(store.settle_in_sqlite(self, &lease, &done)?),
            _ => Err(StepError::Kept),
        }
    }

    fn settle<'a, B>(
        &'a self,
        execution: &'a Execution,
        response: Response<B>,
    ) -> Self::Settled<'a, B>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let (lease, store) = execution.recorder()?;
        let (done, response) = at_once(settlement(execution, response))?;
        let settling = execution.pending().begin_manual_settlement()?;
        match store.settle_in_sqlite(self, lease, &done) {
            Ok(()) => Ok(response),
            Err(error) => {
                execution.pending().restore_manual_settlement(settling);
                Err(error.into())
            }
        }
    }
}

/// Returns the request that takes a step's record over, if a process died between claiming and
/// settling it: there is no result, and the claim lapsed at once.
fn takeover(claim: &Claim, request: &ClaimRequest) -> Option<ClaimRequest> {
    match claim {
        Claim::Found(RecordSnapshot::Held(holder)) => {
            Some(request.clone().expecting(Expected::Orphan(holder.token)))
        }
        _ => None,
    }
}

/// Makes a settlement of a response, and the same response to be returned.
async fn settlement<B>(
    execution: &Execution,
    response: Response<B>,
) -> Result<(Settlement, Response<ResponseBody<B>>), SettleError>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let policy = execution.rules().policy();
    let (mut parts, body) = response.into_parts();
    if is_live(parts.status, &parts.headers, body.size_hint().exact()) {
        return Err(SettleError::NotStorable);
    }
    let whole = match read(Box::pin(body), policy.response_bytes_max as u64, |_| {}).await {
        Read::Whole(whole) => whole,
        Read::TooLarge(..) => return Err(SettleError::NotStorable),
        Read::Broken(_, error) => return Err(SettleError::Body(error)),
    };
    let (body, trailers) = (whole.joined(), whole.trailers());
    let headers = &parts.headers;
    let kept = StorableParts::of(parts.status, headers, &body, trailers, &policy.replay);
    if !kept.is_storable() {
        return Err(SettleError::NotStorable);
    }
    let payload = kept.encode_after(execution.description());
    let done = Settlement::by(policy, State::Completed, payload);
    drop(body);
    parts.headers.insert(IDEMPOTENCY_OUTCOME, HeaderValue::from_static("store"));
    Ok((done, Response::from_parts(parts, ResponseBody::whole(whole))))
}

/// The result of a future that has nothing to wait for.
#[cfg(feature = "sqlite")]
fn at_once<T>(future: impl Future<Output = Result<T, SettleError>>) -> Result<T, SettleError> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(result) => result,
        std::task::Poll::Pending => Err(SettleError::NotReady),
    }
}

/// An operation that is not settled in the application's transaction; roll it back.
#[derive(Debug)]
#[non_exhaustive]
pub enum SettleError {
    /// The operation was taken over, it is settled already, or the transaction is on
    /// another database.
    Fenced(StoreError),
    /// The engine was not made with
    /// [`EngineBuilder::transactional`](crate::EngineBuilder::transactional), or the execution is
    /// not under a claim.
    NotTransactional,
    /// The handler has ended, and the engine settles what it answered: settle before it returns.
    Finished,
    /// The response cannot be kept: it is larger than the policy's `response_bytes_max`, has
    /// thousands of header lines, is informational, or an event stream.
    NotStorable,
    /// The response's body is still being made, which a transaction of SQLite cannot wait for.
    NotReady,
    /// The response's body broke off.
    Body(BodyError),
    /// The record could not be written.
    Store(StoreError),
}

impl From<StoreError> for SettleError {
    fn from(error: StoreError) -> Self {
        match error.kind() {
            ErrorKind::Fenced => Self::Fenced(error),
            _ => Self::Store(error),
        }
    }
}

impl fmt::Display for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fenced(_) => "the operation is no longer this execution's: roll back",
            Self::NotTransactional => {
                "the operation cannot be settled in a transaction: is there a key, and was its \
                 engine made with `EngineBuilder::transactional`?"
            }
            Self::Finished => "the handler has ended: settle before it returns, and roll back",
            Self::NotStorable => "the response is too large to be stored, or cannot be replayed",
            Self::NotReady => "the response's body is not ready",
            Self::Body(_) => "the response's body broke off",
            Self::Store(_) => "the record could not be written in the transaction",
        })
    }
}

impl std::error::Error for SettleError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Fenced(error) | Self::Store(error) => Some(error),
            Self::Body(error) => Some(&**error),
            Self::NotTransactional | Self::Finished | Self::NotStorable | Self::NotReady => None,
        }
    }
}
