//! Replays: the stored response, and the parts that are not stored.

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use idemptx::{Engine, Outcome, Policy};
use idemptx_core::key::RecordId;
use idemptx_core::policy::Expose;

use super::{app, engine};
use crate::support::http_client::{Reply, post, posted, send};
use crate::support::scripted_body::{Piece, ScriptedBody};

#[tokio::test]
async fn a_retry_gets_the_first_answer_byte_for_byte() {
    let engine = engine(|policy| policy);
    let (app, count) = app(&engine, async |_| full_response());
    let first = send(&app, post("k")).await;
    let retry = send(&app, post("k")).await;
    assert_eq!(count.runs(), 1);
    assert_eq!(retry.status, StatusCode::CREATED);
    assert_eq!(retry.body, first.body);
    let links: Vec<_> = retry.headers.get_all("link").iter().collect();
    assert_eq!(links, ["</a>; rel=prev", "</b>; rel=next"]);
    assert_eq!(retry.headers["x-binary"].as_bytes(), b"\xff\x80raw");
    assert_eq!(retry.trailers.as_ref().unwrap()["x-checksum"], "7");
    assert_eq!(retry.outcome(), &Outcome::Replayed);
    let record = |reply: &Reply| reply.extensions.get::<RecordId>().copied();
    assert!(record(&first).is_some(), "the record that the key names goes along");
    assert_eq!(record(&retry), record(&first));
    assert!(retry.is_replay() && !retry.is_unstored());
}

#[tokio::test]
async fn the_first_caller_gets_the_response_untouched() {
    let engine = engine(|policy| policy);
    let (app, _) = app(&engine, async |_| full_response());
    let first = send(&app, post("k")).await;
    let original = full_response();
    assert_eq!(&first.headers, original.headers());
    assert_eq!(first.status, original.status());
    assert_eq!(first.trailers.as_ref().unwrap()["x-checksum"], "7");
    assert_eq!(first.body, "first second");
    assert_eq!(first.outcome(), &Outcome::Executed { attempt: 1, stored: true });
}

