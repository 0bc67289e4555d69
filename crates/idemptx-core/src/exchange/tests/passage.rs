//! The exchange of one request with a record in a given state, described in a line.

use std::fmt::Write as _;
use std::sync::Arc;

use super::world::{Cell, begin, fingerprint, id, response, token};
use crate::exchange::{Action, Answer, BodyEnd, Deferred, Event, Handled, ProbeResult, Rules};
use crate::lease::Lease;
use crate::outcome::Outcome;
use crate::record::{Record, State};
use crate::store::{ClaimRequest, ErrorKind, Settlement};
use crate::time::Timestamp;

/// The state of the store when the request arrives; its record is of a request with the body `a`.
#[derive(Clone, Copy)]
pub(super) enum Stored {
    Nothing,
    Running,
    Orphan,
    Done(u16),
    NoBody,
    Unknown,
    Spent,
    Corrupt,
    Down,
}

/// An exchange of one request, with a store in a given state.
pub(super) struct Passage<'a> {
    rules: &'a Arc<Rules>,
    pub(super) cell: Cell,
    down: bool,
    pub(super) probed: Option<ProbeResult>,
    /// The latency of a claim, in milliseconds.
    pub(super) claim_takes: u64,
    /// The latency of a renewal, in milliseconds.
    pub(super) renew_takes: u64,
    /// The record of another claim that replaces this one while the handler runs.
    pub(super) lost_to: Option<Stored>,
    pub(super) settle_fails: bool,
    pub(super) within: bool,
    /// The end of the handler's transaction, if it has one.
    pub(super) transaction: Option<Ends>,
}

/// The end of a transaction that settles.
#[derive(Clone, Copy)]
pub(super) enum Ends {
    Well,
    /// Nothing is committed, and the store answers the release.
    RolledBack,
    /// The transaction is committed, but its driver gets no answer.
    AnswerLost,
    /// Nothing is committed, and the store does not answer the release either.
    StoreLost,
}

impl<'a> Passage<'a> {
    pub(super) fn new(rules: &'a Arc<Rules>, stored: Stored) -> Self {
        Self {
            rules,
            cell: cell(rules, stored),
            down: matches!(stored, Stored::Down),
            probed: None,
            claim_takes: 0,
            renew_takes: 0,
            lost_to: None,
            settle_fails: false,
            within: true,
            transaction: None,
        }
    }

    pub(super) fn play(self, body: &str, handled: Handled) -> String {
        let print = fingerprint(self.rules, body);
        self.play_with(print, handled)
    }

    pub(super) fn play_with(
        self,
        print: crate::fingerprint::Fingerprint,
        handled: Handled,
    ) -> String {
        self.play_to_outcome(print, handled).0
    }

    pub(super) fn play_to_outcome(
        mut self,
        print: crate::fingerprint::Fingerprint,
        handled: Handled,
    ) -> (String, Outcome) {
        let mut exchange = begin(self.rules);
        let mut now = NOW;
        let at = Timestamp::from_millis;
        let mut action = exchange.step(Event::Body(BodyEnd::Whole(vec![print]), token(1)), at(now));
        let mut trace = String::new();
        loop {
            let event = match action {
                Action::Answer { ref answer, .. } => {
                    let outcome = exchange.outcome(answer);
                    trace.push_str(&describe(action));
                    return (trace, outcome);
                }
                Action::Claim { id, claim_request } => {
                    match claim_request.expected {
                        None => trace.push_str("claim, "),
                        Some(crate::store::Expected::Orphan(_)) => {
                            trace.push_str("claim over orphan, ");
                        }
                        Some(_) => trace.push_str("claim over result, "),
                    }
                    now += self.claim_takes;
                    if self.down {
                        Event::Claimed(Err(ErrorKind::Unavailable.into()))
                    } else {
                        Event::Claimed(self.cell.claim(&id, &claim_request, now))
                    }
                }
                Action::Renew(lease) => {
                    trace.push_str("renew, ");
                    now += self.renew_takes;
                    Event::Renewed(self.cell.renew(&lease, now))
                }
                Action::Lookup(_) => {
                    trace.push_str("look, ");
                    Event::Looked(self.cell.lookup(now))
                }
                Action::Meter => {
                    trace.push_str("meter, ");
                    Event::Metered { within: self.within }
                }
                Action::Probe { attempt } => {
                    write!(trace, "probe {attempt}, ").unwrap();
                    Event::Probed(self.probed.take().unwrap())
                }
                Action::Wait { until, .. } => {
                    write!(trace, "wait {}, ", until.since(at(now)).as_millis()).unwrap();
                    Event::WaitOver
                }
                Action::Execute(lease) => {
                    write!(trace, "execute {}, ", lease.attempt).unwrap();
                    if let Some(becomes) = self.lost_to {
                        self.cell = cell(self.rules, becomes);
                    }
                    Event::Handled(handled)
                }
                Action::Settle { lease, state, response: found, commits } => {
                    let body = found.map_or_else(|| response(201, "own"), |found| *found);
                    match self.transaction.filter(|_| commits) {
                        Some(ends) => {
                            write!(trace, "commit {state:?}, ").unwrap();
                            self.commit(&lease, state, &body, ends)
                        }
                        None => {
                            write!(trace, "settle {state:?}, ").unwrap();
                            Event::Settled(self.settle(&lease, state, &body))
                        }
                    }
                }
                Action::Release(lease) => {
                    trace.push_str("release, ");
                    Event::Released(match self.transaction {
                        Some(Ends::StoreLost) => Err(ErrorKind::Unavailable),
                        _ => self.cell.release(&lease),
                    })
                }
                other => panic!("{other:?}"),
            };
            action = exchange.step(event, at(now));
        }
    }

