//! Renewals: the owner, and no other, keeps a claim alive.

use super::Harness;
use super::case::{Case, fenced, held_by, held_live_by, settled_as};
use super::report::Verdict::Passed;
use super::report::{Outcome, Violation, ensure};
use crate::lease::Lease;
use crate::store::Store;

impl<H: Harness> Case<'_, H> {
    pub(super) async fn a_renewal_returns_the_lease(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        let renewed = self.renew(&lease).await?;
        ensure!(renewed == lease, "{renewed:?} instead of {lease:?}");
        held_live_by(&self.seen_held(&id).await?, &lease)?;
        Ok(Passed)
    }

    pub(super) async fn a_renewal_starts_the_term_again(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        for _ in 0..TRIES_MAX {
            self.sleep(2).await;
            let before = self.seen_held(&id).await?.remaining;
            self.renew(&lease).await?;
            let after = self.seen_held(&id).await?;
            held_live_by(&after, &lease)?;
            if after.remaining > before {
                return Ok(Passed);
            }
        }
        Err(Violation("no more of the term is left after renewing".to_owned()))
    }

    pub(super) async fn a_lapsed_lease_is_renewed_and_live_again(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.brief_request()).await?;
        for _ in 0..TRIES_MAX {
            self.lapsed(&id).await?;
            self.renew(&lease).await?;
            let holder = self.seen_held(&id).await?;
            held_by(&holder, &lease)?;
            if !holder.is_orphan() {
                return Ok(Passed);
            }
        }
        Err(Violation("a renewed lease is still an orphan".to_owned()))
    }

    pub(super) async fn a_renewal_with_another_token_is_fenced(&self) -> Outcome {
        let id = self.id();
        let lease = self.orphan(&id).await?;
        let stranger = Lease { token: self.token(), ..lease.clone() };
        fenced("renew", self.store().renew(&stranger).await)?;
        let holder = self.seen_held(&id).await?;
        held_by(&holder, &lease)?;
        ensure!(holder.is_orphan(), "a stranger revived the lease");
        Ok(Passed)
    }

    pub(super) async fn a_renewal_after_a_takeover_is_fenced(&self) -> Outcome {
        let id = self.id();
        let (former, owner) = self.taken_over(&id).await?;
        fenced("renew", self.store().renew(&former).await)?;
        held_live_by(&self.seen_held(&id).await?, &owner)?;
        Ok(Passed)
    }

    pub(super) async fn a_renewal_after_settling_is_fenced(&self) -> Outcome {
        let id = self.id();
        let (lease, result) = self.done(&id).await?;
        fenced("renew", self.store().renew(&lease).await)?;
        settled_as(&self.seen_settled(&id).await?, &lease, &result)?;
        Ok(Passed)
    }

    pub(super) async fn a_renewal_after_a_release_is_fenced_and_claims_nothing(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        self.release(&lease).await?;
        fenced("renew", self.store().renew(&lease).await)?;
        self.absent(&id).await?;
        Ok(Passed)
    }

    pub(super) async fn a_renewal_of_nothing_is_fenced_and_claims_nothing(&self) -> Outcome {
        let id = self.id();
        fenced("renew", self.store().renew(&Lease::granted(id, &self.request(), 1, 1)).await)?;
        self.absent(&id).await?;
        Ok(Passed)
    }
}

/// The tries for cases that a stall of the machine can spoil.
const TRIES_MAX: u32 = 20;
