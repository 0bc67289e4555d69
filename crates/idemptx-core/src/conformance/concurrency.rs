//! Steps under way at once are as good as one after the other.

use super::Harness;
use super::join::{join, join_all, poll_once};
use super::report::Verdict::Passed;
use super::report::{Broken, Outcome, ensure};
use super::trial::{Trial, done, fenced, held_by, held_live_by, settled_as};
use crate::lease::Lease;
use crate::store::{Claim, ClaimRequest, Expected, RecordSnapshot, Store, StoreError};

pub(super) async fn one_of_many_claims_is_granted<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let claim_requests: Vec<ClaimRequest> = (0..MANY).map(|_| trial.claim_request()).collect();
    let claims = join_all(
        claim_requests.iter().map(|claim_request| trial.store().claim(&id, claim_request)),
    )
    .await;
    let owner = the_one_granted(&claims)?;
    for claim in &claims {
        if let Ok(Claim::Found(RecordSnapshot::Held(holder))) = claim {
            held_live_by(holder, owner)?;
        }
    }
    held_live_by(&trial.seen_held(&id).await?, owner)?;
    Ok(Passed)
}

pub(super) async fn a_claim_sent_many_times_at_once_is_one<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let (id, claim_request) = (trial.id(), trial.claim_request());
    let leases = join_all((0..MANY).map(|_| trial.granted(&id, &claim_request))).await;
    let leases = leases.into_iter().collect::<Result<Vec<_>, _>>()?;
    for pair in leases.windows(2) {
        if let [one, other] = pair {
            ensure!(one == other, "one claim, two leases: {one:?} and {other:?}");
        }
    }
    Ok(Passed)
}

pub(super) async fn one_of_many_takeovers_is_granted<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let orphan = trial.orphan(&id).await?;
    let claim_requests: Vec<ClaimRequest> = (0..MANY)
        .map(|_| trial.claim_request().expecting(Expected::Orphan(orphan.token)))
        .collect();
    let claims = join_all(
        claim_requests.iter().map(|claim_request| trial.store().claim(&id, claim_request)),
    )
    .await;
    let owner = the_one_granted(&claims)?;
    ensure!(owner.attempt == 2, "the second attempt is {}", owner.attempt);
    ensure!(owner.fence > orphan.fence, "the fence {} follows {}", owner.fence, orphan.fence);
    held_live_by(&trial.seen_held(&id).await?, owner)?;
    Ok(Passed)
}

/// Whoever comes first wins, and the other is told so.
pub(super) async fn a_settlement_and_a_takeover_at_once_are_one_after_the_other<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    for round in 0..ROUNDS {
        let id = trial.id();
        let former = trial.orphan(&id).await?;
        let (claim_request, late) =
            (trial.claim_request().expecting(Expected::Orphan(former.token)), done("late"));
        let settle = trial.store().settle(&former, &late);
        let claim = trial.store().claim(&id, &claim_request);
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
                held_live_by(&trial.seen_held(&id).await?, &owner)?;
                fenced("settle", trial.store().settle(&former, &late).await)?;
            }
            other => return Err(Broken(format!("an orphan is not taken over: {other:?}"))),
        }
    }
    Ok(Passed)
}

pub(super) async fn a_settlement_and_a_release_at_once_do_not_both_count<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    for round in 0..ROUNDS {
        let id = trial.id();
        let lease = trial.granted(&id, &trial.claim_request()).await?;
        let result = done("result");
        let settle = trial.store().settle(&lease, &result);
        let release = trial.store().release(&lease);
        let (settled, released) = if round % 2 == 0 {
            join(settle, release).await
        } else {
            let (released, settled) = join(release, settle).await;
            (settled, released)
        };
        if settled.is_ok() {
            fenced("release", released)?;
            settled_as(&trial.seen_settled(&id).await?, &lease, &result)?;
        } else {
            fenced("settle", settled)?;
            ensure!(released.is_ok(), "both were refused; the release with {released:?}");
            trial.absent(&id).await?;
        }
    }
    Ok(Passed)
}

pub(super) async fn every_step_gets_its_own_answer<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let passages = join_all((0..MANY).map(|_| passage(trial))).await;
    passages.into_iter().collect::<Result<Vec<()>, _>>()?;
    Ok(Passed)
}

pub(super) async fn steps_that_are_dropped_harm_nothing<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    for _ in 0..ROUNDS {
        let (id, claim_request) = (trial.id(), trial.claim_request());
        poll_once(trial.store().claim(&id, &claim_request)).await;
        passage(trial).await?;
        // The dropped claim may be in force or not; with its own token it is granted either way.
        let lease = trial.granted(&id, &claim_request).await?;
        poll_once(trial.store().lookup(&id)).await;
        passage(trial).await?;
        poll_once(trial.store().renew(&lease)).await;
        passage(trial).await?;
        held_by(&trial.seen_held(&id).await?, &lease)?;
        let result = done(*claim_request.token.as_bytes());
        poll_once(trial.store().settle(&lease, &result)).await;
        passage(trial).await?;
        trial.settle(&lease, &result).await?;
        settled_as(&trial.seen_settled(&id).await?, &lease, &result)?;
        let other = trial.granted(&trial.id(), &trial.claim_request()).await?;
        poll_once(trial.store().release(&other)).await;
        passage(trial).await?;
        trial.release(&other).await?;
    }
    Ok(Passed)
}

/// A whole life of one record, every answer of which must be about that record.
async fn passage<H: Harness>(trial: &Trial<'_, H>) -> Result<(), Broken> {
    let (id, claim_request) = (trial.id(), trial.claim_request());
    trial.absent(&id).await?;
    let lease = trial.granted(&id, &claim_request).await?;
    held_live_by(&trial.held(&id, &trial.claim_request()).await?, &lease)?;
    let lease = trial.renew(&lease).await?;
    let result = done(*claim_request.token.as_bytes());
    trial.settle(&lease, &result).await?;
    settled_as(&trial.settled(&id, &trial.claim_request()).await?, &lease, &result)
}

/// The lease of the only claim that was granted; the others must have been refused.
fn the_one_granted(claims: &[Result<Claim, StoreError>]) -> Result<&Lease, Broken> {
    let mut owner = None;
    for claim in claims {
        match claim {
            Ok(Claim::Granted(lease)) => {
                ensure!(owner.is_none(), "two claims at once were granted");
                owner = Some(lease);
            }
            Ok(Claim::Found(RecordSnapshot::Held(_))) => {}
            other => return Err(Broken(format!("a claim among many came to {other:?}"))),
        }
    }
    owner.ok_or_else(|| Broken("none of the claims at once was granted".to_owned()))
}

const MANY: usize = 64;
const ROUNDS: u32 = 8;
