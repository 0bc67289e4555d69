//! Responses that cannot be kept, and bodies that do not end well.

use std::sync::atomic::Ordering;
use std::time::Duration;

#[cfg(feature = "axum")]
use axum::Router;
use axum::body::{Body, HttpBody as _};
use http::header::ETAG;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use idemptx::{Code, Outcome};
use idemptx_core::policy::{OnPanic, PolicyBuilder};
use idemptx_core::response::FIELD_LINES_MAX;
use idemptx_testkit::scripted_store::{Behavior, Gate, Operation, ScriptedStore};
use tower::ServiceExt;
#[cfg(feature = "axum")]
use tower_http::limit::RequestBodyLimitLayer;

use super::{app, engine};
use crate::support::http_client::{post, posted, send};
use crate::support::scripted_body::{Piece, ScriptedBody};

#[tokio::test]
async fn a_large_response_flows_and_a_retry_is_told_where_the_result_is() {
    let engine = engine(|policy| policy.response_bytes_max(10));
    let later = Gate::closed();
    let wait = later.clone();
    let (app, count) = app(&engine, move |_| {
        let pieces = [Piece::data("123456"), Piece::data("789012"), Piece::Wait(wait.clone())];
        let body = ScriptedBody::new(pieces.into_iter().chain([Piece::data("the end")]));
        let response = Response::builder().status(201).header("location", "/orders/1");
        async move { response.body(Body::new(body)).unwrap() }
    });
    let response = app.clone().oneshot(post("k")).await.unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(response.headers()["idempotency-stored"], "false");
    let mut body = response.into_body();
    let mut next = async || body.frame().await.map(|frame| frame.unwrap().into_data().unwrap());
    // What was read before it was known to be too large comes in one piece.
    assert_eq!(next().await.unwrap(), "123456789012");

    let retry = send(&app, post("k")).await;
    retry.refused(409, "result-unavailable");
    assert_eq!(retry.problem()["original_status"], 201);
    assert_eq!(retry.header("location"), Some("/orders/1"));
    assert!(!retry.is_unstored());

    later.open();
    assert_eq!(next().await.unwrap(), "the end");
    assert!(next().await.is_none());
    assert_eq!(count.runs(), 1);
}

#[tokio::test]
async fn a_response_of_exactly_the_limit_is_kept() {
    let engine = engine(|policy| policy.response_bytes_max(10));
    let (app, _) = app(&engine, async |_| "1234567890");
    send(&app, post("k")).await.answered(200, "1234567890");
    send(&app, post("k")).await.answered(200, "1234567890");
}

#[tokio::test]
async fn an_event_stream_flows_from_its_first_event() {
    let engine = engine(|policy| policy);
    let later = Gate::closed();
    let wait = later.clone();
    let (app, count) = app(&engine, move |_| {
        let pieces = [Piece::data("data: 1\n\n"), Piece::Wait(wait.clone())];
        let response = Response::builder().header("content-type", "text/event-stream");
        async move { response.body(Body::new(ScriptedBody::new(pieces))).unwrap() }
    });
    let response = app.clone().oneshot(post("k")).await.unwrap();
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: 1\n\n");
    send(&app, post("k")).await.refused(409, "result-unavailable");
    // A client that leaves ends the stream that was made for it.
    drop(body);
    assert!(engine.drain().await);
    assert_eq!(count.runs(), 1);
}

