//! Handlers run in the task of their request.

use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use idemptx_core::policy::OnStoreError;
use idemptx_core::store::ErrorKind;
use tower::ServiceExt;

use crate::support::app::engine;
use crate::support::http_client::{post, read, send};
use idemptx_testkit::scripted_store::{Behavior, Gate, Operation, ScriptedStore};

tokio::task_local! {
    static USER: &'static str;
}

#[tokio::test]
async fn a_task_local_of_an_outer_layer_is_there_with_and_without_a_key() {
    let engine = engine(ScriptedStore::new(), |policy| policy);
    let app = Router::new()
        .fallback(async || USER.try_with(|user| *user).unwrap_or("nobody"))
        .layer(engine.layer())
        .layer(from_fn(async |request: Request, next: Next| -> Response {
            USER.scope("alice", next.run(request)).await
        }));
    let unkeyed = http::Request::post("/orders").body(axum::body::Body::empty()).unwrap();
    send(&app, unkeyed).await.answered(200, "alice");
    send(&app, post("k")).await.answered(200, "alice");
}

#[tokio::test]
async fn a_handler_runs_in_the_same_task_as_its_client() {
    let engine = engine(ScriptedStore::new(), |policy| policy);
    let app = Router::new()
        .fallback(async || tokio::task::try_id().map_or(String::new(), |id| id.to_string()))
        .layer(engine.layer());
    let client = tokio::spawn(async move { (tokio::task::id(), send(&app, post("k")).await) });
    let (task, reply) = client.await.unwrap();
    reply.answered(200, &task.to_string());
}

#[tokio::test]
async fn a_client_that_leaves_hands_its_handler_over_without_a_second_run() {
    let store = ScriptedStore::new();
    let engine = engine(store.clone(), |policy| policy);
    let (reached, gate) = (Gate::closed(), Gate::closed());
    let (at_handler, goes_on) = (reached.clone(), gate.clone());
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let ran = runs.clone();
    let handler = move || {
        let (at_handler, goes_on, ran) = (at_handler.clone(), goes_on.clone(), ran.clone());
        async move {
            ran.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            at_handler.open();
            goes_on.opened().await;
            // In a task of the runtime by now, which has timers and everything else.
            tokio::time::sleep(Duration::from_millis(5)).await;
            "done"
        }
    };
    let app = Router::new().fallback(handler).layer(engine.layer());
    // Nothing is spawned here: the future itself is dropped, half-way through the handler.
    let mut response = Box::pin(app.clone().oneshot(post("k")));
    tokio::select! {
        _ = &mut response => panic!("the handler waits"),
        () = reached.opened() => {}
    }
    assert_eq!(engine.load().executing, 1);
    drop(response);
    assert_eq!(engine.load().executing, 1, "it goes on, and keeps its place");
    send(&app, post("k")).await.refused(409, "in-progress");
    gate.open();
    assert!(engine.drain().await);
    let retry = send(&app, post("k")).await;
    retry.answered(200, "done");
    assert!(retry.is_replay());
    assert_eq!(runs.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!((store.calls(Operation::Claim), store.calls(Operation::Settle)), (2, 1));
}

#[test]
fn a_runtime_that_ends_leaves_an_orphan() {
    let store = ScriptedStore::new();
    let engine = engine(store.clone(), |policy| policy);
    let gate = Gate::closed();
    let waits = gate.clone();
    let handler = move || {
        let waits = waits.clone();
        async move { waits.opened().await }
    };
    let app = Router::new().fallback(handler).layer(engine.layer());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut response = Box::pin(app.clone().oneshot(post("k")));
    runtime.block_on(async {
        let soon = tokio::time::sleep(Duration::from_millis(20));
        tokio::select! { _ = &mut response => panic!("the handler waits"), () = soon => {} }
    });
    drop(runtime);
    drop(response);
    assert_eq!((store.calls(Operation::Settle), store.calls(Operation::Release)), (0, 0));
    assert_eq!(engine.load().executing, 0);
    // The claim lapses, and the policy decides: here, the next request executes.
    store.advance(engine.policy().lease * 2);
    gate.open();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(send(&app, post("k"))).status, 200);
}

#[tokio::test]
async fn an_unprotected_handler_is_cancelled_as_it_is_without_the_engine() {
    let store = ScriptedStore::new();
    let engine = engine(store.clone(), |policy| policy.on_store_error(OnStoreError::FailOpen));
    store.always(Operation::Claim, Behavior::Fail(ErrorKind::Unavailable));
    let (reached, gate) = (Gate::closed(), Gate::closed());
    let (at_handler, goes_on) = (reached.clone(), gate.clone());
    let ended = Gate::closed();
    let end = ended.clone();
    let handler = move || {
        let (at_handler, goes_on, end) = (at_handler.clone(), goes_on.clone(), end.clone());
        async move {
            at_handler.open();
            goes_on.opened().await;
            end.open();
        }
    };
    let app = Router::new().fallback(handler).layer(engine.layer());
    let client = tokio::spawn(app.oneshot(post("k")));
    reached.opened().await;
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    gate.open();
    let end = pin!(ended.opened());
    assert!(tokio::time::timeout(Duration::from_millis(50), end).await.is_err());
}

#[tokio::test]
async fn work_without_http_is_handed_over_as_well() {
    let store = ScriptedStore::new();
    let engine = engine(store.clone(), |policy| policy);
    let (reached, gate) = (Gate::closed(), Gate::closed());
    let (at_work, goes_on) = (reached.clone(), gate.clone());
    let running = engine.clone();
    let mut running = Box::pin(async move {
        let work = async move |_| {
            at_work.open();
            goes_on.opened().await;
            Ok::<_, std::io::Error>(7)
        };
        running.run("k", b"", work).await
    });
    tokio::select! {
        _ = &mut running => panic!("the work waits"),
        () = reached.opened() => {}
    }
    drop(running);
    gate.open();
    assert!(engine.drain().await);
    let again = engine.run("k", b"", async |_| Ok::<u32, std::io::Error>(8)).await;
    assert_eq!(again.unwrap(), 7);
}

#[tokio::test]
async fn a_time_out_outside_answers_and_the_handler_goes_on() {
    let engine = engine(ScriptedStore::new(), |policy| policy);
    let handler = async || tokio::time::sleep(Duration::from_millis(50)).await;
    let app = Router::new().fallback(handler).layer(engine.layer());
    let limit = Duration::from_millis(5);
    assert!(tokio::time::timeout(limit, app.clone().oneshot(post("k"))).await.is_err());
    assert!(engine.drain().await);
    let retry = read(app.oneshot(post("k")).await.unwrap()).await;
    assert!(retry.is_replay());
}
