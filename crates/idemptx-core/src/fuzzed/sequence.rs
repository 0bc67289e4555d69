use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};

use super::input::Input;
use crate::exchange::{
    Action, Answer, BodyEnd, Directive, Event, Exchange, Handled, Head, ProbeResult, Rules,
};
use crate::fingerprint::Fingerprint;
use crate::lease::{Lease, Token};
use crate::policy::{OnOrphan, OnStoreError, Policy};
use crate::record::{Record, State};
use crate::response::StoredResponse;
use crate::store::{Claim, ClaimInfo, ErrorKind, RecordSnapshot, Settlement};
use crate::time::Timestamp;

/// An exchange ends, executes once at most, replays nothing but what it was given, calls stored only
/// what was stored, and leaves no claim behind, however store, handler and application answer.
pub fn exchange(data: &[u8]) {
    let mut world = World::new(data);
    let rules = Arc::new(Rules::new(world.policy()));
    let (method, uri) = (Method::POST, Uri::from_static("/orders"));
    let name = HeaderName::from_static("idempotency-key");
    let headers = HeaderMap::from_iter([(name, HeaderValue::from_static("k"))]);
    let head = Head::new(&method, &uri, &headers);
    let token = Token::from_bytes([7; Token::BYTES]);
    let (mut exchange, mut action) = Exchange::begin(&rules, &head);
    // Every step draws from the data, and what is drawn after their end leads to an answer.
    for _ in 0..data.len() + STEPS_AFTER_THE_DATA_MAX {
        let event = match action {
            Action::ReadBody { .. } => Event::Body(world.body(&exchange, &head), token),
            Action::Answer { answer, deferred } => {
                world.check(&answer, deferred.is_some());
                return;
            }
            other => world.event(other),
        };
        let now = world.now();
        action = exchange.step(event, now);
    }
    panic!("the exchange does not end");
}

const STEPS_AFTER_THE_DATA_MAX: usize = 32;

/// Store, clock, handler and application, which answer by chance.
struct World<'a> {
    input: Input<'a>,
    millis: u64,
    /// The last claim that was requested.
    lease: Option<Lease>,
    /// True while that claim is, or may be, in force.
    holds: bool,
    executed: bool,
    stored: bool,
    has_given_a_response: bool,
}

impl<'a> World<'a> {
    const fn new(data: &'a [u8]) -> Self {
        Self {
            input: Input::new(data),
            millis: 0,
            lease: None,
            holds: false,
            executed: false,
            stored: false,
            has_given_a_response: false,
        }
    }

    fn check(&self, answer: &Answer, is_deferred: bool) {
        assert!(is_deferred || !self.holds, "{answer:?} leaves a claim behind");
        match answer {
            Answer::Own { stored, .. } => {
                assert!(self.executed, "there is no response");
                assert!(self.stored || !stored, "the response is not stored");
            }
            Answer::Replay(_) => assert!(self.has_given_a_response, "nobody gave a response"),
            Answer::Broken { .. } => assert!(self.executed, "no handler has failed"),
            Answer::Pass(_) | Answer::Refuse(_) => {}
        }
    }

    fn policy(&mut self) -> Policy {
        let mut policy = self.input.one_of(&[Policy::draft(), Policy::stripe(), Policy::idemptx()]);
        policy.on_orphan =
            self.input.one_of(&[OnOrphan::Reexecute, OnOrphan::Quarantine, OnOrphan::Probe]);
        policy.on_store_error =
            self.input.one_of(&[OnStoreError::FailClosed, OnStoreError::FailOpen]);
        policy.wait = Duration::from_millis(u64::from(self.input.byte()) * 16);
        policy
    }

    fn now(&mut self) -> Timestamp {
        self.millis += u64::from(self.input.byte()) * 16;
        Timestamp::from_millis(self.millis)
    }

    fn body(&mut self, exchange: &Exchange, head: &Head<'_>) -> BodyEnd {
        match self.input.byte() {
            1 => BodyEnd::TooLarge,
            2 => BodyEnd::NoRoom,
            3 => BodyEnd::Failed,
            _ => exchange.fingerprinters(head).map_or(BodyEnd::Failed, BodyEnd::complete),
        }
    }

    fn event(&mut self, action: Action) -> Event {
        match action {
            Action::Claim { id, claim_request } => {
                let lease = Lease::granted(id, &claim_request, 3, 1);
                self.lease = Some(lease.clone());
                Event::Claimed(self.claim(lease).map_err(Into::into))
            }
            Action::Lookup(_) => Event::Looked(self.lookup()),
            Action::Meter => Event::Metered { within: self.input.byte().is_multiple_of(2) },
            Action::Renew(_) => Event::Renewed(self.done()),
            Action::Probe { .. } => Event::Probed(self.probe()),
            Action::Wait { .. } => match self.input.byte() % 4 {
                0 => Event::WaitOver,
                1 => Event::WaitersFull,
                2 => Event::Woken(None),
                _ => Event::Woken(Some(self.snapshot())),
            },
            Action::Execute(_) => {
                assert!(!self.executed, "a handler runs twice");
                self.executed = true;
                Event::Handled(self.handled())
            }
            Action::Settle { state, commits, .. } => self.settle(state, commits),
            Action::Release(_) => {
                let released = self.done();
                self.holds &= released.is_err();
                Event::Released(released)
            }
            Action::ReadBody { .. } | Action::Answer { .. } => unreachable!("seen before"),
        }
    }

