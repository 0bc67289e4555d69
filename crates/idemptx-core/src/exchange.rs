//! The protocol: the only place that decides anything.
//!
//! An [`Exchange`] is the state of one request.
//! It takes an [`Event`] with the time at which it happened, and returns the one [`Action`] to do
//! next; it performs no action itself.
//! A driver is a loop around it:
//!
//! ```text
//! let (mut exchange, mut action) = Exchange::begin(…);
//! loop {
//!     let event = match action {
//!         Action::ReadBody { … } => Event::Body(…),          // hash it on the way
//!         Action::Claim { id, claim_request } => Event::Claimed(store.claim(&id, &claim_request)),
//!         Action::Execute(lease) => Event::Handled(…),       // outlives the client's connection
//!         Action::Answer { answer, deferred } => return …,
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
//! - A handler starts only under a claim that was granted or renewed at most half its term ago, by
//!   the driver's monotonic clock.
//! - Without a verdict of the store nothing runs, unless the policy fails open, and nothing is
//!   deleted, except by token.
//! - A settled record never changes, unless the policy lets another request replace it.
//! - A client gets the handler's own success only if no other claim replaced the handler's claim.
//! - The effect of a transaction that also settles is committed if, and only if, the record is
//!   settled, and no answer contradicts the record.
//! - Every exchange ends: each wait has a deadline, each repetition a limit.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::fingerprint::{Fingerprint, Fingerprinters, Match};
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

use self::admission::Admission;
pub use self::admission::{Head, Operation, Rules};
pub(crate) use self::classify::is_in;
pub use self::classify::{Directive, Handled, InvalidDirective};
pub use self::complete::confirmed;
pub use self::event::{Action, Answer, BodyEnd, Deferred, Event, ProbeResult};
pub use self::grpc::{classified_status, grpc_content_type};

/// The state of one request in the protocol; see the [module](self).
#[derive(Clone, Debug)]
pub struct Exchange {
    rules: Arc<Rules>,
    stage: Stage,
    /// The operation that the request's key names; `None` for a request without a key.
    operation: Option<Operation>,
    /// The fingerprints, one for each secret; a claim stores the first.
    fingerprints: Vec<Fingerprint>,
    token: Token,
    /// The typical duration of handlers, for `Retry-After`.
    typical: Option<Duration>,
    /// The time at which the claim or renewal in force was sent.
    ///
    /// The store starts the lease later than this, so counting from here errs on the safe side.
    sent: Timestamp,
    /// The time of the first claim or renewal that was granted too late to start on.
    late_since: Option<Timestamp>,
    /// The end of the wait for another claim.
    deadline: Option<Timestamp>,
    /// The number of claims and lookups so far, for [`STEPS_MAX`].
    steps: u32,
    /// The attempt of the handler that ran, if another claim had replaced its own when it ended.
    fenced: Option<u32>,
}

#[derive(Clone, Debug)]
enum Stage {
    Body,
    Claiming(ClaimRequest),
    Metering(Lease),
    Renewing(Lease),
    Probing(Expected),
    /// The application's hook knows the response: the orphan is claimed only to store it.
    Recovering(ClaimRequest, Box<StoredResponse>),
    Waiting,
    Executing(Lease),
    Settling(Lease, State, Continuation),
    Releasing(Lease, Continuation),
    /// The handler's body flows, and the claim is to be released after it, or settled as this state
    /// if it breaks off.
    Flowing(Lease, Option<State>),
    /// The record has another claim by now, whose result decides the answer.
    Fenced {
        until: Timestamp,
    },
    Finished,
}

/// The answer that follows once the record is settled or released.
#[derive(Clone, Debug)]
enum Continuation {
    Own,
    HandlerFailed {
        released: bool,
    },
    Replay(Box<StoredResponse>),
    Refuse(Code),
    /// The end of the handler's transaction is not known.
    Uncommitted,
}

impl Exchange {
    /// Begins with a request's head.
    ///
    /// # Security
    ///
    /// The client controls the head; only the key, the scope and a digest of the bound headers are
    /// kept.
    #[must_use]
    pub fn begin(rules: &Arc<Rules>, head: &Head<'_>) -> (Self, Action) {
        match Self::open(rules, head) {
            Ok(exchange) => {
                exchange.describe(head);
                (exchange, Action::ReadBody { bytes_max: rules.policy().request_bytes_max })
            }
            Err(answer) => (Self::blank(rules), Action::Answer { answer, deferred: None }),
        }
    }

