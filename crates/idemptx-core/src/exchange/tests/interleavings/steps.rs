//! The steps of the store, and the answers that a driver may get to them.

use super::World;
use super::mutants::Mutant;
use crate::exchange::Event;
use crate::exchange::tests::world::id;
use crate::lease::Lease;
use crate::record::{Record, State};
use crate::store::{Claim, ClaimRequest, ErrorKind, RecordSnapshot, Settlement};

#[derive(Clone, Debug)]
pub(super) enum Step {
    Claim(ClaimRequest),
    Renew(Lease),
    Lookup,
    Settle(Lease, Settlement),
    /// Settle in the handler's transaction, and commit it.
    Commit(Lease, Settlement),
    Release(Lease),
}

impl Step {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Claim(claim_request) if claim_request.expected.is_some() => "claims over".into(),
            Self::Claim(_) => "claims".into(),
            Self::Renew(_) => "renews".into(),
            Self::Lookup => "looks".into(),
            Self::Settle(_, done) => format!("settles as {:?}", done.state),
            Self::Commit(..) => "commits".into(),
            Self::Release(_) => "releases".into(),
        }
    }

    /// Returns the event for a step whose verdict never came.
    pub(super) fn unknown(&self, mutant: Mutant) -> Event {
        match self {
            Self::Claim(_) => Event::Claimed(Err(ErrorKind::Unavailable.into())),
            Self::Renew(_) => Event::Renewed(Err(ErrorKind::Unavailable)),
            Self::Lookup => Event::Looked(Err(ErrorKind::Unavailable)),
            Self::Commit(..) if mutant != Mutant::LostCommitCountsAsUnsettled => Event::Uncommitted,
            Self::Settle(..) | Self::Commit(..) => Event::Settled(Err(ErrorKind::Unavailable)),
            Self::Release(_) => Event::Released(Err(ErrorKind::Unavailable)),
        }
    }

    /// Returns the event for a step that the store has certainly not done.
    pub(super) fn refused(&self) -> Event {
        match self {
            Self::Claim(_) => Event::Claimed(Err(ErrorKind::Refused.into())),
            Self::Renew(_) => Event::Renewed(Err(ErrorKind::Refused)),
            Self::Lookup => Event::Looked(Err(ErrorKind::Refused)),
            Self::Settle(..) | Self::Commit(..) => Event::Settled(Err(ErrorKind::Refused)),
            Self::Release(_) => Event::Released(Err(ErrorKind::Refused)),
        }
    }

    /// Returns the event of a driver that takes a lost answer for a success.
    pub(super) fn success(&self, event: &Event) -> Event {
        match self {
            Self::Claim(claim_request) => {
                let lease = Lease::granted(id(), claim_request, 1, 1);
                Event::Claimed(Ok(Claim::Granted(lease)))
            }
            Self::Renew(_) => Event::Renewed(Ok(())),
            Self::Lookup => event.clone(),
            Self::Settle(..) | Self::Commit(..) => Event::Settled(Ok(())),
            Self::Release(_) => Event::Released(Ok(())),
        }
    }
}

impl World {
    /// Does a step in the store.
    pub(super) fn apply(&mut self, step: &Step, mutant: Mutant) -> Result<Event, String> {
        let before = self.cell.clone();
        let was_live = before.is_live(self.now);
        let event = self.apply_with(step, mutant);
        let owner = match step {
            Step::Claim(_) | Step::Lookup => None,
            Step::Renew(lease)
            | Step::Settle(lease, _)
            | Step::Commit(lease, _)
            | Step::Release(lease) => Some(lease.token),
        };
        let after = &self.cell.record;
        if let (Some(token), Some(record)) = (owner, &before.record)
            && record.token != token
            && !same(Some(record), after.as_ref())
        {
            return Err(self.report("a stale owner changed the record"));
        }
        if let Some(record) = &before.record {
            if record.state != State::Running && !same(Some(record), after.as_ref()) {
                return Err(self.report("a settled record changed"));
            }
            if let Some(after) = after {
                if record.token != after.token {
                    self.takeovers += 1;
                    if was_live {
                        return Err(self.report("a live lease was taken over"));
                    }
                }
            } else {
                self.releases += 1;
            }
        }
        Ok(event)
    }

    /// Returns true if a step waits for the end of a transaction; a lookup never does.
    pub(super) fn is_blocked(&self, step: &Step, mutant: Mutant) -> bool {
        let Some((lease, _)) = &self.open else { return false };
        match step {
            Step::Claim(claim_request) => {
                claim_request.expected.is_some() || claim_request.token == lease.token
            }
            Step::Release(_) => mutant != Mutant::ReleaseOvertakesCommit,
            Step::Lookup => false,
            Step::Renew(_) | Step::Settle(..) | Step::Commit(..) => true,
        }
    }

    /// Returns true for a release of a claim that is still on its way.
    ///
    /// Drivers repeat such a release until the claim cannot arrive any more.
    pub(super) fn is_repeated_later(&self, step: &Step) -> bool {
        let Step::Release(lease) = step else { return false };
        self.late.iter().any(|it| matches!(&**it, Step::Claim(claim) if claim.token == lease.token))
    }
}

/// Describes an event in a few words, for traces.
pub(super) fn brief(event: &Event) -> String {
    match event {
        Event::Claimed(Ok(Claim::Granted(lease))) => format!("granted, attempt {}", lease.attempt),
        Event::Claimed(Ok(Claim::Found(RecordSnapshot::Held(holder)))) if holder.is_orphan() => {
            "an orphan".into()
        }
        Event::Claimed(Ok(Claim::Found(RecordSnapshot::Held(_)))) => "held".into(),
        Event::Claimed(Ok(Claim::Found(RecordSnapshot::Settled(record)))) => {
            format!("{:?}", record.state)
        }
        Event::Looked(Ok(Some(RecordSnapshot::Settled(record)))) => format!("{:?}", record.state),
        Event::Looked(Ok(Some(RecordSnapshot::Held(_)))) => "held".into(),
        other => format!("{other:?}"),
    }
}

/// Returns true if the records are equal; renewals do not show in them.
pub(super) fn same(before: Option<&Record>, after: Option<&Record>) -> bool {
    before == after
}
