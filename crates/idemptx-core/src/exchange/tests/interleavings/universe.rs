//! The successors of a state: what clients, the store and time may do next.

use std::rc::Rc;

use super::mutants::Mutant;
use super::shared::{Shared, digest};
use super::steps::{Step, brief};
use super::{Client, Ended, Scenario, Trace, World};
use crate::exchange::tests::world::{begin, fingerprints, response, token};
use crate::exchange::{Action, Answer, BodyEnd, Deferred, Event, Exchange, Handled, Stage};
use crate::lease::Lease;
use crate::record::{Record, State};
use crate::store::{ErrorKind, Settlement};
use crate::time::Timestamp;

impl World {
    /// Returns a digest of the state, without its history.
    pub(super) fn fingerprint(&self) -> [u8; 16] {
        digest(self)
    }

    pub(super) fn successors(
        &self,
        scenario: &Scenario,
        mutant: Mutant,
    ) -> Result<Vec<Self>, String> {
        let mut next = Vec::new();
        for n in 0..self.clients.len() {
            self.client_proceeds(n, scenario, mutant, &mut next)?;
        }
        self.transaction_ends(&mut next);
        for position in 0..self.late.len() {
            if self.is_blocked(&self.late[position], mutant) {
                continue;
            }
            let mut world = self.then(format!("late {:?}", self.late[position].name()));
            let step = world.late.remove(position);
            world.apply(&step, mutant)?;
            next.push(world);
        }
        for position in 0..self.deferred.len() {
            if self.is_blocked(&self.deferred[position], mutant) {
                continue;
            }
            if self.is_repeated_later(&self.deferred[position]) {
                continue;
            }
            let mut world = self.then(format!("deferred {:?}", self.deferred[position].name()));
            let step = world.deferred.remove(position);
            world.apply(&step, mutant)?;
            next.push(world);
        }
        if self.pauses > 0 && self.cell.is_live(self.now) {
            let mut world = self.then("half a lease passes".into());
            world.pauses -= 1;
            world.now += scenario.rules.policy().lease.as_millis() as u64 / 2;
            world.cell.expire(world.now, mutant == Mutant::ClaimsExpireEarly);
            next.push(world);
        }
        if self.lapses > 0 && self.cell.is_live(self.now) {
            let mut world = self.then("time passes beyond the lease".into());
            world.lapses -= 1;
            world.now += scenario.rules.policy().lease.as_millis() as u64 + 1;
            next.push(world);
        }
        Ok(next)
    }

    pub(super) fn client_proceeds(
        &self,
        n: usize,
        scenario: &Scenario,
        mutant: Mutant,
        next: &mut Vec<Self>,
    ) -> Result<(), String> {
        next.extend(self.client_crashes(n));
        match &*self.clients[n] {
            Client::Crashed | Client::Ended(_) => {}
            // Clients differ in nothing but their number: let them arrive in its order.
            Client::Absent if n > 0 && matches!(*self.clients[n - 1], Client::Absent) => {}
            Client::Absent => {
                let mut exchange = begin(scenario.rules_of(n));
                let prints = fingerprints(scenario.rules_of(n), "a");
                let mut end = BodyEnd::Whole(prints);
                if let Some(record) = &self.cell.record {
                    match exchange.recall(end, record) {
                        Ok(response) => {
                            let answer = Answer::Replay(Box::new(response));
                            let action = Action::Answer { answer, deferred: None };
                            let mut world = self.then(format!("{n} recalls"));
                            world.perform(n, exchange, action, scenario)?;
                            next.push(world);
                            // Another process has nothing to recall, and claims.
                            exchange = begin(scenario.rules_of(n));
                            end = BodyEnd::Whole(fingerprints(scenario.rules_of(n), "a"));
                        }
                        Err(same) => end = same,
                    }
                }
                let event = Event::Body(end, token(n as u8 + 1));
                let action = exchange.step(event, Timestamp::from_millis(self.now));
                let mut world = self.then(format!("{n} arrives"));
                world.assert_one_name(n, &exchange, scenario)?;
                world.perform(n, exchange, action, scenario)?;
                next.push(world);
            }
            Client::Calling(exchange, step) => self.call(n, exchange, step, mutant, next)?,
            Client::Answered(exchange, step, event) => {
                let lost = self.faults > 0;
                let received = event.clone();
                self.receive(n, exchange, received, step, scenario, mutant, "receives", next)?;
                if lost {
                    let mut world = self.then(format!("{n} loses the answer"));
                    world.faults -= 1;
                    let event = if mutant == Mutant::LostAnswerCountsAsSuccess {
                        step.success(event)
                    } else {
                        step.unknown(mutant)
                    };
                    world.receive(n, exchange, event, step, scenario, mutant, "doubts", next)?;
                }
            }
            Client::Waiting(exchange) => {
                if !self.cell.is_live(self.now) {
                    let event = Event::Woken(None);
                    self.resume(n, exchange, event, scenario, "is woken", next)?;
                }
                self.resume(n, exchange, Event::WaitOver, scenario, "gives up waiting", next)?;
            }
            Client::Executing(exchange, lease) => {
                let event = Event::Handled(scenario.handled);
                self.resume(n, exchange, event, scenario, "finishes", next)?;
                if self.breaks > 0 {
                    let mut world = self.clone();
                    world.breaks -= 1;
                    let event = Event::Handled(Handled::Failed { directive: None });
                    world.resume(n, exchange, event, scenario, "fails", next)?;
                }
                let mut world = self.then(format!("{n} beats"));
                if !self.is_blocked(&Step::Renew(lease.clone()), mutant)
                    && world.cell.renew(lease, world.now).is_ok()
                    && world.cell.since != self.cell.since
                {
                    next.push(world);
                }
            }
        }
        Ok(())
    }

