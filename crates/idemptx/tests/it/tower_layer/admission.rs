//! Decisions before the first call of the store.

use std::sync::atomic::Ordering;

use axum::body::Body;
use http::{HeaderValue, Method, Request, Version};
use http_body_util::BodyExt;
use idemptx::store::MemoryStore;
use idemptx::{Bypass, Code, Engine, Outcome, Policy, Scope};
use idemptx_core::policy::{OnLargeBody, ScopeRule};
use idemptx_testkit::scripted_store::{Gate, ScriptedStore};

use super::{app, engine};
use crate::support::http_client::{post, posted, send};
use crate::support::scripted_body::{Piece, ScriptedBody};

#[tokio::test]
async fn a_request_without_a_key_passes_unless_one_is_required() {
    let unkeyed = || Request::post("/orders").body(Body::empty()).unwrap();
    let lax = engine(|policy| policy);
    let (app_lax, count) = app(&lax, async |_| "done");
    let reply = send(&app_lax, unkeyed()).await;
    reply.answered(200, "done");
    assert_eq!(reply.outcome(), &Outcome::Bypassed(Bypass::NoKey));
    send(&app_lax, unkeyed()).await;
    assert_eq!(count.runs(), 2);

    let strict = engine(|policy| policy.required(true));
    let (app_strict, count) = app(&strict, async |_| "done");
    let reply = send(&app_strict, unkeyed()).await;
    reply.refused(400, "missing-key");
    assert!(reply.header("link").unwrap().contains("describedby"));
    assert_eq!(reply.outcome(), &Outcome::Refused(Code::MissingKey));
    assert_eq!(count.runs(), 0);
}

#[tokio::test]
async fn what_is_no_key_is_refused_and_never_repeated() {
    let engine = engine(|policy| policy);
    let (app, count) = app(&engine, async |_| "done");
    let too_long = "x".repeat(256);
    for value in ["", "secret,one", "\"secret", "secret key", "\"secret\\x\"", &too_long] {
        let reply = send(&app, post(value)).await;
        reply.refused(400, "invalid-key");
        assert!(!reply.text().contains("secret") && !reply.is_unstored(), "{value}");
    }
    let mut twice = post("k");
    twice.headers_mut().append("idempotency-key", HeaderValue::from_static("k"));
    send(&app, twice).await.refused(400, "invalid-key");
    assert_eq!(count.runs(), 0);
    assert_eq!(send(&app, post(&"x".repeat(255))).await.status, 200);
}

#[tokio::test]
async fn a_tunnel_passes_and_so_do_other_methods() {
    let engine = engine(|policy| policy.required(true));
    let (app, count) = app(&engine, async |_| "done");
    let keyed = |method: Method| Request::builder().method(method).header("idempotency-key", "k");
    let tunnel = keyed(Method::CONNECT).uri("example.org:443").version(Version::HTTP_2);
    let reply = send(&app, tunnel.body(Body::empty()).unwrap()).await;
    assert_eq!(reply.outcome(), &Outcome::Bypassed(Bypass::NotHttp));
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let reply = send(&app, keyed(method).body(Body::empty()).unwrap()).await;
        assert_eq!(reply.outcome(), &Outcome::Bypassed(Bypass::Method { keyed: true }));
    }
    assert_eq!(count.runs(), 5);
    assert!(engine.store().is_empty());
}

#[tokio::test]
async fn bodies_of_requests_that_pass_stream_in_both_directions() {
    let engine = engine(|policy| policy.request_bytes_max(1).response_bytes_max(1));
    let (app, _) = app(&engine, async |request: Request<Body>| Body::new(request.into_body()));
    let later = Gate::closed();
    let pieces = [Piece::data("now "), Piece::Wait(later.clone()), Piece::data("and later")];
    let request = Request::put("/").body(Body::new(ScriptedBody::new(pieces))).unwrap();
    let response = tower::ServiceExt::oneshot(app, request).await.unwrap();
    let mut body = response.into_body();
    let mut next = async || Some(body.frame().await?.unwrap().into_data().unwrap());
    assert_eq!(next().await.unwrap(), "now ");
    later.open();
    assert_eq!(next().await.unwrap(), "and later");
    assert!(next().await.is_none());
}

