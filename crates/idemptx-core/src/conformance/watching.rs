//! Whoever watches a claim hears of its end.

use super::Harness;
use super::join::poll_once;
use super::report::Verdict::{Passed, Skipped};
use super::report::{Broken, Outcome, ensure};
use super::trial::{Trial, done};
use crate::key::RecordId;
use crate::lease::Lease;
use crate::store::{Store, Watch};

pub(super) async fn what_a_store_says_of_watching_is_true<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    trial.granted(&id, &trial.claim_request()).await?;
    let watches = trial.store().watch(&id).await.is_some();
    let says = trial.store().capabilities().watch;
    ensure!(watches == says, "capabilities().watch is {says}, watch() is Some: {watches}");
    Ok(Passed)
}

pub(super) async fn a_watch_ends_after_a_settlement<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let Some((lease, watch)) = watched(trial, &id).await? else { return Ok(UNWATCHED) };
    trial.settle(&lease, &done("result")).await?;
    trial.rings(watch).await?;
    Ok(Passed)
}

pub(super) async fn a_watch_ends_after_a_release<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let Some((lease, watch)) = watched(trial, &id).await? else { return Ok(UNWATCHED) };
    trial.release(&lease).await?;
    trial.rings(watch).await?;
    Ok(Passed)
}

pub(super) async fn a_watch_that_was_never_polled_misses_nothing<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let Some((lease, watch)) = watched(trial, &id).await? else { return Ok(UNWATCHED) };
    trial.settle(&lease, &done("result")).await?;
    trial.sleep(2).await;
    trial.rings(watch).await?;
    Ok(Passed)
}

pub(super) async fn every_watch_on_a_record_ends<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let Some((lease, first)) = watched(trial, &id).await? else { return Ok(UNWATCHED) };
    let mut watches = vec![first];
    for _ in 1..WATCHES {
        watches.push(watch(trial, &id).await?);
    }
    trial.settle(&lease, &done("result")).await?;
    for watch in watches {
        trial.rings(watch).await?;
    }
    Ok(Passed)
}

pub(super) async fn a_dropped_watch_harms_nothing<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let Some((lease, kept)) = watched(trial, &id).await? else { return Ok(UNWATCHED) };
    drop(watch(trial, &id).await?);
    let mut polled = watch(trial, &id).await?;
    poll_once(&mut polled).await;
    drop(polled);
    trial.settle(&lease, &done("result")).await?;
    trial.rings(kept).await?;
    Ok(Passed)
}

/// A live claim and a watch on it, if the store says that it can watch.
async fn watched<H: Harness>(
    trial: &Trial<'_, H>,
    id: &RecordId,
) -> Result<Option<(Lease, Watch)>, Broken> {
    if !trial.store().capabilities().watch {
        return Ok(None);
    }
    let lease = trial.granted(id, &trial.claim_request()).await?;
    Ok(Some((lease, watch(trial, id).await?)))
}

async fn watch<H: Harness>(trial: &Trial<'_, H>, id: &RecordId) -> Result<Watch, Broken> {
    let watch = trial.store().watch(id).await;
    watch.ok_or_else(|| Broken("a store that can watch gave no watch".to_owned()))
}

const UNWATCHED: super::Verdict = Skipped("the store does not watch");
const WATCHES: usize = 16;
