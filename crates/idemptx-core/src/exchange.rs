//! The protocol: the only place that decides anything.
//!
//! An [`Exchange`] is one request's passage.
//! It is told what happened ([`Event`]) and when, and answers with the one thing to do next
//! ([`Action`]); it does nothing itself.
//! A driver is a loop around it:
//!
//! ```text
//! let (mut exchange, mut action) = Exchange::begin(…);
//! loop {
//!     let event = match action {
//!         Action::ReadBody { … } => Event::Body(…),          // hash it on the way
//!         Action::Claim { id, claim_request } => Event::Claimed(store.claim(&id, &claim_request)),
//!         Action::Execute(lease) => Event::Handled(…),       // in a task of its own
//!         Action::Answer { answer, behind } => return …,
//!         …
//!     };
//!     action = exchange.step(event, clock.now());
//! }
//! ```
//!
//! # Invariants
//!
//! Each is asserted after every step of every interleaving in `exchange/tests`:
//!
//! - A handler starts only under a claim that the store granted no longer than half its term ago,
//!   by the driver's monotonic clock, or has renewed since.
//! - No answer is made from doubt: without a verdict of the store nothing runs and nothing is
//!   deleted, except by token.
//! - A settled record never changes, save one that the policy lets another request replace.
//! - Nobody is given an own success after somebody else took the record over.
//! - What a handler did in a transaction that also settles is there if, and only if, the record is
//!   final, and no answer says otherwise.
//! - Every exchange ends: all waits have a deadline, all repetitions a limit.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::fingerprint::{Fingerprint, Match};
use crate::key::RecordId;
use crate::lease::{Lease, Token};
use crate::outcome::{Bypass, Code, Rejection};
use crate::policy::{Mode, OnStoreError, Policy, Profile};
use crate::record::{Record, State};
use crate::response::StoredResponse;
use crate::store::{ClaimRequest, ErrorKind, Expected, RecordSnapshot, StoreFailure};
use crate::time::Timestamp;

mod acquire;
mod admission;
mod classify;
mod complete;
mod event;
mod grpc;

pub use self::admission::{Head, Operation, Rules};
pub use self::classify::{Directive, Handled, InvalidDirective};
pub use self::event::{Action, Answer, BodyEnd, Deferred, Event, ProbeResult};
pub use self::grpc::classified_status;

/// One request's passage through the protocol; see the [module](self).
#[derive(Clone, Debug)]
pub struct Exchange {
    rules: Arc<Rules>,
    stage: Stage,
    /// What the request is about; `None` when it is not under a key.
    operation: Option<Operation>,
    /// One for each secret; the first is kept in the record.
    fingerprints: Vec<Fingerprint>,
    token: Token,
    /// How long handlers usually take, for `Retry-After`.
    typical: Option<Duration>,
    /// When the claim or renewal in force was sent.
    sent: Timestamp,
    /// When the first claim or renewal was sent that was granted too late to start on.
    late_since: Option<Timestamp>,
    /// When waiting ends.
    deadline: Option<Timestamp>,
    /// How often this exchange has claimed, renewed or looked, for the limit.
    steps: u32,
}

#[derive(Clone, Debug)]
enum Stage {
    Body,
    Claiming(ClaimRequest),
    Metering(Lease),
    Renewing(Lease),
    Probing(Expected),
    /// The hook knows the answer: the orphan is taken over to store it.
    Recovering(ClaimRequest, Box<StoredResponse>),
    Waiting,
    Executing(Lease),
    Settling(Lease, State, Then),
    Releasing(Lease, Then),
    /// Somebody took the record over: what did they make of it?
    Fenced {
        until: Timestamp,
    },
    Finished,
}

/// What follows once the record is settled or released.
#[derive(Clone, Debug)]
enum Then {
    Own,
    HandlerFailed,
    Replay(Box<StoredResponse>),
    Refuse(Code),
    /// What became of the handler's transaction is not known.
    Uncommitted,
}

impl Exchange {
    /// Begins with a request's head.
    ///
    /// `token` draws 128 random bits; it is asked only when there is a key.
    ///
    /// # Security
    ///
    /// The head is the client's; nothing of it is kept but the key and the scope.
    #[must_use]
    pub fn begin(
        rules: &Arc<Rules>,
        head: &Head<'_>,
        token: impl FnOnce() -> Token,
    ) -> (Self, Action) {
        let mut exchange = Self::blank(rules);
        let action = match admission::admit(rules, head) {
            admission::Admission::Pass(passed) => exchange.end(Answer::Pass(passed)),
            admission::Admission::Refuse(rejection) => exchange.refuse_with(rejection),
            admission::Admission::Open(operation) => {
                exchange.operation = Some(operation);
                exchange.token = token();
                exchange.stage = Stage::Body;
                Action::ReadBody { bytes_max: rules.policy().request_bytes_max }
            }
        };
        (exchange, action)
    }