    fn client_crashes(&self, n: usize) -> Option<Self> {
        let is_alive =
            !matches!(*self.clients[n], Client::Absent | Client::Crashed | Client::Ended(_));
        if self.crashes == 0 || !is_alive {
            return None;
        }
        let mut world = self.then(format!("{n} crashes"));
        world.crashes -= 1;
        match &*self.clients[n] {
            Client::Calling(_, Step::Commit(lease, done)) => world.leave_open(lease, done),
            Client::Calling(_, step) => world.late.push(step.clone().into()),
            _ => {}
        }
        world.clients[n] = Client::Crashed.into();
        Some(world)
    }

    /// Does a step of the store once or twice, or later than its driver waits.
    pub(super) fn call(
        &self,
        n: usize,
        exchange: &Exchange,
        step: &Step,
        mutant: Mutant,
        next: &mut Vec<Self>,
    ) -> Result<(), String> {
        let is_blocked = self.is_blocked(step, mutant);
        if !is_blocked {
            let mut world = self.then(format!("{n} {}", step.name()));
            let event = world.apply(step, mutant)?;
            world.clients[n] = Client::Answered(exchange.clone(), step.clone(), event).into();
            next.push(world);
        }
        if self.faults == 0 {
            return Ok(());
        }
        if let Step::Commit(lease, done) = step {
            let answered: Shared<Client> =
                Client::Answered(exchange.clone(), step.clone(), step.unknown(mutant)).into();
            let mut world = self.then(format!("{n}'s transaction is rolled back"));
            (world.faults, world.clients[n]) = (self.faults - 1, answered.clone());
            next.push(world);
            let mut world = self.then(format!("{n} commits slowly"));
            (world.faults, world.clients[n]) = (self.faults - 1, answered);
            world.leave_open(lease, done);
            next.push(world);
            return Ok(());
        }
        let mut world = self.then(format!("{n} {}, and is refused", step.name()));
        world.faults -= 1;
        if mutant == Mutant::DoubtCountsAsRefusal {
            world.late.push(step.clone().into());
        }
        world.clients[n] = Client::Answered(exchange.clone(), step.clone(), step.refused()).into();
        next.push(world);
        if !is_blocked {
            let mut world = self.then(format!("{n} {} twice", step.name()));
            world.faults -= 1;
            world.apply(step, mutant)?;
            let event = world.apply(step, mutant)?;
            world.clients[n] = Client::Answered(exchange.clone(), step.clone(), event).into();
            next.push(world);
        }
        let mut world = self.then(format!("{n} {} slowly", step.name()));
        world.faults -= 1;
        world.late.push(step.clone().into());
        world.clients[n] =
            Client::Answered(exchange.clone(), step.clone(), step.unknown(mutant)).into();
        next.push(world);
        Ok(())
    }

    /// Leaves a transaction open whose driver waits no more, if it can settle.
    pub(super) fn leave_open(&mut self, lease: &Lease, done: &Settlement) {
        let settles = |it: &Record| it.token == lease.token && it.state == State::Running;
        if self.open.is_none() && self.cell.record.as_ref().is_some_and(settles) {
            self.open = Some((lease.clone(), done.clone()));
        }
    }

    /// Commits or rolls back the open transaction.
    pub(super) fn transaction_ends(&self, next: &mut Vec<Self>) {
        let Some((lease, done)) = &self.open else { return };
        let mut world = self.then("the open transaction is rolled back".into());
        world.open = None;
        next.push(world);
        let mut world = self.then("the open transaction is committed".into());
        world.open = None;
        world.effects += 1;
        // It locks the row: a claim that came in between all the same breaks an invariant later.
        let _ = world.cell.settle(lease, done);
        next.push(world);
    }

