//! Random bursts of steps, which share transactions as it happens, against a model in a `BTreeMap`.

use std::collections::BTreeMap;
use std::sync::Arc;

use idemptx_core::store::{Expected, RecordSnapshot};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

#[test]
fn bursts_of_steps_come_to_what_they_would_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = Arc::new(runtime.block_on(async { store(&folder.path().join("it.db")) }));
    let case = std::cell::Cell::new(0);
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let bursts = vec(vec(steps(), 1..STEPS_MAX), 1..BURSTS_MAX);
    let outcome = TestRunner::new(config).run(&bursts, |bursts| {
        case.set(case.get() + 1);
        runtime.block_on(play(&store, case.get(), bursts))
    });
    outcome.unwrap();
}

/// A step of one of a few actors, about one of a few keys.
#[derive(Clone, Debug)]
enum StepResult {
    /// Over what another actor has settled, if it says so.
    Claim {
        key: u64,
        actor: u64,
        expected: Option<u64>,
    },
    Settle {
        key: u64,
        actor: u64,
    },
    Release {
        key: u64,
        actor: u64,
    },
    Renew {
        key: u64,
        actor: u64,
    },
}

/// The result of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Granted,
    HeldBy(Token),
    SettledBy(Token),
    Fine,
    Fenced,
}

fn steps() -> impl Strategy<Value = StepResult> {
    let (key, actor) = (0..KEYS, 0..ACTORS);
    let expected = prop::option::of(0..ACTORS);
    prop_oneof![
        4 => (key.clone(), actor.clone(), expected)
            .prop_map(|(key, actor, expected)| StepResult::Claim { key, actor, expected }),
        3 => (key.clone(), actor.clone()).prop_map(|(key, actor)| StepResult::Settle { key, actor }),
        1 => (key.clone(), actor.clone()).prop_map(|(key, actor)| StepResult::Release { key, actor }),
        1 => (key, actor).prop_map(|(key, actor)| StepResult::Renew { key, actor }),
    ]
}

async fn play(
    store: &Arc<SqliteStore>,
    case: u64,
    bursts: Vec<Vec<StepResult>>,
) -> Result<(), TestCaseError> {
    let mut model = Model(BTreeMap::new());
    for burst in bursts {
        // Tasks of this runtime begin in the order in which they are made.
        let taken: Vec<_> = burst
            .iter()
            .cloned()
            .map(|step| tokio::spawn(take(store.clone(), case, step)))
            .collect();
        for (step, taken) in burst.iter().zip(taken) {
            prop_assert_eq!(taken.await.unwrap(), model.take(step), "{:?} in {:?}", step, &burst);
        }
        for key in 0..KEYS {
            let seen = match store.lookup(&id_of(case, key)).await.unwrap() {
                None => None,
                Some(RecordSnapshot::Held(holder)) => Some((holder.token, false)),
                Some(RecordSnapshot::Settled(record)) => {
                    prop_assert_eq!(&record.payload[..], record.token.as_bytes());
                    Some((record.token, true))
                }
                Some(other) => panic!("{other:?}"),
            };
            prop_assert_eq!(seen, model.0.get(&key).copied(), "after {:?}", &burst);
        }
    }
    Ok(())
}

async fn take(store: Arc<SqliteStore>, case: u64, step: StepResult) -> Verdict {
    let verdict = |outcome: Result<(), StoreError>| match outcome {
        Ok(()) => Verdict::Fine,
        Err(error) if error.kind() == ErrorKind::Fenced => Verdict::Fenced,
        Err(error) => panic!("{}", told(&error)),
    };
    match step {
        StepResult::Claim { key, actor, expected } => {
            let mut request = request(actor, HOUR, HOUR);
            request.expected = expected.map(|actor| Expected::Settled(token(actor)));
            match store.claim(&id_of(case, key), &request).await.unwrap() {
                Claim::Granted(lease) => {
                    assert_eq!(lease.token, request.token);
                    Verdict::Granted
                }
                Claim::Found(RecordSnapshot::Held(holder)) => Verdict::HeldBy(holder.token),
                Claim::Found(RecordSnapshot::Settled(record)) => Verdict::SettledBy(record.token),
                other => panic!("{other:?}"),
            }
        }
        StepResult::Settle { key, actor } => {
            let payload = Bytes::copy_from_slice(token(actor).as_bytes());
            verdict(store.settle(&lease(case, key, actor), &done(payload, HOUR)).await)
        }
        StepResult::Release { key, actor } => {
            verdict(store.release(&lease(case, key, actor)).await)
        }
        StepResult::Renew { key, actor } => {
            verdict(store.renew(&lease(case, key, actor)).await.map(drop))
        }
    }
}

/// The owner of each key, and whether it is settled.
struct Model(BTreeMap<u64, (Token, bool)>);

impl Model {
    fn take(&mut self, step: &StepResult) -> Verdict {
        match *step {
            StepResult::Claim { key, actor, expected } => match self.0.get(&key) {
                Some((holder, false)) if *holder != token(actor) => Verdict::HeldBy(*holder),
                Some((owner, true)) if expected.map(token) != Some(*owner) => {
                    Verdict::SettledBy(*owner)
                }
                _ => {
                    self.0.insert(key, (token(actor), false));
                    Verdict::Granted
                }
            },
            StepResult::Settle { key, actor } => match self.0.get_mut(&key) {
                Some((owner, is_settled)) if *owner == token(actor) => {
                    *is_settled = true;
                    Verdict::Fine
                }
                _ => Verdict::Fenced,
            },
            StepResult::Release { key, actor } => match self.0.get(&key) {
                None => Verdict::Fine,
                Some(held) if *held == (token(actor), false) => {
                    self.0.remove(&key);
                    Verdict::Fine
                }
                Some(_) => Verdict::Fenced,
            },
            StepResult::Renew { key, actor } => match self.0.get(&key) {
                Some(held) if *held == (token(actor), false) => Verdict::Fine,
                _ => Verdict::Fenced,
            },
        }
    }
}

fn id_of(case: u64, key: u64) -> RecordId {
    id(case << 16 | key)
}

fn token(actor: u64) -> Token {
    request(actor, HOUR, HOUR).token
}

fn lease(case: u64, key: u64, actor: u64) -> Lease {
    Lease::granted(id_of(case, key), &request(actor, HOUR, HOUR), 1, 1)
}

const KEYS: u64 = 3;
const ACTORS: u64 = 3;
const CASES: u32 = 64;
const STEPS_MAX: usize = 16;
const BURSTS_MAX: usize = 5;