#[tokio::test]
async fn a_body_that_declares_to_be_too_large_is_not_read() {
    let engine = engine(|policy| policy.request_bytes_max(10));
    let (app, count) = app(&engine, async |_| "done");
    let body = ScriptedBody::new([Piece::data("12345678901")]).declaring(11);
    let taken = body.taken();
    send(&app, posted("k", Body::new(body))).await.refused(413, "body-too-large");
    assert_eq!((count.runs(), taken.load(Ordering::SeqCst)), (0, 0));
}

#[tokio::test]
async fn a_body_that_turns_out_too_large_is_read_no_further() {
    let engine = engine(|policy| policy.request_bytes_max(10));
    let (app, count) = app(&engine, async |_| "done");
    let pieces = std::iter::repeat_n(Piece::data("123456"), 100);
    let body = ScriptedBody::new(pieces);
    let taken = body.taken();
    send(&app, posted("k", Body::new(body))).await.refused(413, "body-too-large");
    assert_eq!((count.runs(), taken.load(Ordering::SeqCst)), (0, 2));
    assert_eq!(send(&app, posted("k", "1234567890")).await.status, 200);
}

#[tokio::test]
async fn a_large_body_that_is_skipped_reaches_the_handler_whole() {
    let engine = engine(|policy| policy.request_bytes_max(10).on_large_body(OnLargeBody::Skip));
    let (app, count) = app(&engine, echo);
    for _ in 0..2 {
        let pieces = [Piece::data("123456"), Piece::data("789012"), Piece::data("345")];
        let reply = send(&app, posted("k", Body::new(ScriptedBody::new(pieces)))).await;
        reply.answered(200, "123456789012345");
        assert_eq!(reply.outcome(), &Outcome::Bypassed(Bypass::LargeBody));
    }
    assert_eq!(count.runs(), 2);
}

#[tokio::test]
async fn a_body_that_breaks_off_claims_nothing() {
    let store = ScriptedStore::new();
    let engine = Engine::builder(store.clone()).build().unwrap();
    let (app, count) = app(&engine, async |_| "done");
    let body = ScriptedBody::new([Piece::data("half"), Piece::Error]);
    send(&app, posted("k", Body::new(body))).await.refused(400, "body-unreadable");
    assert_eq!((count.runs(), store.total_calls()), (0, 0));
}

#[tokio::test]
async fn the_handler_reads_the_body_and_the_trailers_as_they_came() {
    let engine = engine(|policy| policy);
    let (app, _) = app(&engine, async |request: Request<Body>| Body::new(request.into_body()));
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("7"));
    let pieces = [Piece::data("one "), Piece::data("two"), Piece::Trailers(trailers.clone())];
    let reply = send(&app, posted("k", Body::new(ScriptedBody::new(pieces)))).await;
    reply.answered(200, "one two");
    assert_eq!(reply.trailers, Some(trailers));
}

#[tokio::test]
async fn scopes_of_a_function_are_apart_and_none_is_refused() {
    let scope =
        |parts: &http::request::Parts| parts.extensions.get().map(|Tenant(it)| Scope::new(it));
    let engine = Engine::builder(MemoryStore::new()).scope(scope).build().unwrap();
    let (app, count) = app(&engine, async |request: Request<Body>| {
        request.extensions().get::<Tenant>().unwrap().0
    });
    let of = |tenant: &'static str| {
        let mut request = post("k");
        request.extensions_mut().insert(Tenant(tenant));
        request
    };
    send(&app, of("one")).await.answered(200, "one");
    send(&app, of("other")).await.answered(200, "other");
    assert!(send(&app, of("one")).await.is_replay());
    let reply = send(&app, post("k")).await;
    reply.refused(401, "scope-unresolved");
    assert_eq!(reply.header("www-authenticate"), Some("Bearer realm=\"api\""));
    assert_eq!(count.runs(), 2);
}

