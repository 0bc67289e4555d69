//! The owner, and nobody else, keeps a claim alive.

use super::Harness;
use super::report::Verdict::Passed;
use super::report::{Broken, Outcome, ensure};
use super::trial::{Trial, fenced, held_by, held_live_by, settled_as};
use crate::lease::Lease;
use crate::store::Store;

pub(super) async fn a_renewal_returns_the_lease<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    let renewed = trial.renew(&lease).await?;
    ensure!(renewed == lease, "{renewed:?} instead of {lease:?}");
    held_live_by(&trial.seen_held(&id).await?, &lease)?;
    Ok(Passed)
}

pub(super) async fn a_renewal_starts_the_term_anew<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    for _ in 0..TRIES_MAX {
        trial.sleep(2).await;
        let before = trial.seen_held(&id).await?.remaining;
        trial.renew(&lease).await?;
        let after = trial.seen_held(&id).await?;
        held_live_by(&after, &lease)?;
        if after.remaining > before {
            return Ok(Passed);
        }
    }
    Err(Broken("no more of the term is left after renewing".to_owned()))
}

pub(super) async fn a_lapsed_lease_is_renewed_and_live_again<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.brief_claim_request()).await?;
    for _ in 0..TRIES_MAX {
        trial.lapsed(&id).await?;
        trial.renew(&lease).await?;
        let holder = trial.seen_held(&id).await?;
        held_by(&holder, &lease)?;
        if !holder.is_orphan() {
            return Ok(Passed);
        }
    }
    Err(Broken("a renewed lease is still an orphan".to_owned()))
}

pub(super) async fn a_renewal_with_another_token_is_fenced<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.orphan(&id).await?;
    let stranger = Lease { token: trial.token(), ..lease.clone() };
    fenced("renew", trial.store().renew(&stranger).await)?;
    let holder = trial.seen_held(&id).await?;
    held_by(&holder, &lease)?;
    ensure!(holder.is_orphan(), "a stranger revived the lease");
    Ok(Passed)
}

pub(super) async fn a_renewal_after_a_takeover_is_fenced<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let (former, owner) = trial.taken_over(&id).await?;
    fenced("renew", trial.store().renew(&former).await)?;
    held_live_by(&trial.seen_held(&id).await?, &owner)?;
    Ok(Passed)
}

pub(super) async fn a_renewal_after_settling_is_fenced<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let (lease, result) = trial.done(&id).await?;
    fenced("renew", trial.store().renew(&lease).await)?;
    settled_as(&trial.seen_settled(&id).await?, &lease, &result)?;
    Ok(Passed)
}

pub(super) async fn a_renewal_after_a_release_is_fenced_and_claims_nothing<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    trial.release(&lease).await?;
    fenced("renew", trial.store().renew(&lease).await)?;
    trial.absent(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_renewal_of_nothing_is_fenced_and_claims_nothing<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    fenced("renew", trial.store().renew(&Lease::granted(id, &trial.claim_request(), 1, 1)).await)?;
    trial.absent(&id).await?;
    Ok(Passed)
}

/// For what a stall of the machine can spoil.
const TRIES_MAX: u32 = 20;
