//! From the handler's end to the answer.

use super::{Action, Answer, Deferred, Exchange, Handled, STEPS_MAX, Stage, Then, classify};
use crate::lease::Lease;
use crate::outcome::Code;
use crate::policy::Mode;
use crate::record::State;
use crate::response::StoredResponse;
use crate::store::{ErrorKind, RecordSnapshot};
use crate::time::Timestamp;

impl Exchange {
    pub(super) fn handled(&mut self, lease: Lease, handled: &Handled) -> Action {
        let then = if handled.is_broken() { Then::HandlerFailed } else { Then::Own };
        match classify::classify(self.policy(), handled) {
            None => self.release(lease, then),
            Some(state) => {
                self.stage = Stage::Settling(lease.clone(), state, then);
                let commits = classify::commits(handled, state);
                Action::Settle { lease, state, response: None, commits }
            }
        }
    }

    /// The handler's transaction did not come to a certain end: only the record can tell whether it
    /// was committed, for the two are one.
    ///
    /// A release does not merely look: it compares token and state under the lock that a
    /// transaction on its way to the commit holds, so that it waits for that end, and when it has
    /// succeeded there is nothing left that the transaction could still commit to.
    pub(super) fn uncommitted(&mut self, lease: Lease) -> Action {
        self.release(lease, Then::Uncommitted)
    }

    pub(super) fn release(&mut self, lease: Lease, then: Then) -> Action {
        self.stage = Stage::Releasing(lease.clone(), then);
        Action::Release(lease)
    }

    pub(super) fn after_settle(
        &mut self,
        lease: &Lease,
        state: State,
        then: Then,
        settled: Result<(), ErrorKind>,
        now: Timestamp,
    ) -> Action {
        match settled {
            Ok(()) => {
                let stored = state == State::Completed;
                self.conclude(lease, then, stored, None)
            }
            Err(ErrorKind::Fenced | ErrorKind::Corrupt) => self.fenced(lease, then, now),
            Err(_) => {
                let deferred = Deferred::Settle(lease.clone(), state);
                self.conclude(lease, then, false, Some(deferred))
            }
        }
    }

    pub(super) fn after_release(
        &mut self,
        lease: &Lease,
        then: Then,
        released: Result<(), ErrorKind>,
        now: Timestamp,
    ) -> Action {
        match released {
            Ok(()) => self.conclude(lease, then, false, None),
            Err(ErrorKind::Fenced | ErrorKind::Corrupt) => self.fenced(lease, then, now),
            Err(_) => {
                let deferred = Deferred::Release(lease.clone());
                self.conclude(lease, then, false, Some(deferred))
            }
        }
    }

    fn conclude(
        &mut self,
        lease: &Lease,
        then: Then,
        stored: bool,
        deferred: Option<Deferred>,
    ) -> Action {
        let answer = match then {
            Then::Own => Answer::Own { attempt: lease.attempt, stored },
            Then::Replay(response) => Answer::Replay(response),
            Then::HandlerFailed => {
                let mut rejection = self.rejection(Code::HandlerFailed);
                rejection.unstored = true;
                Answer::Refuse(rejection)
            }
            Then::Refuse(code) => return self.refuse_deferred(code, deferred),
            // Whatever the mode: the handler's answer tells of an effect that is not there.
            Then::Uncommitted => Answer::Refuse(self.rejection(Code::StoreUnavailable)),
        };
        self.stage = Stage::Finished;
        Action::Answer { answer, deferred }
    }

    /// The record is no longer ours: the client gets what became of it, never our own success.
    fn fenced(&mut self, lease: &Lease, then: Then, now: Timestamp) -> Action {
        match then {
            Then::Own | Then::HandlerFailed if self.policy().mode == Mode::Shadow => {
                self.conclude(lease, then, false, None)
            }
            Then::Own | Then::HandlerFailed | Then::Replay(_) | Then::Uncommitted => {
                self.look(now.after(lease.term))
            }
            Then::Refuse(_) => self.conclude(lease, then, false, None),
        }
    }

    pub(super) fn look(&mut self, until: Timestamp) -> Action {
        self.steps += 1;
        match self.id() {
            Some(id) if self.steps <= STEPS_MAX => {
                self.stage = Stage::Fenced { until };
                Action::Lookup(id)
            }
            _ => self.in_progress(None),
        }
    }

    pub(super) fn after_fence(
        &mut self,
        seen: Result<Option<RecordSnapshot>, ErrorKind>,
        until: Timestamp,
        now: Timestamp,
    ) -> Action {
        match seen {
            Ok(Some(RecordSnapshot::Settled(record))) if record.state == State::Completed => {
                match StoredResponse::decode(&record.payload) {
                    Ok(response) if self.is_same(&record.fingerprint) => self.replay(response),
                    Ok(_) => self.in_progress(None),
                    Err(_) => self.refuse(Code::OutcomeUnknown),
                }
            }
            Ok(Some(RecordSnapshot::Settled(record))) if record.state == State::NotReplayable => {
                self.result_unavailable(&record)
            }
            Ok(Some(RecordSnapshot::Held(holder))) if !holder.is_orphan() && now < until => {
                self.wait(holder, until, Stage::Fenced { until })
            }
            Err(ErrorKind::Corrupt) => self.refuse(Code::OutcomeUnknown),
            _ => self.in_progress(None),
        }
    }
}
