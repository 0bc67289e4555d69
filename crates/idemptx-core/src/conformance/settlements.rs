//! Results are final, come back as they were given, and come from the owner alone.

use super::Harness;
use super::case::{Case, done, fenced, held_live_by, result, settled_as};
use super::report::Outcome;
use super::report::Verdict::Passed;
use crate::lease::Lease;
use crate::record::State;
use crate::store::{Expected, Settlement, Store};

impl<H: Harness> Case<'_, H> {
    pub(super) async fn an_empty_payload_comes_back(&self) -> Outcome {
        comes_back(self, &done("")).await
    }

    pub(super) async fn a_payload_of_one_byte_comes_back(&self) -> Outcome {
        comes_back(self, &done([0])).await
    }

    pub(super) async fn a_payload_of_every_byte_comes_back(&self) -> Outcome {
        comes_back(self, &done((0..=u8::MAX).collect::<Vec<_>>())).await
    }

    pub(super) async fn a_payload_of_a_mebibyte_comes_back(&self) -> Outcome {
        comes_back(self, &done((0..=u8::MAX).cycle().take(1 << 20).collect::<Vec<_>>())).await
    }

    pub(super) async fn a_result_without_body_comes_back(&self) -> Outcome {
        comes_back(self, &result(State::NotReplayable, "head")).await
    }

    pub(super) async fn an_unknown_outcome_comes_back(&self) -> Outcome {
        comes_back(self, &result(State::Unknown, "")).await
    }

    pub(super) async fn settling_again_changes_nothing(&self) -> Outcome {
        for state in [State::Completed, State::NotReplayable, State::Unknown] {
            let id = self.id();
            let lease = self.granted(&id, &self.request()).await?;
            let first = result(state, "");
            self.settle(&lease, &first).await?;
            self.settle(&lease, &first).await?;
            settled_as(&self.seen_settled(&id).await?, &lease, &first)?;
        }
        let id = self.id();
        let (lease, first) = self.done(&id).await?;
        self.settle(&lease, &done("another")).await?;
        settled_as(&self.seen_settled(&id).await?, &lease, &first)?;
        Ok(Passed)
    }

    pub(super) async fn a_lapsed_lease_settles(&self) -> Outcome {
        let id = self.id();
        let lease = self.orphan(&id).await?;
        let late = done("late");
        self.settle(&lease, &late).await?;
        settled_as(&self.seen_settled(&id).await?, &lease, &late)?;
        Ok(Passed)
    }

    pub(super) async fn a_settled_record_never_lapses(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.brief_request()).await?;
        let result = done("result");
        self.settle(&lease, &result).await?;
        self.sleep(3).await;
        settled_as(&self.settled(&id, &self.request()).await?, &lease, &result)?;
        Ok(Passed)
    }

    pub(super) async fn a_settlement_after_a_takeover_is_fenced(&self) -> Outcome {
        let id = self.id();
        let (former, owner) = self.taken_over(&id).await?;
        fenced("settle", self.store().settle(&former, &done("stale")).await)?;
        held_live_by(&self.seen_held(&id).await?, &owner)?;
        let result = done("result");
        self.settle(&owner, &result).await?;
        settled_as(&self.seen_settled(&id).await?, &owner, &result)?;
        Ok(Passed)
    }

    pub(super) async fn a_settlement_after_a_release_is_fenced_and_keeps_nothing(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        self.release(&lease).await?;
        fenced("settle", self.store().settle(&lease, &done("stale")).await)?;
        self.absent(&id).await?;
        Ok(Passed)
    }

    pub(super) async fn a_settlement_of_nothing_is_fenced_and_keeps_nothing(&self) -> Outcome {
        let id = self.id();
        let never_granted = Lease::granted(id, &self.request(), 1, 1);
        fenced("settle", self.store().settle(&never_granted, &done("stale")).await)?;
        self.absent(&id).await?;
        Ok(Passed)
    }

    pub(super) async fn a_settlement_with_another_token_is_fenced(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        let stranger = Lease { token: self.token(), ..lease.clone() };
        for state in [State::Completed, State::NotReplayable, State::Unknown] {
            fenced("settle", self.store().settle(&stranger, &result(state, "")).await)?;
            held_live_by(&self.seen_held(&id).await?, &lease)?;
        }
        Ok(Passed)
    }

    pub(super) async fn a_settlement_of_what_another_settled_is_fenced(&self) -> Outcome {
        let id = self.id();
        let (former, owner) = self.taken_over(&id).await?;
        let result = done("result");
        self.settle(&owner, &result).await?;
        fenced("settle", self.store().settle(&former, &done("stale")).await)?;
        settled_as(&self.seen_settled(&id).await?, &owner, &result)?;
        Ok(Passed)
    }

    pub(super) async fn a_settlement_after_a_rebind_is_fenced(&self) -> Outcome {
        let id = self.id();
        let (former, first) = self.done(&id).await?;
        let owner =
            self.granted(&id, &self.request().expecting(Expected::Settled(former.token))).await?;
        fenced("settle", self.store().settle(&former, &first).await)?;
        held_live_by(&self.seen_held(&id).await?, &owner)?;
        Ok(Passed)
    }

    pub(super) async fn a_second_attempt_settles_as_such(&self) -> Outcome {
        let id = self.id();
        let (_, owner) = self.taken_over(&id).await?;
        let result = done("result");
        self.settle(&owner, &result).await?;
        settled_as(&self.settled(&id, &self.request()).await?, &owner, &result)?;
        Ok(Passed)
    }
}

/// Settles, and reads the result by a claim and by a lookup, twice each.
async fn comes_back<H: Harness>(case: &Case<'_, H>, result: &Settlement) -> Outcome {
    let id = case.id();
    let lease = case.granted(&id, &case.request()).await?;
    case.settle(&lease, result).await?;
    for _ in 0..2 {
        settled_as(&case.settled(&id, &case.request()).await?, &lease, result)?;
        settled_as(&case.seen_settled(&id).await?, &lease, result)?;
    }
    Ok(Passed)
}