    /// Begins with an operation that is not an HTTP request, such as a job, and its
    /// [fingerprints](Rules::fingerprints).
    #[must_use]
    pub fn begin_operation(
        rules: &Arc<Rules>,
        operation: Operation,
        fingerprints: Vec<Fingerprint>,
        token: Token,
        now: Timestamp,
    ) -> (Self, Action) {
        let mut exchange = Self::blank(rules);
        exchange.token = token;
        exchange.fingerprints = fingerprints;
        exchange.operation = Some(operation);
        let action = exchange.claim(None, now);
        (exchange, action)
    }

    /// The same exchange, told how long handlers usually take.
    #[must_use]
    pub fn typical(mut self, duration: Option<Duration>) -> Self {
        self.typical = duration;
        self
    }

    /// What the request is about; `None` when it is not under a key.
    #[must_use]
    pub fn operation(&self) -> Option<&Operation> {
        self.operation.as_ref()
    }

    /// The request's fingerprint, once the body is known.
    #[must_use]
    pub fn fingerprint(&self) -> Option<&Fingerprint> {
        self.fingerprints.first()
    }

    /// What must go on when the client leaves before the handler was started.
    ///
    /// A claim whose verdict nobody hears must not block the key for a whole lease.
    #[must_use]
    pub fn abandon(&self) -> Option<Deferred> {
        match &self.stage {
            Stage::Claiming(claim_request) | Stage::Recovering(claim_request, _) => {
                Some(self.unheard(claim_request))
            }
            Stage::Metering(lease) | Stage::Renewing(lease) => {
                Some(Deferred::Release(lease.clone()))
            }
            _ => None,
        }
    }

    /// Takes what happened at `now` and says what to do next.
    ///
    /// Total: an event that does not belong to the last action ends the exchange with
    /// `store-unavailable`, before the handler has run, or changes nothing after.
    pub fn step(&mut self, event: Event, now: Timestamp) -> Action {
        let stage = std::mem::replace(&mut self.stage, Stage::Finished);
        match (stage, event) {
            (Stage::Body, Event::Body(end)) => self.body(end, now),
            (Stage::Claiming(claim_request), Event::Claimed(verdict)) => {
                self.claimed(&claim_request, verdict, now)
            }
            (Stage::Metering(lease), Event::Metered { within: true }) => self.start(lease, now),
            (Stage::Metering(lease), Event::Metered { within: false }) => {
                self.release(lease, Then::Refuse(Code::TooManyKeys))
            }
            (Stage::Renewing(lease), Event::Renewed(renewed)) => self.renewed(lease, renewed, now),
            (Stage::Probing(vanished), Event::Probed(probed)) => self.probed(vanished, probed, now),
            (Stage::Recovering(claim_request, response), Event::Claimed(verdict)) => {
                self.recovered(&claim_request, response, verdict, now)
            }
            (Stage::Waiting, Event::Woken(Some(RecordSnapshot::Settled(record)))) => {
                self.settled(&record, now)
            }
            (Stage::Waiting, Event::Woken(_)) => self.claim(None, now),
            (Stage::Waiting, Event::WaitOver | Event::WaitersFull) => self.in_progress(None),
            (Stage::Executing(lease), Event::Handled(handled)) => self.handled(lease, &handled),
            (Stage::Settling(lease, state, then), Event::Settled(settled)) => {
                self.after_settle(&lease, state, then, settled, now)
            }
            (Stage::Settling(lease, _, Then::Own), Event::Uncommitted) => self.uncommitted(lease),
            (Stage::Releasing(lease, then), Event::Released(released)) => {
                self.after_release(&lease, then, released, now)
            }
            (Stage::Fenced { until }, Event::Looked(seen)) => self.after_fence(seen, until, now),
            (Stage::Fenced { until }, Event::Woken(_)) => self.look(until),
            (Stage::Fenced { .. }, Event::WaitOver | Event::WaitersFull) => self.in_progress(None),
            (stage, event) => self.misplaced(stage, &event),
        }
    }

    fn blank(rules: &Arc<Rules>) -> Self {
        Self {
            rules: Arc::clone(rules),
            stage: Stage::Finished,
            operation: None,
            fingerprints: Vec::new(),
            token: Token::from_bytes([0; Token::BYTES]),
            typical: None,
            sent: Timestamp::default(),
            late_since: None,
            deadline: None,
            steps: 0,
        }
    }

    fn replay(&mut self, response: StoredResponse) -> Action {
        match self.policy().mode {
            Mode::Enforce => self.end(Answer::Replay(Box::new(response))),
            Mode::Shadow => self.end(Answer::Pass(Bypass::WouldReplay)),
        }
    }

