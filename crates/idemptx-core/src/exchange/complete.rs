//! Transitions from the end of the handler to the answer.

use super::{
    Action, Answer, Continuation, Deferred, Exchange, Handled, STEPS_MAX, Stage, classify,
    deferring,
};
use crate::lease::Lease;
use crate::outcome::{Code, Outcome};
use crate::policy::Mode;
use crate::record::State;
use crate::response::StoredResponse;
use crate::store::{ErrorKind, RecordSnapshot, Settlement};
use crate::time::Timestamp;

/// Returns what a lookup says of a settlement in a transaction that the handler has ended itself;
/// `None` if that is not known, for [`Event::Uncommitted`](super::Event::Uncommitted).
///
/// To settle again instead would turn a commit that the handler forgot into a success without
/// effect.
/// A handler that settled with one response and returned another counts as fenced, so that its
/// client gets the one in the record.
#[must_use]
pub fn confirmed(
    lease: &Lease,
    done: &Settlement,
    looked: &Result<Option<RecordSnapshot>, ErrorKind>,
) -> Option<Result<(), ErrorKind>> {
    match looked {
        Err(_) => None,
        Ok(Some(RecordSnapshot::Held(holder))) if holder.token == lease.token => None,
        Ok(Some(RecordSnapshot::Settled(record)))
            if record.token == lease.token
                && record.state == done.state
                && record.payload == done.payload =>
        {
            Some(Ok(()))
        }
        Ok(_) => Some(Err(ErrorKind::Fenced)),
    }
}

impl Exchange {
    /// Returns the outcome of the exchange, which has ended with this answer.
    #[must_use]
    pub fn outcome(&self, answer: &Answer) -> Outcome {
        match (answer, self.fenced) {
            (Answer::Pass(bypass), _) => Outcome::Bypassed(*bypass),
            (Answer::Own { attempt, stored }, _) => {
                Outcome::Executed { attempt: *attempt, stored: *stored }
            }
            (Answer::Broken { attempt, .. }, _) => {
                Outcome::Executed { attempt: *attempt, stored: false }
            }
            (Answer::Replay(_), Some(attempt)) => Outcome::Fenced { attempt, code: None },
            (Answer::Replay(_), None) => Outcome::Replayed,
            (Answer::Refuse(rejection), Some(attempt)) => {
                Outcome::Fenced { attempt, code: Some(rejection.code) }
            }
            (Answer::Refuse(rejection), None) => Outcome::Refused(rejection.code),
        }
    }

    pub(super) fn handled(&mut self, lease: Lease, handled: &Handled) -> Action {
        let state = classify::classify(self.policy(), handled);
        let next = match handled.is_failure() {
            true => Continuation::HandlerFailed { released: state.is_none() },
            false => Continuation::Own,
        };
        match state {
            // Released now, a retry would run beside the handler, which is making its body. The
            // renewal tells whether the claim is still in force, as the release would have.
            None if matches!(handled, Handled::Flowing { .. }) => {
                let broken = Handled::BrokenOff { directive: None };
                let broken = classify::classify(self.policy(), &broken);
                self.stage = Stage::Flowing(lease.clone(), broken);
                Action::Renew(lease)
            }
            None => self.release(lease, next),
            Some(state) => {
                self.stage = Stage::Settling(lease.clone(), state, next);
                let commits = classify::commits(handled, state);
                Action::Settle { lease, state, response: None, commits }
            }
        }
    }

    /// Answers with a response whose body flows, and whose key is released after that.
    pub(super) fn flowing(
        &mut self,
        lease: Lease,
        broken: Option<State>,
        renewed: Result<(), ErrorKind>,
        now: Timestamp,
    ) -> Action {
        match renewed {
            Err(kind @ (ErrorKind::Fenced | ErrorKind::Corrupt)) => {
                self.replaced(&lease, Continuation::Own, kind, now)
            }
            // Without an answer it may be in force: the renewals that follow will tell.
            _ => {
                let attempt = lease.attempt;
                let deferred = Deferred::AfterBody { lease, broken };
                deferring(self.end(Answer::Own { attempt, stored: false }), Some(deferred))
            }
        }
    }