#[tokio::test]
async fn what_belongs_to_the_moment_the_hop_or_the_client_is_not_replayed() {
    let engine = engine(|policy| policy);
    let (app, _) = app(&engine, async |_| full_response());
    let first = send(&app, post("k")).await;
    let retry = send(&app, post("k")).await;
    for name in ["set-cookie", "date", "connection", "x-hop", "keep-alive", "x-request-id"] {
        assert!(first.headers.contains_key(name), "{name}");
        assert!(!retry.headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn a_retry_through_a_clone_of_the_service_is_a_retry() {
    let engine = engine(|policy| policy);
    let (one, first) = app(&engine, async |_| "one");
    let (other, second) = app(&engine.clone(), async |_| "other");
    send(&one, post("k")).await.answered(200, "one");
    send(&other, post("k")).await.answered(200, "one");
    assert_eq!((first.runs(), second.runs()), (1, 0));
}

#[tokio::test]
async fn quoted_and_bare_text_are_one_key() {
    let engine = engine(|policy| policy);
    let (app, count) = app(&engine, async |_| "done");
    send(&app, post("\"k\"")).await;
    assert!(send(&app, post("k")).await.is_replay());
    assert_eq!(count.runs(), 1);
}

#[tokio::test]
async fn another_body_under_the_key_is_refused() {
    let engine = engine(|policy| policy);
    let (app, count) = app(&engine, async |_| "done");
    send(&app, posted("k", "one")).await;
    let other = send(&app, posted("k", "other")).await;
    other.refused(422, "key-reused");
    assert_eq!(count.runs(), 1);
}

#[tokio::test]
async fn another_credential_under_the_key_is_refused() {
    let engine = engine(|policy| policy);
    let (app, count) = app(&engine, async |_| "secret");
    let signed = |by: &'static str| {
        let mut request = post("k");
        request.headers_mut().insert("authorization", HeaderValue::from_static(by));
        request
    };
    send(&app, signed("Bearer a")).await.answered(200, "secret");
    send(&app, signed("Bearer b")).await.refused(422, "key-reused");
    send(&app, post("k")).await.refused(422, "key-reused");
    assert!(send(&app, signed("Bearer a")).await.is_replay());
    assert_eq!(count.runs(), 1);
}

#[tokio::test]
async fn a_corrected_request_replaces_a_validation_failure() {
    let engine = engine(|policy| policy);
    let (app, count) = app(&engine, async |request: Request<Body>| {
        let body = axum::body::to_bytes(request.into_body(), 100).await.unwrap();
        if body == "right" { StatusCode::CREATED } else { StatusCode::BAD_REQUEST }
    });
    assert_eq!(send(&app, posted("k", "wrong")).await.status, 400);
    assert!(send(&app, posted("k", "wrong")).await.is_replay());
    let corrected = send(&app, posted("k", "right")).await;
    assert_eq!(corrected.status, 201);
    assert_eq!(corrected.outcome(), &Outcome::Executed { attempt: 2, stored: true });
    send(&app, posted("k", "wrong")).await.refused(422, "key-reused");
    assert_eq!(count.runs(), 2);
}

#[tokio::test]
async fn the_exposed_facts_are_on_executions_and_replays() {
    let all = [Expose::Status, Expose::Key, Expose::Signature, Expose::Expiry];
    let engine = engine(|policy| policy.expose(all));
    let (app, _) = app(&engine, async |_| "done");
    let first = send(&app, post("\"k 1\"")).await;
    assert_eq!(first.header("idempotency-status"), Some("created"));
    assert_eq!(first.header("idempotency-key"), Some("k 1"));
    assert_eq!(first.header("idempotency-retained"), Some("86400"));
    let signature = first.header("x-idempotency-signature").unwrap();
    let retry = send(&app, post("\"k 1\"")).await;
    assert_eq!(retry.header("idempotency-status"), Some("replayed"));
    assert_eq!(retry.header("idempotency-key"), Some("k 1"));
    assert_eq!(retry.header("x-idempotency-signature"), Some(signature));
    let refused = send(&app, posted("\"k 1\"", "other")).await;
    assert_eq!(refused.header("idempotency-status"), Some("mismatch"));
    assert_eq!(refused.header("idempotency-key"), Some("k 1"));
}

#[tokio::test]
async fn nothing_is_exposed_unless_the_policy_says_so() {
    let engine = engine(|policy| policy);
    let (app, _) = app(&engine, async |_| "done");
    let first = send(&app, post("k")).await;
    for name in ["idempotency-status", "idempotency-key", "x-idempotency-signature"] {
        assert!(!first.headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn the_original_profile_says_new_and_hit() {
    let store = idemptx::store::MemoryStore::new();
    let engine = Engine::builder(store).policy(Policy::idemptx()).build().unwrap();
    let (app, _) = app(&engine, async |_| "done");
    let first = send(&app, post("k")).await;
    assert_eq!(first.header("x-idempotency-status"), Some("new"));
    let retry = send(&app, post("k")).await;
    assert_eq!(retry.header("x-idempotency-status"), Some("hit"));
}

/// A response with all that can be in one.
fn full_response() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("7"));
    let pieces = [Piece::data("first "), Piece::data("second"), Piece::Trailers(trailers)];
    Response::builder()
        .status(StatusCode::CREATED)
        .header("link", "</a>; rel=prev")
        .header("x-binary", HeaderValue::from_bytes(b"\xff\x80raw").unwrap())
        .header("link", "</b>; rel=next")
        .header("set-cookie", "session=1")
        .header("set-cookie", "theme=dark")
        .header("date", "Sun, 22 Nov 2026 08:00:00 GMT")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("keep-alive", "timeout=5")
        .header("x-request-id", "abc")
        .body(Body::new(ScriptedBody::new(pieces)))
        .unwrap()
}
