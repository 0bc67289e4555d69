//! Failovers that were not announced: the history of a server's data, and a grace period after it
//! has changed.
//!
//! A replica that is promoted begins a history of its own, and so does a server that is started
//! again; either may lack the last claims and results.
//! For a grace period nothing new is claimed there, while those who know better put back what is
//! missing: owners their claims, and every process its results of the last moments.

use std::fmt;
use std::time::Duration;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::Record;
use idemptx_core::store::{Claim, ClaimRequest, ErrorKind, RecordSnapshot, StoreError};
use idemptx_core::time::millis;

use super::command::{Command, Key};
use super::layout::{Layout, kept};
use super::reply::Reply;
use super::{ClaimStep, Decision, LookupStep, Next, Read, Step};

/// Returns the command that compares the history of a server with the one written down there.
///
/// `slot` is a slot of the server, if it belongs to a cluster; `known` is the history that was seen
/// last, `unheard` the time since a server of that history answered, and `promotion` the number of the
/// server's promotion, which sentinels know; zero without them.
pub(in crate::store::redis) fn question(
    layout: &Layout,
    slot: Option<u16>,
    known: &str,
    unheard: Duration,
    promotion: u64,
    grace: Duration,
) -> Command {
    let key = layout.epoch_key(slot);
    Command::of("EVAL", 8, CODE.len() + key.len() + known.len())
        .text(CODE)
        .number(1)
        .text(&key)
        .text(known)
        .number(millis(grace))
        .number(millis(unheard))
        .number(promotion)
}

/// Reads the reply: the history, and what is left of the grace period.
pub(in crate::store::redis) fn history(reply: &Reply) -> Option<(String, Duration)> {
    let Reply::Array(parts) = reply else { return None };
    let [Reply::Bytes(history), Reply::Integer(left)] = parts.as_slice() else { return None };
    let left = Duration::from_millis(u64::try_from(*left).ok()?);
    Some((std::str::from_utf8(history).ok()?.to_owned(), left))
}

/// A claim, which grants nothing new during a grace period.
#[derive(Clone, Debug)]
pub(in crate::store::redis) struct GuardedClaim {
    claim: ClaimStep,
    lookup: LookupStep,
    request: ClaimRequest,
    /// The rest of the grace period, if it was one when the step began.
    left: Option<Duration>,
    micros: u64,
}

impl GuardedClaim {
    pub(in crate::store::redis) fn new(id: RecordId, request: ClaimRequest) -> Self {
        Self {
            claim: ClaimStep::new(id, request.clone()),
            lookup: LookupStep::new(id),
            request,
            left: None,
            micros: 0,
        }
    }

    /// Says what is left of the grace period, before each beginning.
    pub(in crate::store::redis) const fn during(&mut self, left: Option<Duration>) {
        self.left = left;
    }

    /// Goes on with what was found: only a record that is there may be replaced.
    fn found(
        &mut self,
        layout: &Layout,
        found: Option<RecordSnapshot>,
        left: Duration,
    ) -> Next<Claim> {
        let Some(found) = found else {
            let refused = StoreError::with_source(ErrorKind::Refused, Grace);
            return Next::Done(Err(refused.with_retry_after(left)));
        };
        let is_own = matches!(&found, RecordSnapshot::Held(held)
            if held.token == self.request.token);
        if !is_own && self.request.expected.is_none() {
            return Next::Done(Ok(Claim::Found(found)));
        }
        self.left = None;
        Next::Ask(self.claim.begin(layout, self.micros))
    }
}

impl Step for GuardedClaim {
    type Verdict = Claim;

    fn begin(&mut self, layout: &Layout, micros: u64) -> Command {
        self.micros = micros;
        match self.left {
            Some(_) => self.lookup.begin(layout, micros),
            None => self.claim.begin(layout, micros),
        }
    }

    fn answer(&mut self, layout: &Layout, reply: Reply) -> Next<Claim> {
        let Some(left) = self.left else { return self.claim.answer(layout, reply) };
        match self.lookup.answer(layout, reply) {
            Next::Ask(command) => Next::Ask(command),
            Next::Done(Ok(found)) => self.found(layout, found, left),
            Next::Done(Err(error)) => Next::Done(Err(error)),
        }
    }

    fn decide(&self, layout: &Layout, read: Read) -> Decision<Claim> {
        self.claim.decide(layout, read)
    }
}

/// Puts a claim back that a server has lost, unless there is a record in its place.
#[derive(Clone, Debug)]
pub(in crate::store::redis) struct AssertStep(Lease);

impl AssertStep {
    pub(in crate::store::redis) const fn new(lease: Lease) -> Self {
        Self(lease)
    }
}

impl Step for AssertStep {
    /// True if it was put back.
    type Verdict = bool;

    fn begin(&mut self, layout: &Layout, _: u64) -> Command {
        Command::of("SET", 7, Record::HEAD_BYTES)
            .key(layout, Key::Record(&self.0.id))
            .bytes(&Record::running(&self.0).encode())
            .text("NX")
            .text("GET")
            .text("PX")
            .number(millis(kept(self.0.retain)))
    }

    fn answer(&mut self, layout: &Layout, reply: Reply) -> Next<bool> {
        Next::Done(match reply {
            Reply::Nil => Ok(true),
            Reply::Bytes(_) => Ok(false),
            Reply::Error(error) => Err(layout.refused(&error)),
            _ => Err(layout.unexpected("SET")),
        })
    }

    fn decide(&self, layout: &Layout, read: Read) -> Decision<bool> {
        if read.record.is_some() {
            return Decision::stands(Ok(false));
        }
        let (key, record) = (Key::Record(&self.0.id), Record::running(&self.0).encode());
        let write = Command::set(layout, key, &[&record], kept(self.0.retain));
        Decision { writes: vec![write], verdict: Ok(true) }
    }
}

/// Reason for a refusal during a grace period.
#[derive(Debug)]
struct Grace;

impl fmt::Display for Grace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "redis: the server was promoted or started again and may have forgotten claims, which \
             their owners put back meanwhile; or it does not show its history, which takes `+info`",
        )
    }
}

impl std::error::Error for Grace {}

const CODE: &str = include_str!("lua/epoch.lua");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_of_its_history_is_read() {
        let reply = Reply::Array(vec![Reply::Bytes("abc".into()), Reply::Integer(1_500)]);
        assert_eq!(history(&reply), Some(("abc".to_owned(), Duration::from_millis(1_500))));
        for other in [Reply::Nil, Reply::Array(vec![]), Reply::Integer(1)] {
            assert_eq!(history(&other), None);
        }
    }
}