#[tokio::test]
async fn scopes_of_a_header_are_apart_and_none_is_refused() {
    let engine = engine(|policy| policy.scope(ScopeRule::Header("x-account".parse().unwrap())));
    let (app, count) = app(&engine, async |_| "done");
    for account in ["one", "other"] {
        let mut request = post("k");
        request.headers_mut().insert("x-account", HeaderValue::from_static(account));
        assert!(!send(&app, request).await.is_replay());
    }
    let reply = send(&app, post("k")).await;
    reply.refused(400, "scope-unresolved");
    assert_eq!(reply.header("www-authenticate"), None, "it is no question of a credential");
    assert_eq!(count.runs(), 2);
}

#[tokio::test]
async fn keys_of_another_form_than_published_are_refused() {
    let engine = Engine::builder(MemoryStore::new())
        .policy(Policy::draft())
        .accept_keys(|key| key.as_str().len() == 4)
        .build()
        .unwrap();
    let (app, count) = app(&engine, async |_| "done");
    send(&app, post("five5")).await.refused(400, "invalid-key");
    send(&app, post("\"four\"")).await.answered(200, "done");
    assert_eq!(count.runs(), 1);
}

#[tokio::test]
async fn beyond_the_limit_new_keys_are_refused_and_known_ones_are_not() {
    let engine = engine(|policy| policy.new_keys_per_minute_max(2));
    let (app, count) = app(&engine, async |_| "done");
    for key in ["one", "two"] {
        assert_eq!(send(&app, post(key)).await.status, 200);
    }
    let reply = send(&app, post("three")).await;
    reply.refused(429, "too-many-keys");
    assert!(reply.header("retry-after").is_some());
    assert_eq!(count.runs(), 2);
    assert!(send(&app, post("one")).await.is_replay());
}

#[tokio::test]
async fn the_keys_of_one_principal_do_not_use_up_the_limit_of_another() {
    let engine = engine(|policy| {
        let bind = ScopeRule::Bind(vec![http::header::AUTHORIZATION]);
        policy.scope(bind).new_keys_per_minute_max(1)
    });
    let (app, _) = app(&engine, async |_| "done");
    let by = |credential: &'static str, key| {
        let mut request = post(key);
        let credential = HeaderValue::from_static(credential);
        request.headers_mut().insert(http::header::AUTHORIZATION, credential);
        request
    };
    send(&app, by("Bearer mallory", "one")).await.answered(200, "done");
    send(&app, by("Bearer mallory", "two")).await.refused(429, "too-many-keys");
    send(&app, by("Bearer alice", "three")).await.answered(200, "done");
}

#[tokio::test]
async fn the_same_request_with_another_credential_is_told_so() {
    let engine = engine(|policy| policy);
    let (app, count) = app(&engine, async |_| "done");
    let by = |credential: &'static str, body: &'static str| {
        let mut request = posted("k", body);
        let credential = HeaderValue::from_static(credential);
        request.headers_mut().insert(http::header::AUTHORIZATION, credential);
        request
    };
    send(&app, by("AWS4-HMAC-SHA256 Signature=1", "order")).await.answered(200, "done");
    for (body, names) in [("order", true), ("another", false)] {
        let reply = send(&app, by("AWS4-HMAC-SHA256 Signature=2", body)).await;
        reply.refused(422, "key-reused");
        let detail = reply.problem()["detail"].as_str().unwrap().to_owned();
        assert_eq!(detail.contains("credential"), names, "{body}: {detail}");
    }
    assert_eq!(count.runs(), 1);
}

async fn echo(request: Request<Body>) -> Vec<u8> {
    axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap().into()
}

#[derive(Clone)]
struct Tenant(&'static str);
