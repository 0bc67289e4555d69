//! A server before 7.0, and one that forgot every script.

use std::time::Duration;

use idemptx::store::redis::protocol::{
    ClaimStep, Command, LookupStep, Next, ReleaseStep, RenewStep, Reply, SettleStep, Step,
    WatchStep,
};
use idemptx_core::record::State;
use idemptx_core::store::{Claim, RecordSnapshot, Settlement, StoreError};

use super::cases::{claim_request, id};
use super::redis_probe::RedisProbe;

#[test]
fn a_server_before_7_0_is_asked_in_words_it_knows() {
    let mut old = OldServer(RedisProbe::new());
    let lease = match old.take(ClaimStep::new(id(), claim_request(1))) {
        Ok(Claim::Granted(lease)) => lease,
        other => panic!("{other:?}"),
    };
    assert!(matches!(
        old.take(ClaimStep::new(id(), claim_request(2))),
        Ok(Claim::Found(RecordSnapshot::Held(_)))
    ));
    assert!(old.take(WatchStep::new(id())).unwrap());
    old.take(RenewStep::new(lease.clone())).unwrap();
    let retain = Duration::from_secs(600);
    let done = Settlement::new(State::Completed, "response".into(), retain, retain * 2);
    old.take(SettleStep::new(lease, done)).unwrap();
    let seen = old.take(LookupStep::new(id())).unwrap();
    assert!(matches!(seen, Some(RecordSnapshot::Settled(record)) if record.payload == "response"));
    let other = claim_request(3);
    let expected = idemptx_core::store::Expected::Settled(claim_request(1).token);
    let Ok(Claim::Granted(lease)) = old.take(ClaimStep::new(id(), other.expecting(expected)))
    else {
        panic!("not granted")
    };
    assert_eq!(lease.attempt, 2);
    old.take(ReleaseStep::new(lease)).unwrap();
    assert_eq!(old.take(LookupStep::new(id())).unwrap(), None);
}

#[test]
fn a_refusal_ends_the_dialogue_with_the_servers_own_words() {
    let probe = RedisProbe::new();
    let mut step = LookupStep::new(id());
    step.begin(&probe.layout, 0);
    let Next::Done(Err(error)) =
        step.answer(&probe.layout, Reply::Error("ERR Error compiling script: x".into()))
    else {
        panic!("only a script sent in full can be at fault")
    };
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(source, "redis: ERR Error compiling script: x");
}

/// A new server that answers what is new in it as an old one would.
struct OldServer(RedisProbe);

impl OldServer {
    fn take<S: Step>(&mut self, mut step: S) -> Result<S::Verdict, StoreError> {
        let mut command = step.begin(&self.0.layout, 0);
        loop {
            let reply = self.ask(&command);
            match step.answer(&self.0.layout, reply) {
                Next::Ask(next) => command = next,
                Next::Done(verdict) => return verdict,
            }
        }
    }

    fn ask(&mut self, command: &Command) -> Reply {
        let arguments: Vec<_> = command.arguments().collect();
        match arguments[0] {
            b"SET" if arguments.contains(&&b"NX"[..]) && arguments.contains(&&b"GET"[..]) => {
                Reply::Error("ERR syntax error".into())
            }
            b"EVAL" if arguments[1].starts_with(b"#!") => Reply::Error(NO_SHEBANG.into()),
            _ => self.0.ask(command),
        }
    }
}

const NO_SHEBANG: &str =
    "ERR Error compiling script (new function): user_script:1: unexpected symbol near '#'";
