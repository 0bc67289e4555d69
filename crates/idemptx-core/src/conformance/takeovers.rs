//! What [`ClaimRequest::over`](crate::store::ClaimRequest::over) replaces, and what it does not.

use super::Harness;
use super::report::Verdict::Passed;
use super::report::{Outcome, ensure};
use super::trial::{Trial, done, held_by, held_live_by, result, settled_as};
use crate::record::State;
use crate::store::{ClaimRequest, Expected, Settlement};

pub(super) async fn an_orphan_is_taken_over<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let orphan = trial.orphan(&id).await?;
    let owner = trial
        .granted(&id, &trial.claim_request().expecting(Expected::Orphan(orphan.token)))
        .await?;
    ensure!(owner.attempt == 2, "the second attempt is {}", owner.attempt);
    ensure!(owner.fence > orphan.fence, "the fence {} follows {}", owner.fence, orphan.fence);
    held_live_by(&trial.seen_held(&id).await?, &owner)?;
    Ok(Passed)
}

pub(super) async fn a_live_claim_is_not_taken_over<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    let holder =
        trial.held(&id, &trial.claim_request().expecting(Expected::Orphan(lease.token))).await?;
    held_live_by(&holder, &lease)?;
    trial.settle(&lease, &done("result")).await?;
    Ok(Passed)
}

pub(super) async fn an_orphan_is_not_taken_over_under_another_token<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let orphan = trial.orphan(&id).await?;
    let holder =
        trial.held(&id, &trial.claim_request().expecting(Expected::Orphan(trial.token()))).await?;
    held_by(&holder, &orphan)?;
    ensure!(holder.is_orphan(), "a refused takeover revived the lease");
    Ok(Passed)
}

pub(super) async fn a_takeover_of_nothing_is_a_first_attempt<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let lease = trial
        .granted(&trial.id(), &trial.claim_request().expecting(Expected::Orphan(trial.token())))
        .await?;
    ensure!(lease.attempt == 1, "the first attempt is {}", lease.attempt);
    Ok(Passed)
}

pub(super) async fn a_takeover_of_what_somebody_else_took_over_is_refused<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let (former, owner) = trial.taken_over(&id).await?;
    held_live_by(
        &trial.held(&id, &trial.claim_request().expecting(Expected::Orphan(former.token))).await?,
        &owner,
    )?;

    let id = trial.id();
    let former = trial.orphan(&id).await?;
    let next = trial
        .granted(&id, &trial.brief_claim_request().expecting(Expected::Orphan(former.token)))
        .await?;
    trial.lapsed(&id).await?;
    let holder =
        trial.held(&id, &trial.claim_request().expecting(Expected::Orphan(former.token))).await?;
    held_by(&holder, &next)?;
    ensure!(holder.is_orphan(), "a refused takeover revived the lease");
    Ok(Passed)
}

pub(super) async fn a_takeover_sent_again_is_granted_unchanged<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let orphan = trial.orphan(&id).await?;
    let claim_request = trial.brief_claim_request().expecting(Expected::Orphan(orphan.token));
    let lease = trial.granted(&id, &claim_request).await?;
    let again = trial.granted(&id, &claim_request).await?;
    ensure!(again == lease, "{again:?} instead of {lease:?}");
    trial.lapsed(&id).await?;
    let late = trial.granted(&id, &claim_request).await?;
    ensure!(late == lease, "{late:?} instead of {lease:?}, after the lapse");
    Ok(Passed)
}

pub(super) async fn attempts_and_fences_go_up_with_every_takeover<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let mut former = trial.orphan(&id).await?;
    for attempt in 2..=5 {
        let owner = trial
            .granted(&id, &trial.brief_claim_request().expecting(Expected::Orphan(former.token)))
            .await?;
        ensure!(owner.attempt == attempt, "attempt {attempt} is {}", owner.attempt);
        ensure!(owner.fence > former.fence, "the fence {} follows {}", owner.fence, former.fence);
        trial.lapsed(&id).await?;
        former = owner;
    }
    Ok(Passed)
}

/// A claim request that was made when the record was an orphan comes after its owner came back and settled.
pub(super) async fn a_late_result_is_not_taken_over<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let (former, late) = (trial.orphan(&id).await?, done("late"));
    trial.settle(&former, &late).await?;
    let record = trial
        .settled(&id, &trial.claim_request().expecting(Expected::Orphan(former.token)))
        .await?;
    settled_as(&record, &former, &late)?;
    settled_as(&trial.seen_settled(&id).await?, &former, &late)?;
    Ok(Passed)
}

pub(super) async fn an_orphan_is_not_replaced_as_a_result<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let orphan = trial.orphan(&id).await?;
    let holder =
        trial.held(&id, &trial.claim_request().expecting(Expected::Settled(orphan.token))).await?;
    ensure!(holder.is_orphan(), "a refused claim revived the lease");
    Ok(Passed)
}

pub(super) async fn a_former_owner_finds_the_record_held<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let (id, first) = (trial.id(), trial.brief_claim_request());
    trial.granted(&id, &first).await?;
    trial.lapsed(&id).await?;
    let owner =
        trial.granted(&id, &trial.claim_request().expecting(Expected::Orphan(first.token))).await?;
    held_live_by(&trial.held(&id, &first).await?, &owner)?;
    Ok(Passed)
}

pub(super) async fn a_done_record_is_replaced_on_demand<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    replaces(trial, &done("first")).await
}

pub(super) async fn an_unknown_record_is_replaced_on_demand<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    replaces(trial, &result(State::Unknown, "")).await
}

pub(super) async fn a_record_without_body_is_replaced_on_demand<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    replaces(trial, &result(State::NotReplayable, "head")).await
}

pub(super) async fn a_settled_record_is_not_replaced_under_another_token<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let (lease, result) = trial.done(&id).await?;
    let record = trial
        .settled(&id, &trial.claim_request().expecting(Expected::Settled(trial.token())))
        .await?;
    settled_as(&record, &lease, &result)?;
    settled_as(&trial.seen_settled(&id).await?, &lease, &result)?;
    Ok(Passed)
}

pub(super) async fn a_replaced_record_is_released_to_nothing<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let (former, _) = trial.done(&id).await?;
    let owner = trial
        .granted(&id, &trial.claim_request().expecting(Expected::Settled(former.token)))
        .await?;
    trial.release(&owner).await?;
    trial.absent(&id).await?;
    Ok(Passed)
}

/// Settles, executes anew, and settles again; the first result must leave no trace.
async fn replaces<H: Harness>(trial: &Trial<'_, H>, first: &Settlement) -> Outcome {
    let id = trial.id();
    let former = trial.granted(&id, &trial.claim_request()).await?;
    trial.settle(&former, first).await?;
    let claim_request: ClaimRequest =
        trial.claim_request().expecting(Expected::Settled(former.token));
    let owner = trial.granted(&id, &claim_request).await?;
    ensure!(owner.attempt == 2, "the second attempt is {}", owner.attempt);
    ensure!(owner.fence > former.fence, "the fence {} follows {}", owner.fence, former.fence);
    held_live_by(&trial.held(&id, &trial.claim_request()).await?, &owner)?;
    let again = trial.granted(&id, &claim_request).await?;
    ensure!(again == owner, "{again:?} instead of {owner:?}");
    let second = done("second");
    trial.settle(&owner, &second).await?;
    settled_as(&trial.seen_settled(&id).await?, &owner, &second)?;
    Ok(Passed)
}
