//! Handlers that starve their runtime, and leases that are lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use idemptx_core::store::ErrorKind;
use idemptx_testkit::scripted_store::{Behavior, Operation, ScriptedStore};

use crate::support::app::{App, engine};
use crate::support::http_client::{post, send};

#[tokio::test]
async fn a_handler_that_blocks_the_only_thread_keeps_its_lease() {
    keeps_its_lease().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_handler_that_blocks_the_only_worker_keeps_its_lease() {
    tokio::spawn(keeps_its_lease()).await.unwrap();
}

async fn keeps_its_lease() {
    let store = ScriptedStore::new();
    // A third of it lies between two beats of the heart: a busy machine may rest for longer.
    let lease = Duration::from_millis(1500);
    let blocking = engine(store.clone(), |policy| policy.lease(lease));
    let done = Arc::new(AtomicBool::new(false));
    let rival = std::thread::spawn({
        let (store, done) = (store.clone(), Arc::clone(&done));
        move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(
                async {
                    let rival = App::quick(engine(store.clone(), |policy| policy.lease(lease)));
                    store.performed(Operation::Claim, 1).await;
                    while !done.load(Ordering::SeqCst) {
                        let reply = rival.post("k").await;
                        assert!(reply.status == 409 || reply.is_replay(), "{reply:?}");
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    rival.runs.began()
                },
            )
        }
    });
    let handler = move || async move {
        // What an application should not do, but does.
        std::thread::sleep(lease * 2);
        "done"
    };
    let app: Router = Router::new().fallback(handler).layer(blocking.layer());
    let reply = send(&app, post("k")).await;
    done.store(true, Ordering::SeqCst);
    reply.answered(200, "done");
    assert!(!reply.is_unstored() && !reply.is_replay());
    assert_eq!(rival.join().unwrap(), 0);
    assert!(store.calls(Operation::Renew) >= 4);
}

#[tokio::test]
async fn a_handler_learns_that_it_was_taken_over() {
    let store = ScriptedStore::new();
    let lease = Duration::from_millis(300);
    let late = App::slow(engine(store.clone(), |policy| policy.lease(lease)));
    let other = App::quick(engine(store.clone(), |policy| policy.lease(lease)));
    let client = late.client("k");
    late.runs.reach(1).await;
    let execution = late.runs.last();
    store.always(Operation::Renew, Behavior::Fail(ErrorKind::Unavailable));
    store.advance(lease);
    assert_eq!(other.post("k").await.status, 200);
    assert!(!execution.is_lost());
    store.always(Operation::Renew, Behavior::Succeed);
    tokio::time::timeout(Duration::from_secs(20), execution.lost()).await.unwrap();
    assert!(execution.is_lost());
    // Told once, told for ever.
    execution.lost().await;
    late.gate.open();
    assert!(client.await.unwrap().is_replay());
}
