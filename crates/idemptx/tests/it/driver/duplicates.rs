//! Many requests with one key in one process.

use std::time::Duration;

use idemptx_testkit::scripted_store::{Behavior, Gate, Operation, ScriptedStore};

use crate::support::app::{App, engine, slow};
use crate::support::http_client::{posted, send};

#[tokio::test]
async fn two_hundred_duplicates_are_one_claim_and_no_further_step_of_the_store() {
    let (store, app) = slow(|policy| policy.wait(WAIT).waiters_max(1000));
    let first = Gate::closed();
    store.next(Operation::Claim, Behavior::DelayReply(first.clone()));
    let early: Vec<_> = (0..100).map(|_| app.client("k")).collect();
    store.performed(Operation::Claim, 1).await;
    first.open();
    app.runs.reach(1).await;
    let late: Vec<_> = (0..100).map(|_| app.client("k")).collect();
    while app.engine.load().waiting < 199 {
        tokio::task::yield_now().await;
    }
    let load = app.engine.load();
    assert_eq!((load.executing, load.waiting, load.unconfirmed), (1, 199, 0));
    app.gate.open();
    let mut replays = 0;
    for client in early.into_iter().chain(late) {
        let reply = client.await.unwrap();
        reply.answered(200, "run 1");
        replays += usize::from(reply.is_replay());
    }
    assert_eq!((app.runs.began(), replays), (1, 199));
    assert_eq!(app.engine.load().waiting, 0);
    assert_eq!((store.calls(Operation::Claim), store.calls(Operation::Settle)), (1, 1));
    assert_eq!(store.total_calls(), 2);
}

#[tokio::test]
async fn without_waiting_a_duplicate_is_refused_and_told_when_to_come_back() {
    let app = App::slow(engine(ScriptedStore::new(), |policy| policy));
    let client = app.client("k");
    app.runs.reach(1).await;
    let reply = app.post("k").await;
    reply.refused(409, "in-progress");
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(reply.problem()["retryable"], true);
    assert_eq!(reply.problem()["safe_new_key"], false);
    app.gate.open();
    client.await.unwrap().answered(200, "run 1");
}

#[tokio::test]
async fn a_duplicate_of_another_request_is_refused_without_waiting() {
    let app = App::slow(engine(ScriptedStore::new(), |policy| policy.wait(WAIT)));
    let client = app.client("k");
    app.runs.reach(1).await;
    send(&app.router, posted("k", "other")).await.refused(422, "key-reused");
    app.gate.open();
    client.await.unwrap().answered(200, "run 1");
}

#[tokio::test(start_paused = true)]
async fn who_has_waited_long_enough_is_refused() {
    let app = App::slow(engine(ScriptedStore::new(), |policy| policy.wait(WAIT)));
    let client = app.client("k");
    app.runs.reach(1).await;
    let began = tokio::time::Instant::now();
    let reply = app.post("k").await;
    reply.refused(409, "in-progress");
    assert!(reply.header("retry-after").is_some());
    assert_eq!(began.elapsed().as_secs(), WAIT.as_secs());
    app.gate.open();
    client.await.unwrap().answered(200, "run 1");
}

#[tokio::test]
async fn more_than_may_wait_for_one_key_are_refused() {
    let app = App::slow(engine(ScriptedStore::new(), |policy| policy.wait(WAIT).waiters_max(2)));
    let first = app.client("k");
    app.runs.reach(1).await;
    let mut waiters = [(); 2].map(|()| app.client("k"));
    tokio::task::yield_now().await;
    app.post("k").await.refused(409, "in-progress");

    // Who leaves frees its place at once.
    waiters[0].abort();
    assert!((&mut waiters[0]).await.unwrap_err().is_cancelled());
    let successor = app.client("k");
    tokio::task::yield_now().await;
    app.post("k").await.refused(409, "in-progress");
    app.gate.open();
    let [_, waiter] = waiters;
    for client in [first, waiter, successor] {
        client.await.unwrap().answered(200, "run 1");
    }
}