/// Released any earlier, a retry would run beside the handler that is making its body.
#[tokio::test]
async fn a_key_that_is_released_is_free_once_the_body_has_ended() {
    let (live, large) = (("content-type", "text/event-stream"), ("x-a", "b"));
    let (unknown, free) = (Some("outcome-unknown"), None);
    for (line, ends, on_panic, refused) in [
        (live, "whole", OnPanic::Quarantine, free),
        (large, "whole", OnPanic::Quarantine, free),
        (live, "broken", OnPanic::Release, free),
        (live, "broken", OnPanic::Quarantine, unknown),
        (live, "left", OnPanic::Release, free),
        (live, "left", OnPanic::Quarantine, unknown),
        (large, "left", OnPanic::Quarantine, free),
    ] {
        let engine = engine(|policy| policy.on_panic(on_panic).response_bytes_max(1));
        let later = Gate::closed();
        let wait = later.clone();
        let (app, count) = app(&engine, move |_| {
            let end = if ends == "broken" { Piece::Error } else { Piece::data("cd") };
            let body = ScriptedBody::new([Piece::data("ab"), Piece::Wait(wait.clone()), end]);
            let response = Response::builder().header(line.0, line.1);
            let response = response.header("idempotency-outcome", "release");
            async move { response.body(Body::new(body)).unwrap() }
        });
        let response = app.clone().oneshot(post("k")).await.unwrap();
        assert_eq!(response.headers()["idempotency-stored"], "false");
        let mut body = response.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "ab");
        send(&app, post("k")).await.refused(409, "in-progress");
        assert_eq!(count.runs(), 1);
        if ends == "left" {
            drop(body);
            later.open();
        } else {
            later.open();
            assert_eq!(body.collect().await.is_ok(), ends == "whole");
        }
        assert!(engine.drain().await);
        match refused {
            Some(code) => send(&app, post("k")).await.refused(409, code),
            None => {
                let retry = app.oneshot(post("k")).await.unwrap();
                assert_eq!(retry.status(), 200, "{line:?} {ends} {on_panic:?}");
            }
        }
        assert_eq!(count.runs(), 1 + u32::from(refused.is_none()), "{line:?} {ends} {on_panic:?}");
    }
}

/// Sooner, the client's next request with the key would find it still held.
#[tokio::test]
async fn a_client_has_the_end_of_a_body_once_the_key_is_free() {
    let (live, length) = (("content-type", "text/event-stream"), ("content-length", "4"));
    let (ab, cd) = (Piece::data("ab"), Piece::data("cd"));
    let trailers = Piece::Trailers(HeaderMap::from_iter([(ETAG, HeaderValue::from_static("t"))]));
    let ready = Gate::closed();
    ready.open();
    for (line, pieces, frames) in [
        (live, vec![ab.clone(), cd.clone()], 3),
        (live, vec![ab.clone(), cd.clone(), trailers], 3),
        (live, vec![ab.clone(), Piece::Error], 2),
        (length, vec![ab.clone(), cd.clone()], 2),
        (length, vec![ab.clone(), cd, Piece::Wait(ready)], 2),
    ] {
        for (patience, is_away) in
            [(Duration::from_secs(60), false), (Duration::from_millis(1), true)]
        {
            let (store, free) = (ScriptedStore::new(), Gate::closed());
            store.always(Operation::Release, Behavior::DelayOperation(free.clone()));
            let change =
                |policy: PolicyBuilder| policy.response_bytes_max(1).settle_timeout(patience);
            let engine = crate::support::app::engine(store.clone(), change);
            let (pieces, case) = (pieces.clone(), format!("{line:?} {pieces:?}"));
            let (app, count) = app(&engine, move |_| {
                let body = Body::new(ScriptedBody::new(pieces.clone()));
                let response = Response::builder().header(line.0, line.1);
                let response = response.header("idempotency-outcome", "release");
                async move { response.body(body).unwrap() }
            });
            let mut body = app.clone().oneshot(post("k")).await.unwrap().into_body();
            let reading = tokio::spawn(async move {
                for _ in 0..frames {
                    drop(body.frame().await);
                }
                body
            });
            store.called(Operation::Release, 1).await;
            if is_away {
                drop(reading.await.unwrap());
                continue;
            }
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert!(!reading.is_finished(), "{case}");
            free.open();
            let mut body = reading.await.unwrap();
            let next = app.oneshot(posted("k", "another order")).await.unwrap();
            assert_eq!((next.status().as_u16(), count.runs()), (200, 2), "{case}");
            assert!(body.frame().await.is_none() && body.is_end_stream(), "{case}");
        }
    }
}

