//! Operations whose executor is gone.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use idemptx::{Engine, Orphan, ProbeResult, StoredResponse};
use idemptx_core::policy::OnOrphan;
use idemptx_core::response::ReplayRules;
use idemptx_core::store::ErrorKind;
use idemptx_testkit::scripted_store::{Behavior, Operation, ScriptedStore};

use crate::support::app::{App, engine};

#[tokio::test]
async fn an_orphan_is_executed_again_or_left_in_doubt_by_policy() {
    for (choice, status) in [(OnOrphan::Reexecute, 200), (OnOrphan::Quarantine, 409)] {
        let store = ScriptedStore::new();
        let vanished = orphaned(&store).await;
        let app = App::quick(engine(store.clone(), |policy| policy.on_orphan(choice)));
        let reply = app.post("k").await;
        assert_eq!(reply.status.as_u16(), status);
        if status == 409 {
            reply.refused(409, "outcome-unknown");
            assert_eq!(reply.problem()["safe_new_key"], false);
        }
        vanished.gate.open();
    }
}

#[tokio::test]
async fn what_a_probe_knows_to_have_happened_is_stored_and_replayed() {
    let store = ScriptedStore::new();
    let vanished = orphaned(&store).await;
    let asked: Arc<Mutex<Vec<Orphan>>> = Arc::default();
    let asks = Arc::clone(&asked);
    let app = App::quick(probing(&store, move |orphan| {
        asks.lock().unwrap().push(orphan);
        let (headers, rules) = (HeaderMap::new(), ReplayRules::default());
        let body = Bytes::from_static(b"found");
        ProbeResult::Happened(StoredResponse::capture(
            StatusCode::CREATED,
            &headers,
            body,
            None,
            &rules,
        ))
    }));
    for _ in 0..2 {
        let reply = app.post("k").await;
        reply.answered(201, "found");
        assert!(reply.is_replay());
    }
    assert_eq!(app.runs.began(), 0);
    let asked = asked.lock().unwrap();
    let [orphan] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!((orphan.key.as_str(), orphan.attempt), ("k", 1));
    assert_eq!(orphan.derive("charge"), vanished.runs.last().derive("charge"));
    vanished.gate.open();
}

#[tokio::test]
async fn what_a_probe_knows_not_to_have_happened_is_executed() {
    let store = ScriptedStore::new();
    let vanished = orphaned(&store).await;
    let app = App::quick(probing(&store, |_| ProbeResult::NotHappened));
    let reply = app.post("k").await;
    reply.answered(200, "run 1");
    assert_eq!(app.runs.last().attempt(), 2);
    assert!(app.post("k").await.is_replay());
    vanished.gate.open();
}

#[tokio::test]
async fn what_a_probe_cannot_tell_stays_in_doubt_until_it_can() {
    let store = ScriptedStore::new();
    let vanished = orphaned(&store).await;
    let known: Arc<Mutex<ProbeResult>> = Arc::new(Mutex::new(ProbeResult::Unknown));
    let knows = Arc::clone(&known);
    let app = App::quick(probing(&store, move |_| knows.lock().unwrap().clone()));
    let reply = app.post("k").await;
    reply.refused(409, "outcome-unknown");
    assert_eq!(reply.header("retry-after"), Some("5"));
    assert_eq!(app.runs.began(), 0);
    *known.lock().unwrap() = ProbeResult::NotHappened;
    app.post("k").await.answered(200, "run 1");
    vanished.gate.open();
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_does_not_answer_knows_nothing() {
    let store = ScriptedStore::new();
    let vanished = orphaned(&store).await;
    let builder = Engine::builder(store.clone()).probe(|_| std::future::pending());
    let app = App::quick(builder.build().unwrap());
    app.post("k").await.refused(409, "outcome-unknown");
    vanished.gate.open();
}

#[tokio::test]
async fn two_who_find_an_orphan_execute_it_once() {
    let store = ScriptedStore::new();
    let vanished = orphaned(&store).await;
    let wait = |policy: idemptx::PolicyBuilder| policy.wait(std::time::Duration::from_secs(10));
    let apps = [(); 2].map(|()| App::quick(engine(store.clone(), wait)));
    let clients: Vec<_> = (0..20).map(|number| apps[number % 2].client("k")).collect();
    for client in clients {
        client.await.unwrap().answered(200, "run 1");
    }
    assert_eq!(apps[0].runs.began() + apps[1].runs.began(), 1);
    vanished.gate.open();
}

/// A process answers from a claim it holds without asking the store, until it learns of its loss.
#[tokio::test]
async fn a_process_that_lost_a_claim_asks_the_store_though_its_handler_runs_on() {
    let store = ScriptedStore::new();
    let lease = std::time::Duration::from_millis(300);
    let change = |policy: idemptx::PolicyBuilder| policy.lease(lease);
    let frozen = App::slow(engine(store.clone(), change));
    let client = frozen.client("k");
    frozen.runs.reach(1).await;
    frozen.post("k").await.refused(409, "in-progress");
    store.always(Operation::Renew, Behavior::Fail(ErrorKind::Unavailable));
    store.advance(lease);
    let other = App::quick(engine(store.clone(), change));
    other.post("k").await.answered(200, "run 1");
    store.always(Operation::Renew, Behavior::Succeed);
    frozen.runs.last().lost().await;
    let asks = async {
        loop {
            let reply = frozen.post("k").await;
            // It has learnt it, and is about to act upon it.
            if reply.status != 409 {
                return reply;
            }
            tokio::task::yield_now().await;
        }
    };
    let reply = tokio::time::timeout(std::time::Duration::from_secs(20), asks).await.unwrap();
    reply.answered(200, "run 1");
    assert!(reply.is_replay());
    frozen.gate.open();
    assert!(client.await.unwrap().is_replay());
    assert_eq!((frozen.runs.began(), other.runs.began()), (1, 1));
}

/// Returns a process that claimed the key and let its lease lapse.
async fn orphaned(store: &ScriptedStore) -> App<ScriptedStore> {
    let app = App::slow(engine(store.clone(), |policy| policy));
    app.client("k");
    store.performed(Operation::Claim, 1).await;
    app.runs.reach(1).await;
    store.advance(app.engine.policy().lease * 2);
    app
}

fn probing(
    store: &ScriptedStore,
    answer: impl Fn(Orphan) -> ProbeResult + Send + Sync + 'static,
) -> Engine<ScriptedStore> {
    let answer = move |orphan| std::future::ready(answer(orphan));
    Engine::builder(store.clone()).probe(answer).build().unwrap()
}
