//! Every interleaving of a few requests, a store, and a world that goes wrong.
//!
//! Three clients in three processes send the same request.
//! At each step any of them may go on, its step of the store may be done and answered, done and its
//! answer lost, done twice, or done much later than anybody waits for it; any may crash; time may
//! pass beyond every lease.
//! Where handlers work in transactions, one may be on its way to the commit, or to its end without
//! one, for as long; until then whoever wants to change its record waits.
//! The faults in one history are limited, the orders in which they meet are not: every reachable
//! state is visited once.
//! That takes minutes with three clients: `make test-all` explores with three, as
//! `IDEMPTX_EXPLORE=full` asks, and `make test` with two.
//!
//! A long file, because it is one model: a state, its successors, and what must hold in it.

use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::world::{Cell, begin, fingerprints, id, response, rules};
use crate::exchange::{Action, Answer, BodyEnd, Deferred, Event, Exchange, Handled, Rules};
use crate::key::RecordId;
use crate::lease::Lease;
use crate::outcome::Code;
use crate::policy::{OnOrphan, OnPanic, Policy};
use crate::record::{Record, State};
use crate::secret::Secret;
use crate::store::{Claim, ClaimRequest, ErrorKind, Expected, RecordSnapshot, Settlement};
use crate::time::Timestamp;

#[test]
fn no_interleaving_breaks_an_invariant_when_orphans_are_reexecuted() {
    let visited = explore(&Scenario::new(rules(|_| {}), 3), Mutant::None).unwrap();
    assert!(visited > 10_000, "only {visited} states");
}

#[test]
fn no_interleaving_breaks_an_invariant_when_duplicates_wait() {
    let waits = |policy: &mut Policy| policy.wait = policy.lease * 4;
    explore(&Scenario::new(rules(waits), 2), Mutant::None).unwrap();
    explore(&Scenario { crashes: 0, ..Scenario::new(rules(waits), 3) }, Mutant::None).unwrap();
}

#[test]
fn quarantine_never_executes_twice_whatever_crashes() {
    let quarantine = |policy: &mut Policy| {
        policy.on_orphan = OnOrphan::Quarantine;
        policy.on_panic = OnPanic::Quarantine;
    };
    let scenario = Scenario { once: true, breaks: 1, ..Scenario::new(rules(quarantine), 3) };
    explore(&scenario, Mutant::None).unwrap();
}

#[test]
fn a_handler_that_fails_frees_the_key_for_the_next() {
    let scenario = Scenario { breaks: 2, faults: 1, ..Scenario::new(rules(|_| {}), 3) };
    explore(&scenario, Mutant::None).unwrap();
}

#[test]
fn an_effect_is_there_if_and_only_if_its_record_is() {
    let scenario = Scenario::new(rules(|_| {}), 2).transactional();
    let visited = explore(&scenario, Mutant::None).unwrap();
    assert!(visited > 10_000, "only {visited} states");
    explore(&Scenario { breaks: 1, faults: 1, ..scenario }, Mutant::None).unwrap();
}

#[test]
fn of_three_transactions_one_has_an_effect() {
    let scenario = Scenario::new(rules(|_| {}), 3).transactional();
    explore(&scenario, Mutant::None).unwrap();
    let waits = |policy: &mut Policy| policy.wait = policy.lease * 4;
    let waiting = Scenario { faults: 1, ..Scenario::new(rules(waits), 2).transactional() };
    explore(&waiting, Mutant::None).unwrap();
}

#[test]
fn a_record_outlives_the_lease_of_its_claim() {
    let brief = |policy: &mut Policy| {
        policy.retain = Duration::from_millis(1);
        policy.key_retain = policy.retain;
    };
    let scenario = || Scenario { pauses: 2, crashes: 0, ..Scenario::new(rules(brief), 2) };
    explore(&scenario(), Mutant::None).unwrap();
    assert!(explore(&scenario(), Mutant::ClaimsExpireEarly).is_err());
}

