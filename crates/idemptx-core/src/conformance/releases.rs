//! A key that is given up is free; a result is not given up.

use super::Harness;
use super::case::{Case, fenced, held_live_by, settled_as};
use super::report::Verdict::Passed;
use super::report::{Outcome, ensure};
use crate::lease::Lease;
use crate::store::Store;

pub(super) async fn a_released_key_is_claimed_afresh<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let (_, released) = case.taken_over(&id).await?;
    case.release(&released).await?;
    case.absent(&id).await?;
    let lease = case.granted(&id, &case.request()).await?;
    ensure!(lease.attempt == 1, "the first attempt after a release is {}", lease.attempt);
    ensure!(
        lease.fence >= released.fence,
        "the fence fell from {} to {}",
        released.fence,
        lease.fence
    );
    held_live_by(&case.seen_held(&id).await?, &lease)?;
    Ok(Passed)
}

pub(super) async fn releasing_again_succeeds<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.request()).await?;
    case.release(&lease).await?;
    case.release(&lease).await?;
    case.absent(&id).await?;
    Ok(Passed)
}

pub(super) async fn releasing_nothing_succeeds<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    case.release(&Lease::granted(id, &case.request(), 1, 1)).await?;
    case.absent(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_lapsed_claim_is_released<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let lease = case.orphan(&id).await?;
    case.release(&lease).await?;
    case.absent(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_release_with_another_token_is_fenced<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.request()).await?;
    let stranger = Lease { token: case.token(), ..lease.clone() };
    fenced("release", case.store().release(&stranger).await)?;
    held_live_by(&case.seen_held(&id).await?, &lease)?;
    Ok(Passed)
}

pub(super) async fn a_release_after_a_takeover_is_fenced<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let (former, owner) = case.taken_over(&id).await?;
    fenced("release", case.store().release(&former).await)?;
    held_live_by(&case.seen_held(&id).await?, &owner)?;
    Ok(Passed)
}

pub(super) async fn a_release_after_settling_is_fenced<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let (lease, result) = case.done(&id).await?;
    fenced("release", case.store().release(&lease).await)?;
    settled_as(&case.seen_settled(&id).await?, &lease, &result)?;
    Ok(Passed)
}

pub(super) async fn a_release_sent_again_after_another_claim_is_fenced<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let former = case.granted(&id, &case.request()).await?;
    case.release(&former).await?;
    let owner = case.granted(&id, &case.request()).await?;
    fenced("release", case.store().release(&former).await)?;
    held_live_by(&case.seen_held(&id).await?, &owner)?;
    Ok(Passed)
}