    fn claim(&mut self, lease: Lease) -> Result<Claim, ErrorKind> {
        match self.input.byte() % 4 {
            0 => {
                let error = self.error();
                self.holds |= is_doubt(error);
                Err(error)
            }
            1 | 2 => {
                self.holds = true;
                Ok(Claim::Granted(lease))
            }
            _ => {
                self.holds = false;
                Ok(Claim::Found(self.snapshot()))
            }
        }
    }

    fn lookup(&mut self) -> Result<Option<RecordSnapshot>, ErrorKind> {
        match self.input.byte() % 4 {
            0 => Err(self.error()),
            1 => Ok(None),
            _ => Ok(Some(self.snapshot())),
        }
    }

    fn settle(&mut self, state: State, commits: bool) -> Event {
        if commits && self.input.byte() % 4 == 1 {
            return Event::Uncommitted;
        }
        let settled = self.done();
        self.holds &= settled.is_err();
        self.stored |= settled.is_ok() && state == State::Completed;
        Event::Settled(settled)
    }

    /// The end of a step of the claim's owner.
    fn done(&mut self) -> Result<(), ErrorKind> {
        if self.input.byte().is_multiple_of(2) {
            return Ok(());
        }
        let error = self.error();
        self.holds &= !matches!(error, ErrorKind::Fenced | ErrorKind::Corrupt);
        Err(error)
    }

    fn error(&mut self) -> ErrorKind {
        self.input.one_of(&[
            ErrorKind::Refused,
            ErrorKind::Unavailable,
            ErrorKind::Fenced,
            ErrorKind::Corrupt,
            ErrorKind::Full,
            ErrorKind::Invalid,
            ErrorKind::Internal,
        ])
    }

    fn handled(&mut self) -> Handled {
        let statuses = [200, 201, 303, 400, 404, 409, 422, 429, 500, 503];
        let status = StatusCode::from_u16(self.input.one_of(&statuses)).expect("a status");
        let directives =
            [None, Some(Directive::Store), Some(Directive::Release), Some(Directive::Unknown)];
        let directive = self.input.one_of(&directives);
        match self.input.byte() % 6 {
            1 => Handled::Partial { status, directive },
            2 => Handled::Failed { directive },
            3 => Handled::BrokenOff { directive },
            4 => Handled::Flowing { status, directive },
            _ => Handled::Whole { status, directive },
        }
    }

    fn probe(&mut self) -> ProbeResult {
        match self.input.byte() % 3 {
            0 => ProbeResult::Unknown,
            1 => ProbeResult::NotHappened,
            _ => {
                self.has_given_a_response = true;
                ProbeResult::Happened(response())
            }
        }
    }

    /// A record of another claim, for the same or for another request.
    fn snapshot(&mut self) -> RecordSnapshot {
        let mut lease = self.lease.clone().expect("a claim came before");
        lease.token = Token::from_bytes([self.input.byte(); Token::BYTES]);
        lease.attempt = self.input.byte().into();
        if self.input.byte() % 8 == 1 {
            lease.fingerprint = Fingerprint::of(&[b"another operation"], None);
        }
        let states = [
            State::Completed,
            State::Running,
            State::NotReplayable,
            State::Unknown,
            State::ResponseExpired,
        ];
        let state = self.input.one_of(&states);
        if state == State::Running {
            let remaining = Duration::from_millis(u64::from(self.input.byte()) * 16);
            return RecordSnapshot::Held(ClaimInfo::new(&Record::running(&lease), remaining));
        }
        self.has_given_a_response |= state == State::Completed;
        let payload = if self.input.byte() % 8 == 1 { Bytes::new() } else { response().encode() };
        let settlement = Settlement::new(state, payload, Duration::MAX, Duration::MAX);
        RecordSnapshot::Settled(Record::settled(&lease, &settlement))
    }
}

fn response() -> StoredResponse {
    StoredResponse {
        status: StatusCode::CREATED,
        headers: HeaderMap::new(),
        body: Bytes::from_static(b"done"),
        trailers: HeaderMap::new(),
    }
}

const fn is_doubt(error: ErrorKind) -> bool {
    matches!(error, ErrorKind::Unavailable | ErrorKind::Internal)
}
