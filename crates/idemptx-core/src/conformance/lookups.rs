//! Reading claims nothing and changes nothing.

use super::Harness;
use super::case::{Case, held_by, held_live_by, settled_as};
use super::report::Verdict::Passed;
use super::report::{Outcome, ensure};

pub(super) async fn nothing_is_seen_as_nothing<H: Harness>(case: &Case<'_, H>) -> Outcome {
    case.absent(&case.id()).await?;
    Ok(Passed)
}

pub(super) async fn a_claim_is_seen_as_held<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.request()).await?;
    held_live_by(&case.seen_held(&id).await?, &lease)?;
    Ok(Passed)
}

pub(super) async fn an_orphan_is_seen_as_lapsed<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let lease = case.orphan(&id).await?;
    for _ in 0..2 {
        let holder = case.seen_held(&id).await?;
        held_by(&holder, &lease)?;
        ensure!(holder.is_orphan(), "a lookup revived the lease");
    }
    Ok(Passed)
}

pub(super) async fn a_result_is_seen_as_settled<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let (lease, result) = case.done(&id).await?;
    settled_as(&case.seen_settled(&id).await?, &lease, &result)?;
    Ok(Passed)
}

pub(super) async fn a_lookup_claims_nothing<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    case.absent(&id).await?;
    case.absent(&id).await?;
    let lease = case.granted(&id, &case.request()).await?;
    ensure!(lease.attempt == 1, "the first attempt after lookups is {}", lease.attempt);
    Ok(Passed)
}
