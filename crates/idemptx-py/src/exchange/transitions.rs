//! Transitions of an exchange: an event goes in, the next action comes out.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use idemptx_core::coordination::WaitLimits;
use idemptx_core::exchange::{
    Action, Answer, BodyEnd, Deferred, Directive, Event, Exchange, Handled, Head, Operation,
    grpc_content_type,
};
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::outcome::{Code, Outcome};
use idemptx_core::record::State;
use idemptx_core::response::StoredResponse;
use idemptx_core::response_headers;
use idemptx_core::store::{ClaimInfo, Settlement};
use idemptx_core::time::Timestamp;
use pyo3::prelude::*;

use super::{Phase, PyExchange};
use crate::memory::MemoryStore;
use crate::misuse;
use crate::shared::Shared;
use crate::step::{Step, StoreCall, Verdict};

impl Phase {
    /// Returns the name of the action that the driver has to take.
    pub(super) const fn action(&self) -> &'static str {
        match self {
            Self::Body { .. } => "READ_BODY",
            Self::Store(..) => "STORE",
            Self::Wait { .. } => "WAIT",
            Self::Probe { .. } => "PROBE",
            Self::Execute => "EXECUTE",
            Self::Answer(..) => "ANSWER",
            Self::Abandoned => "none: the exchange was abandoned",
        }
    }
}

impl PyExchange {
    /// Begins with a request's head; `None` if the request passes untouched and unmarked.
    pub(crate) fn begun(
        shared: &Arc<Shared>,
        machine: Exchange,
        action: Action,
        head: &Head<'_>,
    ) -> Option<Self> {
        let mut exchange = Self {
            shared: Arc::clone(shared),
            machine: machine.typical(shared.typical().at(shared.now())),
            phase: Phase::Abandoned,
            id: None,
            prints: None,
            fed_bytes: 0,
            at_stake: false,
            lease: None,
            began: Timestamp::default(),
            kept: None,
            settlement: None,
            commits: false,
            grpc: grpc_content_type(head.headers).cloned(),
            after_body: None,
            concern: None,
        };
        exchange.id = exchange.machine.operation().map(Operation::id);
        exchange.concern = exchange.concern_about(head);
        if let Action::Answer { answer: answer @ Answer::Pass(_), .. } = &action
            && exchange.marks(HeaderMap::new(), &exchange.machine.outcome(answer)).is_empty()
        {
            return None;
        }
        let Action::ReadBody { bytes_max } = action else {
            exchange.phase = exchange.phase(action);
            return Some(exchange);
        };
        if declared_bytes(head.headers) > bytes_max {
            exchange.end(BodyEnd::TooLarge);
        } else {
            exchange.prints = exchange.machine.fingerprinters(head);
            exchange.phase = Phase::Body { bytes_max };
        }
        Some(exchange)
    }

    /// Ends a body that was read to its end; replays what `memory` has for the request.
    pub(super) fn whole_body(&mut self, memory: Option<&MemoryStore>) -> PyResult<i32> {
        let Phase::Body { bytes_max } = self.phase else { return Err(self.misplaced("end_body")) };
        if self.fed_bytes > bytes_max {
            return self.body_too_large();
        }
        let end = self.prints.take().map_or(BodyEnd::Failed, BodyEnd::complete);
        let record = memory.zip(self.id).and_then(|(memory, id)| memory.recall(&id));
        let Some(record) = record else { return Ok(self.end(end)) };
        match self.machine.recall(end, &record) {
            Ok(response) => {
                self.phase = Phase::Answer(Box::new(Answer::Replay(Box::new(response))), None);
                Ok(self.action())
            }
            Err(end) => Ok(self.end(end)),
        }
    }

    /// Ends the body, and draws the token to claim with.
    pub(super) fn end(&mut self, end: BodyEnd) -> i32 {
        let token = self.shared.token();
        self.advance(Event::Body(end, token))
    }

