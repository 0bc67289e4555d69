//! Results are final, come back as they were given, and come from the owner alone.

use super::Harness;
use super::case::{Case, done, fenced, held_live_by, result, settled_as};
use super::report::Outcome;
use super::report::Verdict::Passed;
use crate::lease::Lease;
use crate::record::State;
use crate::store::{Expected, Settlement, Store};

pub(super) async fn an_empty_payload_comes_back<H: Harness>(case: &Case<'_, H>) -> Outcome {
    comes_back(case, &done("")).await
}

pub(super) async fn a_payload_of_one_byte_comes_back<H: Harness>(case: &Case<'_, H>) -> Outcome {
    comes_back(case, &done([0])).await
}

pub(super) async fn a_payload_of_every_byte_comes_back<H: Harness>(case: &Case<'_, H>) -> Outcome {
    comes_back(case, &done((0..=u8::MAX).collect::<Vec<_>>())).await
}

pub(super) async fn a_payload_of_a_mebibyte_comes_back<H: Harness>(case: &Case<'_, H>) -> Outcome {
    comes_back(case, &done((0..=u8::MAX).cycle().take(1 << 20).collect::<Vec<_>>())).await
}

pub(super) async fn a_result_without_body_comes_back<H: Harness>(case: &Case<'_, H>) -> Outcome {
    comes_back(case, &result(State::NotReplayable, "head")).await
}

pub(super) async fn an_unknown_outcome_comes_back<H: Harness>(case: &Case<'_, H>) -> Outcome {
    comes_back(case, &result(State::Unknown, "")).await
}

pub(super) async fn settling_again_changes_nothing<H: Harness>(case: &Case<'_, H>) -> Outcome {
    for state in [State::Completed, State::NotReplayable, State::Unknown] {
        let id = case.id();
        let lease = case.granted(&id, &case.request()).await?;
        let first = result(state, "");
        case.settle(&lease, &first).await?;
        case.settle(&lease, &first).await?;
        settled_as(&case.seen_settled(&id).await?, &lease, &first)?;
    }
    let id = case.id();
    let (lease, first) = case.done(&id).await?;
    case.settle(&lease, &done("another")).await?;
    settled_as(&case.seen_settled(&id).await?, &lease, &first)?;
    Ok(Passed)
}

pub(super) async fn a_lapsed_lease_settles<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let lease = case.orphan(&id).await?;
    let late = done("late");
    case.settle(&lease, &late).await?;
    settled_as(&case.seen_settled(&id).await?, &lease, &late)?;
    Ok(Passed)
}

pub(super) async fn a_settled_record_never_lapses<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.brief_request()).await?;
    let result = done("result");
    case.settle(&lease, &result).await?;
    case.sleep(3).await;
    settled_as(&case.settled(&id, &case.request()).await?, &lease, &result)?;
    Ok(Passed)
}

pub(super) async fn a_settlement_after_a_takeover_is_fenced<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let (former, owner) = case.taken_over(&id).await?;
    fenced("settle", case.store().settle(&former, &done("stale")).await)?;
    held_live_by(&case.seen_held(&id).await?, &owner)?;
    let result = done("result");
    case.settle(&owner, &result).await?;
    settled_as(&case.seen_settled(&id).await?, &owner, &result)?;
    Ok(Passed)
}

pub(super) async fn a_settlement_after_a_release_is_fenced_and_keeps_nothing<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.request()).await?;
    case.release(&lease).await?;
    fenced("settle", case.store().settle(&lease, &done("stale")).await)?;
    case.absent(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_settlement_of_nothing_is_fenced_and_keeps_nothing<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let never_granted = Lease::granted(id, &case.request(), 1, 1);
    fenced("settle", case.store().settle(&never_granted, &done("stale")).await)?;
    case.absent(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_settlement_with_another_token_is_fenced<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.request()).await?;
    let stranger = Lease { token: case.token(), ..lease.clone() };
    for state in [State::Completed, State::NotReplayable, State::Unknown] {
        fenced("settle", case.store().settle(&stranger, &result(state, "")).await)?;
        held_live_by(&case.seen_held(&id).await?, &lease)?;
    }
    Ok(Passed)
}

pub(super) async fn a_settlement_of_what_another_settled_is_fenced<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let (former, owner) = case.taken_over(&id).await?;
    let result = done("result");
    case.settle(&owner, &result).await?;
    fenced("settle", case.store().settle(&former, &done("stale")).await)?;
    settled_as(&case.seen_settled(&id).await?, &owner, &result)?;
    Ok(Passed)
}

pub(super) async fn a_settlement_after_a_rebind_is_fenced<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let (former, first) = case.done(&id).await?;
    let owner =
        case.granted(&id, &case.request().expecting(Expected::Settled(former.token))).await?;
    fenced("settle", case.store().settle(&former, &first).await)?;
    held_live_by(&case.seen_held(&id).await?, &owner)?;
    Ok(Passed)
}

pub(super) async fn a_second_attempt_settles_as_such<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let (_, owner) = case.taken_over(&id).await?;
    let result = done("result");
    case.settle(&owner, &result).await?;
    settled_as(&case.settled(&id, &case.request()).await?, &owner, &result)?;
    Ok(Passed)
}

/// Settles, and reads the result by a claim and by a lookup, twice each.
async fn comes_back<H: Harness>(case: &Case<'_, H>, result: &Settlement) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.request()).await?;
    case.settle(&lease, result).await?;
    for _ in 0..2 {
        settled_as(&case.settled(&id, &case.request()).await?, &lease, result)?;
        settled_as(&case.seen_settled(&id).await?, &lease, result)?;
    }
    Ok(Passed)
}
