//! What is kept for how long.

use super::Harness;
use super::report::Verdict::Passed;
use super::report::{Broken, Outcome, ensure};
use super::trial::{LONG, Trial, done, fenced, held_by, result, settled_as};
use crate::record::State;
use crate::store::{ClaimRequest, Expected, Settlement, Store};

pub(super) async fn a_claim_ends_with_its_retention<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let brief = ClaimRequest { retain: trial.tick() * 2, ..trial.brief_claim_request() };
    trial.granted(&id, &brief).await?;
    trial.gone(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_renewed_claim_outlives_its_first_retention<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    for _ in 0..TRIES_MAX {
        let id = trial.id();
        let span = trial.tick() * 20;
        let claim_request = ClaimRequest { term: span, retain: span, ..trial.claim_request() };
        let lease = trial.granted(&id, &claim_request).await?;
        trial.sleep(10).await;
        if trial.store().renew(&lease).await.is_ok() {
            trial.sleep(12).await;
            if let Ok(holder) = trial.seen_held(&id).await {
                held_by(&holder, &lease)?;
                return Ok(Passed);
            }
        }
    }
    Err(Broken("a claim renewed in time ended with its first retention".to_owned()))
}

pub(super) async fn a_settlement_outlives_the_retention_of_the_claim<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    for _ in 0..TRIES_MAX {
        let id = trial.id();
        let span = trial.tick() * 10;
        let lease = trial
            .granted(&id, &ClaimRequest { term: span, retain: span, ..trial.claim_request() })
            .await?;
        let result = done("result");
        if trial.store().settle(&lease, &result).await.is_ok() {
            trial.sleep(12).await;
            settled_as(&trial.seen_settled(&id).await?, &lease, &result)?;
            return Ok(Passed);
        }
    }
    Err(Broken("a claim kept for ten ticks cannot be settled at once".to_owned()))
}

pub(super) async fn a_done_record_ends_with_its_retention<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    let brief = trial.tick() * 2;
    trial.settle(&lease, &Settlement { retain: brief, key_retain: brief, ..done("x") }).await?;
    trial.gone(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_done_record_becomes_spent_where_the_key_is_kept_longer<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let (_, lease) = trial.taken_over(&id).await?;
    trial.settle(&lease, &Settlement { retain: trial.tick() * 2, ..done("result") }).await?;
    settled_as(&trial.spent(&id).await?, &lease, &result(State::ResponseExpired, ""))?;
    let again = trial.settled(&id, &trial.claim_request()).await?;
    settled_as(&again, &lease, &result(State::ResponseExpired, ""))?;
    Ok(Passed)
}

pub(super) async fn a_spent_record_ends_with_the_retention_of_the_key<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    let (retain, key_retain) = (trial.tick(), trial.tick() * 4);
    trial.settle(&lease, &Settlement { retain, key_retain, ..done("result") }).await?;
    trial.gone(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_spent_record_is_replaced_only_on_demand<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    trial.settle(&lease, &Settlement { retain: trial.tick(), ..done("result") }).await?;
    trial.spent(&id).await?;
    trial.settled(&id, &trial.claim_request()).await?;
    trial.settled(&id, &trial.claim_request().expecting(Expected::Settled(trial.token()))).await?;
    let owner = trial
        .granted(&id, &trial.claim_request().expecting(Expected::Settled(lease.token)))
        .await?;
    ensure!(owner.attempt == 2, "the second attempt is {}", owner.attempt);
    let second = done("second");
    trial.settle(&owner, &second).await?;
    settled_as(&trial.seen_settled(&id).await?, &owner, &second)?;
    Ok(Passed)
}

pub(super) async fn a_record_without_body_stays_as_long_as_its_key<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    stays_as_long_as_its_key(trial, State::NotReplayable, "head").await
}

pub(super) async fn an_unknown_record_stays_as_long_as_its_key<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    stays_as_long_as_its_key(trial, State::Unknown, "").await
}

pub(super) async fn a_key_that_has_ended_is_claimed_afresh<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let (_, former) = trial.taken_over(&id).await?;
    let brief = trial.tick();
    trial.settle(&former, &Settlement { retain: brief, key_retain: brief, ..done("x") }).await?;
    trial.gone(&id).await?;
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    ensure!(lease.attempt == 1, "the first attempt of a new life is {}", lease.attempt);
    ensure!(lease.fence >= former.fence, "the fence fell from {} to {}", former.fence, lease.fence);
    Ok(Passed)
}

pub(super) async fn a_claim_that_has_ended_cannot_settle<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let brief = ClaimRequest { retain: trial.tick() * 2, ..trial.brief_claim_request() };
    let lease = trial.granted(&id, &brief).await?;
    trial.gone(&id).await?;
    fenced("settle", trial.store().settle(&lease, &done("stale")).await)?;
    fenced("renew", trial.store().renew(&lease).await)?;
    trial.absent(&id).await?;
    Ok(Passed)
}

/// There is no response to be replayed, so only the key's retention counts.
async fn stays_as_long_as_its_key<H: Harness>(
    trial: &Trial<'_, H>,
    state: State,
    payload: &str,
) -> Outcome {
    let (kept, ended) = (trial.id(), trial.id());
    let lasting = Settlement { retain: trial.tick(), key_retain: LONG, ..result(state, payload) };
    let lease = trial.granted(&kept, &trial.claim_request()).await?;
    trial.settle(&lease, &lasting).await?;

    let brief =
        Settlement { retain: trial.tick(), key_retain: trial.tick() * 3, ..lasting.clone() };
    let other = trial.granted(&ended, &trial.claim_request()).await?;
    trial.settle(&other, &brief).await?;
    trial.gone(&ended).await?;
    settled_as(&trial.seen_settled(&kept).await?, &lease, &lasting)?;
    Ok(Passed)
}

/// For what a stall of the machine can spoil.
const TRIES_MAX: u32 = 5;
