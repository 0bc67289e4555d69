//! Reading claims nothing and changes nothing.

use super::Harness;
use super::report::Verdict::Passed;
use super::report::{Outcome, ensure};
use super::trial::{Trial, held_by, held_live_by, settled_as};

pub(super) async fn nothing_is_seen_as_nothing<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    trial.absent(&trial.id()).await?;
    Ok(Passed)
}

pub(super) async fn a_claim_is_seen_as_held<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    held_live_by(&trial.seen_held(&id).await?, &lease)?;
    Ok(Passed)
}

pub(super) async fn an_orphan_is_seen_as_lapsed<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let lease = trial.orphan(&id).await?;
    for _ in 0..2 {
        let holder = trial.seen_held(&id).await?;
        held_by(&holder, &lease)?;
        ensure!(holder.is_orphan(), "a lookup revived the lease");
    }
    Ok(Passed)
}

pub(super) async fn a_result_is_seen_as_settled<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let (lease, result) = trial.done(&id).await?;
    settled_as(&trial.seen_settled(&id).await?, &lease, &result)?;
    Ok(Passed)
}

pub(super) async fn a_lookup_claims_nothing<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    trial.absent(&id).await?;
    trial.absent(&id).await?;
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    ensure!(lease.attempt == 1, "the first attempt after lookups is {}", lease.attempt);
    Ok(Passed)
}
