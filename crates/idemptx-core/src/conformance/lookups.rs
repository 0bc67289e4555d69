//! Reading claims nothing and changes nothing.

use super::Harness;
use super::case::{Case, done, held_by, held_live_by, settled_as};
use super::report::Verdict::Passed;
use super::report::{Outcome, ensure};
use crate::store::{ClaimRequest, Expected, Store};

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

    pub(super) async fn what_is_recalled_is_what_a_claim_finds(&self) -> Outcome {
        let id = self.id();
        let nothing = |when: &str| {
            let recalled = self.store().recall(&id).map(|record| record.state);
            ensure!(recalled.is_none(), "{recalled:?} is recalled {when}");
            Ok(())
        };
        nothing("before any claim")?;
        let lease = self.granted(&id, &self.request()).await?;
        nothing("during a claim")?;
        self.release(&lease).await?;
        nothing("after a release")?;
        let lease = self.granted(&id, &self.request()).await?;
        let result = done("result");
        self.settle(&lease, &result).await?;
        if let Some(record) = self.store().recall(&id) {
            ensure!(record.id == id, "the record of another id is recalled");
            settled_as(&record, &lease, &result)?;
        }
        let expected = Some(Expected::Settled(lease.token));
        self.granted(&id, &ClaimRequest { expected, ..self.request() }).await?;
        nothing("after another claim has replaced the result")?;
        Ok(Passed)
    }
}