    #[expect(clippy::too_many_arguments, reason = "one call has the whole delivery")]
    pub(super) fn receive(
        &self,
        n: usize,
        exchange: &Exchange,
        event: Event,
        step: &Step,
        scenario: &Scenario,
        mutant: Mutant,
        verb: &str,
        next: &mut Vec<Self>,
    ) -> Result<(), String> {
        let is_fenced = matches!(
            event,
            Event::Settled(Err(ErrorKind::Fenced)) | Event::Released(Err(ErrorKind::Fenced))
        ) || matches!(
            (&exchange.stage, &event),
            (Stage::Flowing(..), Event::Renewed(Err(ErrorKind::Fenced)))
        );
        let event = match (mutant, &event) {
            (Mutant::FencedSettlementCountsAsDone, Event::Settled(Err(ErrorKind::Fenced))) => {
                Event::Settled(Ok(()))
            }
            (Mutant::FencedReleaseCountsAsDone, Event::Released(Err(ErrorKind::Fenced))) => {
                Event::Released(Ok(()))
            }
            (Mutant::FencedRenewalCountsAsDone, Event::Renewed(Err(ErrorKind::Fenced))) => {
                Event::Renewed(Ok(()))
            }
            _ => event,
        };
        if mutant == Mutant::LateClaimStartsAtOnce && matches!(step, Step::Claim(_)) {
            // As if the driver's clock had stood still since the claim was sent.
            let mut exchange = exchange.clone();
            let action = exchange.step(event, exchange.sent);
            let mut world = self.then(format!("{n} {verb}"));
            world.perform(n, exchange, action, scenario)?;
            next.push(world);
            return Ok(());
        }
        self.resume(n, exchange, event, scenario, verb, next)?;
        match next.last() {
            Some(world) if is_fenced => world.assert_no_own_success(n),
            _ => Ok(()),
        }
    }

    pub(super) fn resume(
        &self,
        n: usize,
        exchange: &Exchange,
        event: Event,
        scenario: &Scenario,
        verb: &str,
        next: &mut Vec<Self>,
    ) -> Result<(), String> {
        let mut world = self.then(format!("{n} {verb} {}", brief(&event)));
        let mut exchange = exchange.clone();
        let action = exchange.step(event, Timestamp::from_millis(self.now));
        world.perform(n, exchange, action, scenario)?;
        next.push(world);
        Ok(())
    }

    /// Begins the action that the exchange asks for.
    pub(super) fn perform(
        &mut self,
        n: usize,
        exchange: Exchange,
        action: Action,
        scenario: &Scenario,
    ) -> Result<(), String> {
        let policy = scenario.rules.policy();
        let client = match action {
            Action::Claim { claim_request, .. } => {
                Client::Calling(exchange, Step::Claim(claim_request))
            }
            Action::Renew(lease) => Client::Calling(exchange, Step::Renew(lease)),
            Action::Lookup(_) => Client::Calling(exchange, Step::Lookup),
            Action::Release(lease) => Client::Calling(exchange, Step::Release(lease)),
            Action::Wait { .. } => Client::Waiting(exchange),
            Action::Settle { lease, state, commits, .. } => {
                let payload = response(201, &format!("by {n}")).encode();
                let done = Settlement::new(state, payload, policy.retain, policy.key_retain);
                let step = if commits && scenario.transactional {
                    Step::Commit(lease, done)
                } else {
                    Step::Settle(lease, done)
                };
                Client::Calling(exchange, step)
            }
            Action::Execute(lease) => {
                self.executions += 1;
                self.assert_may_start(n, &lease, scenario)?;
                Client::Executing(exchange, lease)
            }
            Action::Answer { answer, deferred } => {
                if let Some(deferred) = deferred {
                    let step = match deferred {
                        // The body may end at any later time.
                        Deferred::Release(lease) | Deferred::AfterBody { lease, .. } => {
                            Step::Release(lease)
                        }
                        Deferred::Settle(lease, state) => {
                            let payload = response(201, &format!("by {n}")).encode();
                            let (retain, key_retain) = (policy.retain, policy.key_retain);
                            let done = Settlement::new(state, payload, retain, key_retain);
                            Step::Settle(lease, done)
                        }
                    };
                    self.deferred.push(step.into());
                }
                let ended = match answer {
                    Answer::Own { stored: false, .. } if scenario.transactional => {
                        return Err(self.report("an own success that may have been rolled back"));
                    }
                    Answer::Own { stored, .. } => Ended::Own { body: format!("by {n}"), stored },
                    Answer::Replay(stored) => {
                        Ended::Replay(String::from_utf8(stored.body.to_vec()).unwrap())
                    }
                    Answer::Refuse(rejection) => Ended::Refused(rejection.code),
                    Answer::Pass(passed) => return Err(format!("{n} passed: {passed:?}")),
                    Answer::Broken { .. } => return Err(format!("{n} broke without a shadow")),
                };
                self.clients[n] = Client::Ended(ended).into();
                return self.assert_one_answer();
            }
            other => return Err(format!("{n} cannot do {other:?}")),
        };
        self.clients[n] = client.into();
        Ok(())
    }

    pub(super) fn then(&self, what: String) -> Self {
        let mut world = self.clone();
        world.trace = Trace(Some(Rc::new((self.trace.clone(), what))));
        world
    }

    pub(super) fn report(&self, what: &str) -> String {
        let record = self.cell.record.as_ref().map(|it| (it.state, it.token, it.attempt));
        format!("{what}:\n{}record: {record:?}", self.trace.lines())
    }
}