#[tokio::test]
async fn more_than_may_wait_in_the_process_are_refused() {
    let app =
        App::slow(engine(ScriptedStore::new(), |policy| policy.wait(WAIT).waiters_total_max(2)));
    let firsts = ["one", "two", "three"].map(|key| app.client(key));
    app.runs.reach(3).await;
    let mut waiters = ["one", "two"].map(|key| app.client(key));
    tokio::task::yield_now().await;
    app.post("three").await.refused(409, "in-progress");
    waiters[0].abort();
    assert!((&mut waiters[0]).await.unwrap_err().is_cancelled());
    let successor = app.client("three");
    tokio::task::yield_now().await;
    app.post("one").await.refused(409, "in-progress");
    app.gate.open();
    let [_, waiter] = waiters;
    for client in firsts.into_iter().chain([waiter, successor]) {
        assert_eq!(client.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn when_the_first_gives_up_one_of_those_who_wait_takes_over() {
    let (store, app) = slow(|policy| policy.wait(WAIT));
    app.runs.answer_with(503);
    let first = app.client("k");
    app.runs.reach(1).await;
    let waiters: Vec<_> = (0..10).map(|_| app.client("k")).collect();
    tokio::task::yield_now().await;
    let (release, second) = (Gate::closed(), Gate::closed());
    store.next(Operation::Release, Behavior::DelayReply(release.clone()));
    store.next(Operation::Settle, Behavior::DelayReply(second.clone()));
    app.gate.open();
    store.performed(Operation::Release, 1).await;
    app.runs.answer_with(200);
    release.open();
    first.await.unwrap().answered(503, "run 1");
    store.performed(Operation::Settle, 1).await;
    assert!(waiters.iter().all(|waiter| !waiter.is_finished()), "the others wait on");
    second.open();
    let mut replays = 0;
    for waiter in waiters {
        let reply = waiter.await.unwrap();
        reply.answered(200, "run 2");
        replays += usize::from(reply.is_replay());
    }
    assert_eq!((app.runs.began(), replays), (2, 9));
    assert_eq!(store.calls(Operation::Claim), 2);
}

#[tokio::test]
async fn those_who_wait_for_another_process_are_one_watch() {
    let store = ScriptedStore::new();
    let patient = |policy: idemptx::PolicyBuilder| policy.wait(WAIT).waiters_max(1000);
    let owner = App::slow(engine(store.clone(), patient));
    let other = App::quick(engine(store.clone(), patient));
    let first = owner.client("k");
    owner.runs.reach(1).await;
    let waiters: Vec<_> = (0..200).map(|_| other.client("k")).collect();
    store.performed(Operation::Lookup, 1).await;
    owner.gate.open();
    first.await.unwrap().answered(200, "run 1");
    for waiter in waiters {
        let reply = waiter.await.unwrap();
        reply.answered(200, "run 1");
        assert!(reply.is_replay());
    }
    assert_eq!(other.runs.began(), 0);
    let steps = store.calls(Operation::Claim) + store.calls(Operation::Lookup);
    assert!(steps < 8, "{steps} steps for 200 who wait");
}

#[tokio::test]
async fn those_who_wait_notice_that_another_request_holds_the_key_now() {
    let (store, owner) = slow(|policy| policy.wait(WAIT));
    let other = App::quick(engine(store.clone(), |policy| policy.wait(WAIT)));
    owner.runs.answer_with(503);
    let first = owner.client("k");
    owner.runs.reach(1).await;
    let waiter = other.client("k");
    store.performed(Operation::Lookup, 1).await;
    let look = Gate::closed();
    store.always(Operation::Lookup, Behavior::DelayOperation(look.clone()));
    owner.gate.open();
    assert_eq!(first.await.unwrap().status, 503);
    // Before the other process looks, another request has claimed the key.
    let next = App::slow(engine(store.clone(), |policy| policy));
    let (router, request) = (next.router.clone(), posted("k", "other"));
    let second = tokio::spawn(async move { send(&router, request).await });
    next.runs.reach(1).await;
    look.open();
    waiter.await.unwrap().refused(422, "key-reused");
    next.gate.open();
    assert_eq!(second.await.unwrap().status, 200);
}

const WAIT: Duration = Duration::from_secs(10);
