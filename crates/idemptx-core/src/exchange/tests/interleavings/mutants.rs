//! Broken stores and drivers, which the exploration must catch.

use super::World;
use super::steps::Step;
use crate::exchange::Event;
use crate::exchange::tests::world::id;
use crate::record::{Record, State};
use crate::store::Expected;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mutant {
    None,
    SettleWithoutToken,
    ReleaseWithoutToken,
    SettledCanBeOverwritten,
    LiveLeaseCanBeTakenOver,
    TakeoverComparesOnlyTheToken,
    LateClaimStartsAtOnce,
    LostAnswerCountsAsSuccess,
    FencedSettlementCountsAsDone,
    FencedReleaseCountsAsDone,
    FencedRenewalCountsAsDone,
    /// A claim that may be in force is reported as certainly refused.
    DoubtCountsAsRefusal,
    /// A claim expires with the retention of its key, even before its lease.
    ClaimsExpireEarly,
    CommitWithoutRecord,
    LostCommitCountsAsUnsettled,
    ReleaseOvertakesCommit,
}

impl World {
    pub(super) fn apply_with(&mut self, step: &Step, mutant: Mutant) -> Event {
        let now = self.now;
        let current = self.cell.record.as_ref().map(Record::lease);
        match (step, mutant, current) {
            (Step::Claim(claim_request), Mutant::LiveLeaseCanBeTakenOver, Some(lease))
                if claim_request.token != lease.token =>
            {
                let claim_request = claim_request.clone().expecting(Expected::Orphan(lease.token));
                Event::Claimed(self.cell.claim(&id(), &claim_request, u64::MAX / 2))
            }
            // The reason for the state in `Expected`; this exploration found it.
            (Step::Claim(claim_request), Mutant::TakeoverComparesOnlyTheToken, Some(lease))
                if claim_request.expected == Some(Expected::Orphan(lease.token)) =>
            {
                let settled =
                    self.cell.record.as_ref().is_some_and(|it| it.state != State::Running);
                let expected = if settled { Expected::Settled } else { Expected::Orphan };
                Event::Claimed(self.cell.claim(
                    &id(),
                    &claim_request.clone().expecting(expected(lease.token)),
                    now,
                ))
            }
            (Step::Claim(claim_request), ..) => {
                Event::Claimed(self.cell.claim(&id(), claim_request, now))
            }
            (Step::Renew(lease), ..) => Event::Renewed(self.cell.renew(lease, now)),
            (Step::Lookup, ..) => Event::Looked(self.cell.lookup(now)),
            (Step::Settle(_, done), Mutant::SettleWithoutToken, Some(current)) => {
                Event::Settled(self.cell.settle(&current, done))
            }
            (Step::Settle(lease, done), Mutant::SettledCanBeOverwritten, Some(_)) => {
                self.cell.record = Some(Record::settled(lease, done));
                Event::Settled(Ok(()))
            }
            (Step::Settle(lease, done), ..) => Event::Settled(self.cell.settle(lease, done)),
            (Step::Commit(lease, done), ..) => {
                let settled = self.cell.settle(lease, done);
                // Without its record the transaction is rolled back.
                if settled.is_ok() || mutant == Mutant::CommitWithoutRecord {
                    self.effects += 1;
                }
                Event::Settled(settled)
            }
            (Step::Release(_), Mutant::ReleaseWithoutToken, Some(current)) => {
                Event::Released(self.cell.release(&current))
            }
            (Step::Release(lease), ..) => Event::Released(self.cell.release(lease)),
        }
    }
}