    fn commit(
        &mut self,
        lease: &Lease,
        state: State,
        body: &crate::response::StoredResponse,
        ends: Ends,
    ) -> Event {
        match ends {
            Ends::Well => Event::Settled(self.settle(lease, state, body)),
            Ends::AnswerLost => {
                self.settle(lease, state, body).unwrap();
                Event::Uncommitted
            }
            Ends::RolledBack | Ends::StoreLost => Event::Uncommitted,
        }
    }

    fn settle(
        &mut self,
        lease: &Lease,
        state: State,
        body: &crate::response::StoredResponse,
    ) -> Result<(), ErrorKind> {
        if self.settle_fails {
            return Err(ErrorKind::Unavailable);
        }
        let policy = self.rules.policy();
        let done = Settlement::by(policy, state, body.encode());
        self.cell.settle(lease, &done)
    }
}

/// Creates the store's content, by another request with the body `a`.
fn cell(rules: &Arc<Rules>, stored: Stored) -> Cell {
    let mut cell = Cell { since: NOW, ..Cell::default() };
    let policy = rules.policy();
    let claim_request =
        ClaimRequest::new(token(9), fingerprint(rules, "a"), policy.lease, policy.key_retain);
    let lease = Lease::granted(id(), &ClaimRequest { token: token(9), ..claim_request }, 1, 1);
    let settled = |state, status| {
        let payload = response(status, "first").encode();
        let done = Settlement::new(state, payload, policy.retain, policy.key_retain);
        Some(Record::settled(&lease, &done))
    };
    cell.record = match stored {
        Stored::Nothing | Stored::Down => None,
        Stored::Running => Some(Record::running(&lease)),
        Stored::Orphan => {
            cell.since = 0;
            Some(Record::running(&lease))
        }
        Stored::Done(status) => settled(State::Completed, status),
        Stored::NoBody => settled(State::NotReplayable, 201),
        Stored::Unknown => settled(State::Unknown, 201),
        Stored::Spent => settled(State::Completed, 201).map(Record::with_response_expired),
        Stored::Corrupt => {
            cell.corrupt = true;
            None
        }
    };
    cell
}

/// Describes the end of an exchange in a few words.
pub(super) fn describe(action: Action) -> String {
    let Action::Answer { answer, deferred } = action else { panic!("{action:?} is no end") };
    let mut text = match answer {
        Answer::Pass(passed) => format!("pass {passed:?}"),
        Answer::Replay(stored) => {
            let body = String::from_utf8_lossy(&stored.body).into_owned();
            format!("replay {} {body}", stored.status.as_u16())
        }
        Answer::Own { stored: true, .. } => "own stored".into(),
        Answer::Own { stored: false, .. } => "own".into(),
        Answer::Broken { attempt, rejection: it } => {
            format!("broken {attempt}{}", if it.retryable { ", retryable" } else { "" })
        }
        Answer::Refuse(it) => {
            let original = it.original_status.map(|it| format!(" {}", it.as_u16()));
            let unstored = if it.unstored { " unstored" } else { "" };
            let original = original.unwrap_or_default();
            format!("refuse {} {}{original}{unstored}", it.status.as_u16(), it.code)
        }
    };
    match deferred {
        None => {}
        Some(Deferred::Release(_)) => text.push_str(", release deferred"),
        Some(Deferred::Settle(_, state)) => write!(text, ", settle {state:?} deferred").unwrap(),
        Some(Deferred::AfterBody { broken, .. }) => {
            text.push_str(", release after its body");
            if let Some(state) = broken {
                write!(text, " or settle {state:?}").unwrap();
            }
        }
    }
    text
}

/// Later than any lease that began at zero.
const NOW: u64 = 1_000_000;
