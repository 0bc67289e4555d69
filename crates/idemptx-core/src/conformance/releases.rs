//! A key that is given up is free; a result is not given up.

use super::Harness;
use super::report::Verdict::Passed;
use super::report::{Outcome, ensure};
use super::trial::{Trial, fenced, held_live_by, settled_as};
use crate::lease::Lease;
use crate::store::Store;

pub(super) async fn a_released_key_is_claimed_afresh<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let (_, released) = trial.taken_over(&id).await?;
    trial.release(&released).await?;
    trial.absent(&id).await?;
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    ensure!(lease.attempt == 1, "the first attempt after a release is {}", lease.attempt);
    ensure!(
        lease.fence >= released.fence,
        "the fence fell from {} to {}",
        released.fence,
        lease.fence
    );
    held_live_by(&trial.seen_held(&id).await?, &lease)?;
    Ok(Passed)
}

pub(super) async fn releasing_again_succeeds<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    trial.release(&lease).await?;
    trial.release(&lease).await?;
    trial.absent(&id).await?;
    Ok(Passed)
}

pub(super) async fn releasing_nothing_succeeds<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    trial.release(&Lease::granted(id, &trial.claim_request(), 1, 1)).await?;
    trial.absent(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_lapsed_claim_is_released<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let lease = trial.orphan(&id).await?;
    trial.release(&lease).await?;
    trial.absent(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_release_with_another_token_is_fenced<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    let stranger = Lease { token: trial.token(), ..lease.clone() };
    fenced("release", trial.store().release(&stranger).await)?;
    held_live_by(&trial.seen_held(&id).await?, &lease)?;
    Ok(Passed)
}

pub(super) async fn a_release_after_a_takeover_is_fenced<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let (former, owner) = trial.taken_over(&id).await?;
    fenced("release", trial.store().release(&former).await)?;
    held_live_by(&trial.seen_held(&id).await?, &owner)?;
    Ok(Passed)
}

pub(super) async fn a_release_after_settling_is_fenced<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let (lease, result) = trial.done(&id).await?;
    fenced("release", trial.store().release(&lease).await)?;
    settled_as(&trial.seen_settled(&id).await?, &lease, &result)?;
    Ok(Passed)
}

pub(super) async fn a_release_sent_again_after_another_claim_is_fenced<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let former = trial.granted(&id, &trial.claim_request()).await?;
    trial.release(&former).await?;
    let owner = trial.granted(&id, &trial.claim_request()).await?;
    fenced("release", trial.store().release(&former).await)?;
    held_live_by(&trial.seen_held(&id).await?, &owner)?;
    Ok(Passed)
}
