//! Equivalence of the two ways to take a step: by the scripts, and as a transaction.

use std::fmt::Debug;

use idemptx::store::redis::protocol::{
    ClaimStep, LookupStep, ReleaseStep, RenewStep, SettleStep, Step, WatchStep,
};
use idemptx_core::record::Record;
use idemptx_core::store::{Claim, ErrorKind, StoreError};
use proptest::test_runner::{Config, TestRunner};
use redis::Connection;

use super::cases::{Wish, cases, claim_request, id, lease};
use super::redis_probe::{RedisProbe, World};

#[test]
fn a_transaction_comes_to_what_the_scripts_come_to() {
    compare_all(RedisProbe::new());
}

#[test]
fn a_transaction_comes_to_what_a_server_that_compares_comes_to() {
    compare_all(RedisProbe::valkey());
}

fn compare_all(mut probe: RedisProbe) {
    let listener = probe.listener();
    let trial = std::cell::RefCell::new(Trial { probe: &mut probe, listener });
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&cases(), |(world, wish)| {
        trial.borrow_mut().run(&world, wish);
        Ok(())
    });
    outcome.unwrap();
}

struct Trial<'a> {
    probe: &'a mut RedisProbe,
    listener: Connection,
}

impl Trial<'_> {
    fn run(&mut self, world: &World, wish: Wish) {
        let now = self.probe.clock();
        match wish {
            Wish::Claim(claim_request) => {
                self.compare(world, ClaimStep::new(id(), claim_request), |a, b| {
                    is_same_claim(a, b, now)
                });
            }
            Wish::Settle(lease, done) => {
                self.compare(world, SettleStep::new(lease, done), PartialEq::eq);
            }
            Wish::Release(lease) => self.compare(world, ReleaseStep::new(lease), PartialEq::eq),
            Wish::Renew(lease) => self.compare(world, RenewStep::new(lease), PartialEq::eq),
            Wish::Lookup => self.compare(world, LookupStep::new(id()), PartialEq::eq),
            Wish::Watch => self.compare(world, WatchStep::new(id()), PartialEq::eq),
        }
    }

    /// Takes the step both ways; once more if the clock went on between reading and the script.
    fn compare<S: Step<Verdict: Debug>>(
        &mut self,
        world: &World,
        mut step: S,
        is_same: impl Fn(&S::Verdict, &S::Verdict) -> bool,
    ) {
        let mut differing = None;
        for _ in 0..TICKS_MAX {
            let now = self.probe.clock();
            let [one, other] = self.take_both_ways(world, &mut step);
            if one.is_like(&other, now, &is_same) {
                return;
            }
            differing = Some((one, other));
        }
        panic!("by script, by transaction: {differing:#?}");
    }

    fn take_both_ways<S: Step>(&mut self, world: &World, step: &mut S) -> [Outcome<S::Verdict>; 2] {
        self.probe.set(&id(), world);
        let (verdict, read) = self.probe.talk(&id(), step);
        let by_script = self.outcome(verdict);
        self.probe.set(&id(), world);
        let decision = step.decide(&self.probe.layout, read);
        self.probe.execute(&decision.writes);
        [by_script, self.outcome(decision.verdict)]
    }

    fn outcome<T>(&mut self, verdict: Result<T, StoreError>) -> Outcome<T> {
        Outcome {
            verdict: verdict.map_err(|error| error.kind()),
            world: self.probe.world(&id()),
            heard: self.probe.heard(&mut self.listener),
        }
    }
}

/// The verdict of a step, and the state after it.
#[derive(Debug)]
struct Outcome<T> {
    verdict: Result<T, ErrorKind>,
    world: World,
    heard: Vec<Vec<u8>>,
}

impl<T> Outcome<T> {
    fn is_like(&self, other: &Self, now: u64, is_same: impl Fn(&T, &T) -> bool) -> bool {
        let is_same_verdict = match (&self.verdict, &other.verdict) {
            (Ok(one), Ok(other)) => is_same(one, other),
            (Err(one), Err(other)) => one == other,
            _ => false,
        };
        is_same_verdict
            && is_same_world(&self.world, &other.world, now)
            && self.heard == other.heard
    }
}

#[test]
fn a_claim_begun_again_after_a_lost_connection_finds_itself() {
    let mut probe = RedisProbe::new();
    let mut step = ClaimStep::new(id(), claim_request(1));
    let command = step.begin(&probe.layout, LOST_MICROS);
    // The answer to this one is lost.
    probe.ask(&command);
    let (again, read) = probe.talk(&id(), &mut step);
    assert!(matches!(&again, Ok(Claim::Granted(lease)) if lease.fence == LOST_MICROS), "{again:?}");
    let by_transaction = step.decide(&probe.layout, read).verdict;
    assert_eq!(by_transaction.unwrap(), again.unwrap());
    let (renewed, _) = probe.talk(&id(), &mut RenewStep::new(lease(1)));
    assert!(renewed.is_ok());
}

/// Returns whether two claims are equal but for the time in a new fence.
fn is_same_claim(one: &Claim, other: &Claim, now: u64) -> bool {
    match (one, other) {
        (Claim::Granted(one), Claim::Granted(other)) => {
            let mut aligned = one.clone();
            aligned.fence = other.fence;
            aligned == *other && is_same_fence(one.fence, other.fence, now)
        }
        _ => one == other,
    }
}

fn is_same_world(one: &World, other: &World, now: u64) -> bool {
    is_same_record(one.record.as_deref(), other.record.as_deref(), now)
        && one.response == other.response
        && is_same_ttl(one.record_pttl, other.record_pttl)
        && is_same_ttl(one.response_pttl, other.response_pttl)
}

fn is_same_record(one: Option<&[u8]>, other: Option<&[u8]>, now: u64) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return one == other };
    if one.len() < Record::HEAD_BYTES || other.len() < Record::HEAD_BYTES {
        return one == other;
    }
    let fence = |record: &[u8]| u64::from_be_bytes(record[FENCE].try_into().unwrap());
    one[..FENCE.start] == other[..FENCE.start]
        && one[FENCE.end..] == other[FENCE.end..]
        && is_same_fence(fence(one), fence(other), now)
}

/// Fences are the same, or both are of now, a moment apart.
fn is_same_fence(one: u64, other: u64, now: u64) -> bool {
    let is_now = |fence: u64| fence.abs_diff(now) < PATIENCE_MILLIS * 1000;
    one == other || (is_now(one) && is_now(other))
}

/// The two are made one after the other, so that one has run longer.
fn is_same_ttl(one: i64, other: i64) -> bool {
    one.signum() == other.signum()
        && one.abs_diff(other) < PATIENCE_MILLIS
        && (one >= 0 || one == other)
}

/// The time of a command whose reply was lost.
const LOST_MICROS: u64 = 1;
const CASES: u32 = 1500;
const TICKS_MAX: u32 = 8;
const PATIENCE_MILLIS: u64 = 20_000;
const FENCE: std::ops::Range<usize> = 51..59;