#[tokio::test]
async fn what_flows_is_read_to_its_end_when_the_client_leaves() {
    let engine = engine(|policy| policy.response_bytes_max(1));
    let (at_end, later) = (Gate::closed(), Gate::closed());
    let (wait, end) = (later.clone(), at_end.clone());
    let (app, _) = app(&engine, move |_| {
        let pieces = [Piece::data("12"), Piece::Wait(wait.clone()), Piece::data("34")];
        let body = ScriptedBody::new(pieces);
        let (taken, end) = (body.taken(), end.clone());
        let watched = body.map_frame(move |frame| {
            if taken.load(Ordering::SeqCst) == 2 {
                end.open();
            }
            frame
        });
        async move { Body::new(watched) }
    });
    let response = app.oneshot(post("k")).await.unwrap();
    drop(response);
    later.open();
    at_end.opened().await;
    assert!(engine.drain().await);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_response() {
    for on_panic in [OnPanic::Release, OnPanic::Quarantine] {
        let engine = engine(|policy| policy.on_panic(on_panic));
        let (app, count) = app(&engine, async |_| {
            Body::new(ScriptedBody::new([Piece::data("half"), Piece::Error]))
        });
        let reply = send(&app, post("k")).await;
        reply.refused(500, "handler-failed");
        assert!(reply.is_unstored());
        assert_eq!(reply.outcome(), &Outcome::Refused(Code::HandlerFailed));
        let retry = send(&app, post("k")).await;
        match on_panic {
            OnPanic::Release => retry.refused(500, "handler-failed"),
            _ => retry.refused(409, "outcome-unknown"),
        }
        assert_eq!(count.runs(), if on_panic == OnPanic::Release { 2 } else { 1 });
    }
}

#[tokio::test]
async fn a_response_that_ends_before_its_declared_length_is_no_response() {
    let engine = engine(|policy| policy);
    let (app, count) =
        app(&engine, async |_| Body::new(ScriptedBody::new([Piece::data("half")]).declaring(8)));
    for _ in 0..2 {
        send(&app, post("k")).await.refused(500, "handler-failed");
    }
    assert_eq!(count.runs(), 2);
}

#[tokio::test]
async fn a_flowing_body_that_breaks_off_breaks_off_for_the_client() {
    for end in [Piece::Error, Piece::Panic] {
        let engine = engine(|policy| policy.response_bytes_max(1));
        let (app, _) = app(&engine, move |_| {
            let body = ScriptedBody::new([Piece::data("12"), end.clone()]);
            async move { Body::new(body) }
        });
        let mut body = app.oneshot(post("k")).await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "12");
        assert!(body.frame().await.unwrap().is_err());
        assert!(engine.drain().await);
    }
}

#[tokio::test]
async fn a_response_with_more_lines_than_can_be_kept_is_sent_but_not_replayed() {
    let engine = engine(|policy| policy);
    let (app, count) = app(&engine, async |_| {
        let mut response = StatusCode::CREATED.into_response_with("body");
        response.headers_mut().insert("location", HeaderValue::from_static("/orders/1"));
        for _ in 0..FIELD_LINES_MAX {
            response.headers_mut().append("x-line", HeaderValue::from_static("1"));
        }
        response
    });
    let first = send(&app, post("k")).await;
    first.answered(201, "body");
    assert_eq!(first.headers.get_all("x-line").iter().count(), FIELD_LINES_MAX);
    assert!(first.is_unstored());
    let retry = send(&app, post("k")).await;
    retry.refused(409, "result-unavailable");
    assert_eq!(retry.problem()["original_status"], 201);
    assert_eq!(retry.header("location"), Some("/orders/1"));
    assert_eq!(count.runs(), 1);
}

trait IntoResponseWith {
    fn into_response_with(self, body: &'static str) -> Response<Body>;
}

impl IntoResponseWith for StatusCode {
    fn into_response_with(self, body: &'static str) -> Response<Body> {
        Response::builder().status(self).body(Body::from(body)).unwrap()
    }
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn a_body_beyond_the_limit_of_a_layer_outside_is_too_large() {
    let engine = engine(|policy| policy);
    let (app, count) = app(&engine, async |_| StatusCode::OK);
    let limited = Router::new().fallback_service(app).layer(RequestBodyLimitLayer::new(10));
    // Without a declared length the limit shows in the body alone.
    let body = Body::new(ScriptedBody::new([Piece::data("more than ten bytes")]));
    send(&limited, posted("k", body)).await.refused(413, "body-too-large");
    assert_eq!(count.runs(), 0);
}