#[test]
fn processes_that_rotate_secrets_share_one_record() {
    let secret = |id| Secret::new(id, &[id; 16]).unwrap();
    let under = |naming: u8, secrets: &[u8]| {
        rules(|policy| {
            policy.naming_secret = Some(secret(naming));
            policy.secrets = secrets.iter().map(|id| secret(*id)).collect();
        })
    };
    let mut scenario = Scenario::new(under(9, &[1]), 2);
    scenario.others = Some(under(9, &[2, 1]));
    explore(&scenario, Mutant::None).unwrap();
    // A naming secret that rotates too.
    scenario.others = Some(under(8, &[2, 1]));
    assert!(explore(&scenario, Mutant::None).is_err());
}

/// A suite that lets a broken store or driver pass proves nothing.
#[test]
fn every_mutant_is_caught() {
    for mutant in [
        Mutant::SettleWithoutToken,
        Mutant::ReleaseWithoutToken,
        Mutant::SettledCanBeOverwritten,
        Mutant::LiveLeaseCanBeTakenOver,
        Mutant::TakeoverComparesOnlyTheToken,
        Mutant::LateClaimStartsAtOnce,
        Mutant::LostAnswerCountsAsSuccess,
        Mutant::FencedOwnerAnswersAllTheSame,
        Mutant::DoubtCountsAsRefusal,
    ] {
        let caught = explore(&Scenario::new(rules(|_| {}), 2), mutant);
        assert!(caught.is_err(), "{mutant:?} was not caught");
    }
    for mutant in [
        Mutant::CommitWithoutRecord,
        Mutant::UnheardCommitCountsAsUnsettled,
        Mutant::ReleaseOvertakesCommit,
    ] {
        let caught = explore(&Scenario::new(rules(|_| {}), 2).transactional(), mutant);
        assert!(caught.is_err(), "{mutant:?} was not caught");
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mutant {
    None,
    SettleWithoutToken,
    ReleaseWithoutToken,
    SettledCanBeOverwritten,
    LiveLeaseCanBeTakenOver,
    TakeoverComparesOnlyTheToken,
    LateClaimStartsAtOnce,
    LostAnswerCountsAsSuccess,
    FencedOwnerAnswersAllTheSame,
    /// A claim that may have been made is reported as certainly refused.
    DoubtCountsAsRefusal,
    /// A claim is kept for as long as its key, and no longer.
    ClaimsExpireEarly,
    CommitWithoutRecord,
    UnheardCommitCountsAsUnsettled,
    ReleaseOvertakesCommit,
}

struct Scenario {
    rules: Arc<Rules>,
    /// The rules of every second client, where they differ.
    others: Option<Arc<Rules>>,
    clients: usize,
    /// Lost, late or repeated steps in one history.
    faults: u8,
    crashes: u8,
    /// How often time passes beyond a lease.
    lapses: u8,
    /// How often half a lease passes.
    pauses: u8,
    /// How many handlers break down.
    breaks: u8,
    /// Whether the handler must not even begin a second time.
    once: bool,
    /// Whether handlers do what they do in transactions that also settle.
    transactional: bool,
}

impl Scenario {
    /// Two clients meet more faults than three: the number of states is what limits both.
    fn new(rules: Arc<Rules>, clients: usize) -> Self {
        let clients = clients.min(clients_max());
        let (faults, lapses) = if clients < 3 { (2, 2) } else { (1, 1) };
        Self {
            rules,
            others: None,
            clients,
            faults,
            crashes: 1,
            lapses,
            pauses: 0,
            breaks: 0,
            once: false,
            transactional: false,
        }
    }

    fn transactional(self) -> Self {
        Self { transactional: true, ..self }
    }

    fn rules_of(&self, n: usize) -> &Arc<Rules> {
        self.others.as_ref().filter(|_| n % 2 == 1).unwrap_or(&self.rules)
    }
}

/// Returns how many clients are explored at most.
#[expect(clippy::disallowed_methods, reason = "a test's time is for its caller to choose")]
fn clients_max() -> usize {
    if std::env::var("IDEMPTX_EXPLORE").is_ok_and(|extent| extent == "full") { 3 } else { 2 }
}

#[derive(Clone, Debug)]
struct World {
    now: u64,
    cell: Cell,
    clients: Vec<Client>,
    /// Steps that are still on their way to the store, whoever waits for them.
    late: Vec<Step>,
    /// Steps repeated in the background until confirmed.
    deferred: Vec<Step>,
    /// A transaction that has settled, but not ended; it has its record's row locked.
    open: Option<(Lease, Settlement)>,
    /// How often what handlers do in transactions was committed.
    effects: u8,
    faults: u8,
    crashes: u8,
    lapses: u8,
    pauses: u8,
    breaks: u8,
    /// What the operation is called: its record's id, and a key derived from its name.
    name: Option<(RecordId, String)>,
    executions: u8,
    takeovers: u8,
    releases: u8,
    trace: Trace,
}

/// How a state was reached; shared between its successors.
#[derive(Clone, Default)]
struct Trace(Option<Rc<(Trace, String)>>);

/// It is no part of the state.
impl fmt::Debug for Trace {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl Trace {
    fn lines(&self) -> String {
        match &self.0 {
            None => String::new(),
            Some(step) => format!("{}  {}\n", step.0.lines(), step.1),
        }
    }
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a handful of them")]
enum Client {
    Unborn,
    Asks(Exchange, Step),
    /// The store has answered; the answer is on its way.
    Told(Exchange, Step, Event),
    Waits(Exchange),
    Runs(Exchange, Lease),
    Ended(Ended),
    Crashed,
}

#[derive(Clone, Debug)]
enum Step {
    Claim(ClaimRequest),
    Renew(Lease),
    Lookup,
    Settle(Lease, Settlement),
    /// Settle in the handler's transaction, and commit that.
    Commit(Lease, Settlement),
    Release(Lease),
}

/// What a client got.
#[derive(Clone, Debug)]
enum Ended {
    Own {
        body: String,
        stored: bool,
    },
    Replay(String),
    #[expect(dead_code, reason = "shown in traces")]
    Refused(Code),
}

/// Visits every state that can be reached; the trace of the first broken invariant otherwise.
fn explore(scenario: &Scenario, mutant: Mutant) -> Result<usize, String> {
    let start = World {
        now: 0,
        cell: Cell::default(),
        clients: vec![Client::Unborn; scenario.clients],
        late: Vec::new(),
        deferred: Vec::new(),
        open: None,
        effects: 0,
        faults: scenario.faults,
        crashes: scenario.crashes,
        lapses: scenario.lapses,
        pauses: scenario.pauses,
        breaks: scenario.breaks,
        name: None,
        executions: 0,
        takeovers: 0,
        releases: 0,
        trace: Trace::default(),
    };
    let mut visited = BTreeSet::new();
    let mut open = vec![start];
    while let Some(world) = open.pop() {
        let next = world.successors(scenario, mutant)?;
        if next.is_empty() {
            world.assert_everybody_ended()?;
            world.assert_no_claim_is_left(scenario)?;
        }
        for world in next {
            world.assert_effect_is_recorded(scenario)?;
            if visited.insert(world.fingerprint()) {
                open.push(world);
            }
        }
    }
    Ok(visited.len())
}

impl World {
    /// Names the state, without how it was reached.
    fn fingerprint(&self) -> [u8; 16] {
        let digest = blake3::hash(format!("{self:?}").as_bytes());
        let mut name = [0; 16];
        name.copy_from_slice(&digest.as_bytes()[..16]);
        name
    }

    fn successors(&self, scenario: &Scenario, mutant: Mutant) -> Result<Vec<Self>, String> {
        let mut next = Vec::new();
        for n in 0..self.clients.len() {
            self.client_goes_on(n, scenario, mutant, &mut next)?;
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
            let mut world = self.then(format!("behind {:?}", self.deferred[position].name()));
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

    fn client_goes_on(
        &self,
        n: usize,
        scenario: &Scenario,
        mutant: Mutant,
        next: &mut Vec<Self>,
    ) -> Result<(), String> {
        let is_alive =
            !matches!(self.clients[n], Client::Unborn | Client::Crashed | Client::Ended(_));
        if self.crashes > 0 && is_alive {
            let mut world = self.then(format!("{n} crashes"));
            world.crashes -= 1;
            match &self.clients[n] {
                Client::Asks(_, Step::Commit(lease, done)) => world.leave_open(lease, done),
                Client::Asks(_, step) => world.late.push(step.clone()),
                _ => {}
            }
            world.clients[n] = Client::Crashed;
            next.push(world);
        }
        match &self.clients[n] {
            Client::Crashed | Client::Ended(_) => {}
            // Clients differ in nothing but their number: let them arrive in its order.
            Client::Unborn if n > 0 && matches!(self.clients[n - 1], Client::Unborn) => {}
            Client::Unborn => {
                let (mut exchange, _) = begin(scenario.rules_of(n), n as u8 + 1);
                let prints = fingerprints(scenario.rules_of(n), "a");
                let event = Event::Body(BodyEnd::Whole(prints));
                let action = exchange.step(event, Timestamp::from_millis(self.now));
                let mut world = self.then(format!("{n} arrives"));
                world.assert_one_name(n, &exchange, scenario)?;
                world.act(n, exchange, action, scenario)?;
                next.push(world);
            }
            Client::Asks(exchange, step) => self.asks(n, exchange, step, mutant, next)?,
            Client::Told(exchange, step, event) => {
                let lost = self.faults > 0;
                let heard = event.clone();
                self.hears(n, exchange, heard, step, scenario, mutant, "hears", next)?;
                if lost {
                    let mut world = self.then(format!("{n} loses the answer"));
                    world.faults -= 1;
                    let event = if mutant == Mutant::LostAnswerCountsAsSuccess {
                        step.success(event)
                    } else {
                        step.unknown(mutant)
                    };
                    world.hears(n, exchange, event, step, scenario, mutant, "doubts", next)?;
                }
            }
            Client::Waits(exchange) => {
                if !self.cell.is_live(self.now) {
                    let event = Event::Woken(None);
                    self.resumes(n, exchange, event, scenario, "is woken", next)?;
                }
                self.resumes(n, exchange, Event::WaitOver, scenario, "gives up waiting", next)?;
            }
            Client::Runs(exchange, lease) => {
                let handled = Handled::Whole { status: StatusCode::CREATED, directive: None };
                let event = Event::Handled(handled);
                self.resumes(n, exchange, event, scenario, "finishes", next)?;
                if self.breaks > 0 {
                    let mut world = self.clone();
                    world.breaks -= 1;
                    let event = Event::Handled(Handled::Broken);
                    world.resumes(n, exchange, event, scenario, "breaks down", next)?;
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

    /// A step of the store: done once, done twice, or on its way for longer than anybody waits.
    fn asks(
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
            world.clients[n] = Client::Told(exchange.clone(), step.clone(), event);
            next.push(world);
        }
        if self.faults == 0 {
            return Ok(());
        }
        if let Step::Commit(lease, done) = step {
            let told = Client::Told(exchange.clone(), step.clone(), step.unknown(mutant));
            let mut world = self.then(format!("{n}'s transaction is rolled back"));
            (world.faults, world.clients[n]) = (self.faults - 1, told.clone());
            next.push(world);
            let mut world = self.then(format!("{n} commits on a slow road"));
            (world.faults, world.clients[n]) = (self.faults - 1, told);
            world.leave_open(lease, done);
            next.push(world);
            return Ok(());
        }
        let mut world = self.then(format!("{n} {}, and is refused", step.name()));
        world.faults -= 1;
        if mutant == Mutant::DoubtCountsAsRefusal {
            world.late.push(step.clone());
        }
        world.clients[n] = Client::Told(exchange.clone(), step.clone(), step.refused());
        next.push(world);
        if !is_blocked {
            let mut world = self.then(format!("{n} {} twice", step.name()));
            world.faults -= 1;
            world.apply(step, mutant)?;
            let event = world.apply(step, mutant)?;
            world.clients[n] = Client::Told(exchange.clone(), step.clone(), event);
            next.push(world);
        }
        let mut world = self.then(format!("{n} {} on a slow road", step.name()));
        world.faults -= 1;
        world.late.push(step.clone());
        world.clients[n] = Client::Told(exchange.clone(), step.clone(), step.unknown(mutant));
        next.push(world);
        Ok(())
    }

    /// Nobody hears any more how a transaction ends, nor whether it got as far as its settlement.
    fn leave_open(&mut self, lease: &Lease, done: &Settlement) {
        let settles = |it: &Record| it.token == lease.token && it.state == State::Running;
        if self.open.is_none() && self.cell.record.as_ref().is_some_and(settles) {
            self.open = Some((lease.clone(), done.clone()));
        }
    }

    /// A transaction that nobody hears of ends, one way or the other.
    fn transaction_ends(&self, next: &mut Vec<Self>) {
        let Some((lease, done)) = &self.open else { return };
        let mut world = self.then("the open transaction is rolled back".into());
        world.open = None;
        next.push(world);
        let mut world = self.then("the open transaction is committed".into());
        world.open = None;
        world.effects += 1;
        // It has the row locked: if somebody came in between all the same, it is seen afterwards.
        let _ = world.cell.settle(lease, done);
        next.push(world);
    }

    /// Whether a step has to wait for the end of a transaction; reading does not.
    fn is_blocked(&self, step: &Step, mutant: Mutant) -> bool {
        let Some((lease, _)) = &self.open else { return false };
        match step {
            Step::Claim(claim_request) => {
                claim_request.expected.is_some() || claim_request.token == lease.token
            }
            Step::Release(_) => mutant != Mutant::ReleaseOvertakesCommit,
            Step::Lookup => false,
            Step::Renew(_) | Step::Settle(..) | Step::Commit(..) => true,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one call tells what is heard, and by whom")]
    fn hears(
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
        let event = match (mutant, &event) {
            (Mutant::FencedOwnerAnswersAllTheSame, Event::Settled(Err(ErrorKind::Fenced))) => {
                Event::Settled(Ok(()))
            }
            _ => event,
        };
        if mutant == Mutant::LateClaimStartsAtOnce && matches!(step, Step::Claim(_)) {
            // As if the driver's clock had stood still since the claim was sent.
            let mut exchange = exchange.clone();
            let action = exchange.step(event, exchange.sent);
            let mut world = self.then(format!("{n} {verb}"));
            world.act(n, exchange, action, scenario)?;
            next.push(world);
            return Ok(());
        }
        self.resumes(n, exchange, event, scenario, verb, next)
    }

    fn resumes(
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
        world.act(n, exchange, action, scenario)?;
        next.push(world);
        Ok(())
    }

    /// Takes up what the exchange says to do next.
    fn act(
        &mut self,
        n: usize,
        exchange: Exchange,
        action: Action,
        scenario: &Scenario,
    ) -> Result<(), String> {
        let policy = scenario.rules.policy();
        self.clients[n] = match action {
            Action::Claim { claim_request, .. } => {
                Client::Asks(exchange, Step::Claim(claim_request))
            }
            Action::Renew(lease) => Client::Asks(exchange, Step::Renew(lease)),
            Action::Lookup(_) => Client::Asks(exchange, Step::Lookup),
            Action::Release(lease) => Client::Asks(exchange, Step::Release(lease)),
            Action::Wait { .. } => Client::Waits(exchange),
            Action::Settle { lease, state, commits, .. } => {
                let payload = response(201, &format!("by {n}")).encode();
                let done = Settlement::new(state, payload, policy.retain, policy.key_retain);
                let step = if commits && scenario.transactional {
                    Step::Commit(lease, done)
                } else {
                    Step::Settle(lease, done)
                };
                Client::Asks(exchange, step)
            }
            Action::Execute(lease) => {
                self.executions += 1;
                self.assert_may_start(n, &lease, scenario)?;
                Client::Runs(exchange, lease)
            }
            Action::Answer { answer, deferred } => {
                if let Some(deferred) = deferred {
                    self.deferred.push(match deferred {
                        Deferred::Release(lease) => Step::Release(lease),
                        Deferred::Settle(lease, state) => {
                            let payload = response(201, &format!("by {n}")).encode();
                            let (retain, key_retain) = (policy.retain, policy.key_retain);
                            let done = Settlement::new(state, payload, retain, key_retain);
                            Step::Settle(lease, done)
                        }
                    });
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
                };
                self.clients[n] = Client::Ended(ended);
                return self.assert_one_answer();
            }
            other => return Err(format!("{n} cannot do {other:?}")),
        };
        Ok(())
    }

    /// The store does a step.
    fn apply(&mut self, step: &Step, mutant: Mutant) -> Result<Event, String> {
        let before = self.cell.clone();
        let was_live = before.is_live(self.now);
        let event = self.apply_with(step, mutant);
        let owner = match step {
            Step::Claim(_) | Step::Lookup => None,
            Step::Renew(lease)
            | Step::Settle(lease, _)
            | Step::Commit(lease, _)
            | Step::Release(lease) => Some(lease.token),
        };
        let after = &self.cell.record;
        if let (Some(token), Some(record)) = (owner, &before.record)
            && record.token != token
            && !same(Some(record), after.as_ref())
        {
            return Err(self.report("a stale owner changed the record"));
        }
        if let Some(record) = &before.record {
            if record.state != State::Running && !same(Some(record), after.as_ref()) {
                return Err(self.report("a settled record changed"));
            }
            if let Some(after) = after {
                if record.token != after.token {
                    self.takeovers += 1;
                    if was_live {
                        return Err(self.report("a live lease was taken over"));
                    }
                }
            } else {
                self.releases += 1;
            }
        }
        Ok(event)
    }

    fn apply_with(&mut self, step: &Step, mutant: Mutant) -> Event {
        let now = self.now;
        let current = self.cell.record.as_ref().map(Record::lease);
        match (step, mutant, current) {
            (Step::Claim(claim_request), Mutant::LiveLeaseCanBeTakenOver, Some(lease))
                if claim_request.token != lease.token =>
            {
                let claim_request = claim_request.clone().expecting(Expected::Orphan(lease.token));
                Event::Claimed(self.cell.claim(&id(), &claim_request, u64::MAX / 2))
            }
            // What the state in `Over` is for: found by this very exploration.
            (Step::Claim(claim_request), Mutant::TakeoverComparesOnlyTheToken, Some(lease))
                if claim_request.expected == Some(Expected::Orphan(lease.token)) =>
            {
                let settled =
                    self.cell.record.as_ref().is_some_and(|it| it.state != State::Running);
                let expected = if settled { Expected::Settled } else { Expected::Orphan };
                Event::Claimed(self.cell.claim(
                    &id(),
                    &claim_request.clone().expecting(expected(lease.token)),
                    now,
                ))
            }
            (Step::Claim(claim_request), ..) => {
                Event::Claimed(self.cell.claim(&id(), claim_request, now))
            }
            (Step::Renew(lease), ..) => Event::Renewed(self.cell.renew(lease, now)),
            (Step::Lookup, ..) => Event::Looked(self.cell.lookup(now)),
            (Step::Settle(_, done), Mutant::SettleWithoutToken, Some(current)) => {
                Event::Settled(self.cell.settle(&current, done))
            }
            (Step::Settle(lease, done), Mutant::SettledCanBeOverwritten, Some(_)) => {
                self.cell.record = Some(Record::settled(lease, done));
                Event::Settled(Ok(()))
            }
            (Step::Settle(lease, done), ..) => Event::Settled(self.cell.settle(lease, done)),
            (Step::Commit(lease, done), ..) => {
                let settled = self.cell.settle(lease, done);
                // Without its record the transaction is rolled back.
                if settled.is_ok() || mutant == Mutant::CommitWithoutRecord {
                    self.effects += 1;
                }
                Event::Settled(settled)
            }
            (Step::Release(_), Mutant::ReleaseWithoutToken, Some(current)) => {
                Event::Released(self.cell.release(&current))
            }
            (Step::Release(lease), ..) => Event::Released(self.cell.release(lease)),
        }
    }

    /// At most one execution per live lease, and none on a lease that may have lapsed.
    fn assert_may_start(&self, n: usize, lease: &Lease, scenario: &Scenario) -> Result<(), String> {
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

    /// Nobody is told another success than anybody else, save one that says it is not stored.
    fn assert_one_answer(&self) -> Result<(), String> {
        let mut bodies = self.clients.iter().filter_map(|client| match client {
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

    /// What a handler did in its transaction counts once, and together with the record.
    fn assert_effect_is_recorded(&self, scenario: &Scenario) -> Result<(), String> {
        let is_done = self.cell.record.as_ref().is_some_and(|it| it.state == State::Completed);
        if scenario.transactional && self.effects != u8::from(is_done) {
            return Err(self.report(&format!("{} effects, and the record", self.effects)));
        }
        Ok(())
    }

    /// Unless its client has crashed, a claim does not outlive the interest in it.
    fn assert_no_claim_is_left(&self, scenario: &Scenario) -> Result<(), String> {
        let is_claimed = self.cell.record.as_ref().is_some_and(|it| it.state == State::Running);
        if is_claimed && self.crashes == scenario.crashes {
            return Err(self.report("a claim is left to lapse"));
        }
        Ok(())
    }

    /// Every process gives the operation one record and one derived key.
    fn assert_one_name(
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

    /// A release of a claim whose answer was lost is repeated until that claim cannot come any more.
    fn is_repeated_later(&self, step: &Step) -> bool {
        let Step::Release(lease) = step else { return false };
        self.late.iter().any(|it| matches!(it, Step::Claim(claim) if claim.token == lease.token))
    }

    fn assert_everybody_ended(&self) -> Result<(), String> {
        let ended = |client: &Client| matches!(client, Client::Ended(_) | Client::Crashed);
        if self.clients.iter().all(ended) { Ok(()) } else { Err(self.report("somebody is stuck")) }
    }

    fn then(&self, what: String) -> Self {
        let mut world = self.clone();
        world.trace = Trace(Some(Rc::new((self.trace.clone(), what))));
        world
    }

    fn report(&self, what: &str) -> String {
        let record = self.cell.record.as_ref().map(|it| (it.state, it.token, it.attempt));
        format!("{what}:\n{}record: {record:?}", self.trace.lines())
    }
}

impl Step {
    fn name(&self) -> String {
        match self {
            Self::Claim(claim_request) if claim_request.expected.is_some() => "claims over".into(),
            Self::Claim(_) => "claims".into(),
            Self::Renew(_) => "renews".into(),
            Self::Lookup => "looks".into(),
            Self::Settle(_, done) => format!("settles as {:?}", done.state),
            Self::Commit(..) => "commits".into(),
            Self::Release(_) => "releases".into(),
        }
    }

    /// What a driver says of a step whose verdict never came.
    fn unknown(&self, mutant: Mutant) -> Event {
        match self {
            Self::Claim(_) => Event::Claimed(Err(ErrorKind::Unavailable.into())),
            Self::Renew(_) => Event::Renewed(Err(ErrorKind::Unavailable)),
            Self::Lookup => Event::Looked(Err(ErrorKind::Unavailable)),
            Self::Commit(..) if mutant != Mutant::UnheardCommitCountsAsUnsettled => {
                Event::Uncommitted
            }
            Self::Settle(..) | Self::Commit(..) => Event::Settled(Err(ErrorKind::Unavailable)),
            Self::Release(_) => Event::Released(Err(ErrorKind::Unavailable)),
        }
    }

    /// The answer of a store that has certainly not done it.
    fn refused(&self) -> Event {
        match self {
            Self::Claim(_) => Event::Claimed(Err(ErrorKind::Refused.into())),
            Self::Renew(_) => Event::Renewed(Err(ErrorKind::Refused)),
            Self::Lookup => Event::Looked(Err(ErrorKind::Refused)),
            Self::Settle(..) | Self::Commit(..) => Event::Settled(Err(ErrorKind::Refused)),
            Self::Release(_) => Event::Released(Err(ErrorKind::Refused)),
        }
    }

    /// What a careless driver would say of it.
    fn success(&self, event: &Event) -> Event {
        match self {
            Self::Claim(claim_request) => {
                let lease = Lease::granted(id(), claim_request, 1, 1);
                Event::Claimed(Ok(Claim::Granted(lease)))
            }
            Self::Renew(_) => Event::Renewed(Ok(())),
            Self::Lookup => event.clone(),
            Self::Settle(..) | Self::Commit(..) => Event::Settled(Ok(())),
            Self::Release(_) => Event::Released(Ok(())),
        }
    }
}

/// An event in a word or two, for traces.
fn brief(event: &Event) -> String {
    match event {
        Event::Claimed(Ok(Claim::Granted(lease))) => format!("granted, attempt {}", lease.attempt),
        Event::Claimed(Ok(Claim::Found(RecordSnapshot::Held(holder)))) if holder.is_orphan() => {
            "an orphan".into()
        }
        Event::Claimed(Ok(Claim::Found(RecordSnapshot::Held(_)))) => "held".into(),
        Event::Claimed(Ok(Claim::Found(RecordSnapshot::Settled(record)))) => {
            format!("{:?}", record.state)
        }
        Event::Looked(Ok(Some(RecordSnapshot::Settled(record)))) => format!("{:?}", record.state),
        Event::Looked(Ok(Some(RecordSnapshot::Held(_)))) => "held".into(),
        other => format!("{other:?}"),
    }
}

/// The same record, renewals aside.
fn same(before: Option<&Record>, after: Option<&Record>) -> bool {
    before == after
}
