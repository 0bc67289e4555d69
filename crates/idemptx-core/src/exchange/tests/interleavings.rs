//! Every interleaving of a few requests and a store, with faults.
//!
//! Two or three clients in as many processes send the same request.
//! In each state any client may proceed: its step of the store may be done and answered, done with
//! the answer lost, done twice, or done after the driver has stopped waiting; any client may crash;
//! time may pass beyond the lease.
//! Where handlers work in transactions, a commit or rollback may take as long; until then, steps
//! that change its record wait.
//! The number of faults in one history is limited, their order is not: the exploration visits every
//! reachable state once.
//! That takes minutes with three clients: `make test-all` explores with three, by
//! `IDEMPTX_EXPLORE=full`, and `make test` with two.
//!
//! This file has the tests and their bounds; the model is in [`universe`] (successors of a state),
//! [`steps`] (of the store), [`invariants`] and [`mutants`];
//! [`shared`] is what makes it quick.

use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use self::mutants::Mutant;
use self::shared::Shared;
use self::steps::Step;
use super::world::{Cell, rules};
use crate::exchange::{Directive, Event, Exchange, Handled, Rules};
use crate::key::RecordId;
use crate::lease::Lease;
use crate::outcome::Code;
use crate::policy::{OnOrphan, OnPanic, Policy};
use crate::secret::Secret;
use crate::store::Settlement;

mod invariants;
mod mutants;
mod shared;
mod steps;
mod universe;

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

#[test]
fn policies_that_compare_requests_differently_share_one_record() {
    let mut scenario = Scenario::new(rules(|_| {}), 2);
    scenario.others = Some(rules(|policy| policy.fingerprint = None));
    let visited = explore(&scenario, Mutant::None).unwrap();
    assert!(visited > 10_000, "only {visited} states");
}

#[test]
fn a_fenced_release_is_never_an_own_success() {
    let handled =
        Handled::Whole { status: StatusCode::CREATED, directive: Some(Directive::Release) };
    let scenario = Scenario { handled, ..Scenario::new(rules(|_| {}), 2) };
    explore(&scenario, Mutant::None).unwrap();
    assert!(explore(&scenario, Mutant::FencedReleaseCountsAsDone).is_err());
}

#[test]
fn a_response_whose_body_flows_is_never_an_own_success_once_it_is_fenced() {
    let handled =
        Handled::Flowing { status: StatusCode::CREATED, directive: Some(Directive::Release) };
    let scenario = Scenario { handled, ..Scenario::new(rules(|_| {}), 2) };
    explore(&scenario, Mutant::None).unwrap();
    assert!(explore(&scenario, Mutant::FencedRenewalCountsAsDone).is_err());
}

#[test]
fn a_response_that_breaks_off_frees_no_key() {
    let quarantine = |policy: &mut Policy| {
        policy.on_orphan = OnOrphan::Quarantine;
        policy.on_panic = OnPanic::Quarantine;
    };
    let ending = |handled| {
        let scenario = Scenario { once: true, handled, ..Scenario::new(rules(quarantine), 2) };
        explore(&scenario, Mutant::None)
    };
    let directive = Some(Directive::Release);
    ending(Handled::BrokenOff { directive }).unwrap();
    assert!(ending(Handled::Failed { directive }).is_err(), "what has not begun may be released");
}

/// A suite that passes a broken store or driver proves nothing.
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
        Mutant::FencedSettlementCountsAsDone,
        Mutant::DoubtCountsAsRefusal,
    ] {
        let caught = explore(&Scenario::new(rules(|_| {}), 2), mutant);
        assert!(caught.is_err(), "{mutant:?} was not caught");
    }
    for mutant in [
        Mutant::CommitWithoutRecord,
        Mutant::LostCommitCountsAsUnsettled,
        Mutant::ReleaseOvertakesCommit,
    ] {
        let caught = explore(&Scenario::new(rules(|_| {}), 2).transactional(), mutant);
        assert!(caught.is_err(), "{mutant:?} was not caught");
    }
}

struct Scenario {
    rules: Arc<Rules>,
    /// The rules of every second client, if they differ.
    others: Option<Arc<Rules>>,
    clients: usize,
    /// The number of lost, late or repeated steps in one history.
    faults: u8,
    crashes: u8,
    /// The number of times that a lease lapses.
    lapses: u8,
    /// The number of times that half a lease passes.
    pauses: u8,
    /// The number of handlers that fail.
    breaks: u8,
    /// The end of the handlers that do not fail.
    handled: Handled,
    /// True if no second handler may start.
    once: bool,
    /// True if handlers work in transactions that also settle.
    transactional: bool,
}

impl Scenario {
    /// Two clients get more faults than three, to bound the number of states.
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
            handled: Handled::Whole { status: StatusCode::CREATED, directive: None },
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

/// Returns the most clients to explore with.
#[expect(clippy::disallowed_methods, reason = "a test's time is for its caller to choose")]
fn clients_max() -> usize {
    if std::env::var("IDEMPTX_EXPLORE").is_ok_and(|extent| extent == "full") { 3 } else { 2 }
}

#[derive(Clone, Debug)]
struct World {
    now: u64,
    cell: Cell,
    clients: Vec<Shared<Client>>,
    /// Steps on their way to the store, for which no driver waits any more.
    late: Vec<Shared<Step>>,
    /// Steps that are repeated in the background until confirmed.
    deferred: Vec<Shared<Step>>,
    /// A transaction that has settled but not ended, and locks its record's row.
    open: Option<(Lease, Settlement)>,
    /// The number of committed transactions of handlers.
    effects: u8,
    faults: u8,
    crashes: u8,
    lapses: u8,
    pauses: u8,
    breaks: u8,
    /// The record's id, and a key derived for the operation.
    name: Option<(RecordId, String)>,
    executions: u8,
    takeovers: u8,
    releases: u8,
    trace: Trace,
}

/// The history of a state, shared between its successors.
#[derive(Clone, Default)]
struct Trace(Option<Rc<(Trace, String)>>);

/// Shows nothing: two histories of one state are the same state.
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
    Absent,
    Calling(Exchange, Step),
    /// The store has answered, and the answer is on its way.
    Answered(Exchange, Step, Event),
    Waiting(Exchange),
    Executing(Exchange, Lease),
    Ended(Ended),
    Crashed,
}

/// The answer that a client got.
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

/// Returns the number of reachable states, or the history of the first broken invariant.
fn explore(scenario: &Scenario, mutant: Mutant) -> Result<usize, String> {
    let start = World {
        now: 0,
        cell: Cell::default(),
        clients: vec![Client::Absent.into(); scenario.clients],
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
            world.assert_all_ended()?;
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
