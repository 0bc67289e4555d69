//! Takeovers: the records that [`ClaimRequest::expected`](crate::store::ClaimRequest::expected)
//! replaces, and those it does not.

use super::Harness;
use super::case::{Case, done, held_by, held_live_by, result, settled_as};
use super::report::Verdict::Passed;
use super::report::{Outcome, ensure};
use crate::record::State;
use crate::store::{ClaimRequest, Expected, Settlement};

impl<H: Harness> Case<'_, H> {
    pub(super) async fn an_orphan_is_taken_over(&self) -> Outcome {
        let id = self.id();
        let orphan = self.orphan(&id).await?;
        let owner =
            self.granted(&id, &self.request().expecting(Expected::Orphan(orphan.token))).await?;
        ensure!(owner.attempt == 2, "the second attempt is {}", owner.attempt);
        ensure!(owner.fence > orphan.fence, "the fence {} follows {}", owner.fence, orphan.fence);
        held_live_by(&self.seen_held(&id).await?, &owner)?;
        Ok(Passed)
    }

    pub(super) async fn a_live_claim_is_not_taken_over(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        let holder =
            self.held(&id, &self.request().expecting(Expected::Orphan(lease.token))).await?;
        held_live_by(&holder, &lease)?;
        self.settle(&lease, &done("result")).await?;
        Ok(Passed)
    }

    pub(super) async fn an_orphan_is_not_taken_over_under_another_token(&self) -> Outcome {
        let id = self.id();
        let orphan = self.orphan(&id).await?;
        let holder =
            self.held(&id, &self.request().expecting(Expected::Orphan(self.token()))).await?;
        held_by(&holder, &orphan)?;
        ensure!(holder.is_orphan(), "a refused takeover revived the lease");
        Ok(Passed)
    }

    pub(super) async fn a_takeover_of_nothing_is_a_first_attempt(&self) -> Outcome {
        let lease = self
            .granted(&self.id(), &self.request().expecting(Expected::Orphan(self.token())))
            .await?;
        ensure!(lease.attempt == 1, "the first attempt is {}", lease.attempt);
        Ok(Passed)
    }

    pub(super) async fn a_takeover_of_what_another_took_over_is_refused(&self) -> Outcome {
        let id = self.id();
        let (former, owner) = self.taken_over(&id).await?;
        held_live_by(
            &self.held(&id, &self.request().expecting(Expected::Orphan(former.token))).await?,
            &owner,
        )?;

        let id = self.id();
        let former = self.orphan(&id).await?;
        let next = self
            .granted(&id, &self.brief_request().expecting(Expected::Orphan(former.token)))
            .await?;
        self.lapsed(&id).await?;
        let holder =
            self.held(&id, &self.request().expecting(Expected::Orphan(former.token))).await?;
        held_by(&holder, &next)?;
        ensure!(holder.is_orphan(), "a refused takeover revived the lease");
        Ok(Passed)
    }

    pub(super) async fn a_takeover_sent_again_is_granted_unchanged(&self) -> Outcome {
        let id = self.id();
        let orphan = self.orphan(&id).await?;
        let request = self.brief_request().expecting(Expected::Orphan(orphan.token));
        let lease = self.granted(&id, &request).await?;
        let again = self.granted(&id, &request).await?;
        ensure!(again == lease, "{again:?} instead of {lease:?}");
        self.lapsed(&id).await?;
        let late = self.granted(&id, &request).await?;
        ensure!(late == lease, "{late:?} instead of {lease:?}, after the lapse");
        Ok(Passed)
    }

    pub(super) async fn attempts_and_fences_go_up_with_every_takeover(&self) -> Outcome {
        let id = self.id();
        let mut former = self.orphan(&id).await?;
        for attempt in 2..=5 {
            let owner = self
                .granted(&id, &self.brief_request().expecting(Expected::Orphan(former.token)))
                .await?;
            ensure!(owner.attempt == attempt, "attempt {attempt} is {}", owner.attempt);
            ensure!(
                owner.fence > former.fence,
                "the fence {} follows {}",
                owner.fence,
                former.fence
            );
            self.lapsed(&id).await?;
            former = owner;
        }
        Ok(Passed)
    }

    /// A claim request made while the record was an orphan arrives after the owner has settled it.
    pub(super) async fn a_late_result_is_not_taken_over(&self) -> Outcome {
        let id = self.id();
        let (former, late) = (self.orphan(&id).await?, done("late"));
        self.settle(&former, &late).await?;
        let record =
            self.settled(&id, &self.request().expecting(Expected::Orphan(former.token))).await?;
        settled_as(&record, &former, &late)?;
        settled_as(&self.seen_settled(&id).await?, &former, &late)?;
        Ok(Passed)
    }

    pub(super) async fn an_orphan_is_not_replaced_as_a_result(&self) -> Outcome {
        let id = self.id();
        let orphan = self.orphan(&id).await?;
        let holder =
            self.held(&id, &self.request().expecting(Expected::Settled(orphan.token))).await?;
        ensure!(holder.is_orphan(), "a refused claim revived the lease");
        Ok(Passed)
    }

    pub(super) async fn a_former_owner_finds_the_record_held(&self) -> Outcome {
        let (id, first) = (self.id(), self.brief_request());
        self.granted(&id, &first).await?;
        self.lapsed(&id).await?;
        let owner =
            self.granted(&id, &self.request().expecting(Expected::Orphan(first.token))).await?;
        held_live_by(&self.held(&id, &first).await?, &owner)?;
        Ok(Passed)
    }

    pub(super) async fn a_done_record_is_replaced_on_demand(&self) -> Outcome {
        replaces(self, &done("first")).await
    }

    pub(super) async fn an_unknown_record_is_replaced_on_demand(&self) -> Outcome {
        replaces(self, &result(State::Unknown, "")).await
    }

    pub(super) async fn a_record_without_body_is_replaced_on_demand(&self) -> Outcome {
        replaces(self, &result(State::NotReplayable, "head")).await
    }

    pub(super) async fn a_settled_record_is_not_replaced_under_another_token(&self) -> Outcome {
        let id = self.id();
        let (lease, result) = self.done(&id).await?;
        let record =
            self.settled(&id, &self.request().expecting(Expected::Settled(self.token()))).await?;
        settled_as(&record, &lease, &result)?;
        settled_as(&self.seen_settled(&id).await?, &lease, &result)?;
        Ok(Passed)
    }

    pub(super) async fn a_replaced_record_is_released_to_nothing(&self) -> Outcome {
        let id = self.id();
        let (former, _) = self.done(&id).await?;
        let owner =
            self.granted(&id, &self.request().expecting(Expected::Settled(former.token))).await?;
        self.release(&owner).await?;
        self.absent(&id).await?;
        Ok(Passed)
    }
}

/// Settles, executes again, and settles again; the first result must leave no trace.
async fn replaces<H: Harness>(case: &Case<'_, H>, first: &Settlement) -> Outcome {
    let id = case.id();
    let former = case.granted(&id, &case.request()).await?;
    case.settle(&former, first).await?;
    let request: ClaimRequest = case.request().expecting(Expected::Settled(former.token));
    let owner = case.granted(&id, &request).await?;
    ensure!(owner.attempt == 2, "the second attempt is {}", owner.attempt);
    ensure!(owner.fence > former.fence, "the fence {} follows {}", owner.fence, former.fence);
    held_live_by(&case.held(&id, &case.request()).await?, &owner)?;
    let again = case.granted(&id, &request).await?;
    ensure!(again == owner, "{again:?} instead of {owner:?}");
    let second = done("second");
    case.settle(&owner, &second).await?;
    settled_as(&case.seen_settled(&id).await?, &owner, &second)?;
    Ok(Passed)
}
