//! Limits on concurrent handlers, and draining.

use std::time::Duration;

use idemptx::Engine;
use idemptx_core::store::ErrorKind;
use idemptx_testkit::scripted_store::{Behavior, Gate, Operation, ScriptedStore};

use crate::support::app::{App, engine, slow};

#[tokio::test]
async fn clients_that_leave_make_room_for_no_more_handlers_than_allowed() {
    let store = ScriptedStore::new();
    let app = App::slow(limited(&store, 2));
    for (key, runs) in [("first", 1), ("second", 2)] {
        let client = app.client(key);
        app.runs.reach(runs).await;
        client.abort();
    }
    let flood: Vec<_> = (0..100).map(|number| app.client(&format!("flood-{number}"))).collect();
    tokio::task::yield_now().await;
    flood.iter().for_each(|client| client.abort());
    for client in flood {
        assert!(client.await.unwrap_err().is_cancelled());
    }
    app.post("refused").await.refused(503, "store-unavailable");
    assert_eq!((app.runs.began(), app.runs.most_at_once()), (2, 2));
    assert_eq!(store.calls(Operation::Claim), 2, "nothing is claimed that cannot be run");

    app.gate.open();
    assert!(app.engine.drain().await);
    assert_eq!(store.calls(Operation::Release), 0, "nothing was claimed, so nothing is released");
    app.post("refused").await.answered(200, "run 3");
    assert_eq!(app.runs.most_at_once(), 2);
}

#[tokio::test]
async fn the_room_of_a_handler_is_given_back_however_it_ended() {
    let store = ScriptedStore::new();
    let app = App::quick(limited(&store, 1));
    for status in [200, 503] {
        app.runs.answer_with(status);
        assert_eq!(app.post(&format!("k{status}")).await.status.as_u16(), status);
    }
    store.next(Operation::Claim, Behavior::Fail(ErrorKind::Unavailable));
    app.post("fails").await.refused(503, "store-unavailable");
    store.next(Operation::Claim, Behavior::DelayReply(Gate::closed()));
    app.post("hangs").await.refused(503, "store-unavailable");
    assert!(app.post("k200").await.is_replay());
    assert_eq!(app.post("k503").await.status, 503);
}

#[tokio::test]
async fn draining_waits_for_handlers_whose_clients_have_left() {
    let (store, app) = slow(|policy| policy);
    let client = app.client("k");
    app.runs.reach(1).await;
    client.abort();
    let engine = app.engine.clone();
    let drained = tokio::spawn(async move { engine.drain().await });
    tokio::task::yield_now().await;
    assert!(!drained.is_finished());
    app.gate.open();
    assert!(drained.await.unwrap());
    assert_eq!(store.calls(Operation::Settle), 1);
}

#[tokio::test]
async fn draining_waits_for_results_that_the_store_has_not_taken() {
    let store = ScriptedStore::new();
    let app =
        App::quick(engine(store.clone(), |policy| policy.settle_timeout(Duration::from_millis(1))));
    let gate = Gate::closed();
    store.next(Operation::Settle, Behavior::Fail(ErrorKind::Unavailable));
    store.always(Operation::Settle, Behavior::DelayReply(gate.clone()));
    assert!(app.post("k").await.is_unstored());
    let engine = app.engine.clone();
    let drained = tokio::spawn(async move { engine.drain().await });
    store.called(Operation::Settle, 3).await;
    assert!(!drained.is_finished());
    gate.open();
    assert!(drained.await.unwrap());
    assert!(app.post("k").await.is_replay());
}

#[tokio::test(start_paused = true)]
async fn draining_gives_up_in_the_end() {
    let app =
        App::slow(engine(ScriptedStore::new(), |policy| policy.drain(Duration::from_secs(30))));
    let client = app.client("k");
    app.runs.reach(1).await;
    let began = tokio::time::Instant::now();
    assert!(!app.engine.drain().await);
    assert_eq!(began.elapsed().as_secs(), 30);
    app.gate.open();
    client.await.unwrap().answered(200, "run 1");
    assert!(app.engine.drain().await);
}

fn limited(store: &ScriptedStore, executions: u32) -> Engine<ScriptedStore> {
    let policy = idemptx::Policy::draft()
        .into_builder()
        .lease(Duration::from_millis(100))
        .claim_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    Engine::builder(store.clone()).policy(policy).executions_max(executions).build().unwrap()
}
