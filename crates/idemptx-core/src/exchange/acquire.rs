//! Transitions from the end of the request's body to the start of the handler.

use std::time::Duration;

use super::{
    Action, Answer, BodyEnd, Continuation, Deferred, Exchange, Operation, ProbeResult, STEPS_MAX,
    Stage,
};
use crate::key::RecordId;
use crate::lease::Lease;
use crate::outcome::{Bypass, Code};
use crate::policy::{Mode, OnLargeBody, OnNotReplayable, OnOrphan};
use crate::record::{Record, State};
use crate::response::StoredResponse;
use crate::store::{
    Claim, ClaimInfo, ClaimRequest, ErrorKind, Expected, RecordSnapshot, StoreFailure,
};
use crate::time::Timestamp;

impl Exchange {
    pub(super) fn body(&mut self, end: BodyEnd, now: Timestamp) -> Action {
        match (end, self.policy().on_large_body) {
            (BodyEnd::Whole(fingerprints), _) => {
                self.fingerprints = fingerprints;
                self.claim(None, now)
            }
            (BodyEnd::TooLarge, OnLargeBody::Skip) => self.end(Answer::Pass(Bypass::LargeBody)),
            (BodyEnd::TooLarge, _) => self.refuse(Code::BodyTooLarge),
            (BodyEnd::NoRoom, _) => self.refuse(Code::StoreUnavailable),
            (BodyEnd::Failed, _) => self.refuse(Code::BodyUnreadable),
        }
    }

    pub(super) fn claim(&mut self, expected: Option<Expected>, now: Timestamp) -> Action {
        let Some((id, claim_request)) = self.claim_request(expected) else {
            return self.refuse(Code::StoreUnavailable);
        };
        self.sent = now;
        self.late_since = None;
        self.stage = Stage::Claiming(claim_request.clone());
        Action::Claim { id, claim_request }
    }

