//! The cost to others of clients that leave, or read slowly.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http_body_util::BodyExt;
use idemptx::{Engine, Policy};
use idemptx_core::store::ErrorKind;
use tower::ServiceExt;

use crate::support::app::{App, engine, quick};
use crate::support::http_client::{post, send};
use crate::support::scripted_body::{Piece, ScriptedBody};
use idemptx_testkit::scripted_store::{Behavior, Gate, Operation, ScriptedStore};

#[tokio::test]
async fn each_claim_of_a_client_that_left_is_released_once() {
    let (store, app) = quick(|policy| policy);
    let gate = Gate::closed();
    store.always(Operation::Claim, Behavior::DelayReply(gate.clone()));
    let clients: Vec<_> = (0..20).map(|number| app.client(&format!("k{number}"))).collect();
    store.performed(Operation::Claim, 20).await;
    clients.iter().for_each(|client| client.abort());
    for client in clients {
        assert!(client.await.unwrap_err().is_cancelled());
    }
    store.always(Operation::Claim, Behavior::Succeed);
    gate.open();
    assert!(app.engine.drain().await);
    assert_eq!((app.runs.began(), store.calls(Operation::Release)), (0, 20));
    app.post("k0").await.answered(200, "run 1");
}

#[tokio::test]
async fn a_drain_does_not_wait_for_claims_whose_release_is_confirmed() {
    let store = ScriptedStore::new();
    let short = Duration::from_millis(20);
    let app = App::quick(engine(store.clone(), |policy| policy.claim_timeout(short)));
    store.always(Operation::Claim, Behavior::DelayReply(Gate::closed()));
    let clients: Vec<_> = (0..20).map(|number| app.client(&format!("k{number}"))).collect();
    store.performed(Operation::Claim, 20).await;
    clients.iter().for_each(|client| client.abort());
    // No claim is answered at all, and the lease is 15 seconds.
    let drained = tokio::time::timeout(Duration::from_secs(10), app.engine.drain()).await;
    assert_eq!(drained, Ok(true));
    assert_eq!(store.calls(Operation::Release), 20);
}

#[tokio::test]
async fn those_who_follow_a_client_that_left_ask_for_themselves() {
    let (store, app) = quick(|policy| policy);
    let gate = Gate::closed();
    store.next(Operation::Claim, Behavior::DelayReply(gate.clone()));
    let first = app.client("k");
    store.performed(Operation::Claim, 1).await;
    let second = app.client("k");
    tokio::task::yield_now().await;
    first.abort();
    gate.open();
    // The claim of the first is released before the second makes its own.
    second.await.unwrap().answered(200, "run 1");
    assert_eq!((store.calls(Operation::Claim), store.calls(Operation::Release)), (2, 1));
}

#[tokio::test]
async fn a_failed_release_keeps_its_claim_alive_until_it_is_confirmed() {
    let store = ScriptedStore::new();
    let lease = Duration::from_millis(300);
    let policy = Policy::payments().into_builder().lease(lease);
    let policy = policy.scope(idemptx_core::policy::ScopeRule::Shared).build().unwrap();
    let app = App::quick(Engine::builder(store.clone()).policy(policy).build().unwrap());
    app.runs.answer_with(429);
    store.always(Operation::Release, Behavior::Fail(ErrorKind::Unavailable));
    assert_eq!(app.post("k").await.status, 429);
    store.performed(Operation::Renew, store.calls(Operation::Renew) + 5).await;
    // As an orphan it would be in doubt, which this policy leaves to a person.
    app.post("k").await.refused(409, "in-progress");
    store.always(Operation::Release, Behavior::Succeed);
    assert!(app.engine.drain().await);
    app.runs.answer_with(200);
    app.post("k").await.answered(200, "run 2");
}

#[tokio::test]
async fn a_client_that_reads_slowly_keeps_no_other_from_executing() {
    let policy = Policy::draft().into_builder().response_bytes_max(1).build().unwrap();
    let builder = Engine::builder(ScriptedStore::new()).policy(policy).executions_max(1);
    let engine = builder.build().unwrap();
    let later = Gate::closed();
    let wait = later.clone();
    let app = Router::new()
        .fallback(move || {
            let pieces = [Piece::data("12"), Piece::Wait(wait.clone()), Piece::data("34")];
            async move { Body::new(ScriptedBody::new(pieces)) }
        })
        .layer(engine.layer());
    let slow = app.clone().oneshot(post("slow")).await.unwrap();
    let mut slow = slow.into_body();
    assert_eq!(slow.frame().await.unwrap().unwrap().into_data().unwrap(), "12");
    assert_eq!(engine.load().executing, 0);
    let quick = app.clone().oneshot(post("quick")).await.unwrap();
    assert_eq!(quick.status(), 200);
    drop(quick);
    let draining = engine.clone();
    let drained = tokio::spawn(async move { draining.drain().await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!drained.is_finished(), "what flows is waited for");
    later.open();
    assert_eq!(slow.frame().await.unwrap().unwrap().into_data().unwrap(), "34");
    assert!(slow.frame().await.is_none());
    assert!(drained.await.unwrap());
    send(&app, post("slow")).await.refused(409, "result-unavailable");
}
