//! Any step as a conversation with Redis.

use idemptx::store::redis::protocol::{
    ClaimStep, Command, Decision, Layout, LookupStep, Next, Read, ReleaseStep, RenewStep, Reply,
    SettleStep, Step as _, WatchStep,
};
use idemptx_core::store::StoreError;

use crate::step::{StoreCall, Verdict};

/// The conversation of a step of any kind.
pub(super) enum Conversation {
    Claim(ClaimStep),
    Lookup(LookupStep),
    Renew(RenewStep),
    Release(ReleaseStep),
    Settle(SettleStep),
    Watch(WatchStep),
}

/// Calls the step of any kind and converts its verdict.
macro_rules! each {
    ($conversation:expr, $step:ident => $call:expr) => {
        match $conversation {
            Conversation::Claim($step) => $call.map_verdict(Verdict::from),
            Conversation::Lookup($step) => $call.map_verdict(Verdict::from),
            Conversation::Renew($step) => $call.map_verdict(done),
            Conversation::Release($step) => $call.map_verdict(done),
            Conversation::Settle($step) => $call.map_verdict(done),
            Conversation::Watch($step) => $call.map_verdict(watched),
        }
    };
}

impl Conversation {
    pub(super) fn about(call: &StoreCall) -> Self {
        match call {
            StoreCall::Claim(id, claim_request) => {
                Self::Claim(ClaimStep::new(*id, claim_request.clone()))
            }
            StoreCall::Lookup(id, _) => Self::Lookup(LookupStep::new(*id)),
            StoreCall::Renew(lease) => Self::Renew(RenewStep::new(lease.clone())),
            StoreCall::Release(lease) => Self::Release(ReleaseStep::new(lease.clone())),
            StoreCall::Settle(lease, done) => {
                Self::Settle(SettleStep::new(lease.clone(), done.clone()))
            }
            StoreCall::Watch(id) => Self::Watch(WatchStep::new(*id)),
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

/// A result whose verdict can be converted.
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