    fn in_progress(&mut self, remaining: Option<Duration>) -> Action {
        let left = remaining.unwrap_or(Duration::ZERO);
        let soon = self.typical.map_or(left, |typical| left.min(typical));
        let rejection = self.rejection(Code::InProgress).retry_after(soon);
        self.refuse_with(rejection)
    }

    fn result_unavailable(&mut self, record: &Record) -> Action {
        let mut rejection = self.rejection(Code::ResultUnavailable);
        if let Ok(head) = StoredResponse::decode(&record.payload) {
            rejection.original_status = Some(head.status);
            rejection.location = head.headers.get(http::header::LOCATION).cloned();
        }
        self.refuse_with(rejection)
    }

    /// Ends without a claim, because the store did not answer or refused: refuses, or runs
    /// unprotected where the policy says so.
    fn no_verdict(&mut self, failure: StoreFailure, deferred: Option<Deferred>) -> Action {
        match (failure.kind, self.policy().on_store_error) {
            (ErrorKind::Corrupt, _) => self.refuse_deferred(Code::OutcomeUnknown, deferred),
            // A limit is no outage: a request beyond it must not run unprotected.
            (ErrorKind::Full, _) | (_, OnStoreError::FailClosed) => {
                let rejection = self.rejection(Code::StoreUnavailable);
                let rejection = match failure.retry_after {
                    Some(wait) => rejection.retry_after(wait),
                    None => rejection,
                };
                deferring(self.refuse_with(rejection), deferred)
            }
            (_, OnStoreError::FailOpen) => {
                deferring(self.end(Answer::Pass(Bypass::Unprotected)), deferred)
            }
        }
    }

    fn refuse(&mut self, code: Code) -> Action {
        self.refuse_deferred(code, None)
    }

    fn refuse_deferred(&mut self, code: Code, deferred: Option<Deferred>) -> Action {
        let rejection = self.rejection(code);
        deferring(self.refuse_with(rejection), deferred)
    }

    fn refuse_with(&mut self, rejection: Rejection) -> Action {
        match self.policy().mode {
            Mode::Enforce => self.end(Answer::Refuse(rejection)),
            Mode::Shadow => self.end(Answer::Pass(Bypass::WouldRefuse(rejection.code))),
        }
    }

    fn end(&mut self, answer: Answer) -> Action {
        self.stage = Stage::Finished;
        Action::Answer { answer, deferred: None }
    }

    fn misplaced(&mut self, stage: Stage, event: &Event) -> Action {
        debug_assert!(false, "{event:?} does not belong to {stage:?}");
        self.stage = stage;
        let deferred = self.abandon();
        self.refuse_deferred(Code::StoreUnavailable, deferred)
    }

    fn policy(&self) -> &Policy {
        self.rules.policy()
    }

    fn id(&self) -> Option<RecordId> {
        self.operation.as_ref().map(Operation::id)
    }

    fn rejection(&self, code: Code) -> Rejection {
        Rejection::new(code, self.policy())
    }

    /// The claim of a claim request whose verdict nobody heard.
    fn unheard(&self, claim_request: &ClaimRequest) -> Deferred {
        let id = self.id().unwrap_or(RecordId::from_bytes([0; RecordId::BYTES]));
        Deferred::Release(Lease::granted(id, claim_request, 0, 0))
    }

    /// Returns true if the record was made by this request, as far as that can be known.
    fn is_same(&self, recorded: &Fingerprint) -> bool {
        match self.compare(recorded) {
            Some(Match::Same) => true,
            // A refusal would turn every change of the fingerprint's configuration into a storm of
            // refused retries; that the operation is the same is known all the same.
            Some(Match::Incomparable) => self.policy().profile != Profile::Payments,
            _ => false,
        }
    }

    /// Compares this request with a recorded one, by the fingerprint of the same secret if there is
    /// one: records outlive a rotation.
    fn compare(&self, recorded: &Fingerprint) -> Option<Match> {
        let alike = self.fingerprints.iter().find(|mine| mine.config == recorded.config);
        alike.or(self.fingerprints.first()).map(|mine| mine.compare(recorded))
    }

    /// Returns true if another request for the same operation, by the same principal, may replace a
    /// stored validation failure.
    fn may_rebind(&self, record: &Record, status: StatusCode) -> bool {
        self.policy().rebind_statuses.contains(status)
            && self.compare(&record.fingerprint) == Some(Match::DifferentRequest)
    }
}

/// Adds background work to an exchange's end.
fn deferring(action: Action, deferred: Option<Deferred>) -> Action {
    match action {
        Action::Answer { answer, .. } => Action::Answer { answer, deferred },
        action => action,
    }
}

/// How often one exchange may ask the store: far beyond what contention needs, and an end to a
/// store that contradicts itself.
const STEPS_MAX: u32 = 1_000;

#[cfg(test)]
mod tests;