    /// Returns what makes a key protect less than its client believes.
    fn concern_about(&self, head: &Head<'_>) -> Option<&'static str> {
        let (policy, key) = (self.shared.policy(), self.machine.operation()?.key());
        if policy.warns_of_key(key) {
            return Some("placeholder");
        }
        let scope = policy.scope.as_ref()?;
        scope.misses_session(head.headers).then_some("session")
    }

    pub(crate) fn leased(&self) -> PyResult<&Lease> {
        self.lease.as_ref().ok_or_else(|| misuse("the request holds no lease: nothing executes"))
    }

    /// The record that the request waits for, its holder, and how many may wait.
    pub(crate) fn waiting(&self) -> PyResult<(RecordId, ClaimInfo, WaitLimits)> {
        match (&self.phase, self.id) {
            (Phase::Wait { holder, .. }, Some(id)) => {
                Ok((id, *holder, WaitLimits::of(self.shared.policy())))
            }
            _ => Err(self.misplaced("wait")),
        }
    }

    pub(super) fn marks(&self, mut headers: HeaderMap, outcome: &Outcome) -> HeaderMap {
        let (rules, machine) = (self.shared.rules(), &self.machine);
        response_headers::mark(
            &mut headers,
            rules,
            outcome,
            machine.operation(),
            machine.fingerprint(),
        );
        headers
    }

    pub(super) fn misplaced(&self, method: &str) -> PyErr {
        misuse(format!("{method} does not belong here: the action is {}", self.phase.action()))
    }

    /// Removes the handler's `Idempotency-Outcome` from its headers and returns it.
    pub(super) fn directive(&mut self, headers: &mut HeaderMap) -> Option<Directive> {
        let directive = Directive::take(headers)?;
        self.concern = directive.is_err().then_some("outcome").or(self.concern);
        Some(directive.unwrap_or(Directive::Unknown))
    }

    /// Feeds an event to the state machine and returns the number of the next action.
    pub(super) fn advance(&mut self, event: Event) -> i32 {
        let mut action = self.machine.step(event, self.shared.now());
        // Runs at most once: keys are metered between a claim and the handler's start.
        while matches!(action, Action::Meter) {
            let operation = self.machine.operation();
            let within = operation.is_none_or(|operation| self.shared.meter(operation));
            action = self.machine.step(Event::Metered { within }, self.shared.now());
        }
        self.phase = self.phase(action);
        self.action()
    }

    /// Records the end of the handler.
    pub(super) fn handled(&mut self, handled: Handled) -> i32 {
        self.shared.typical().took(self.shared.now().since(self.began));
        self.advance(Event::Handled(handled))
    }

    /// Returns the store call that must continue if the client leaves now.
    pub(super) fn deferred_on_abandon(&self, py: Python<'_>) -> Option<StoreCall> {
        match &self.phase {
            Phase::Store(StoreCall::Claim(..), step) => {
                // A step that is being performed counts as sent.
                let may_be_in_force = |step: &Py<Step>| {
                    step.try_borrow(py).map_or(true, |step| step.may_be_in_force())
                };
                let at_stake = step.as_ref().is_some_and(may_be_in_force);
                at_stake.then(|| self.machine.abandon()).flatten().and_then(|it| self.call(it))
            }
            Phase::Store(call @ (StoreCall::Release(_) | StoreCall::Settle(..)), _) => {
                Some(call.clone())
            }
            Phase::Answer(..) | Phase::Abandoned => None,
            _ => self.machine.abandon().and_then(|deferred| self.call(deferred)),
        }
    }

    fn phase(&mut self, action: Action) -> Phase {
        let call = match action {
            Action::ReadBody { bytes_max } => return Phase::Body { bytes_max },
            Action::Wait { id, holder, until } => {
                self.id = Some(id);
                return Phase::Wait { holder, until };
            }
            Action::Probe { attempt } => return Phase::Probe { attempt },
            Action::Execute(lease) => {
                self.began = self.shared.now();
                self.id = Some(lease.id);
                self.lease = Some(lease);
                return Phase::Execute;
            }
            Action::Answer { answer, deferred: Some(Deferred::AfterBody { lease, broken }) } => {
                self.after_body = Some((lease, broken));
                return Phase::Answer(Box::new(answer), None);
            }
            Action::Answer { answer, deferred } => {
                let deferred = deferred
                    // A request that never reached the store, or shared a peer's result, left nothing.
                    .filter(|it| self.at_stake || matches!(it, Deferred::Settle(..)))
                    .and_then(|deferred| self.call(deferred));
                self.id = deferred.as_ref().map(|call| *call.record_id()).or(self.id);
                return Phase::Answer(Box::new(answer), deferred);
            }
            Action::Claim { id, claim_request } => StoreCall::Claim(id, claim_request),
            Action::Lookup(id) => {
                let fingerprint = self.machine.fingerprint().copied();
                StoreCall::Lookup(id, fingerprint.unwrap_or(Fingerprint::unchecked()))
            }
            Action::Renew(lease) => StoreCall::Renew(lease),
            Action::Release(lease) => StoreCall::Release(lease),
            Action::Settle { lease, state, response, commits } => {
                self.commits = commits;
                self.settle(lease, state, response.as_deref())
            }
            // The machine has no other action; a new one must be driven here first.
            _ => return Phase::Abandoned,
        };
        self.id = Some(*call.record_id());
        Phase::Store(call, None)
    }

    pub(super) fn settle(
        &mut self,
        lease: Lease,
        state: State,
        response: Option<&StoredResponse>,
    ) -> StoreCall {
        let kept = self.kept.take();
        let payload = match response.or(kept.as_ref()) {
            _ if state == State::Unknown => Bytes::new(),
            Some(response) => response.encode(),
            None => Bytes::new(),
        };
        let done = Settlement::by(self.shared.policy(), state, payload).describing(&lease);
        self.settlement = Some(done.clone());
        StoreCall::Settle(lease, done)
    }

    fn call(&self, deferred: Deferred) -> Option<StoreCall> {
        match deferred {
            Deferred::Release(lease) => Some(StoreCall::Release(lease)),
            Deferred::Settle(lease, _) => Some(StoreCall::Settle(lease, self.settlement.clone()?)),
            _ => None,
        }
    }
}

/// Converts a step's verdict into an event of the state machine.
pub(super) fn event(call: &StoreCall, verdict: Verdict) -> PyResult<Event> {
    if matches!(verdict, Verdict::Pending) {
        return Err(misuse("the step has no verdict yet: perform it, or let it fail"));
    }
    Ok(match call {
        StoreCall::Claim(..) => Event::Claimed(verdict.claimed()),
        StoreCall::Lookup(..) => Event::Looked(verdict.looked()),
        StoreCall::Renew(_) => Event::Renewed(verdict.confirmed()),
        StoreCall::Release(_) => Event::Released(verdict.confirmed()),
        StoreCall::Settle(..) => Event::Settled(verdict.confirmed()),
        StoreCall::Watch(_) => return Err(misuse("an exchange watches nothing")),
    })
}

/// Returns the declared length of the body; 0 if it is absent or unreadable.
fn declared_bytes(headers: &HeaderMap) -> u64 {
    let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    declared.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Returns an answer's outcome and reason, as applications see them.
pub(super) const fn noted(answer: &Answer, outcome: &Outcome) -> (&'static str, &'static str) {
    match outcome {
        Outcome::Executed { stored: true, .. } => ("executed", ""),
        // The handler ran, and raised or broke its body off.
        Outcome::Executed { .. } if matches!(answer, Answer::Broken { .. }) => {
            ("unstored", Code::HandlerFailed.as_str())
        }
        Outcome::Executed { .. } => ("unstored", ""),
        Outcome::Fenced { code: None, .. } => ("fenced", "replayed"),
        Outcome::Fenced { code: Some(code), .. } => ("fenced", code.as_str()),
        Outcome::Replayed => ("replayed", ""),
        Outcome::Refused(Code::HandlerFailed) => ("unstored", Code::HandlerFailed.as_str()),
        Outcome::Refused(code) => ("refused", code.as_str()),
        _ => ("passed", ""),
    }
}
