//! How a passage goes on: from what happened to what is to be done next.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use idemptx_core::exchange::{
    Action, Answer, BodyEnd, Deferred, Directive, Event, Exchange, Handled, Head, Operation,
};
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::lease::Lease;
use idemptx_core::outcome::Outcome;
use idemptx_core::record::State;
use idemptx_core::response::StoredResponse;
use idemptx_core::response_headers::IDEMPOTENCY_OUTCOME;
use idemptx_core::store::{ErrorKind, Settlement};
use idemptx_core::time::Timestamp;
use pyo3::prelude::*;

use super::{Passage, Turn};
use crate::misuse;
use crate::shared::Shared;
use crate::step::{Job, Step, Verdict};

impl Passage {
    /// What begins with a request's head; `None` if it passes untouched and unmarked.
    pub(crate) fn begun(
        shared: &Arc<Shared>,
        exchange: Exchange,
        action: Action,
        head: &Head<'_>,
    ) -> Option<Self> {
        let mut passage = Self {
            shared: Arc::clone(shared),
            exchange: exchange.typical(shared.typical().get()),
            turn: Turn::Abandoned,
            id: None,
            prints: Vec::new(),
            fed_bytes: 0,
            at_stake: false,
            lease: None,
            began: Timestamp::default(),
            kept: None,
            settlement: None,
            commits: false,
        };
        passage.id = passage.exchange.operation().and_then(|it| it.ids().first()).copied();
        if let Action::Answer { answer: answer @ Answer::Pass(_), .. } = &action
            && passage.marks(HeaderMap::new(), &outcome(answer)).is_empty()
        {
            return None;
        }
        let Action::ReadBody { bytes_max } = action else {
            passage.turn = passage.turn(action);
            return Some(passage);
        };
        if declared_bytes(head.headers) > bytes_max {
            passage.advance(Event::Body(BodyEnd::TooLarge));
        } else {
            passage.prints = Operation::fingerprinters(shared.rules(), head);
            passage.turn = Turn::Body { bytes_max };
        }
        Some(passage)
    }

    /// Takes what happened, and gives the next action's number.
    pub(super) fn advance(&mut self, event: Event) -> i32 {
        let mut action = self.exchange.step(event, self.shared.now());
        // At most once: keys are metered between a claim and the handler's start.
        while matches!(action, Action::Meter) {
            let scope = self.exchange.operation().and_then(|it| it.ids().first());
            let within = scope.is_none_or(|id| self.shared.meter(id));
            action = self.exchange.step(Event::Metered { within }, self.shared.now());
        }
        self.turn = self.turn(action);
        self.action()
    }

    /// Takes how the handler ended.
    pub(super) fn handled(&mut self, handled: Handled) -> i32 {
        self.shared.typical().took(self.shared.now().since(self.began));
        self.advance(Event::Handled(handled))
    }

    /// What must go on all the same when the client leaves now.
    pub(super) fn left_behind(&self, py: Python<'_>) -> Option<Job> {
        match &self.turn {
            Turn::Store(Job::Claim(..), step) => {
                // What is being performed in this moment is as good as sent.
                let may_be_in_force = |step: &Py<Step>| {
                    step.try_borrow(py).map_or(true, |step| step.may_be_in_force())
                };
                let at_stake = step.as_ref().is_some_and(may_be_in_force);
                at_stake.then(|| self.exchange.abandon()).flatten().and_then(|it| self.job(it))
            }
            Turn::Store(job @ (Job::Release(_) | Job::Settle(..)), _) => Some(job.clone()),
            Turn::Answer(..) | Turn::Abandoned => None,
            _ => self.exchange.abandon().and_then(|deferred| self.job(deferred)),
        }
    }

    fn turn(&mut self, action: Action) -> Turn {
        let job = match action {
            Action::ReadBody { bytes_max } => return Turn::Body { bytes_max },
            Action::Wait { id, holder, until } => {
                self.id = Some(id);
                return Turn::Wait { holder, until };
            }
            Action::Probe { attempt } => return Turn::Probe { attempt },
            Action::Execute(lease) => {
                self.began = self.shared.now();
                self.id = Some(lease.id);
                self.lease = Some(lease);
                return Turn::Execute;
            }
            Action::Answer { answer, deferred } => {
                let deferred = deferred
                    // Who never asked the store, or only heard what another was told, left nothing.
                    .filter(|it| self.at_stake || matches!(it, Deferred::Settle(..)))
                    .and_then(|deferred| self.job(deferred));
                self.id = deferred.as_ref().map(|job| *job.record_id()).or(self.id);
                return Turn::Answer(Box::new(answer), deferred);
            }
            Action::Claim { id, claim_request } => Job::Claim(id, claim_request),
            Action::Lookup(id) => {
                let fingerprint = self.exchange.fingerprint().copied();
                Job::Lookup(id, fingerprint.unwrap_or(Fingerprint::unchecked()))
            }
            Action::Renew(lease) => Job::Renew(lease),
            Action::Release(lease) => Job::Release(lease),
            Action::Settle { lease, state, response, commits } => {
                self.commits = commits;
                self.settle(lease, state, response.as_deref())
            }
            // The machine asks for nothing else; a later one of ours would be driven here first.
            _ => return Turn::Abandoned,
        };
        self.id = Some(*job.record_id());
        Turn::Store(job, None)
    }

