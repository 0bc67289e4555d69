//! Any step as a dialogue with Redis.

use idemptx::store::redis::protocol::{
    ClaimStep, Command, Decision, Layout, LookupStep, Next, Read, ReleaseStep, RenewStep, Reply,
    SettleStep, Step as _, WatchStep,
};
use idemptx_core::store::StoreError;

use crate::step::{Job, Verdict};

/// The dialogue for a step, of whichever kind.
pub(super) enum Talk {
    Claim(ClaimStep),
    Lookup(LookupStep),
    Renew(RenewStep),
    Release(ReleaseStep),
    Settle(SettleStep),
    Watch(WatchStep),
}

/// Does the same for whichever kind it is, and makes its verdict one of all kinds.
macro_rules! each {
    ($talk:expr, $step:ident => $call:expr) => {
        match $talk {
            Talk::Claim($step) => $call.map_verdict(Verdict::from),
            Talk::Lookup($step) => $call.map_verdict(Verdict::from),
            Talk::Renew($step) => $call.map_verdict(done),
            Talk::Release($step) => $call.map_verdict(done),
            Talk::Settle($step) => $call.map_verdict(done),
            Talk::Watch($step) => $call.map_verdict(watched),
        }
    };
}

impl Talk {
    pub(super) fn about(job: &Job) -> Self {
        match job {
            Job::Claim(id, claim_request) => {
                Self::Claim(ClaimStep::new(*id, claim_request.clone()))
            }
            Job::Lookup(id, _) => Self::Lookup(LookupStep::new(*id)),
            Job::Renew(lease) => Self::Renew(RenewStep::new(lease.clone())),
            Job::Release(lease) => Self::Release(ReleaseStep::new(lease.clone())),
            Job::Settle(lease, done) => Self::Settle(SettleStep::new(lease.clone(), done.clone())),
            Job::Watch(id) => Self::Watch(WatchStep::new(*id)),
        }
    }

    pub(super) fn begin(&mut self, layout: &Layout, micros: u64) -> Command {
        match self {
            Self::Claim(step) => step.begin(layout, micros),
            Self::Lookup(step) => step.begin(layout, micros),
            Self::Renew(step) => step.begin(layout, micros),
            Self::Release(step) => step.begin(layout, micros),
            Self::Settle(step) => step.begin(layout, micros),
            Self::Watch(step) => step.begin(layout, micros),
        }
    }

    pub(super) fn answer(&mut self, layout: &Layout, reply: Reply) -> Next<Verdict> {
        each!(self, step => step.answer(layout, reply))
    }

    pub(super) fn decide(&self, layout: &Layout, read: Read) -> Decision<Verdict> {
        each!(self, step => step.decide(layout, read))
    }
}

/// What has a verdict of one kind of step.
trait MapVerdict<T> {
    type Mapped;

    fn map_verdict(self, map: impl FnOnce(T) -> Verdict) -> Self::Mapped;
}

impl<T> MapVerdict<T> for Next<T> {
    type Mapped = Next<Verdict>;

    fn map_verdict(self, map: impl FnOnce(T) -> Verdict) -> Next<Verdict> {
        match self {
            Self::Ask(command) => Next::Ask(command),
            Self::Done(verdict) => Next::Done(verdict.map(map)),
        }
    }
}

impl<T> MapVerdict<T> for Decision<T> {
    type Mapped = Decision<Verdict>;

    fn map_verdict(self, map: impl FnOnce(T) -> Verdict) -> Decision<Verdict> {
        let verdict: Result<Verdict, StoreError> = self.verdict.map(map);
        Decision { writes: self.writes, verdict }
    }
}

const fn done((): ()) -> Verdict {
    Verdict::Done
}

const fn watched(is_claimed: bool) -> Verdict {
    if is_claimed { Verdict::Done } else { Verdict::Absent }
}
