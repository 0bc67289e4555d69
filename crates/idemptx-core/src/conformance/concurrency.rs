//! Cases of concurrent steps, which must have the result of some sequential order.

use super::Harness;
use super::case::{Case, done, fenced, held_by, held_live_by, settled_as};
use super::join::{join, join_all, poll_once};
use super::report::Verdict::Passed;
use super::report::{Outcome, Violation, ensure};
use crate::lease::Lease;
use crate::store::{Claim, ClaimRequest, Expected, RecordSnapshot, Store, StoreError};

impl<H: Harness> Case<'_, H> {
    pub(super) async fn one_of_many_claims_is_granted(&self) -> Outcome {
        let id = self.id();
        let requests: Vec<ClaimRequest> = (0..MANY).map(|_| self.request()).collect();
        let claims =
            join_all(requests.iter().map(|request| self.store().claim(&id, request))).await;
        let owner = the_one_granted(&claims)?;
        for claim in &claims {
            if let Ok(Claim::Found(RecordSnapshot::Held(holder))) = claim {
                held_live_by(holder, owner)?;
            }
        }
        held_live_by(&self.seen_held(&id).await?, owner)?;
        Ok(Passed)
    }

    pub(super) async fn a_claim_sent_many_times_at_once_is_one(&self) -> Outcome {
        let (id, request) = (self.id(), self.request());
        let leases = join_all((0..MANY).map(|_| self.granted(&id, &request))).await;
        let leases = leases.into_iter().collect::<Result<Vec<_>, _>>()?;
        for pair in leases.windows(2) {
            if let [one, other] = pair {
                ensure!(one == other, "one claim, two leases: {one:?} and {other:?}");
            }
        }
        Ok(Passed)
    }

    pub(super) async fn one_of_many_takeovers_is_granted(&self) -> Outcome {
        let id = self.id();
        let orphan = self.orphan(&id).await?;
        let requests: Vec<ClaimRequest> =
            (0..MANY).map(|_| self.request().expecting(Expected::Orphan(orphan.token))).collect();
        let claims =
            join_all(requests.iter().map(|request| self.store().claim(&id, request))).await;
        let owner = the_one_granted(&claims)?;
        ensure!(owner.attempt == 2, "the second attempt is {}", owner.attempt);
        ensure!(owner.fence > orphan.fence, "the fence {} follows {}", owner.fence, orphan.fence);
        held_live_by(&self.seen_held(&id).await?, owner)?;
        Ok(Passed)
    }

    /// The first one wins, and the other gets a fitting answer.
    pub(super) async fn a_settlement_and_a_takeover_at_once_are_one_after_the_other(
        &self,
    ) -> Outcome {
        for round in 0..ROUNDS {
            let id = self.id();
            let former = self.orphan(&id).await?;
            let (request, late) =
                (self.request().expecting(Expected::Orphan(former.token)), done("late"));
            let settle = self.store().settle(&former, &late);
            let claim = self.store().claim(&id, &request);
            let (settled, claimed) = if round % 2 == 0 {
                join(settle, claim).await
            } else {
                let (claimed, settled) = join(claim, settle).await;
                (settled, claimed)
            };
            match claimed {
                Ok(Claim::Found(RecordSnapshot::Settled(record))) => {
                    ensure!(settled.is_ok(), "neither the settlement nor the takeover won");
                    settled_as(&record, &former, &late)?;
                }
                Ok(Claim::Granted(owner)) => {
                    ensure!(owner.attempt == 2, "the second attempt is {}", owner.attempt);
                    fenced("settle", settled)?;
                    held_live_by(&self.seen_held(&id).await?, &owner)?;
                    fenced("settle", self.store().settle(&former, &late).await)?;
                }
                other => return Err(Violation(format!("an orphan is not taken over: {other:?}"))),
            }
        }
        Ok(Passed)
    }

    pub(super) async fn a_settlement_and_a_release_at_once_do_not_both_count(&self) -> Outcome {
        for round in 0..ROUNDS {
            let id = self.id();
            let lease = self.granted(&id, &self.request()).await?;
            let result = done("result");
            let settle = self.store().settle(&lease, &result);
            let release = self.store().release(&lease);
            let (settled, released) = if round % 2 == 0 {
                join(settle, release).await
            } else {
                let (released, settled) = join(release, settle).await;
                (settled, released)
            };
            if settled.is_ok() {
                fenced("release", released)?;
                settled_as(&self.seen_settled(&id).await?, &lease, &result)?;
            } else {
                fenced("settle", settled)?;
                ensure!(released.is_ok(), "both were refused; the release with {released:?}");
                self.absent(&id).await?;
            }
        }
        Ok(Passed)
    }

    pub(super) async fn every_step_gets_its_own_answer(&self) -> Outcome {
        let passages = join_all((0..MANY).map(|_| passage(self))).await;
        passages.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(Passed)
    }

    pub(super) async fn steps_that_are_dropped_harm_nothing(&self) -> Outcome {
        for _ in 0..ROUNDS {
            let (id, request) = (self.id(), self.request());
            poll_once(self.store().claim(&id, &request)).await;
            passage(self).await?;
            // The dropped claim may be in force or not; with its own token it is granted either way.
            let lease = self.granted(&id, &request).await?;
            poll_once(self.store().lookup(&id)).await;
            passage(self).await?;
            poll_once(self.store().renew(&lease)).await;
            passage(self).await?;
            held_by(&self.seen_held(&id).await?, &lease)?;
            let result = done(*request.token.as_bytes());
            poll_once(self.store().settle(&lease, &result)).await;
            passage(self).await?;
            self.settle(&lease, &result).await?;
            settled_as(&self.seen_settled(&id).await?, &lease, &result)?;
            let other = self.granted(&self.id(), &self.request()).await?;
            poll_once(self.store().release(&other)).await;
            passage(self).await?;
            self.release(&other).await?;
        }
        Ok(Passed)
    }
}

/// A whole life of one record, every answer of which must be about that record.
async fn passage<H: Harness>(case: &Case<'_, H>) -> Result<(), Violation> {
    let (id, request) = (case.id(), case.request());
    case.absent(&id).await?;
    let lease = case.granted(&id, &request).await?;
    held_live_by(&case.held(&id, &case.request()).await?, &lease)?;
    let lease = case.renew(&lease).await?;
    let result = done(*request.token.as_bytes());
    case.settle(&lease, &result).await?;
    settled_as(&case.settled(&id, &case.request()).await?, &lease, &result)
}

/// The lease of the only claim that was granted; the others must have been refused.
fn the_one_granted(claims: &[Result<Claim, StoreError>]) -> Result<&Lease, Violation> {
    let mut owner = None;
    for claim in claims {
        match claim {
            Ok(Claim::Granted(lease)) => {
                ensure!(owner.is_none(), "two claims at once were granted");
                owner = Some(lease);
            }
            Ok(Claim::Found(RecordSnapshot::Held(_))) => {}
            other => return Err(Violation(format!("a claim among many came to {other:?}"))),
        }
    }
    owner.ok_or_else(|| Violation("none of the claims at once was granted".to_owned()))
}

const MANY: usize = 64;
const ROUNDS: u32 = 8;
