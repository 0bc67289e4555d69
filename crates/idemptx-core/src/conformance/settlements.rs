//! Results are final, come back as they were given, and come from the owner alone.

use super::Harness;
use super::report::Outcome;
use super::report::Verdict::Passed;
use super::trial::{Trial, done, fenced, held_live_by, result, settled_as};
use crate::lease::Lease;
use crate::record::State;
use crate::store::{Expected, Settlement, Store};

pub(super) async fn an_empty_payload_comes_back<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    comes_back(trial, &done("")).await
}

pub(super) async fn a_payload_of_one_byte_comes_back<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    comes_back(trial, &done([0])).await
}

pub(super) async fn a_payload_of_every_byte_comes_back<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    comes_back(trial, &done((0..=u8::MAX).collect::<Vec<_>>())).await
}

pub(super) async fn a_payload_of_a_mebibyte_comes_back<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    comes_back(trial, &done((0..=u8::MAX).cycle().take(1 << 20).collect::<Vec<_>>())).await
}

pub(super) async fn a_result_without_body_comes_back<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    comes_back(trial, &result(State::NotReplayable, "head")).await
}

pub(super) async fn an_unknown_outcome_comes_back<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    comes_back(trial, &result(State::Unknown, "")).await
}

pub(super) async fn settling_again_changes_nothing<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    for state in [State::Completed, State::NotReplayable, State::Unknown] {
        let id = trial.id();
        let lease = trial.granted(&id, &trial.claim_request()).await?;
        let first = result(state, "");
        trial.settle(&lease, &first).await?;
        trial.settle(&lease, &first).await?;
        settled_as(&trial.seen_settled(&id).await?, &lease, &first)?;
    }
    let id = trial.id();
    let (lease, first) = trial.done(&id).await?;
    trial.settle(&lease, &done("another")).await?;
    settled_as(&trial.seen_settled(&id).await?, &lease, &first)?;
    Ok(Passed)
}

pub(super) async fn a_lapsed_lease_settles<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let lease = trial.orphan(&id).await?;
    let late = done("late");
    trial.settle(&lease, &late).await?;
    settled_as(&trial.seen_settled(&id).await?, &lease, &late)?;
    Ok(Passed)
}

pub(super) async fn a_settled_record_never_lapses<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.brief_claim_request()).await?;
    let result = done("result");
    trial.settle(&lease, &result).await?;
    trial.sleep(3).await;
    settled_as(&trial.settled(&id, &trial.claim_request()).await?, &lease, &result)?;
    Ok(Passed)
}

pub(super) async fn a_settlement_after_a_takeover_is_fenced<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let (former, owner) = trial.taken_over(&id).await?;
    fenced("settle", trial.store().settle(&former, &done("stale")).await)?;
    held_live_by(&trial.seen_held(&id).await?, &owner)?;
    let result = done("result");
    trial.settle(&owner, &result).await?;
    settled_as(&trial.seen_settled(&id).await?, &owner, &result)?;
    Ok(Passed)
}

pub(super) async fn a_settlement_after_a_release_is_fenced_and_keeps_nothing<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    trial.release(&lease).await?;
    fenced("settle", trial.store().settle(&lease, &done("stale")).await)?;
    trial.absent(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_settlement_of_nothing_is_fenced_and_keeps_nothing<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let never_granted = Lease::granted(id, &trial.claim_request(), 1, 1);
    fenced("settle", trial.store().settle(&never_granted, &done("stale")).await)?;
    trial.absent(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_settlement_with_another_token_is_fenced<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    let stranger = Lease { token: trial.token(), ..lease.clone() };
    for state in [State::Completed, State::NotReplayable, State::Unknown] {
        fenced("settle", trial.store().settle(&stranger, &result(state, "")).await)?;
        held_live_by(&trial.seen_held(&id).await?, &lease)?;
    }
    Ok(Passed)
}

pub(super) async fn a_settlement_of_what_another_settled_is_fenced<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let (former, owner) = trial.taken_over(&id).await?;
    let result = done("result");
    trial.settle(&owner, &result).await?;
    fenced("settle", trial.store().settle(&former, &done("stale")).await)?;
    settled_as(&trial.seen_settled(&id).await?, &owner, &result)?;
    Ok(Passed)
}

pub(super) async fn a_settlement_after_a_rebind_is_fenced<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let (former, first) = trial.done(&id).await?;
    let owner = trial
        .granted(&id, &trial.claim_request().expecting(Expected::Settled(former.token)))
        .await?;
    fenced("settle", trial.store().settle(&former, &first).await)?;
    held_live_by(&trial.seen_held(&id).await?, &owner)?;
    Ok(Passed)
}

pub(super) async fn a_second_attempt_settles_as_such<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let (_, owner) = trial.taken_over(&id).await?;
    let result = done("result");
    trial.settle(&owner, &result).await?;
    settled_as(&trial.settled(&id, &trial.claim_request()).await?, &owner, &result)?;
    Ok(Passed)
}

/// Settles, and reads the result by a claim and by a lookup, twice each.
async fn comes_back<H: Harness>(trial: &Trial<'_, H>, result: &Settlement) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    trial.settle(&lease, result).await?;
    for _ in 0..2 {
        settled_as(&trial.settled(&id, &trial.claim_request()).await?, &lease, result)?;
        settled_as(&trial.seen_settled(&id).await?, &lease, result)?;
    }
    Ok(Passed)
}
