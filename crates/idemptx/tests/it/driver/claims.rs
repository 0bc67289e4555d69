//! Claims whose verdict comes late or never.

use std::time::Duration;

use idemptx_core::store::ErrorKind;
use idemptx_testkit::scripted_store::{Behavior, Gate, Operation};

use crate::support::app::{App, engine, quick, slow};

#[tokio::test]
async fn a_client_that_leaves_before_the_claim_is_answered_leaves_the_key_free() {
    let (store, app) = quick(|policy| policy);
    store.next(Operation::Claim, Behavior::DelayReply(Gate::closed()));
    let client = app.client("k");
    store.performed(Operation::Claim, 1).await;
    client.abort();
    store.performed(Operation::Release, 1).await;
    app.post("k").await.answered(200, "run 1");
}

#[tokio::test]
async fn a_claim_that_is_executed_after_its_client_left_is_released_as_well() {
    let (store, app) = quick(|policy| policy.lease(LATE));
    let gate = Gate::closed();
    store.next(Operation::Claim, Behavior::DelayOperation(gate.clone()));
    let client = app.client("k");
    store.called(Operation::Claim, 1).await;
    client.abort();
    store.performed(Operation::Release, 1).await;
    gate.open();
    store.performed(Operation::Claim, 1).await;
    let released = store.calls(Operation::Release);
    store.performed(Operation::Release, released + 1).await;
    app.post("k").await.answered(200, "run 1");
}

#[tokio::test]
async fn a_client_that_leaves_while_it_follows_another_has_nothing_to_release() {
    let (store, app) = quick(|policy| policy);
    let gate = Gate::closed();
    store.next(Operation::Claim, Behavior::DelayReply(gate.clone()));
    let first = app.client("k");
    store.performed(Operation::Claim, 1).await;
    let follower = app.client("k");
    tokio::task::yield_now().await;
    follower.abort();
    assert!(follower.await.unwrap_err().is_cancelled());
    gate.open();
    first.await.unwrap().answered(200, "run 1");
    assert!(app.engine.drain().await);
    assert_eq!(store.calls(Operation::Release), 0);
}

#[tokio::test]
async fn those_who_follow_a_claim_that_fails_have_nothing_to_release() {
    let (store, app) = quick(|policy| {
        policy.lease(Duration::from_millis(100)).claim_timeout(Duration::from_millis(50))
    });
    store.next(Operation::Claim, Behavior::DelayReply(Gate::closed()));
    store.always(Operation::Release, Behavior::Fail(ErrorKind::Fenced));
    let clients: Vec<_> = (0..50).map(|_| app.client("k")).collect();
    for client in clients {
        client.await.unwrap().refused(503, "store-unavailable");
    }
    assert!(app.engine.drain().await);
    assert_eq!((store.calls(Operation::Claim), store.calls(Operation::Release)), (1, 1));
}

#[tokio::test]
async fn when_the_one_who_asks_leaves_another_asks() {
    let (store, app) = quick(|policy| policy);
    store.next(Operation::Claim, Behavior::DelayOperation(Gate::closed()));
    let first = app.client("k");
    store.called(Operation::Claim, 1).await;
    let second = app.client("k");
    tokio::task::yield_now().await;
    first.abort();
    second.await.unwrap().answered(200, "run 1");
    assert_eq!(store.calls(Operation::Claim), 2);
}

#[tokio::test]
async fn a_claim_without_a_verdict_runs_nothing_and_does_not_stay() {
    let (store, app) = quick(|policy| policy.lease(LATE).claim_timeout(Duration::from_millis(20)));
    let gate = Gate::closed();
    store.next(Operation::Claim, Behavior::DelayOperation(gate.clone()));
    let reply = app.post("k").await;
    reply.refused(503, "store-unavailable");
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(app.runs.began(), 0);
    // The store executes it only after it was released in vain.
    store.performed(Operation::Release, 1).await;
    gate.open();
    store.performed(Operation::Claim, 1).await;
    let released = store.calls(Operation::Release);
    store.performed(Operation::Release, released + 1).await;
    app.post("k").await.answered(200, "run 1");
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_released_until_that_is_confirmed() {
    let (store, app) = quick(|policy| policy);
    store.next(Operation::Claim, Behavior::LoseReply(ErrorKind::Unavailable));
    store.next(Operation::Release, Behavior::Fail(ErrorKind::Unavailable));
    app.post("k").await.refused(503, "store-unavailable");
    store.called(Operation::Release, 2).await;
    store.performed(Operation::Release, 1).await;
    app.post("k").await.answered(200, "run 1");
}

#[tokio::test]
async fn a_claim_that_was_granted_late_is_renewed_before_the_handler_starts() {
    let (store, app) = slow(|policy| policy.lease(LEASE));
    let gate = Gate::closed();
    store.next(Operation::Claim, Behavior::DelayReply(gate.clone()));
    let renewal = Gate::closed();
    store.next(Operation::Renew, Behavior::DelayReply(renewal.clone()));
    let client = app.client("k");
    store.performed(Operation::Claim, 1).await;
    // Nothing else than time makes an answer late.
    tokio::time::sleep(LEASE / 2 + Duration::from_millis(5)).await;
    gate.open();
    store.performed(Operation::Renew, 1).await;
    assert_eq!(app.runs.began(), 0);
    renewal.open();
    app.runs.reach(1).await;
    app.gate.open();
    client.await.unwrap().answered(200, "run 1");
}

#[tokio::test]
async fn a_claim_that_was_taken_over_meanwhile_never_starts() {
    let (store, late) = quick(|policy| policy.lease(LEASE));
    let other = App::quick(engine(store.clone(), |policy| policy.lease(LEASE)));
    other.runs.answer_with(201);
    let gate = Gate::closed();
    store.next(Operation::Claim, Behavior::DelayReply(gate.clone()));
    let client = late.client("k");
    store.performed(Operation::Claim, 1).await;
    tokio::time::sleep(LEASE / 2 + Duration::from_millis(5)).await;
    store.advance(LEASE);
    other.post("k").await.answered(201, "run 1");
    gate.open();
    let reply = client.await.unwrap();
    reply.answered(201, "run 1");
    assert!(reply.is_replay());
    assert_eq!(late.runs.began(), 0);
}

#[tokio::test]
async fn a_late_claim_that_cannot_be_renewed_never_starts() {
    let (store, app) = quick(|policy| policy.lease(LEASE));
    let gate = Gate::closed();
    store.next(Operation::Claim, Behavior::DelayReply(gate.clone()));
    store.next(Operation::Renew, Behavior::Fail(ErrorKind::Unavailable));
    let client = app.client("k");
    store.performed(Operation::Claim, 1).await;
    tokio::time::sleep(LEASE / 2 + Duration::from_millis(5)).await;
    gate.open();
    client.await.unwrap().refused(503, "store-unavailable");
    store.performed(Operation::Release, 1).await;
    app.post("k").await.answered(200, "run 1");
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_neither_run_nor_deleted() {
    let (store, app) = quick(|policy| policy);
    store.next(Operation::Claim, Behavior::Fail(ErrorKind::Corrupt));
    app.post("k").await.refused(409, "outcome-unknown");
    assert!(app.engine.drain().await);
    assert_eq!((app.runs.began(), store.calls(Operation::Release)), (0, 0));
}

/// The shortest that a policy may have.
const LEASE: Duration = Duration::from_millis(100);
/// After a term, a claim that was not answered is released once more.
const LATE: Duration = Duration::from_secs(1);
