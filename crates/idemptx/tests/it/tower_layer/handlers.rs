//! The view of handlers, and the outcome of each way to end.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use idemptx::{Code, Directive, Execution, InvalidDirective, Outcome, Token};
use idemptx_core::policy::OnPanic;
use tower::{Layer, ServiceExt, service_fn};

use super::{app, engine};
use crate::support::http_client::{post, posted, read, send};
use crate::support::scripted_body::{Piece, ScriptedBody};

#[tokio::test]
async fn a_handler_knows_its_execution() {
    let engine = engine(|policy| policy);
    let seen: Arc<Mutex<Vec<Execution>>> = Arc::default();
    let sees = Arc::clone(&seen);
    let (app, _) = app(&engine, move |request: Request<Body>| {
        sees.lock().unwrap().push(request.extensions().get::<Execution>().unwrap().clone());
        async { StatusCode::SERVICE_UNAVAILABLE }
    });
    for key in ["\"k 1\"", "\"k 1\"", "other"] {
        send(&app, post(key)).await;
    }
    let seen = seen.lock().unwrap();
    let [first, second, other] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!((first.key(), first.attempt()), ("k 1", 1));
    assert_ne!(first.token(), Token::from_bytes([0; Token::BYTES]));
    assert_ne!(first.token(), second.token());
    assert!(second.fence() > first.fence());
    assert!(!first.is_lost());
    assert_eq!(first.derive("charge"), second.derive("charge"));
    assert_ne!(first.derive("charge"), first.derive("mail"));
    assert_ne!(first.derive("charge"), other.derive("charge"));
}

#[tokio::test]
async fn transient_statuses_free_the_key_and_say_so() {
    let engine = engine(|policy| policy);
    let (app, count) = app(&engine, async |request: Request<Body>| {
        let status = request.headers()["x-status"].to_str().unwrap().parse::<u16>().unwrap();
        StatusCode::from_u16(status).unwrap()
    });
    let with = |status: u16| {
        let mut request = post(&format!("k{status}"));
        request.headers_mut().insert("x-status", status.into());
        request
    };
    for status in [401, 404, 429, 500, 503] {
        for _ in 0..2 {
            let reply = send(&app, with(status)).await;
            assert_eq!(reply.outcome(), &Outcome::Executed { attempt: 1, stored: false });
            assert!(reply.is_unstored());
        }
    }
    assert_eq!(count.runs(), 10);
    for status in [200, 302, 400, 410, 422] {
        assert!(!send(&app, with(status)).await.is_unstored());
        assert!(send(&app, with(status)).await.is_replay());
    }
    assert_eq!(count.runs(), 15);
}

#[tokio::test]
async fn a_handler_may_say_what_becomes_of_its_response() {
    let engine = engine(|policy| policy);
    let (app, count) = app(&engine, says);
    let stored = send(&app, posted("store", "500 store")).await;
    assert_eq!((stored.status.as_u16(), stored.header("idempotency-outcome")), (500, None));
    assert!(!stored.is_unstored());
    let retry = send(&app, posted("store", "500 store")).await;
    assert!(retry.is_replay() && retry.status == 500);
    assert_eq!(retry.header("idempotency-outcome"), None);

    for _ in 0..2 {
        let released = send(&app, posted("release", "200 release")).await;
        assert_eq!((released.status.as_u16(), released.header("idempotency-outcome")), (200, None));
        assert!(released.is_unstored());
    }
    let unknown = send(&app, posted("unknown", "200 unknown")).await;
    assert_eq!((unknown.status.as_u16(), unknown.header("idempotency-outcome")), (200, None));
    assert!(unknown.is_unstored());
    send(&app, posted("unknown", "200 unknown")).await.refused(409, "outcome-unknown");

    let nonsense = send(&app, posted("nonsense", "200 nonsense")).await;
    assert_eq!(nonsense.header("idempotency-outcome"), None);
    assert!(nonsense.is_unstored());
    send(&app, posted("nonsense", "200 nonsense")).await.refused(409, "outcome-unknown");
    assert_eq!(count.runs(), 5);
}

