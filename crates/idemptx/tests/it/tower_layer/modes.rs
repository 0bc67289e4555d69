//! Shadow mode, and a store that does not answer.

use axum::body::Body;
use http::Request;
use idemptx::{Bypass, Code, Engine, Outcome, Policy};
use idemptx_core::policy::{Mode, OnStoreError};
use idemptx_core::store::ErrorKind;
use idemptx_testkit::scripted_store::{Behavior, Gate, Operation, ScriptedStore};

use super::{app, engine};
use crate::support::http_client::{post, posted, send};
use crate::support::scripted_body::{Piece, ScriptedBody};

#[tokio::test]
async fn a_shadow_refuses_and_replays_nothing_and_tells_what_it_would() {
    let engine = engine(|policy| policy.mode(Mode::Shadow).required(true));
    let (app, count) = app(&engine, async |_| "done");
    let unkeyed = Request::post("/").body(Body::empty()).unwrap();
    let reply = send(&app, unkeyed).await;
    reply.answered(200, "done");
    assert_eq!(reply.header("idempotency-status"), Some("would-refuse-missing-key"));
    assert_eq!(reply.outcome(), &Outcome::Bypassed(Bypass::WouldRefuse(Code::MissingKey)));

    assert_eq!(send(&app, post("k")).await.header("idempotency-status"), None);
    let retry = send(&app, post("k")).await;
    retry.answered(200, "done");
    assert_eq!(retry.header("idempotency-status"), Some("would-replay"));
    assert!(!retry.is_replay() && !retry.is_unstored());
    let reused = send(&app, posted("k", "other")).await;
    assert_eq!(reused.header("idempotency-status"), Some("would-refuse-key-reused"));
    assert_eq!(count.runs(), 4);
}

#[tokio::test]
async fn a_shadow_hands_a_broken_body_on_as_broken() {
    let engine = engine(|policy| policy.mode(Mode::Shadow));
    let (app, _) = app(&engine, async |request: Request<Body>| {
        match axum::body::to_bytes(request.into_body(), 100).await {
            Ok(body) => format!("read {} bytes", body.len()),
            Err(_) => "broken".to_owned(),
        }
    });
    let body = ScriptedBody::new([Piece::data("half"), Piece::Error]);
    let reply = send(&app, posted("k", Body::new(body))).await;
    reply.answered(200, "broken");
    assert_eq!(reply.header("idempotency-status"), Some("would-refuse-body-unreadable"));
}

#[tokio::test]
async fn a_shadow_runs_duplicates_side_by_side() {
    let engine = engine(|policy| policy.mode(Mode::Shadow));
    let gate = Gate::closed();
    let wait = gate.clone();
    let (app, count) = app(&engine, move |request: Request<Body>| {
        let wait = wait.clone();
        async move {
            if request.headers().contains_key("x-wait") {
                wait.opened().await;
            }
        }
    });
    let mut slow = post("k");
    slow.headers_mut().insert("x-wait", 1.into());
    let first = tokio::spawn({
        let app = app.clone();
        async move { send(&app, slow).await }
    });
    while count.runs() == 0 {
        tokio::task::yield_now().await;
    }
    let reply = send(&app, post("k")).await;
    assert_eq!(reply.header("idempotency-status"), Some("would-refuse-in-progress"));
    gate.open();
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(count.runs(), 2);
}

#[tokio::test]
async fn without_a_store_requests_are_refused_or_run_unprotected_by_policy() {
    for (choice, runs) in [(OnStoreError::FailClosed, 0), (OnStoreError::FailOpen, 2)] {
        let store = ScriptedStore::new();
        store.always(Operation::Claim, Behavior::Fail(ErrorKind::Unavailable));
        let policy = Policy::draft().into_builder().on_store_error(choice).build().unwrap();
        let engine = Engine::builder(store).policy(policy).build().unwrap();
        let (app, count) = app(&engine, async |_| "done");
        for _ in 0..2 {
            let reply = send(&app, post("k")).await;
            if choice == OnStoreError::FailClosed {
                reply.refused(503, "store-unavailable");
                assert_eq!(reply.header("retry-after"), Some("1"));
                assert!(!reply.is_unstored());
            } else {
                reply.answered(200, "done");
                assert!(reply.is_unstored());
                assert_eq!(reply.outcome(), &Outcome::Bypassed(Bypass::Unprotected));
            }
        }
        assert_eq!(count.runs(), runs);
    }
}
