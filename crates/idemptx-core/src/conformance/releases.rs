//! A key that is given up is free; a result is not given up.

use super::Harness;
use super::case::{Case, fenced, held_live_by, settled_as};
use super::report::Verdict::Passed;
use super::report::{Outcome, ensure};
use crate::lease::Lease;
use crate::store::Store;

impl<H: Harness> Case<'_, H> {
    pub(super) async fn a_released_key_is_claimed_afresh(&self) -> Outcome {
        let id = self.id();
        let (_, released) = self.taken_over(&id).await?;
        self.release(&released).await?;
        self.absent(&id).await?;
        let lease = self.granted(&id, &self.request()).await?;
        ensure!(lease.attempt == 1, "the first attempt after a release is {}", lease.attempt);
        ensure!(
            lease.fence >= released.fence,
            "the fence fell from {} to {}",
            released.fence,
            lease.fence
        );
        held_live_by(&self.seen_held(&id).await?, &lease)?;
        Ok(Passed)
    }

    pub(super) async fn releasing_again_succeeds(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        self.release(&lease).await?;
        self.release(&lease).await?;
        self.absent(&id).await?;
        Ok(Passed)
    }

    pub(super) async fn releasing_nothing_succeeds(&self) -> Outcome {
        let id = self.id();
        self.release(&Lease::granted(id, &self.request(), 1, 1)).await?;
        self.absent(&id).await?;
        Ok(Passed)
    }

    pub(super) async fn a_lapsed_claim_is_released(&self) -> Outcome {
        let id = self.id();
        let lease = self.orphan(&id).await?;
        self.release(&lease).await?;
        self.absent(&id).await?;
        Ok(Passed)
    }

    pub(super) async fn a_release_with_another_token_is_fenced(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        let stranger = Lease { token: self.token(), ..lease.clone() };
        fenced("release", self.store().release(&stranger).await)?;
        held_live_by(&self.seen_held(&id).await?, &lease)?;
        Ok(Passed)
    }

    pub(super) async fn a_release_after_a_takeover_is_fenced(&self) -> Outcome {
        let id = self.id();
        let (former, owner) = self.taken_over(&id).await?;
        fenced("release", self.store().release(&former).await)?;
        held_live_by(&self.seen_held(&id).await?, &owner)?;
        Ok(Passed)
    }

    pub(super) async fn a_release_after_settling_is_fenced(&self) -> Outcome {
        let id = self.id();
        let (lease, result) = self.done(&id).await?;
        fenced("release", self.store().release(&lease).await)?;
        settled_as(&self.seen_settled(&id).await?, &lease, &result)?;
        Ok(Passed)
    }

    pub(super) async fn a_release_sent_again_after_another_claim_is_fenced(&self) -> Outcome {
        let id = self.id();
        let former = self.granted(&id, &self.request()).await?;
        self.release(&former).await?;
        let owner = self.granted(&id, &self.request()).await?;
        fenced("release", self.store().release(&former).await)?;
        held_live_by(&self.seen_held(&id).await?, &owner)?;
        Ok(Passed)
    }
}
