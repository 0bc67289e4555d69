//! The invariants that hold in every state.

use super::shared::Shared;
use super::{Client, Ended, Scenario, World};
use crate::exchange::Exchange;
use crate::exchange::tests::world::response;
use crate::lease::Lease;
use crate::record::State;
use crate::store::RecordSnapshot;

impl World {
    /// Asserts at most one execution per live lease, and none on a lease that may have lapsed.
    pub(super) fn assert_may_start(
        &self,
        n: usize,
        lease: &Lease,
        scenario: &Scenario,
    ) -> Result<(), String> {
        let holds = self.cell.record.as_ref().is_some_and(|it| it.token == lease.token);
        if !holds || !self.cell.is_live(self.now) {
            return Err(self.report(&format!("{n} started without a live lease")));
        }
        if self.executions > 1 + self.takeovers + self.releases {
            return Err(self.report("more executions than takeovers and releases explain"));
        }
        if scenario.once && self.executions > 1 {
            return Err(self.report("executed twice"));
        }
        Ok(())
    }

    /// Asserts that all clients got the same success, apart from one marked as not stored.
    pub(super) fn assert_one_answer(&self) -> Result<(), String> {
        let mut bodies = self.clients.iter().filter_map(|client| match &**client {
            Client::Ended(Ended::Own { body, stored: true } | Ended::Replay(body)) => Some(body),
            _ => None,
        });
        let Some(first) = bodies.next() else { return Ok(()) };
        if bodies.any(|body| body != first) {
            return Err(self.report("two different answers"));
        }
        match self.cell.lookup(self.now) {
            Ok(Some(RecordSnapshot::Settled(record)))
                if record.payload == response(201, first).encode() =>
            {
                Ok(())
            }
            _ => Err(self.report("an answer that is not what the store holds")),
        }
    }

    /// Asserts that a client whose claim was replaced did not get its own success.
    pub(super) fn assert_no_own_success(&self, n: usize) -> Result<(), String> {
        match self.clients.get(n).map(|client| &**client) {
            Some(Client::Ended(Ended::Own { .. })) => {
                Err(self.report("an own success under a replaced claim"))
            }
            _ => Ok(()),
        }
    }

    /// Asserts that a transaction has its effect once, and together with the record.
    pub(super) fn assert_effect_is_recorded(&self, scenario: &Scenario) -> Result<(), String> {
        let is_done = self.cell.record.as_ref().is_some_and(|it| it.state == State::Completed);
        if scenario.transactional && self.effects != u8::from(is_done) {
            return Err(self.report(&format!("{} effects, and the record", self.effects)));
        }
        Ok(())
    }

    /// Asserts that no claim is left when all clients have ended without a crash.
    pub(super) fn assert_no_claim_is_left(&self, scenario: &Scenario) -> Result<(), String> {
        let is_claimed = self.cell.record.as_ref().is_some_and(|it| it.state == State::Running);
        if is_claimed && self.crashes == scenario.crashes {
            return Err(self.report("a claim is left to lapse"));
        }
        Ok(())
    }

    /// Asserts that every process gives the operation one record and one derived key.
    pub(super) fn assert_one_name(
        &mut self,
        n: usize,
        exchange: &Exchange,
        scenario: &Scenario,
    ) -> Result<(), String> {
        let Some(operation) = exchange.operation() else { return Ok(()) };
        let name = (operation.id(), operation.derive("charge", scenario.rules_of(n)));
        if *self.name.get_or_insert_with(|| name.clone()) != name {
            return Err(self.report("one operation has two names"));
        }
        Ok(())
    }

    pub(super) fn assert_all_ended(&self) -> Result<(), String> {
        let ended =
            |client: &Shared<Client>| matches!(**client, Client::Ended(_) | Client::Crashed);
        if self.clients.iter().all(ended) { Ok(()) } else { Err(self.report("a client is stuck")) }
    }
}