    /// Finds out by a release whether the handler's transaction was committed.
    ///
    /// The record is settled in that transaction, so its state is the answer.
    /// A lookup could read the state before the commit; a release compares token and state under
    /// the row lock that the transaction holds, and so waits for its end.
    /// After a release that succeeded the transaction cannot commit any more.
    pub(super) fn uncommitted(&mut self, lease: Lease) -> Action {
        self.release(lease, Continuation::Uncommitted)
    }

    pub(super) fn release(&mut self, lease: Lease, next: Continuation) -> Action {
        self.stage = Stage::Releasing(lease.clone(), next);
        Action::Release(lease)
    }

    pub(super) fn after_settle(
        &mut self,
        lease: &Lease,
        state: State,
        next: Continuation,
        settled: Result<(), ErrorKind>,
        now: Timestamp,
    ) -> Action {
        match settled {
            Ok(()) => {
                let stored = state == State::Completed;
                self.conclude(lease, next, stored, None)
            }
            Err(kind @ (ErrorKind::Fenced | ErrorKind::Corrupt)) => {
                self.replaced(lease, next, kind, now)
            }
            // The handler's effect exists, so the client gets its response all the same. The result
            // is kept in memory until the store confirms it; if the process dies before, the claim
            // lapses into an orphan, and the policy decides. A journal on disk would be a second
            // store, with failures of its own.
            Err(_) => {
                let deferred = Deferred::Settle(lease.clone(), state);
                self.conclude(lease, next, false, Some(deferred))
            }
        }
    }

    pub(super) fn after_release(
        &mut self,
        lease: &Lease,
        next: Continuation,
        released: Result<(), ErrorKind>,
        now: Timestamp,
    ) -> Action {
        match released {
            Ok(()) => self.conclude(lease, next, false, None),
            Err(kind @ (ErrorKind::Fenced | ErrorKind::Corrupt)) => {
                self.replaced(lease, next, kind, now)
            }
            Err(_) => {
                let deferred = Deferred::Release(lease.clone());
                self.conclude(lease, next, false, Some(deferred))
            }
        }
    }

    fn conclude(
        &mut self,
        lease: &Lease,
        next: Continuation,
        stored: bool,
        deferred: Option<Deferred>,
    ) -> Action {
        let answer = match next {
            Continuation::Own => Answer::Own { attempt: lease.attempt, stored },
            Continuation::Replay(response) => Answer::Replay(response),
            Continuation::HandlerFailed { released } => {
                let enforces = self.policy().mode == Mode::Enforce;
                let mut rejection = Box::new(self.rejection(Code::HandlerFailed));
                (rejection.retryable, rejection.unstored) = (released, enforces);
                match enforces {
                    true => Answer::Refuse(rejection),
                    false => Answer::Broken { attempt: lease.attempt, rejection },
                }
            }
            Continuation::Refuse(code) => return self.refuse_deferred(code, deferred),
            // In shadow mode too: the handler's response would report an effect that may be lost.
            Continuation::Uncommitted => {
                Answer::Refuse(Box::new(self.rejection(Code::StoreUnavailable)))
            }
        };
        self.stage = Stage::Finished;
        Action::Answer { answer, deferred }
    }

    /// Answers after another claim replaced this one: with that claim's result, never with the
    /// handler's own success.
    ///
    /// Only in shadow mode, which answers as if there were no engine, the response passes.
    fn replaced(
        &mut self,
        lease: &Lease,
        next: Continuation,
        kind: ErrorKind,
        now: Timestamp,
    ) -> Action {
        // After a transaction whose end is not known, the record may be settled by that very one.
        let has_run = matches!(next, Continuation::Own | Continuation::HandlerFailed { .. });
        self.fenced = (has_run && kind == ErrorKind::Fenced).then_some(lease.attempt);
        match next {
            Continuation::Own | Continuation::HandlerFailed { .. }
                if self.policy().mode == Mode::Shadow =>
            {
                self.conclude(lease, next, false, None)
            }
            Continuation::Own
            | Continuation::HandlerFailed { .. }
            | Continuation::Replay(_)
            | Continuation::Uncommitted => self.look(now.after(lease.term)),
            Continuation::Refuse(_) => self.conclude(lease, next, false, None),
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