#[tokio::test]
async fn an_outcome_is_a_token_compared_without_case() {
    let engine = engine(|policy| policy);
    let (app, _) = app(&engine, says);
    let rows = [
        ("502 STORE", "replay", true),
        ("502 sToRe", "replay", true),
        ("200 Release", "execution", true),
        ("502 Unknown", "doubt", true),
        ("502 nonsense", "doubt", false),
        ("502 store, release", "doubt", false),
        ("502 ", "doubt", false),
    ];
    for (number, (said, becomes, is_readable)) in rows.into_iter().enumerate() {
        let key = format!("k{number}");
        let first = send(&app, posted(&key, said)).await;
        assert_eq!(first.header("idempotency-outcome"), None);
        let invalid = first.extensions.get::<InvalidDirective>();
        assert_eq!(invalid.is_none(), is_readable, "{said}");
        let retry = send(&app, posted(&key, said)).await;
        match becomes {
            "replay" => assert!(retry.is_replay() && retry.status == 502, "{said}"),
            "execution" => assert_eq!(retry.outcome(), first.outcome(), "{said}"),
            _ => retry.refused(409, "outcome-unknown"),
        }
    }
}

#[tokio::test]
async fn an_outcome_may_follow_the_body_as_a_trailer() {
    let engine = engine(|policy| policy);
    let (app, _) = app(&engine, async |request: Request<Body>| {
        let status = request.uri().path().trim_start_matches('/').parse::<u16>().unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("idempotency-outcome", HeaderValue::from_static("Store"));
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        let body = ScriptedBody::new([Piece::data("done"), Piece::Trailers(trailers)]);
        Response::builder().status(status).body(Body::new(body)).unwrap()
    });
    let to = |method: &str, status: u16| {
        let request = Request::builder().method(method).uri(format!("/{status}"));
        request.header("idempotency-key", "k").body(Body::empty()).unwrap()
    };
    for is_replay in [false, true] {
        let reply = send(&app, to("POST", 503)).await;
        assert_eq!((reply.status.as_u16(), reply.is_replay()), (503, is_replay));
        let trailers = reply.trailers.unwrap();
        assert_eq!(trailers.len(), 1);
        assert_eq!(trailers["x-sum"], "1");
    }
    let unprotected = send(&app, to("PUT", 200)).await;
    assert_eq!(unprotected.trailers.unwrap().len(), 1);
}

#[tokio::test]
async fn what_a_handler_says_to_us_is_never_sent_on() {
    let engine = engine(|policy| policy);
    let (app, _) = app(&engine, says);
    let unkeyed = Request::post("/").body(Body::from("200 store")).unwrap();
    let reply = send(&app, unkeyed).await;
    assert_eq!((reply.status.as_u16(), reply.header("idempotency-outcome")), (200, None));
    let put = Request::put("/").body(Body::from("200 release")).unwrap();
    assert_eq!(send(&app, put).await.header("idempotency-outcome"), None);
}

#[tokio::test]
async fn a_panic_frees_the_key_or_leaves_it_in_doubt_by_policy() {
    let lax = engine(|policy| policy.on_panic(OnPanic::Release));
    let (releasing, count) = app(&lax, panics);
    for _ in 0..2 {
        let reply = send(&releasing, post("k")).await;
        reply.refused(500, "handler-failed");
        assert_eq!(reply.problem()["retryable"], true);
        assert!(reply.is_unstored());
        assert_eq!(reply.outcome(), &Outcome::Refused(Code::HandlerFailed));
    }
    assert_eq!(count.runs(), 2);

    let strict = engine(|policy| policy.on_panic(OnPanic::Quarantine));
    let (quarantining, count) = app(&strict, panics);
    let reply = send(&quarantining, post("k")).await;
    reply.refused(500, "handler-failed");
    assert_eq!(reply.problem()["retryable"], false);
    assert!(reply.is_unstored());
    send(&quarantining, post("k")).await.refused(409, "outcome-unknown");
    assert_eq!(count.runs(), 1);
}

#[tokio::test]
async fn a_panic_leaves_no_execution_behind() {
    let engine = engine(|policy| policy);
    let (app, _) = app(&engine, panics);
    send(&app, post("k")).await;
    assert!(engine.drain().await);
}

#[tokio::test]
async fn an_error_of_the_service_is_passed_through_and_frees_the_key() {
    for on_panic in [OnPanic::Release, OnPanic::Quarantine] {
        let engine = engine(|policy| policy.on_panic(on_panic));
        let runs = Arc::new(AtomicU32::new(0));
        let ran = Arc::clone(&runs);
        let service = engine.layer().layer(service_fn(move |_| {
            let run = ran.fetch_add(1, Ordering::SeqCst);
            async move { if run == 0 { Err(Down) } else { Ok(Response::new(Body::from("up"))) } }
        }));
        assert_eq!(service.clone().oneshot(post("k")).await.unwrap_err(), Down);
        let retry = read(service.clone().oneshot(post("k")).await.unwrap()).await;
        match on_panic {
            OnPanic::Release => retry.answered(200, "up"),
            _ => retry.refused(409, "outcome-unknown"),
        }
        let unkeyed = Request::post("/").body(Body::empty()).unwrap();
        assert_eq!(read(service.oneshot(unkeyed).await.unwrap()).await.status, 200);
    }
}

