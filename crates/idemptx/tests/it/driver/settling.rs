//! Results that the store does not take, or not from us.

use std::time::Duration;

use idemptx::Outcome;
use idemptx_core::policy::OnPanic;
use idemptx_core::store::ErrorKind;
use idemptx_testkit::scripted_store::{Behavior, Operation, ScriptedStore};

use crate::support::app::{App, engine, quick, slow};

#[tokio::test]
async fn a_handler_whose_client_left_finishes_and_its_result_is_kept() {
    let (store, app) = slow(|policy| policy);
    let client = app.client("k");
    app.runs.reach(1).await;
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    app.gate.open();
    store.performed(Operation::Settle, 1).await;
    let retry = app.post("k").await;
    retry.answered(200, "run 1");
    assert!(retry.is_replay());
}

#[tokio::test]
async fn a_result_is_kept_behind_the_answer_until_the_store_is_back() {
    let (store, app) = quick(|policy| {
        policy.settle_timeout(Duration::from_millis(50)).wait(Duration::from_secs(10))
    });
    store.always(Operation::Settle, Behavior::Fail(ErrorKind::Unavailable));
    let reply = app.post("k").await;
    reply.answered(200, "run 1");
    assert!(reply.is_unstored());
    assert_eq!(reply.outcome(), &Outcome::Executed { attempt: 1, stored: false });
    assert!(store.calls(Operation::Settle) > 1, "it was tried again while there was time");

    let waiter = app.client("k");
    store.called(Operation::Settle, store.calls(Operation::Settle) + 1).await;
    store.always(Operation::Settle, Behavior::Succeed);
    let retry = waiter.await.unwrap();
    retry.answered(200, "run 1");
    assert!(retry.is_replay());
    assert!(app.engine.drain().await);
    assert!(app.post("k").await.is_replay());
    assert_eq!(app.runs.began(), 1);
}

#[tokio::test]
async fn a_result_that_is_not_kept_yet_keeps_its_claim() {
    let store = ScriptedStore::new();
    let lease = Duration::from_millis(600);
    let change = |policy: idemptx::PolicyBuilder| {
        policy.lease(lease).settle_timeout(Duration::from_millis(1))
    };
    let app = App::quick(engine(store.clone(), change));
    let other = App::quick(engine(store.clone(), change));
    store.always(Operation::Settle, Behavior::Fail(ErrorKind::Unavailable));
    assert!(app.post("k").await.is_unstored());
    // The heartbeat goes on behind: more than one term passes.
    store.performed(Operation::Renew, store.calls(Operation::Renew) + 5).await;
    app.post("k").await.refused(409, "in-progress");
    other.post("k").await.refused(409, "in-progress");
    store.always(Operation::Settle, Behavior::Succeed);
    assert!(app.engine.drain().await);
    assert!(other.post("k").await.is_replay());
    assert_eq!(other.runs.began(), 0);
}

#[tokio::test]
async fn a_settlement_whose_confirmation_is_lost_is_stored_all_the_same() {
    let (store, app) = quick(|policy| policy);
    store.next(Operation::Settle, Behavior::LoseReply(ErrorKind::Unavailable));
    let reply = app.post("k").await;
    reply.answered(200, "run 1");
    assert!(!reply.is_unstored());
    assert_eq!(store.calls(Operation::Settle), 2);
    assert!(app.post("k").await.is_replay());
}

#[tokio::test]
async fn a_release_without_a_verdict_is_repeated_behind_the_answer() {
    let (store, app) = quick(|policy| policy);
    app.runs.answer_with(503);
    store.next(Operation::Release, Behavior::Fail(ErrorKind::Unavailable));
    let reply = app.post("k").await;
    reply.answered(503, "run 1");
    assert!(reply.is_unstored());
    assert!(app.engine.drain().await);
    app.post("k").await.answered(503, "run 2");
}

#[tokio::test]
async fn who_was_taken_over_answers_with_what_the_other_stored() {
    let (store, late, client) = taken_over().await;
    let other = App::quick(engine(store.clone(), |policy| policy));
    other.runs.answer_with(201);
    other.post("k").await.answered(201, "run 1");
    late.gate.open();
    let reply = client.await.unwrap();
    reply.answered(201, "run 1");
    assert!(reply.is_replay());
    assert_eq!((late.runs.began(), other.runs.began()), (1, 1));
}

#[tokio::test]
async fn who_was_taken_over_waits_for_the_other() {
    let (store, late, client) = taken_over().await;
    let other = App::slow(engine(store.clone(), |policy| policy));
    other.runs.answer_with(201);
    let second = other.client("k");
    other.runs.reach(1).await;
    late.gate.open();
    // It looks at the record, and once more when it has begun to watch it.
    store.performed(Operation::Lookup, 2).await;
    assert!(!client.is_finished());
    other.gate.open();
    second.await.unwrap().answered(201, "run 1");
    let reply = client.await.unwrap();
    reply.answered(201, "run 1");
    assert!(reply.is_replay());
}

#[tokio::test]
async fn who_was_taken_over_by_one_that_gave_up_has_no_answer() {
    for status in [200, 503] {
        let (store, late, client) = taken_over().await;
        let other = App::quick(engine(store.clone(), |policy| policy));
        other.runs.answer_with(503);
        other.post("k").await.answered(503, "run 1");
        late.runs.answer_with(status);
        late.gate.open();
        let reply = client.await.unwrap();
        // To release what is gone succeeds, so a failure is told as it is.
        if status == 200 { reply.refused(409, "in-progress") } else { reply.answered(503, "run 1") }
    }
}

#[tokio::test]
async fn a_handler_that_breaks_down_after_it_was_taken_over_changes_nothing() {
    for on_panic in [OnPanic::Release, OnPanic::Quarantine] {
        let (store, late) = slow(|policy| policy.on_panic(on_panic));
        late.runs.break_down();
        let client = late.client("k");
        late.runs.reach(1).await;
        store.advance(late.engine.policy().lease * 2);
        let other = App::quick(engine(store.clone(), |policy| policy));
        other.post("k").await.answered(200, "run 1");
        late.gate.open();
        let reply = client.await.unwrap();
        assert!(reply.is_replay(), "{reply:?}");
        assert!(other.post("k").await.is_replay());
    }
}

/// An execution whose lease has lapsed while its handler runs.
async fn taken_over()
-> (ScriptedStore, App<ScriptedStore>, tokio::task::JoinHandle<crate::support::http_client::Reply>)
{
    let (store, app) = slow(|policy| policy);
    let client = app.client("k");
    app.runs.reach(1).await;
    store.advance(app.engine.policy().lease * 2);
    (store, app, client)
}
