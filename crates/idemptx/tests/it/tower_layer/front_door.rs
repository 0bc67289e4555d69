//! The requests that the layer handles, and those that it takes for the same operation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::routing::post as on_post;
use http::{Method, Request};
use idemptx::{Bypass, Code, Directive, Engine, Outcome, Scope};
use idemptx_core::policy::OnLargeBody;

use crate::support::app::engine;
use crate::support::http_client::{Reply, post, posted, send};
use idemptx_testkit::scripted_store::ScriptedStore;

#[tokio::test]
async fn the_same_path_in_two_nested_routers_is_two_operations() {
    let engine = engine(ScriptedStore::new(), |policy| policy);
    let handler = async |Path(tenant): Path<String>| format!("order of {tenant}");
    let orders = Router::new().route("/orders", on_post(handler)).layer(engine.layer());
    let app = Router::new().nest("/tenants/{tenant}", orders);
    let order = async |tenant: &str| -> Reply {
        let request = Request::post(format!("/tenants/{tenant}/orders"));
        let request = request.header("idempotency-key", "k").header("authorization", "token");
        send(&app, request.body(Body::from("order 4711")).unwrap()).await
    };
    order("a").await.answered(200, "order of a");
    order("b").await.refused(422, "key-reused");
    assert!(order("a").await.is_replay());
}

#[tokio::test]
async fn no_field_that_a_client_chooses_switches_the_protection_off() {
    let engine = engine(ScriptedStore::new(), |policy| policy.required(true));
    let (app, runs) = counted(&engine);
    let offers = [
        [("upgrade", "h2c"), ("connection", "Upgrade, HTTP2-Settings")],
        [("upgrade", "websocket"), ("connection", "Upgrade")],
        [("content-type", "application/grpc"), ("te", "trailers")],
        [("content-type", "application/grpc-web+proto"), ("x-grpc-web", "1")],
    ];
    for (number, offer) in offers.iter().enumerate() {
        let request = |key: Option<String>| {
            let request = Request::post("/orders");
            let request = offer.iter().fold(request, |it, (name, value)| it.header(*name, *value));
            let request =
                key.into_iter().fold(request, |it, key| it.header("idempotency-key", key));
            request.body(Body::from("order 4711")).unwrap()
        };
        let key = || Some(format!("k{number}"));
        assert_eq!(send(&app, request(key())).await.status, 200);
        assert!(send(&app, request(key())).await.is_replay(), "{offer:?}");
        let refused = send(&app, request(None)).await;
        assert_eq!(refused.outcome(), &Outcome::Refused(Code::MissingKey), "{offer:?}");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_second_layer_of_the_same_engine_passes() {
    let engine = engine(ScriptedStore::new(), |policy| policy);
    let (app, runs) = counted(&engine);
    let app = app.layer(engine.layer());
    let first = send(&app, post("k")).await;
    first.answered(200, "run 1");
    assert_eq!(first.outcome(), &Outcome::Executed { attempt: 1, stored: true });
    assert!(send(&app, post("k")).await.is_replay());
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn layers_of_two_engines_both_count() {
    let inner = engine(ScriptedStore::new(), |policy| policy);
    let outer = engine(ScriptedStore::new(), |policy| policy);
    let (app, runs) = counted(&inner);
    let app = app.layer(outer.layer());
    send(&app, post("k")).await.answered(200, "run 1");
    assert!(send(&app, post("k")).await.is_replay());
    assert_eq!(
        (
            runs.load(Ordering::SeqCst),
            inner.store().calls(idemptx_testkit::scripted_store::Operation::Claim)
        ),
        (1, 1)
    );
}

#[tokio::test]
async fn the_scope_is_asked_for_where_there_is_a_key() {
    let asked = Arc::new(AtomicU32::new(0));
    let asks = Arc::clone(&asked);
    let engine = Engine::builder(ScriptedStore::new())
        .scope(move |_| {
            asks.fetch_add(1, Ordering::SeqCst);
            Some(Scope::new("tenant"))
        })
        .build()
        .unwrap();
    let (app, _) = counted(&engine);
    for method in [Method::GET, Method::POST] {
        let unkeyed = Request::builder().method(method).uri("/orders").body(Body::empty()).unwrap();
        assert_eq!(send(&app, unkeyed).await.status, 200);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    assert_eq!(send(&app, post("k")).await.status, 200);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_answer_to_a_body_that_was_skipped_is_marked() {
    let engine = engine(ScriptedStore::new(), |policy| {
        policy.request_bytes_max(3).on_large_body(OnLargeBody::Skip)
    });
    let (app, _) = counted(&engine);
    let reply = send(&app, posted("k", "large")).await;
    assert_eq!(reply.outcome(), &Outcome::Bypassed(Bypass::LargeBody));
    assert!(reply.is_unstored());
}

#[tokio::test]
async fn a_handler_decides_by_an_extension_of_its_response() {
    let engine = engine(ScriptedStore::new(), |policy| policy);
    let handler = async |body: String| {
        let directive = match body.as_str() {
            "store" => Directive::Store,
            "release" => Directive::Release,
            _ => Directive::Unknown,
        };
        let mut response = http::Response::new(Body::from("said"));
        *response.status_mut() = if body == "store" { 500 } else { 200 }.try_into().unwrap();
        response.extensions_mut().insert(directive);
        // The field counts only where there is no extension.
        response.headers_mut().insert("idempotency-outcome", "release".parse().unwrap());
        response
    };
    let app = Router::new().fallback(handler).layer(engine.layer());
    assert!(!send(&app, posted("store", "store")).await.is_unstored());
    assert!(send(&app, posted("store", "store")).await.is_replay());
    for _ in 0..2 {
        let reply = send(&app, posted("release", "release")).await;
        assert!(reply.is_unstored() && !reply.is_replay());
        assert!(reply.extensions.get::<Directive>().is_none());
    }
    assert!(send(&app, posted("unknown", "unknown")).await.is_unstored());
    send(&app, posted("unknown", "unknown")).await.refused(409, "outcome-unknown");
}

/// A server that counts the runs of its handler.
fn counted(engine: &Engine<ScriptedStore>) -> (Router, Arc<AtomicU32>) {
    let runs = Arc::new(AtomicU32::new(0));
    let ran = Arc::clone(&runs);
    let handler = move || {
        let run = ran.fetch_add(1, Ordering::SeqCst) + 1;
        async move { format!("run {run}") }
    };
    (Router::new().fallback(handler).layer(engine.layer()), runs)
}
