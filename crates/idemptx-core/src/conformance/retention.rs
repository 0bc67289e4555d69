//! Retention: the times after which responses, keys and claims are forgotten.

use super::Harness;
use super::case::{Case, LONG, done, fenced, held_by, result, settled_as};
use super::report::Verdict::Passed;
use super::report::{Outcome, Violation, ensure};
use crate::record::State;
use crate::store::{ClaimRequest, Expected, RecordSnapshot, Settlement, Store};

impl<H: Harness> Case<'_, H> {
    pub(super) async fn a_claim_ends_with_its_retention(&self) -> Outcome {
        let id = self.id();
        let brief = ClaimRequest { retain: self.tick() * 2, ..self.brief_request() };
        self.granted(&id, &brief).await?;
        self.gone(&id).await?;
        Ok(Passed)
    }

    pub(super) async fn a_renewed_claim_outlives_its_first_retention(&self) -> Outcome {
        for _ in 0..TRIES_MAX {
            let id = self.id();
            let span = self.tick() * 20;
            let request = ClaimRequest { term: span, retain: span, ..self.request() };
            let lease = self.granted(&id, &request).await?;
            self.sleep(10).await;
            if self.store().renew(&lease).await.is_ok() {
                self.sleep(12).await;
                if let Ok(holder) = self.seen_held(&id).await {
                    held_by(&holder, &lease)?;
                    return Ok(Passed);
                }
            }
        }
        Err(Violation("a claim renewed in time ended with its first retention".to_owned()))
    }

    pub(super) async fn a_settlement_outlives_the_retention_of_the_claim(&self) -> Outcome {
        for _ in 0..TRIES_MAX {
            let id = self.id();
            let span = self.tick() * 10;
            let lease = self
                .granted(&id, &ClaimRequest { term: span, retain: span, ..self.request() })
                .await?;
            let result = done("result");
            if self.store().settle(&lease, &result).await.is_ok() {
                self.sleep(12).await;
                settled_as(&self.seen_settled(&id).await?, &lease, &result)?;
                return Ok(Passed);
            }
        }
        Err(Violation("a claim kept for ten ticks cannot be settled at once".to_owned()))
    }

    pub(super) async fn a_done_record_ends_with_its_retention(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        let brief = self.tick() * 2;
        self.settle(&lease, &Settlement { retain: brief, key_retain: brief, ..done("x") }).await?;
        self.gone(&id).await?;
        Ok(Passed)
    }

    pub(super) async fn a_done_record_becomes_spent_where_the_key_is_kept_longer(&self) -> Outcome {
        let id = self.id();
        let (_, lease) = self.taken_over(&id).await?;
        self.settle(&lease, &Settlement { retain: self.tick() * 2, ..done("result") }).await?;
        settled_as(&self.spent(&id).await?, &lease, &result(State::ResponseExpired, ""))?;
        let again = self.settled(&id, &self.request()).await?;
        settled_as(&again, &lease, &result(State::ResponseExpired, ""))?;
        Ok(Passed)
    }

    pub(super) async fn a_spent_record_ends_with_the_retention_of_the_key(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        let (retain, key_retain) = (self.tick(), self.tick() * 4);
        self.settle(&lease, &Settlement { retain, key_retain, ..done("result") }).await?;
        self.gone(&id).await?;
        Ok(Passed)
    }

    pub(super) async fn a_spent_record_is_replaced_only_on_demand(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        self.settle(&lease, &Settlement { retain: self.tick(), ..done("result") }).await?;
        self.spent(&id).await?;
        self.settled(&id, &self.request()).await?;
        self.settled(&id, &self.request().expecting(Expected::Settled(self.token()))).await?;
        let owner =
            self.granted(&id, &self.request().expecting(Expected::Settled(lease.token))).await?;
        ensure!(owner.attempt == 2, "the second attempt is {}", owner.attempt);
        let second = done("second");
        self.settle(&owner, &second).await?;
        settled_as(&self.seen_settled(&id).await?, &owner, &second)?;
        Ok(Passed)
    }

    pub(super) async fn a_record_without_body_stays_as_long_as_its_key(&self) -> Outcome {
        stays_as_long_as_its_key(self, State::NotReplayable, "head").await
    }

    pub(super) async fn an_unknown_record_stays_as_long_as_its_key(&self) -> Outcome {
        stays_as_long_as_its_key(self, State::Unknown, "").await
    }

    pub(super) async fn a_key_that_has_ended_is_claimed_afresh(&self) -> Outcome {
        let id = self.id();
        let (_, former) = self.taken_over(&id).await?;
        let brief = self.tick();
        self.settle(&former, &Settlement { retain: brief, key_retain: brief, ..done("x") }).await?;
        self.gone(&id).await?;
        let lease = self.granted(&id, &self.request()).await?;
        ensure!(lease.attempt == 1, "the first attempt of a new life is {}", lease.attempt);
        ensure!(
            lease.fence >= former.fence,
            "the fence fell from {} to {}",
            former.fence,
            lease.fence
        );
        Ok(Passed)
    }

    pub(super) async fn a_claim_that_has_ended_cannot_settle(&self) -> Outcome {
        let id = self.id();
        let brief = ClaimRequest { retain: self.tick() * 2, ..self.brief_request() };
        let lease = self.granted(&id, &brief).await?;
        self.gone(&id).await?;
        fenced("settle", self.store().settle(&lease, &done("stale")).await)?;
        fenced("renew", self.store().renew(&lease).await)?;
        self.absent(&id).await?;
        Ok(Passed)
    }

    pub(super) async fn a_claim_kept_for_less_than_its_lease_ends_with_its_retention(
        &self,
    ) -> Outcome {
        let id = self.id();
        let former =
            self.granted(&id, &ClaimRequest { retain: self.tick() * 4, ..self.request() }).await?;
        if let Ok(Some(RecordSnapshot::Held(holder))) = self.store().lookup(&id).await {
            held_by(&holder, &former)?;
        }
        self.gone(&id).await?;
        fenced("settle", self.store().settle(&former, &done("stale")).await)?;
        let lease = self.granted(&id, &self.request()).await?;
        ensure!(lease.attempt == 1, "the first attempt of a new life is {}", lease.attempt);
        Ok(Passed)
    }
}

/// There is no response to be replayed, so only the key's retention counts.
async fn stays_as_long_as_its_key<H: Harness>(
    case: &Case<'_, H>,
    state: State,
    payload: &str,
) -> Outcome {
    let (kept, ended) = (case.id(), case.id());
    let lasting = Settlement { retain: case.tick(), key_retain: LONG, ..result(state, payload) };
    let lease = case.granted(&kept, &case.request()).await?;
    case.settle(&lease, &lasting).await?;

    let brief = Settlement { retain: case.tick(), key_retain: case.tick() * 3, ..lasting.clone() };
    let other = case.granted(&ended, &case.request()).await?;
    case.settle(&other, &brief).await?;
    case.gone(&ended).await?;
    settled_as(&case.seen_settled(&kept).await?, &lease, &lasting)?;
    Ok(Passed)
}

/// The tries for cases that a stall of the machine can spoil.
const TRIES_MAX: u32 = 5;
