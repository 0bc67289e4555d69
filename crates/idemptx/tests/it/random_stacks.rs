//! Random applications around and inside the layer, compared with themselves without it.
//!
//! What is promised: an answer is the application's own, a replay of one that was stored, or a
//! refusal; an operation whose answer was stored runs no more; and one key never runs twice at
//! once. `IDEMPTX_STACKS` sets the number of applications; a failing one is printed in the smallest
//! form that still fails.

mod application;
mod client;

use std::collections::HashMap;
use std::time::Duration;

use idemptx::Outcome;
use idemptx::store::MemoryStore;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use self::application::{Application, Handler, Wrap};
use self::client::{Answer, Call, Seen};
use crate::support::app::engine;

#[test]
fn a_random_application_behaves_as_without_the_layer_but_for_the_promise() {
    let cases = std::env::var("IDEMPTX_STACKS").map_or(CASES, |cases| cases.parse().unwrap());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let ran = TestRunner::new(config).run(&trials(), |(application, calls)| {
        // Time passes only while nothing else can: delays and time-outs keep their order.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(compare(&application, &calls)).map_err(TestCaseError::fail)
    });
    assert!(ran.is_ok(), "{}", ran.unwrap_err());
}

fn trials() -> impl Strategy<Value = (Application, Vec<Call>)> {
    let wraps = || prop::collection::vec(Wrap::any(), 0..4);
    let application = (wraps(), wraps(), any::<bool>(), Handler::any()).prop_map(
        |(outside, inside, nested, handler)| Application { outside, inside, nested, handler },
    );
    (application, prop::collection::vec(Call::any(), 1..8))
}

async fn compare(application: &Application, calls: &[Call]) -> Result<(), String> {
    let bare = application.start(None);
    let engine = engine(MemoryStore::new(), |policy| policy.wait(WAIT));
    let protected = application.start(Some(engine.layer()));
    let mut promised = HashMap::new();
    for (number, call) in calls.iter().enumerate() {
        let was_idle = protected.is_idle();
        let without = client::send(&bare, call, application.nested).await;
        let before = protected.runs();
        let with = client::send(&protected, call, application.nested).await;
        let ran = protected.runs() - before;
        check(call, ran, &with, &without, was_idle, &mut promised)
            .map_err(|it| format!("call {number}, {call:?}: {it}\n{with:#?}\n{without:#?}"))?;
    }
    if protected.ran_one_key_twice_at_once() {
        return Err("one key ran twice at once".to_owned());
    }
    if !engine.drain().await {
        return Err(format!("something does not end: {:?}", engine.load()));
    }
    Ok(())
}

/// Answers that the layer called stored, by key, with the calls that they answered.
type Promised = HashMap<u8, (Call, Answer)>;

fn check(
    call: &Call,
    ran: usize,
    with: &Seen,
    without: &Seen,
    was_idle: bool,
    promised: &mut Promised,
) -> Result<(), &'static str> {
    let Some(key) = call.key else {
        // A handler whose client has left may still hold the application's own places.
        let same = with.is_like(without) || !was_idle;
        return same.then_some(()).ok_or("changed without a key");
    };
    if ran > 1 {
        return Err("ran more than once");
    }
    if let Some((first_call, first)) = promised.get(&key) {
        let corrects = !call.is_same_operation(first_call) && first.status.as_u16() == 422;
        if ran > 0 && !corrects {
            return Err("ran although its answer was stored");
        }
        if let (Seen::Answer(answer), Some(Outcome::Replayed)) = (with, with.outcome())
            && !answer.replays(first)
        {
            return Err("another answer than the stored one");
        }
        if corrects && ran > 0 {
            promised.remove(&key);
        }
    }
    match with.outcome() {
        Some(Outcome::Executed { stored, .. }) => {
            if was_idle && !with.is_like(without) {
                return Err("changed");
            }
            if let (true, Seen::Answer(answer)) = (*stored, with) {
                promised.insert(key, (*call, answer.clone()));
            }
        }
        Some(Outcome::Bypassed(_)) => return Err("not protected"),
        _ => {}
    }
    Ok(())
}

const CASES: u32 = 1000;
/// Longer than any handler takes.
const WAIT: Duration = Duration::from_secs(60);
