//! Steps of the store within a transaction of the application.

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::{Record, State};
use idemptx_core::store::{
    Claim, ClaimRequest, ErrorKind, Expected, RecordSnapshot, Settlement, StoreError,
};
use tokio_postgres::Row;

use super::postgres_failure::PostgresFailure;
use super::postgres_store::{PostgresStore, decode_row, granted};
use super::row::{RowState, RowStatus, kept_millis, term_millis};
use super::runtime_pool::FIRST_ATTEMPT;
use super::statement::{Parameter, Sql};
use super::transaction::{OpenTransaction, PostgresTransaction};
use crate::store::{BoxFuture, Transactional};
use crate::time_limit::limited_or;

impl Transactional for PostgresStore {
    fn is_transactional(&self) -> bool {
        true
    }

    fn begin(&self) -> BoxFuture<'_, Result<OpenTransaction, StoreError>> {
        Box::pin(async { Ok(self.pool()?.begin().await?) })
    }

    fn claim_in_postgres<'a>(
        &'a self,
        transaction: PostgresTransaction<'a>,
        id: &'a RecordId,
        request: &'a ClaimRequest,
    ) -> BoxFuture<'a, Result<Claim, StoreError>> {
        Box::pin(self.limited(self.claim_within(transaction, id, request)))
    }

    fn settle_in_postgres<'a>(
        &'a self,
        transaction: PostgresTransaction<'a>,
        lease: &'a Lease,
        done: &'a Settlement,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            if matches!(done.state, State::Running | State::ResponseExpired) {
                return Err(ErrorKind::Invalid.into());
            }
            self.limited(self.settle_within(transaction, lease, done)).await
        })
    }
}

impl PostgresStore {
    /// Limits a step to the time of a command.
    async fn limited<T>(
        &self,
        step: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let limit = self.connector.timeouts.command;
        let late = || PostgresFailure::timed_out(self.connector.server(), limit).into();
        limited_or(limit, step, late).await
    }

    /// Claims a free record, or takes over an expired one.
    async fn claim_within(
        &self,
        transaction: PostgresTransaction<'_>,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        let failed = |error| self.connector.failed(error);
        let record = Record::running(&Lease::granted(*id, request, 0, FIRST_ATTEMPT)).encode();
        let (term, retain) = (term_millis(request.term), kept_millis(request.retain));
        let (named, token) = (&id.as_bytes()[..], &request.token.as_bytes()[..]);
        if let Some(expected) = request.expected {
            let (state, former): (&str, &[u8]) = match &expected {
                Expected::Orphan(former) => ("orphan", former.as_bytes()),
                Expected::Settled(former) => ("settled", former.as_bytes()),
            };
            let parameters: [Parameter<'_>; 7] =
                [&named, &former, &state, &token, &record, &term, &retain];
            let rows = transaction.ask(&self.connector.texts, Sql::TakeOver, &parameters).await;
            if let Some(row) = rows.map_err(failed)?.first() {
                let (fence, attempt) = granted(row).ok_or_else(|| self.unexpected())?;
                return Ok(Claim::Granted(Lease::granted(*id, request, fence, attempt)));
            }
        }
        let parameters: [Parameter<'_>; 5] = [&named, &token, &record, &term, &retain];
        let rows = transaction.ask(&self.connector.texts, Sql::ClaimOne, &parameters).await;
        let rows = rows.map_err(failed)?;
        let row = rows.first().ok_or_else(|| self.contended())?;
        if let Some((fence, attempt)) = granted_first(row) {
            return Ok(Claim::Granted(Lease::granted(*id, request, fence, attempt)));
        }
        if row.try_get("expired").unwrap_or(false) {
            let former: [Parameter<'_>; 7] =
                [&named, &&b""[..], &"expired", &token, &record, &term, &retain];
            let rows = transaction.ask(&self.connector.texts, Sql::TakeOver, &former).await;
            let rows = rows.map_err(failed)?;
            let row = rows.first().ok_or_else(|| self.contended())?;
            let (fence, attempt) = granted(row).ok_or_else(|| self.unexpected())?;
            return Ok(Claim::Granted(Lease::granted(*id, request, fence, attempt)));
        }
        Ok(match decode_row(RowState::read(row).ok_or_else(|| self.unexpected())?, id)? {
            RowStatus::Held { record, .. } if record.token == request.token => {
                Claim::Granted(record.lease())
            }
            RowStatus::Held { record, remaining } => {
                Claim::Found(RecordSnapshot::Held(RowStatus::holder(&record, remaining)))
            }
            RowStatus::Settled(record) => Claim::Found(RecordSnapshot::Settled(record)),
        })
    }

    async fn settle_within(
        &self,
        transaction: PostgresTransaction<'_>,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<(), StoreError> {
        let (texts, server) = (&self.connector.texts, self.connector.server());
        let channel = self.connector.layout.channel();
        let settled = transaction.settle(texts, channel, lease, done).await;
        if settled.map_err(|error| self.connector.failed(error))? {
            return Ok(());
        }
        let rows = transaction.ask(texts, Sql::Lookup, &[&&lease.id.as_bytes()[..]]).await;
        let rows = rows.map_err(|error| self.connector.failed(error))?;
        let Some(row) = rows.first() else { return Err(PostgresFailure::no_record(server).into()) };
        match decode_row(RowState::read(row).ok_or_else(|| self.unexpected())?, &lease.id)? {
            RowStatus::Held { record, .. } if record.token == lease.token => {
                Err(match transaction.is_own() {
                    true => PostgresFailure::ended_by_hand(server).into(),
                    // Claimed after the settlement had missed it, by a claim that was sent twice.
                    false => self.contended(),
                })
            }
            // Also if it was this very execution: what it does in another transaction it would do
            // again.
            _ => Err(ErrorKind::Fenced.into()),
        }
    }
}

fn granted_first(row: &Row) -> Option<(u64, u32)> {
    let fence = row.try_get::<_, Option<i64>>("fence").ok()??;
    Some((u64::try_from(fence).ok()?, FIRST_ATTEMPT))
}
