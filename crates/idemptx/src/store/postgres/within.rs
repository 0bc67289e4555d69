//! The store's steps within a transaction of somebody else's.

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::{Record, State};
use idemptx_core::store::{Claim, ClaimRequest, ErrorKind, RecordSnapshot, Settlement, StoreError};
use tokio::time::timeout;
use tokio_postgres::Row;

use super::failure::Failure;
use super::hub::FIRST_ATTEMPT;
use super::row::{Found, RowStatus, kept_millis, term_millis};
use super::statement::{Parameter, Sql};
use super::store::{PostgresStore, granted, standing};
use super::transaction::{OpenTransaction, PostgresTransaction};
use crate::store::Transactional;

impl Transactional for PostgresStore {
    async fn begin(&self) -> Result<OpenTransaction, StoreError> {
        Ok(self.hub()?.begin().await?)
    }

    async fn claim_in_postgres(
        &self,
        transaction: PostgresTransaction<'_>,
        id: &RecordId,
        claim_request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        let patience = self.dial.timeouts.command;
        match timeout(patience, self.claim_within(transaction, id, claim_request)).await {
            Ok(claimed) => claimed,
            Err(_) => Err(Failure::timed_out(self.dial.server(), patience).into()),
        }
    }

    async fn settle_in_postgres(
        &self,
        transaction: PostgresTransaction<'_>,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<(), StoreError> {
        if matches!(done.state, State::Running | State::ResponseExpired) {
            return Err(ErrorKind::Invalid.into());
        }
        let patience = self.dial.timeouts.command;
        let settling = self.settle_within(transaction, lease, done);
        match timeout(patience, settling).await {
            Ok(settled) => settled,
            Err(_) => Err(Failure::timed_out(self.dial.server(), patience).into()),
        }
    }
}

impl PostgresStore {
    /// Claims what nobody else has claimed, or takes over what has expired.
    async fn claim_within(
        &self,
        transaction: PostgresTransaction<'_>,
        id: &RecordId,
        claim_request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        let failed = |error| self.dial.failed(error);
        let record =
            Record::running(&Lease::granted(*id, claim_request, 0, FIRST_ATTEMPT)).encode();
        let (term, retain) = (term_millis(claim_request.term), kept_millis(claim_request.retain));
        let (named, token) = (&id.as_bytes()[..], &claim_request.token.as_bytes()[..]);
        let parameters: [Parameter<'_>; 5] = [&named, &token, &record, &term, &retain];
        let rows = transaction.ask(&self.dial.texts, Sql::ClaimOne, &parameters).await;
        let rows = rows.map_err(failed)?;
        let row = rows.first().ok_or_else(|| self.contended())?;
        if let Some((fence, attempt)) = granted_first(row) {
            return Ok(Claim::Granted(Lease::granted(*id, claim_request, fence, attempt)));
        }
        if row.try_get("expired").unwrap_or(false) {
            let former: [Parameter<'_>; 7] =
                [&named, &&b""[..], &"expired", &token, &record, &term, &retain];
            let rows = transaction.ask(&self.dial.texts, Sql::TakeOver, &former).await;
            let rows = rows.map_err(failed)?;
            let row = rows.first().ok_or_else(|| self.contended())?;
            let (fence, attempt) = granted(row).ok_or_else(|| self.unexpected())?;
            return Ok(Claim::Granted(Lease::granted(*id, claim_request, fence, attempt)));
        }
        Ok(match standing(Found::read(row).ok_or_else(|| self.unexpected())?, id)? {
            RowStatus::Held { record, .. } if record.token == claim_request.token => {
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
        let (texts, server) = (&self.dial.texts, self.dial.server());
        let channel = self.dial.layout.channel();
        let settled = transaction.settle(texts, channel, lease, done).await;
        if settled.map_err(|error| self.dial.failed(error))? {
            return Ok(());
        }
        let rows = transaction.ask(texts, Sql::Lookup, &[&&lease.id.as_bytes()[..]]).await;
        let rows = rows.map_err(|error| self.dial.failed(error))?;
        let Some(row) = rows.first() else { return Err(Failure::no_record(server).into()) };
        match standing(Found::read(row).ok_or_else(|| self.unexpected())?, &lease.id)? {
            RowStatus::Held { record, .. } if record.token == lease.token => {
                Err(match transaction.is_own() {
                    true => Failure::ended_by_hand(server).into(),
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