    fn claim_request(&mut self, expected: Option<Expected>) -> Option<(RecordId, ClaimRequest)> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return None;
        }
        let (id, fingerprint) = (self.id()?, *self.fingerprint()?);
        let policy = self.policy();
        // A claim that expired before its lease would let a second execution start.
        let retain = policy.key_retain.max(policy.lease * LEASES_RETAINED_MIN);
        let claim_request = ClaimRequest::new(self.token, fingerprint, policy.lease, retain)
            .described(self.operation.as_ref().map(Operation::description).unwrap_or_default());
        Some((id, ClaimRequest { expected, ..claim_request }))
    }

    pub(super) fn claimed(
        &mut self,
        claim_request: &ClaimRequest,
        verdict: Result<Claim, StoreFailure>,
        now: Timestamp,
    ) -> Action {
        match verdict {
            Ok(Claim::Granted(lease)) => self.granted(lease, now),
            Ok(Claim::Found(RecordSnapshot::Held(holder))) => self.held(holder, now),
            Ok(Claim::Found(RecordSnapshot::Settled(record))) => self.settled(&record, now),
            Err(failure) => {
                // A certain refusal left nothing to release.
                let deferred = failure.kind.is_unknown().then(|| self.release_of(claim_request));
                self.no_verdict(failure, deferred)
            }
        }
    }

    fn granted(&mut self, lease: Lease, now: Timestamp) -> Action {
        // Only the store knows that a key is new, so keys are counted after the claim.
        if lease.attempt == 1 && self.policy().new_keys_per_minute_max.is_some() {
            self.stage = Stage::Metering(lease);
            return Action::Meter;
        }
        self.start(lease, now)
    }

    /// Starts the handler if at least half the lease's term is certainly left.
    ///
    /// An answer that took longer may describe a lease that has lapsed since: it is renewed first.
    pub(super) fn start(&mut self, lease: Lease, now: Timestamp) -> Action {
        if now.since(self.sent) <= lease.term / 2 {
            self.stage = Stage::Executing(lease.clone());
            return Action::Execute(lease);
        }
        // A store that answers each renewal too late must not hold the request, and its place among
        // the executions, for long.
        let late_since = *self.late_since.get_or_insert(self.sent);
        if now.since(late_since) > lease.term * START_TERMS_MAX {
            return self.release(lease, Continuation::Refuse(Code::StoreUnavailable));
        }
        self.sent = now;
        self.stage = Stage::Renewing(lease.clone());
        Action::Renew(lease)
    }

    pub(super) fn renewed(
        &mut self,
        lease: Lease,
        renewed: Result<(), ErrorKind>,
        now: Timestamp,
    ) -> Action {
        match renewed {
            Ok(()) => self.start(lease, now),
            // The lease lapsed and was taken over before the handler began. Claim again, under
            // another token: the store must not take this claim for a repetition of the lost one.
            Err(ErrorKind::Fenced) => {
                self.token = self.token.next();
                self.claim(None, now)
            }
            Err(kind) => self.no_verdict(kind.into(), Some(Deferred::Release(lease))),
        }
    }

    pub(super) fn held(&mut self, holder: ClaimInfo, now: Timestamp) -> Action {
        if !self.is_same(&holder.fingerprint) {
            return self.reused(&holder.fingerprint);
        }
        if holder.is_orphan() {
            return match self.policy().on_orphan {
                OnOrphan::Reexecute => self.claim(Some(Expected::Orphan(holder.token)), now),
                // Nothing is written: an owner that comes back can still settle its orphan.
                OnOrphan::Quarantine => self.refuse(Code::OutcomeUnknown),
                OnOrphan::Probe => self.probe(Expected::Orphan(holder.token), holder.attempt),
            };
        }
        let policy = self.policy();
        if policy.wait.is_zero() || policy.mode == Mode::Shadow {
            return self.in_progress(Some(holder.remaining));
        }
        let until = *self.deadline.get_or_insert(now.after(self.rules.policy().wait));
        self.wait(holder, until, Stage::Waiting)
    }

    pub(super) fn wait(&mut self, holder: ClaimInfo, until: Timestamp, stage: Stage) -> Action {
        let Some(id) = self.id() else { return self.in_progress(None) };
        self.stage = stage;
        Action::Wait { id, holder, until }
    }

    /// Decides on a settled record.
    pub(super) fn settled(&mut self, record: &Record, now: Timestamp) -> Action {
        let same = self.is_same(&record.fingerprint);
        match record.state {
            State::Completed => match StoredResponse::decode(&record.payload) {
                Err(_) => self.refuse(Code::OutcomeUnknown),
                Ok(response) if same => self.replay(response),
                Ok(response) if self.may_rebind(record, response.status) => {
                    self.claim(Some(Expected::Settled(record.token)), now)
                }
                Ok(_) => self.reused(&record.fingerprint),
            },
            _ if !same => self.reused(&record.fingerprint),
            State::NotReplayable
                if self.policy().on_not_replayable == OnNotReplayable::Reexecute =>
            {
                self.claim(Some(Expected::Settled(record.token)), now)
            }
            State::NotReplayable => self.result_unavailable(record),
            State::ResponseExpired => self.refuse(Code::KeyExpired),
            State::Unknown if self.policy().on_orphan == OnOrphan::Probe => {
                self.probe(Expected::Settled(record.token), record.attempt)
            }
            // A store that reports a running claim as settled contradicts itself.
            State::Unknown | State::Running => self.refuse(Code::OutcomeUnknown),
        }
    }

    fn probe(&mut self, orphan: Expected, attempt: u32) -> Action {
        if self.policy().mode == Mode::Shadow {
            return self.refuse(Code::OutcomeUnknown);
        }
        self.stage = Stage::Probing(orphan);
        Action::Probe { attempt }
    }

    pub(super) fn probed(
        &mut self,
        orphan: Expected,
        probed: ProbeResult,
        now: Timestamp,
    ) -> Action {
        match probed {
            ProbeResult::NotHappened => self.claim(Some(orphan), now),
            ProbeResult::Happened(response) if response.is_storable() => {
                let Some((id, claim_request)) = self.claim_request(Some(orphan)) else {
                    return self.refuse(Code::StoreUnavailable);
                };
                self.sent = now;
                self.stage = Stage::Recovering(claim_request.clone(), Box::new(response));
                Action::Claim { id, claim_request }
            }
            // A response that could not be decoded later would be stored in vain.
            ProbeResult::Happened(_) | ProbeResult::Unknown => {
                let rejection = self.rejection(Code::OutcomeUnknown).retry_after(PROBE_AGAIN);
                self.refuse_with(rejection)
            }
        }
    }

    pub(super) fn recovered(
        &mut self,
        claim_request: &ClaimRequest,
        response: Box<StoredResponse>,
        verdict: Result<Claim, StoreFailure>,
        now: Timestamp,
    ) -> Action {
        match verdict {
            Ok(Claim::Granted(lease)) => {
                let next = Continuation::Replay(response.clone());
                self.stage = Stage::Settling(lease.clone(), State::Completed, next);
                Action::Settle {
                    lease,
                    state: State::Completed,
                    response: Some(response),
                    commits: false,
                }
            }
            verdict => self.claimed(claim_request, verdict, now),
        }
    }
}

/// The least retention of a claim, in leases: the lease itself, and one in which retries find the
/// orphan.
const LEASES_RETAINED_MIN: u32 = 2;
/// The `Retry-After` of a refusal because the application's hook did not know.
const PROBE_AGAIN: Duration = Duration::from_secs(5);
/// The most terms for which a claim is renewed before its handler starts.
const START_TERMS_MAX: u32 = 2;
