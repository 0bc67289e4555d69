//! Renewals: the owner, and no other, keeps a claim alive.

use super::Harness;
use super::case::{Case, fenced, held_by, held_live_by, settled_as};
use super::report::Verdict::Passed;
use super::report::{Outcome, Violation, ensure};
use crate::lease::Lease;
use crate::store::Store;

pub(super) async fn a_renewal_returns_the_lease<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.request()).await?;
    let renewed = case.renew(&lease).await?;
    ensure!(renewed == lease, "{renewed:?} instead of {lease:?}");
    held_live_by(&case.seen_held(&id).await?, &lease)?;
    Ok(Passed)
}

pub(super) async fn a_renewal_starts_the_term_again<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.request()).await?;
    for _ in 0..TRIES_MAX {
        case.sleep(2).await;
        let before = case.seen_held(&id).await?.remaining;
        case.renew(&lease).await?;
        let after = case.seen_held(&id).await?;
        held_live_by(&after, &lease)?;
        if after.remaining > before {
            return Ok(Passed);
        }
    }
    Err(Violation("no more of the term is left after renewing".to_owned()))
}

pub(super) async fn a_lapsed_lease_is_renewed_and_live_again<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.brief_request()).await?;
    for _ in 0..TRIES_MAX {
        case.lapsed(&id).await?;
        case.renew(&lease).await?;
        let holder = case.seen_held(&id).await?;
        held_by(&holder, &lease)?;
        if !holder.is_orphan() {
            return Ok(Passed);
        }
    }
    Err(Violation("a renewed lease is still an orphan".to_owned()))
}

pub(super) async fn a_renewal_with_another_token_is_fenced<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let lease = case.orphan(&id).await?;
    let stranger = Lease { token: case.token(), ..lease.clone() };
    fenced("renew", case.store().renew(&stranger).await)?;
    let holder = case.seen_held(&id).await?;
    held_by(&holder, &lease)?;
    ensure!(holder.is_orphan(), "a stranger revived the lease");
    Ok(Passed)
}

pub(super) async fn a_renewal_after_a_takeover_is_fenced<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let (former, owner) = case.taken_over(&id).await?;
    fenced("renew", case.store().renew(&former).await)?;
    held_live_by(&case.seen_held(&id).await?, &owner)?;
    Ok(Passed)
}

pub(super) async fn a_renewal_after_settling_is_fenced<H: Harness>(case: &Case<'_, H>) -> Outcome {
    let id = case.id();
    let (lease, result) = case.done(&id).await?;
    fenced("renew", case.store().renew(&lease).await)?;
    settled_as(&case.seen_settled(&id).await?, &lease, &result)?;
    Ok(Passed)
}

pub(super) async fn a_renewal_after_a_release_is_fenced_and_claims_nothing<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.request()).await?;
    case.release(&lease).await?;
    fenced("renew", case.store().renew(&lease).await)?;
    case.absent(&id).await?;
    Ok(Passed)
}

pub(super) async fn a_renewal_of_nothing_is_fenced_and_claims_nothing<H: Harness>(
    case: &Case<'_, H>,
) -> Outcome {
    let id = case.id();
    fenced("renew", case.store().renew(&Lease::granted(id, &case.request(), 1, 1)).await)?;
    case.absent(&id).await?;
    Ok(Passed)
}

/// The tries for cases that a stall of the machine can spoil.
const TRIES_MAX: u32 = 20;