    /// Does the same as [`begin`](Self::begin) for a driver that [describes](Self::describe) the
    /// request once it is to be claimed: a body is to be read, or else there is the answer.
    ///
    /// # Errors
    ///
    /// Returns the answer to a request that no key protects, or that is refused.
    ///
    /// # Security
    ///
    /// As [`begin`](Self::begin).
    pub fn open(rules: &Arc<Rules>, head: &Head<'_>) -> Result<Self, Answer> {
        match admission::admit(rules, head) {
            Admission::Pass(passed) => Err(Answer::Pass(passed)),
            Admission::Refuse(rejection) => Err(refusal(rules.policy().mode, rejection)),
            Admission::Open(operation) => {
                Ok(Self { operation: Some(operation), stage: Stage::Body, ..Self::blank(rules) })
            }
        }
    }

    /// Describes the request to operators, from the head with which the exchange began: its record
    /// begins with that.
    pub fn describe(&self, head: &Head<'_>) {
        if let Some(operation) = &self.operation {
            operation.describe(&self.rules, head);
        }
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

    /// Sets the typical duration of handlers, which shortens `Retry-After`.
    #[must_use]
    pub fn typical(mut self, duration: Duration) -> Self {
        self.typical = Some(duration);
        self
    }

    /// Begins the fingerprints of the request, to be fed its body; `None` without a key.
    ///
    /// The head must be that with which the exchange began.
    #[must_use]
    pub fn fingerprinters(&self, head: &Head<'_>) -> Option<Fingerprinters> {
        Some(self.operation.as_ref()?.fingerprinters(&self.rules, head))
    }

    /// Answers from a settled record that the driver already has, in place of [`Event::Body`].
    ///
    /// A settled record does not change, so this is the answer to which a claim would have led.
    ///
    /// # Errors
    ///
    /// Gives the end of the body back, for [`Event::Body`], if the record is not one to replay to
    /// this request: only a claim decides what follows.
    pub fn recall(&mut self, end: BodyEnd, record: &Record) -> Result<StoredResponse, BodyEnd> {
        let BodyEnd::Whole(fingerprints) = end else { return Err(end) };
        self.fingerprints = fingerprints;
        let is_replayed = matches!(self.stage, Stage::Body)
            && self.policy().mode == Mode::Enforce
            && record.state == State::Completed
            && self.id() == Some(record.id)
            && self.is_same(&record.fingerprint);
        let response = is_replayed.then(|| StoredResponse::decode(&record.payload).ok()).flatten();
        match response {
            Some(response) => {
                self.stage = Stage::Finished;
                Ok(response)
            }
            None => Err(BodyEnd::Whole(std::mem::take(&mut self.fingerprints))),
        }
    }

    /// Returns the operation that the request's key names; `None` for a request without a key.
    #[must_use]
    pub fn operation(&self) -> Option<&Operation> {
        self.operation.as_ref()
    }

    /// Returns the request's fingerprint, once the body is known.
    #[must_use]
    pub fn fingerprint(&self) -> Option<&Fingerprint> {
        self.fingerprints.first()
    }

    /// Returns the work to do if the client leaves before the handler was started.
    ///
    /// A claim whose verdict is never read must not block the key for a whole lease.
    #[must_use]
    pub fn abandon(&self) -> Option<Deferred> {
        match &self.stage {
            Stage::Claiming(claim_request) | Stage::Recovering(claim_request, _) => {
                Some(self.release_of(claim_request))
            }
            Stage::Metering(lease) | Stage::Renewing(lease) => {
                Some(Deferred::Release(lease.clone()))
            }
            _ => None,
        }
    }

    /// Takes an event that happened at `now`, and returns the next action.
    ///
    /// Total: an event that does not belong to the last action ends the exchange with
    /// `store-unavailable`, and releases a claim under which no handler runs yet.
    pub fn step(&mut self, event: Event, now: Timestamp) -> Action {
        let stage = std::mem::replace(&mut self.stage, Stage::Finished);
        match (stage, event) {
            (Stage::Body, Event::Body(end, token)) => {
                self.token = token;
                self.body(end, now)
            }
            (Stage::Claiming(claim_request), Event::Claimed(verdict)) => {
                self.claimed(&claim_request, verdict, now)
            }
            (Stage::Metering(lease), Event::Metered { within: true }) => self.start(lease, now),
            (Stage::Metering(lease), Event::Metered { within: false }) => {
                self.release(lease, Continuation::Refuse(Code::TooManyKeys))
            }
            (Stage::Renewing(lease), Event::Renewed(renewed)) => self.renewed(lease, renewed, now),
            (Stage::Probing(orphan), Event::Probed(probed)) => self.probed(orphan, probed, now),
            (Stage::Recovering(claim_request, response), Event::Claimed(verdict)) => {
                self.recovered(&claim_request, response, verdict, now)
            }
            (Stage::Waiting, Event::Woken(Some(RecordSnapshot::Settled(record)))) => {
                self.settled(&record, now)
            }
            (Stage::Waiting, Event::Woken(_)) => self.claim(None, now),
            (Stage::Waiting, Event::WaitOver | Event::WaitersFull) => self.in_progress(None),
            (Stage::Executing(lease), Event::Handled(handled)) => self.handled(lease, &handled),
            (Stage::Settling(lease, state, next), Event::Settled(settled)) => {
                self.after_settle(&lease, state, next, settled, now)
            }
            (Stage::Settling(lease, _, Continuation::Own), Event::Uncommitted) => {
                self.uncommitted(lease)
            }
            (Stage::Releasing(lease, next), Event::Released(released)) => {
                self.after_release(&lease, next, released, now)
            }
            (Stage::Flowing(lease, broken), Event::Renewed(renewed)) => {
                self.flowing(lease, broken, renewed, now)
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
            fenced: None,
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

    /// Ends without a claim, because the store refused or did not answer.
    ///
    /// The request is refused, or runs unprotected if the policy fails open.
    fn no_verdict(&mut self, failure: StoreFailure, deferred: Option<Deferred>) -> Action {
        match (failure.kind, self.policy().on_store_error) {
            (ErrorKind::Corrupt, _) => self.refuse_deferred(Code::OutcomeUnknown, deferred),
            // A full store is no outage: failing open here would lift the limit.
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

    /// Refuses another request under a key.
    ///
    /// If only the credential differs, the refusal says so: that tells a stranger nothing but that a
    /// request which the stranger knows entirely was sent under a key that the stranger knows too.
    fn reused(&mut self, recorded: &Fingerprint) -> Action {
        let mut rejection = self.rejection(Code::KeyReused);
        rejection.credential_differs = self.policy().fingerprint.is_some()
            && self.compare(recorded) == Some(Match::DifferentPrincipal)
            && self.fingerprints.iter().any(|mine| mine.same_request(recorded));
        self.refuse_with(rejection)
    }

    fn refuse(&mut self, code: Code) -> Action {
        self.refuse_deferred(code, None)
    }

    fn refuse_deferred(&mut self, code: Code, deferred: Option<Deferred>) -> Action {
        let rejection = self.rejection(code);
        deferring(self.refuse_with(rejection), deferred)
    }

    fn refuse_with(&mut self, rejection: Rejection) -> Action {
        self.end(refusal(self.policy().mode, rejection))
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

    /// Returns the release of a claim whose verdict is not known.
    ///
    /// A release compares the token alone, so the fence and attempt of the lease do not matter.
    fn release_of(&self, claim_request: &ClaimRequest) -> Deferred {
        let id = self.id().unwrap_or(RecordId::from_bytes([0; RecordId::BYTES]));
        Deferred::Release(Lease::granted(id, claim_request, 0, 0))
    }

    /// Returns true if the record was made by this request, as far as fingerprints tell.
    fn is_same(&self, recorded: &Fingerprint) -> bool {
        match self.compare(recorded) {
            Some(Match::Same) => true,
            // The records were made under another fingerprint configuration. Refusing would turn
            // each change of that configuration into a storm of refused retries; method, path and
            // binding were compared all the same.
            Some(Match::Incomparable) => self.policy().profile != Profile::Payments,
            _ => false,
        }
    }

    /// Compares this request with a recorded one, under the secret of the record if it is known.
    ///
    /// Records outlive a rotation of secrets, so each request has a fingerprint for each secret.
    fn compare(&self, recorded: &Fingerprint) -> Option<Match> {
        let alike = self.fingerprints.iter().find(|mine| mine.config == recorded.config);
        alike.or(self.fingerprints.first()).map(|mine| mine.compare(recorded))
    }

    /// Returns true if another request by the same principal may replace a stored validation
    /// failure.
    ///
    /// A correction may be sent to another path: the failure applied nothing, and the other request
    /// is executed, so that no operation gets the answer of another.
    fn may_rebind(&self, record: &Record, status: StatusCode) -> bool {
        self.policy().rebind_statuses.contains(status)
            && matches!(
                self.compare(&record.fingerprint),
                Some(Match::DifferentRequest | Match::DifferentOperation)
            )
    }
}

/// Returns the answer of a refusal, which shadow mode only reports.
fn refusal(mode: Mode, rejection: Rejection) -> Answer {
    match mode {
        Mode::Enforce => Answer::Refuse(Box::new(rejection)),
        Mode::Shadow => Answer::Pass(Bypass::WouldRefuse(rejection.code)),
    }
}

/// Adds background work to the answer that ends an exchange.
fn deferring(action: Action, deferred: Option<Deferred>) -> Action {
    match action {
        Action::Answer { answer, .. } => Action::Answer { answer, deferred },
        action => action,
    }
}

/// The most claims and lookups of one exchange.
///
/// Contention needs far fewer; the limit ends an exchange with a store that contradicts itself.
const STEPS_MAX: u32 = 1_000;

#[cfg(test)]
mod tests;