#[tokio::test]
async fn what_a_handler_has_decided_counts_although_it_then_fails() {
    let rows = [
        ("panic", Directive::Store, OnPanic::Release, "result-unavailable"),
        ("error", Directive::Store, OnPanic::Release, "result-unavailable"),
        ("half", Directive::Store, OnPanic::Release, "result-unavailable"),
        ("panic", Directive::Unknown, OnPanic::Release, "outcome-unknown"),
        ("error", Directive::Unknown, OnPanic::Release, "outcome-unknown"),
        ("half", Directive::Unknown, OnPanic::Release, "outcome-unknown"),
        ("panic", Directive::Release, OnPanic::Quarantine, "executes"),
        ("error", Directive::Release, OnPanic::Quarantine, "executes"),
        // What has begun to arrive says no more that nothing has happened.
        ("half", Directive::Release, OnPanic::Quarantine, "outcome-unknown"),
    ];
    for (ends, directive, on_panic, becomes) in rows {
        let engine = engine(|policy| policy.on_panic(on_panic));
        let runs = Arc::new(AtomicU32::new(0));
        let ran = Arc::clone(&runs);
        let service = engine.layer().layer(service_fn(move |request: Request<_>| {
            let is_first = ran.fetch_add(1, Ordering::SeqCst) == 0;
            let execution = request.extensions().get::<Execution>().unwrap().clone();
            async move {
                if !is_first {
                    return Ok(Response::new(Body::from("executed")));
                }
                execution.set_outcome(directive);
                match ends {
                    "panic" => panic!("a handler may panic"),
                    "error" => Err(Down),
                    _ => {
                        let pieces = [Piece::data("half of "), Piece::Error];
                        Ok(Response::new(Body::new(ScriptedBody::new(pieces))))
                    }
                }
            }
        }));
        if let Ok(failed) = service.clone().oneshot(post("k")).await {
            let failed = read(failed).await;
            failed.refused(500, "handler-failed");
            assert_eq!(
                failed.problem()["retryable"],
                becomes == "executes",
                "{ends} {directive:?}"
            );
        }
        let retry = read(service.oneshot(post("k")).await.unwrap()).await;
        match becomes {
            "executes" => retry.answered(200, "executed"),
            code => retry.refused(409, code),
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1 + u32::from(becomes == "executes"));
    }
}

#[tokio::test]
async fn an_execution_that_is_taken_over_is_the_next_attempt() {
    use idemptx_testkit::scripted_store::{Gate, ScriptedStore};

    let store = ScriptedStore::new();
    let engine = idemptx::Engine::builder(store.clone()).build().unwrap();
    let (held, reached) = (Gate::closed(), Gate::closed());
    let (gate, there) = (held.clone(), reached.clone());
    let (first, _) = app(&engine, move |_| {
        let (gate, there) = (gate.clone(), there.clone());
        async move {
            there.open();
            gate.opened().await;
        }
    });
    let vanished = tokio::spawn(async move { send(&first, post("k")).await.status });
    reached.opened().await;
    store.advance(engine.policy().lease * 2);

    let other = idemptx::Engine::builder(store.clone()).build().unwrap();
    let (second, _) = app(&other, async |request: Request<Body>| {
        request.extensions().get::<Execution>().unwrap().attempt().to_string()
    });
    let reply = send(&second, post("k")).await;
    reply.answered(200, "2");
    assert_eq!(reply.outcome(), &Outcome::Executed { attempt: 2, stored: true });
    held.open();
    vanished.await.unwrap();
}

/// Answers with the status and the outcome that the body names.
async fn says(request: Request<Body>) -> Response<Body> {
    let body = axum::body::to_bytes(request.into_body(), 100).await.unwrap();
    let (status, outcome) = std::str::from_utf8(&body).unwrap().split_once(' ').unwrap();
    Response::builder()
        .status(status)
        .header("idempotency-outcome", outcome)
        .body(Body::empty())
        .unwrap()
}

async fn panics(_: Request<Body>) -> StatusCode {
    panic!("a handler may panic")
}

#[derive(Debug, PartialEq)]
struct Down;
