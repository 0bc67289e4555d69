//! Takeovers: the records that [`ClaimRequest::expected`](crate::store::ClaimRequest::expected)
//! replaces, and those it does not.

use super::Harness;
use super::case::{Case, done, held_by, held_live_by, result, settled_as};
use super::report::Verdict::Passed;
use super::report::{Outcome, ensure};
use crate::record::State;
use crate::store::{ClaimRequest, Expected, Settlement};

pub(super) async fn an_orphan_is_taken_over<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let orphan = case.orphan(&id).await?;
    let owner =
        case.granted(&id, &case.request().expecting(Expected::Orphan(orphan.token))).await?;
    ensure!(owner.attempt == 2, "the second attempt is {}", owner.attempt);
    ensure!(owner.fence > orphan.fence, "the fence {} follows {}", owner.fence, orphan.fence);
    held_live_by(&case.seen_held(&id).await?, &owner)?;
    Ok(Passed)
}

pub(super) async fn a_live_claim_is_not_taken_over<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.request()).await?;
    let holder = case.held(&id, &case.request().expecting(Expected::Orphan(lease.token))).await?;
    held_live_by(&holder, &lease)?;
    case.settle(&lease, &done("result")).await?;
    Ok(Passed)
}

pub(super) async fn an_orphan_is_not_taken_over_under_another_token<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let orphan = case.orphan(&id).await?;
    let holder = case.held(&id, &case.request().expecting(Expected::Orphan(case.token()))).await?;
    held_by(&holder, &orphan)?;
    ensure!(holder.is_orphan(), "a refused takeover revived the lease");
    Ok(Passed)
}

pub(super) async fn a_takeover_of_nothing_is_a_first_attempt<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let lease =
        case.granted(&case.id(), &case.request().expecting(Expected::Orphan(case.token()))).await?;
    ensure!(lease.attempt == 1, "the first attempt is {}", lease.attempt);
    Ok(Passed)
}

pub(super) async fn a_takeover_of_what_another_took_over_is_refused<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let (former, owner) = case.taken_over(&id).await?;
    held_live_by(
        &case.held(&id, &case.request().expecting(Expected::Orphan(former.token))).await?,
        &owner,
    )?;

    let id = case.id();
    let former = case.orphan(&id).await?;
    let next =
        case.granted(&id, &case.brief_request().expecting(Expected::Orphan(former.token))).await?;
    case.lapsed(&id).await?;
    let holder = case.held(&id, &case.request().expecting(Expected::Orphan(former.token))).await?;
    held_by(&holder, &next)?;
    ensure!(holder.is_orphan(), "a refused takeover revived the lease");
    Ok(Passed)
}

pub(super) async fn a_takeover_sent_again_is_granted_unchanged<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let orphan = case.orphan(&id).await?;
    let request = case.brief_request().expecting(Expected::Orphan(orphan.token));
    let lease = case.granted(&id, &request).await?;
    let again = case.granted(&id, &request).await?;
    ensure!(again == lease, "{again:?} instead of {lease:?}");
    case.lapsed(&id).await?;
    let late = case.granted(&id, &request).await?;
    ensure!(late == lease, "{late:?} instead of {lease:?}, after the lapse");
    Ok(Passed)
}

pub(super) async fn attempts_and_fences_go_up_with_every_takeover<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let mut former = case.orphan(&id).await?;
    for attempt in 2..=5 {
        let owner = case
            .granted(&id, &case.brief_request().expecting(Expected::Orphan(former.token)))
            .await?;
        ensure!(owner.attempt == attempt, "attempt {attempt} is {}", owner.attempt);
        ensure!(owner.fence > former.fence, "the fence {} follows {}", owner.fence, former.fence);
        case.lapsed(&id).await?;
        former = owner;
    }
    Ok(Passed)
}

/// A claim request made while the record was an orphan arrives after the owner has settled it.
pub(super) async fn a_late_result_is_not_taken_over<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let (former, late) = (case.orphan(&id).await?, done("late"));
    case.settle(&former, &late).await?;
    let record =
        case.settled(&id, &case.request().expecting(Expected::Orphan(former.token))).await?;
    settled_as(&record, &former, &late)?;
    settled_as(&case.seen_settled(&id).await?, &former, &late)?;
    Ok(Passed)
}

pub(super) async fn an_orphan_is_not_replaced_as_a_result<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let orphan = case.orphan(&id).await?;
    let holder = case.held(&id, &case.request().expecting(Expected::Settled(orphan.token))).await?;
    ensure!(holder.is_orphan(), "a refused claim revived the lease");
    Ok(Passed)
}

pub(super) async fn a_former_owner_finds_the_record_held<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let (id, first) = (case.id(), case.brief_request());
    case.granted(&id, &first).await?;
    case.lapsed(&id).await?;
    let owner = case.granted(&id, &case.request().expecting(Expected::Orphan(first.token))).await?;
    held_live_by(&case.held(&id, &first).await?, &owner)?;
    Ok(Passed)
}

pub(super) async fn a_done_record_is_replaced_on_demand<H: Harness>(case: &Case<'_, H>) -> Outcome {
    replaces(case, &done("first")).await
}

pub(super) async fn an_unknown_record_is_replaced_on_demand<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    replaces(case, &result(State::Unknown, "")).await
}

pub(super) async fn a_record_without_body_is_replaced_on_demand<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    replaces(case, &result(State::NotReplayable, "head")).await
}

pub(super) async fn a_settled_record_is_not_replaced_under_another_token<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let (lease, result) = case.done(&id).await?;
    let record =
        case.settled(&id, &case.request().expecting(Expected::Settled(case.token()))).await?;
    settled_as(&record, &lease, &result)?;
    settled_as(&case.seen_settled(&id).await?, &lease, &result)?;
    Ok(Passed)
}

pub(super) async fn a_replaced_record_is_released_to_nothing<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let (former, _) = case.done(&id).await?;
    let owner =
        case.granted(&id, &case.request().expecting(Expected::Settled(former.token))).await?;
    case.release(&owner).await?;
    case.absent(&id).await?;
    Ok(Passed)
}

/// Settles, executes again, and settles again; the first result must leave no trace.
async fn replaces<H: Harness>(case: &Case<'_, H>, first: &Settlement) -> Outcome {
    let id = case.id();
    let former = case.granted(&id, &case.request()).await?;
    case.settle(&former, first).await?;
    let request: ClaimRequest = case.request().expecting(Expected::Settled(former.token));
    let owner = case.granted(&id, &request).await?;
    ensure!(owner.attempt == 2, "the second attempt is {}", owner.attempt);
    ensure!(owner.fence > former.fence, "the fence {} follows {}", owner.fence, former.fence);
    held_live_by(&case.held(&id, &case.request()).await?, &owner)?;
    let again = case.granted(&id, &request).await?;
    ensure!(again == owner, "{again:?} instead of {owner:?}");
    let second = done("second");
    case.settle(&owner, &second).await?;
    settled_as(&case.seen_settled(&id).await?, &owner, &second)?;
    Ok(Passed)
}
