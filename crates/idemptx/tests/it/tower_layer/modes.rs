//! Shadow mode, and a store that does not answer.

use axum::body::Body;
use http::{Request, Response};
use http_body_util::BodyExt;
use idemptx::{Bypass, Code, Engine, Outcome, Policy};
use idemptx_core::policy::{Mode, OnPanic, OnStoreError};
use idemptx_core::store::ErrorKind;
use idemptx_testkit::scripted_store::{Behavior, Gate, Operation, ScriptedStore};
use tower::ServiceExt;

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
async fn a_shadow_lets_a_panic_through_and_frees_its_key() {
    let engine = engine(|policy| policy.mode(Mode::Shadow));
    let (app, count) = app(&engine, async |request: Request<Body>| {
        assert!(request.headers().contains_key("x-calm"), "as the handler says");
        "done"
    });
    let attempt = tokio::spawn({
        let app = app.clone();
        async move { send(&app, post("k")).await }
    });
    let panic = attempt.await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"as the handler says"));
    assert!(engine.drain().await, "nothing is left of it");
    let mut calm = post("k");
    calm.headers_mut().insert("x-calm", 1.into());
    let reply = send(&app, calm).await;
    reply.answered(200, "done");
    assert_eq!(reply.header("idempotency-status"), None, "the key was released");
    assert_eq!(count.runs(), 2);
}

#[tokio::test]
async fn a_shadow_lets_a_body_that_breaks_off_through() {
    let engine = engine(|policy| policy.mode(Mode::Shadow));
    let (app, _) = app(&engine, async |_| {
        let body = ScriptedBody::new([Piece::data("half"), Piece::Error]);
        Response::builder().status(201).body(Body::new(body)).unwrap()
    });
    let Ok(response) = app.oneshot(post("k")).await;
    assert_eq!(response.status(), 201);
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
    assert!(body.frame().await.unwrap().is_err());
}

#[tokio::test]
async fn a_shadow_keeps_what_a_response_says_that_breaks_off() {
    for (said, becomes) in [
        (Some("store"), Some("would-refuse-result-unavailable")),
        (Some("unknown"), Some("would-refuse-outcome-unknown")),
        (Some("release"), None),
        (None, None),
    ] {
        let engine = engine(|policy| policy.mode(Mode::Shadow).on_panic(OnPanic::Release));
        let (app, _) = app(&engine, move |_| async move {
            let body = ScriptedBody::new([Piece::data("half"), Piece::Error]);
            let mut response = Response::new(Body::new(body));
            if let Some(said) = said {
                let said = http::HeaderValue::from_static(said);
                response.headers_mut().insert("idempotency-outcome", said);
            }
            response
        });
        let Ok(first) = app.clone().oneshot(post("k")).await;
        assert_eq!(first.headers().get("idempotency-outcome"), None);
        let Ok(retry) = app.oneshot(post("k")).await;
        let status = retry.headers().get("idempotency-status").map(|it| it.to_str().unwrap());
        assert_eq!(status, becomes, "{said:?}");
    }
}

#[tokio::test]
async fn a_job_that_panics_in_shadow_mode_panics() {
    let engine = engine(|policy| policy.mode(Mode::Shadow));
    let job = tokio::spawn(async move {
        let work = async |_| -> Result<u32, std::io::Error> { panic!("as the job says") };
        engine.run("k", b"", work).await.map_err(drop)
    });
    let panic = job.await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"as the job says"));
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
