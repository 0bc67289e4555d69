//! Watching: a watch ends with the claim.

use super::Harness;
use super::case::{Case, done};
use super::join::poll_once;
use super::report::Verdict::{Passed, Skipped};
use super::report::{Outcome, Violation, ensure};
use crate::key::RecordId;
use crate::lease::Lease;
use crate::store::{Store, Watch};

impl<H: Harness> Case<'_, H> {
    pub(super) async fn what_a_store_says_of_watching_is_true(&self) -> Outcome {
        let id = self.id();
        self.granted(&id, &self.request()).await?;
        let watches = self.store().watch(&id).await.is_some();
        let says = self.store().capabilities().watch;
        ensure!(watches == says, "capabilities().watch is {says}, watch() is Some: {watches}");
        Ok(Passed)
    }

    pub(super) async fn a_watch_ends_after_a_settlement(&self) -> Outcome {
        let id = self.id();
        let Some((lease, watch)) = watched(self, &id).await? else { return Ok(UNWATCHED) };
        self.settle(&lease, &done("result")).await?;
        self.watch_ends(watch).await?;
        Ok(Passed)
    }

    pub(super) async fn a_watch_ends_after_a_release(&self) -> Outcome {
        let id = self.id();
        let Some((lease, watch)) = watched(self, &id).await? else { return Ok(UNWATCHED) };
        self.release(&lease).await?;
        self.watch_ends(watch).await?;
        Ok(Passed)
    }

    pub(super) async fn a_watch_that_was_never_polled_misses_nothing(&self) -> Outcome {
        let id = self.id();
        let Some((lease, watch)) = watched(self, &id).await? else { return Ok(UNWATCHED) };
        self.settle(&lease, &done("result")).await?;
        self.sleep(2).await;
        self.watch_ends(watch).await?;
        Ok(Passed)
    }

    pub(super) async fn every_watch_on_a_record_ends(&self) -> Outcome {
        let id = self.id();
        let Some((lease, first)) = watched(self, &id).await? else { return Ok(UNWATCHED) };
        let mut watches = vec![first];
        for _ in 1..WATCHES {
            watches.push(watch(self, &id).await?);
        }
        self.settle(&lease, &done("result")).await?;
        for watch in watches {
            self.watch_ends(watch).await?;
        }
        Ok(Passed)
    }

    pub(super) async fn a_dropped_watch_harms_nothing(&self) -> Outcome {
        let id = self.id();
        let Some((lease, kept)) = watched(self, &id).await? else { return Ok(UNWATCHED) };
        drop(watch(self, &id).await?);
        let mut polled = watch(self, &id).await?;
        poll_once(&mut polled).await;
        drop(polled);
        self.settle(&lease, &done("result")).await?;
        self.watch_ends(kept).await?;
        Ok(Passed)
    }
}

/// A live claim and a watch on it, if the store says that it can watch.
async fn watched<H: Harness>(
    case: &Case<'_, H>,
    id: &RecordId,
) -> Result<Option<(Lease, Watch)>, Violation> {
    if !case.store().capabilities().watch {
        return Ok(None);
    }
    let lease = case.granted(id, &case.request()).await?;
    Ok(Some((lease, watch(case, id).await?)))
}

async fn watch<H: Harness>(case: &Case<'_, H>, id: &RecordId) -> Result<Watch, Violation> {
    let watch = case.store().watch(id).await;
    watch.ok_or_else(|| Violation("a store that can watch gave no watch".to_owned()))
}

const UNWATCHED: super::Verdict = Skipped("the store does not watch");
const WATCHES: usize = 16;
