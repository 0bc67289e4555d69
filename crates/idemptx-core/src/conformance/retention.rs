//! Retention: the times after which responses, keys and claims are forgotten.

use super::Harness;
use super::case::{Case, LONG, done, fenced, held_by, result, settled_as};
use super::report::Verdict::Passed;
use super::report::{Outcome, Violation, ensure};
use crate::record::State;
use crate::store::{ClaimRequest, Expected, RecordSnapshot, Settlement, Store};

pub(super) async fn a_claim_ends_with_its_retention<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let brief = ClaimRequest { retain: case.tick() * 2, ..case.brief_request() };
    case.granted(&id, &brief).await?;
    case.gone(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_renewed_claim_outlives_its_first_retention<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    for _ in 0..TRIES_MAX {
        let id = case.id();
        let span = case.tick() * 20;
        let request = ClaimRequest { term: span, retain: span, ..case.request() };
        let lease = case.granted(&id, &request).await?;
        case.sleep(10).await;
        if case.store().renew(&lease).await.is_ok() {
            case.sleep(12).await;
            if let Ok(holder) = case.seen_held(&id).await {
                held_by(&holder, &lease)?;
                return Ok(Passed);
            }
        }
    }
    Err(Violation("a claim renewed in time ended with its first retention".to_owned()))
}

pub(super) async fn a_settlement_outlives_the_retention_of_the_claim<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    for _ in 0..TRIES_MAX {
        let id = case.id();
        let span = case.tick() * 10;
        let lease =
            case.granted(&id, &ClaimRequest { term: span, retain: span, ..case.request() }).await?;
        let result = done("result");
        if case.store().settle(&lease, &result).await.is_ok() {
            case.sleep(12).await;
            settled_as(&case.seen_settled(&id).await?, &lease, &result)?;
            return Ok(Passed);
        }
    }
    Err(Violation("a claim kept for ten ticks cannot be settled at once".to_owned()))
}

pub(super) async fn a_done_record_ends_with_its_retention<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.request()).await?;
    let brief = case.tick() * 2;
    case.settle(&lease, &Settlement { retain: brief, key_retain: brief, ..done("x") }).await?;
    case.gone(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_done_record_becomes_spent_where_the_key_is_kept_longer<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let (_, lease) = case.taken_over(&id).await?;
    case.settle(&lease, &Settlement { retain: case.tick() * 2, ..done("result") }).await?;
    settled_as(&case.spent(&id).await?, &lease, &result(State::ResponseExpired, ""))?;
    let again = case.settled(&id, &case.request()).await?;
    settled_as(&again, &lease, &result(State::ResponseExpired, ""))?;
    Ok(Passed)
}

pub(super) async fn a_spent_record_ends_with_the_retention_of_the_key<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.request()).await?;
    let (retain, key_retain) = (case.tick(), case.tick() * 4);
    case.settle(&lease, &Settlement { retain, key_retain, ..done("result") }).await?;
    case.gone(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_spent_record_is_replaced_only_on_demand<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.request()).await?;
    case.settle(&lease, &Settlement { retain: case.tick(), ..done("result") }).await?;
    case.spent(&id).await?;
    case.settled(&id, &case.request()).await?;
    case.settled(&id, &case.request().expecting(Expected::Settled(case.token()))).await?;
    let owner =
        case.granted(&id, &case.request().expecting(Expected::Settled(lease.token))).await?;
    ensure!(owner.attempt == 2, "the second attempt is {}", owner.attempt);
    let second = done("second");
    case.settle(&owner, &second).await?;
    settled_as(&case.seen_settled(&id).await?, &owner, &second)?;
    Ok(Passed)
}

pub(super) async fn a_record_without_body_stays_as_long_as_its_key<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    stays_as_long_as_its_key(case, State::NotReplayable, "head").await
}

pub(super) async fn an_unknown_record_stays_as_long_as_its_key<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    stays_as_long_as_its_key(case, State::Unknown, "").await
}

pub(super) async fn a_key_that_has_ended_is_claimed_afresh<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let (_, former) = case.taken_over(&id).await?;
    let brief = case.tick();
    case.settle(&former, &Settlement { retain: brief, key_retain: brief, ..done("x") }).await?;
    case.gone(&id).await?;
    let lease = case.granted(&id, &case.request()).await?;
    ensure!(lease.attempt == 1, "the first attempt of a new life is {}", lease.attempt);
    ensure!(lease.fence >= former.fence, "the fence fell from {} to {}", former.fence, lease.fence);
    Ok(Passed)
}

pub(super) async fn a_claim_that_has_ended_cannot_settle<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let brief = ClaimRequest { retain: case.tick() * 2, ..case.brief_request() };
    let lease = case.granted(&id, &brief).await?;
    case.gone(&id).await?;
    fenced("settle", case.store().settle(&lease, &done("stale")).await)?;
    fenced("renew", case.store().renew(&lease).await)?;
    case.absent(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_claim_kept_for_less_than_its_lease_ends_with_its_retention<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let former =
        case.granted(&id, &ClaimRequest { retain: case.tick() * 4, ..case.request() }).await?;
    if let Ok(Some(RecordSnapshot::Held(holder))) = case.store().lookup(&id).await {
        held_by(&holder, &former)?;
    }
    case.gone(&id).await?;
    fenced("settle", case.store().settle(&former, &done("stale")).await)?;
    let lease = case.granted(&id, &case.request()).await?;
    ensure!(lease.attempt == 1, "the first attempt of a new life is {}", lease.attempt);
    Ok(Passed)
}

/// There is no response to be replayed, so only the key's retention counts.
async fn stays_as_long_as_its_key<H: Harness>(
    case: &Case<'_, H>,
    state: State,
    payload: &str,
) -> Outcome {
    let (kept, ended) = (case.id(), case.id());
    let lasting = Settlement { retain: case.tick(), key_retain: LONG, ..result(state, payload) };
    let lease = case.granted(&kept, &case.request()).await?;
    case.settle(&lease, &lasting).await?;

    let brief = Settlement { retain: case.tick(), key_retain: case.tick() * 3, ..lasting.clone() };
    let other = case.granted(&ended, &case.request()).await?;
    case.settle(&other, &brief).await?;
    case.gone(&ended).await?;
    settled_as(&case.seen_settled(&kept).await?, &lease, &lasting)?;
    Ok(Passed)
}

/// The tries for cases that a stall of the machine can spoil.
const TRIES_MAX: u32 = 5;