    fn settle(&mut self, lease: Lease, state: State, response: Option<&StoredResponse>) -> Job {
        let policy = self.shared.policy();
        let kept = self.kept.take();
        let payload = match response.or(kept.as_ref()) {
            _ if state == State::Unknown => Bytes::new(),
            Some(response) => response.encode(),
            None => Bytes::new(),
        };
        let retain = if state == State::Completed { policy.retain } else { policy.key_retain };
        let done = Settlement::new(state, payload, retain, policy.key_retain);
        self.settlement = Some(done.clone());
        Job::Settle(lease, done)
    }

    fn job(&self, deferred: Deferred) -> Option<Job> {
        match deferred {
            Deferred::Release(lease) => Some(Job::Release(lease)),
            Deferred::Settle(lease, _) => Some(Job::Settle(lease, self.settlement.clone()?)),
            _ => None,
        }
    }
}

/// What a step's verdict tells the machine.
pub(super) fn event(job: &Job, verdict: Verdict) -> PyResult<Event> {
    if matches!(verdict, Verdict::Pending) {
        return Err(misuse("the step has no verdict yet: perform it, or let it fail"));
    }
    Ok(match job {
        Job::Claim(..) => Event::Claimed(verdict.claimed()),
        Job::Lookup(..) => Event::Looked(verdict.looked()),
        Job::Renew(_) => Event::Renewed(verdict.confirmed()),
        Job::Release(_) => Event::Released(verdict.confirmed()),
        Job::Settle(..) => Event::Settled(verdict.confirmed()),
        Job::Watch(_) => return Err(misuse("a passage watches nothing")),
    })
}

/// What a lookup tells of a settlement that was part of somebody else's transaction.
pub(super) fn confirmation(lease: &Lease, state: State, looked: &Verdict) -> Event {
    match looked {
        Verdict::Settled(record) if record.token == lease.token && record.state == state => {
            Event::Settled(Ok(()))
        }
        Verdict::Held(holder) if holder.token == lease.token => Event::Uncommitted,
        Verdict::Held(_) | Verdict::Settled(_) | Verdict::Absent => {
            Event::Settled(Err(ErrorKind::Fenced))
        }
        _ => Event::Uncommitted,
    }
}

/// What a request says of its body's length; nothing if it says nothing that can be read.
fn declared_bytes(headers: &HeaderMap) -> u64 {
    let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    declared.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// What the handler says should become of its response; taken out of its headers.
pub(super) fn directive(headers: &mut HeaderMap) -> Option<Directive> {
    headers.remove(IDEMPOTENCY_OUTCOME)?.to_str().ok()?.parse().ok()
}

pub(super) fn outcome(answer: &Answer) -> Outcome {
    match answer {
        Answer::Pass(passed) => Outcome::Bypassed(*passed),
        Answer::Own { attempt, stored } => Outcome::Executed { attempt: *attempt, stored: *stored },
        Answer::Refuse(rejection) => Outcome::Refused(rejection.code),
        _ => Outcome::Replayed,
    }
}

/// What a store keeps of a response.
pub(super) mod kept {
    use bytes::Bytes;
    use http::header::LOCATION;
    use http::{HeaderMap, StatusCode};
    use idemptx_core::policy::Policy;
    use idemptx_core::response::StoredResponse;

    /// Of one whose body cannot be kept.
    pub(in crate::passage) fn head(
        status: StatusCode,
        headers: &HeaderMap,
        policy: &Policy,
    ) -> StoredResponse {
        let mut head = StoredResponse::capture(status, headers, Bytes::new(), None, &policy.replay);
        if !head.is_storable() {
            // Of more lines than a record may have, the one that a retry is told.
            let location = head.headers.remove(LOCATION);
            head.headers = location.map(|value| (LOCATION, value)).into_iter().collect();
        }
        head
    }
}
