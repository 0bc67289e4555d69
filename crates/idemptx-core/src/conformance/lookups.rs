//! Reading claims nothing and changes nothing.

use super::Harness;
use super::case::{Case, held_by, held_live_by, settled_as};
use super::report::Verdict::Passed;
use super::report::{Outcome, ensure};

impl<H: Harness> Case<'_, H> {
    pub(super) async fn nothing_is_seen_as_nothing(&self) -> Outcome {
        self.absent(&self.id()).await?;
        Ok(Passed)
    }

    pub(super) async fn a_claim_is_seen_as_held(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        held_live_by(&self.seen_held(&id).await?, &lease)?;
        Ok(Passed)
    }

    pub(super) async fn an_orphan_is_seen_as_lapsed(&self) -> Outcome {
        let id = self.id();
        let lease = self.orphan(&id).await?;
        for _ in 0..2 {
            let holder = self.seen_held(&id).await?;
            held_by(&holder, &lease)?;
            ensure!(holder.is_orphan(), "a lookup revived the lease");
        }
        Ok(Passed)
    }

    pub(super) async fn a_result_is_seen_as_settled(&self) -> Outcome {
        let id = self.id();
        let (lease, result) = self.done(&id).await?;
        settled_as(&self.seen_settled(&id).await?, &lease, &result)?;
        Ok(Passed)
    }

    pub(super) async fn a_lookup_claims_nothing(&self) -> Outcome {
        let id = self.id();
        self.absent(&id).await?;
        self.absent(&id).await?;
        let lease = self.granted(&id, &self.request()).await?;
        ensure!(lease.attempt == 1, "the first attempt after lookups is {}", lease.attempt);
        Ok(Passed)
    }
}
