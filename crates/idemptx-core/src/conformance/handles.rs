//! Two handles of one store, as two processes hold them: each sees what the other did.

use super::Harness;
use super::case::{Case, done, fenced, held_live_by, settled_as};
use super::join::join;
use super::report::Verdict::{Passed, Skipped};
use super::report::{Outcome, Verdict, Violation, ensure};
use crate::key::RecordId;
use crate::store::{Claim, ClaimRequest, Expected, RecordSnapshot, Store};

impl<H: Harness> Case<'_, H> {
    pub(super) async fn a_claim_holds_against_the_other_handle(&self) -> Outcome {
        let Some(other) = self.other_handle() else { return Ok(ONE_HANDLE) };
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        let claim = other.claim(&id, &self.request()).await;
        ensure!(!matches!(claim, Ok(Claim::Granted(_))), "the other handle was granted the record");
        match other.lookup(&id).await {
            Ok(Some(RecordSnapshot::Held(holder))) => held_live_by(&holder, &lease)?,
            found => return Err(Violation(format!("the other handle finds {found:?}"))),
        }
        Ok(Passed)
    }

    pub(super) async fn a_result_is_found_through_the_other_handle(&self) -> Outcome {
        let Some(other) = self.other_handle() else { return Ok(ONE_HANDLE) };
        let id = self.id();
        // The other handle must not answer from what it saw before the settlement.
        ensure!(matches!(other.lookup(&id).await, Ok(None)), "a new record is found");
        let (lease, result) = self.done(&id).await?;
        match other.lookup(&id).await {
            Ok(Some(RecordSnapshot::Settled(record))) => settled_as(&record, &lease, &result)?,
            found => return Err(Violation(format!("the other handle finds {found:?}"))),
        }
        Ok(Passed)
    }

    pub(super) async fn a_release_frees_the_key_for_the_other_handle(&self) -> Outcome {
        let Some(other) = self.other_handle() else { return Ok(ONE_HANDLE) };
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        ensure!(matches!(other.lookup(&id).await, Ok(Some(_))), "the other handle finds no claim");
        self.release(&lease).await?;
        let claim = other.claim(&id, &self.request()).await;
        ensure!(matches!(claim, Ok(Claim::Granted(_))), "a released key is not granted: {claim:?}");
        Ok(Passed)
    }

    pub(super) async fn claims_through_both_handles_at_once_are_granted_once(&self) -> Outcome {
        let Some(other) = self.other_handle() else { return Ok(ONE_HANDLE) };
        for _ in 0..ROUNDS {
            let id: RecordId = self.id();
            let (here, there) = (self.request(), self.request());
            let claims = join(self.store().claim(&id, &here), other.claim(&id, &there)).await;
            let granted = |claim: &Result<Claim, _>| matches!(claim, Ok(Claim::Granted(_)));
            let count = usize::from(granted(&claims.0)) + usize::from(granted(&claims.1));
            ensure!(count == 1, "{count} of two claims at once were granted: {claims:?}");
        }
        Ok(Passed)
    }

    pub(super) async fn takeovers_through_both_handles_at_once_are_granted_once(&self) -> Outcome {
        let Some(other) = self.other_handle() else { return Ok(ONE_HANDLE) };
        let id = self.id();
        let mut former = self.orphan(&id).await?;
        for _ in 0..ROUNDS {
            let takeover = || ClaimRequest {
                term: self.tick(),
                ..self.request().expecting(Expected::Orphan(former.token))
            };
            let (here, there) = (takeover(), takeover());
            let claims = join(self.store().claim(&id, &here), other.claim(&id, &there)).await;
            let lease = match &claims {
                (Ok(Claim::Granted(lease)), Ok(Claim::Found(RecordSnapshot::Held(_))))
                | (Ok(Claim::Found(RecordSnapshot::Held(_))), Ok(Claim::Granted(lease))) => lease,
                _ => return Err(Violation(format!("two takeovers at once came to {claims:?}"))),
            };
            ensure!(
                lease.fence > former.fence,
                "the fence {} follows {}",
                lease.fence,
                former.fence
            );
            former = lease.clone();
            self.lapsed(&id).await?;
        }
        Ok(Passed)
    }

    /// The first one wins, and the other gets a fitting answer.
    pub(super) async fn a_settlement_and_a_takeover_through_both_handles_are_one_after_the_other(
        &self,
    ) -> Outcome {
        let Some(other) = self.other_handle() else { return Ok(ONE_HANDLE) };
        for _ in 0..ROUNDS {
            let id = self.id();
            let former = self.orphan(&id).await?;
            let (takeover, late) =
                (self.request().expecting(Expected::Orphan(former.token)), done("late"));
            let (settled, claim) =
                join(self.store().settle(&former, &late), other.claim(&id, &takeover)).await;
            match claim {
                Ok(Claim::Granted(lease)) => {
                    fenced("settle", settled)?;
                    held_live_by(&self.seen_held(&id).await?, &lease)?;
                }
                Ok(Claim::Found(RecordSnapshot::Settled(record))) => {
                    ensure!(settled.is_ok(), "the settlement is there, and failed: {settled:?}");
                    settled_as(&record, &former, &late)?;
                }
                found => return Err(Violation(format!("the takeover came to {found:?}"))),
            }
        }
        Ok(Passed)
    }

    pub(super) async fn a_release_and_a_renewal_through_both_handles_are_one_after_the_other(
        &self,
    ) -> Outcome {
        let Some(other) = self.other_handle() else { return Ok(ONE_HANDLE) };
        for _ in 0..ROUNDS {
            let id = self.id();
            let lease = self.granted(&id, &self.request()).await?;
            let (released, renewed) = join(self.store().release(&lease), other.renew(&lease)).await;
            ensure!(released.is_ok(), "the owner cannot release: {released:?}");
            if let Err(error) = renewed {
                fenced("renew", Err::<(), _>(error))?;
            }
            self.absent(&id).await?;
        }
        Ok(Passed)
    }

    pub(super) async fn a_watch_ends_after_a_settlement_through_the_other_handle(&self) -> Outcome {
        let Some(other) = self.other_handle() else { return Ok(ONE_HANDLE) };
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        let Some(watch) = self.store().watch(&id).await else {
            return Ok(Skipped("the store cannot watch"));
        };
        let settled = other.settle(&lease, &done("result")).await;
        ensure!(settled.is_ok(), "the owner cannot settle through the other handle: {settled:?}");
        self.watch_ends(watch).await?;
        Ok(Passed)
    }
}

const ONE_HANDLE: Verdict = Skipped("the harness has one handle of the store");
/// The tries for cases that depend on how the store interleaves two steps.
const ROUNDS: usize = 20;
