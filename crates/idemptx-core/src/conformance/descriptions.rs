//! Descriptions of requests, which a store keeps with their records.

use super::Harness;
use super::case::{Case, result};
use super::listing::listed;
use super::report::Verdict::Passed;
use super::report::{Outcome, ensure};
use crate::description::Description;
use crate::record::State;
use crate::store::Inventory;

impl<H: Harness<Store: Inventory>> Case<'_, H> {
    pub(super) async fn what_describes_a_claim_stays_with_its_record(&self) -> Outcome {
        let (path, route) = ("/orders/".repeat(40), "orders".into());
        let described =
            Description { method: "POST".into(), path, route, ..Description::default() };
        // As it is read back: cut to its limits.
        let described = Description::of(&described.encode());
        let encoded = described.as_ref().map(Description::encode).unwrap_or_default();
        for (state, payload) in [(State::Unknown, ""), (State::NotReplayable, "a head")] {
            let (id, request) = (self.id(), self.request().described(encoded.clone()));
            let lease = self.granted(&id, &request).await?;
            ensure!(
                listed(self, &id).await?.description() == described,
                "a claim lost its description"
            );
            let again = self.granted(&id, &request).await?;
            ensure!(again == lease, "granted again, {lease:?} is {again:?}");
            let renewed = self.renew(&lease).await?;
            ensure!(renewed == lease, "renewed, {lease:?} is {renewed:?}");
            let done = result(state, payload).describing(&lease);
            self.settle(&lease, &done).await?;
            let record = self.settled(&id, &self.request()).await?;
            ensure!(record.payload == done.payload, "settled with {done:?} as {record:?}");
            ensure!(listed(self, &id).await?.description() == described, "a result lost it");
        }
        Ok(Passed)
    }
}
