//! The forms in which clients are refused.

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use idemptx::store::MemoryStore;
use idemptx::{Code, Engine, Outcome};

use super::{app, engine};
use crate::support::http_client::{post, posted, send};

#[tokio::test]
async fn a_grpc_call_is_refused_by_trailers_alone() {
    let engine = engine(|policy| policy.required(true));
    let (app, count) = app(&engine, async |_| {
        Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "0")
            .body(Body::from("message"))
            .unwrap()
    });
    let call = |key: Option<&str>, body: &'static str, content_type: &str| {
        let mut request = Request::post("/shop.Orders/Create").header("content-type", content_type);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        request.body(Body::from(body)).unwrap()
    };
    let first = send(&app, call(Some("k"), "tea", "application/grpc")).await;
    assert_eq!(first.header("grpc-status"), Some("0"));
    for (key, status, code) in [
        (None, "3", Code::MissingKey),
        (Some("\"k"), "3", Code::InvalidKey),
        (Some("k"), "9", Code::KeyReused),
    ] {
        for content_type in ["application/grpc", "application/grpc-web+proto"] {
            let reply = send(&app, call(key, "coffee", content_type)).await;
            assert_eq!((reply.status, reply.body.len()), (StatusCode::OK, 0));
            assert_eq!(reply.header("content-type"), Some(content_type));
            assert_eq!(reply.header("grpc-status"), Some(status));
            assert!(reply.header("grpc-message").is_some());
            assert!(reply.header("grpc-status-details-bin").is_some());
            assert_eq!(reply.outcome(), &Outcome::Refused(code));
        }
    }
    assert_eq!(count.runs(), 1);
}

#[tokio::test]
async fn the_application_may_make_the_responses_of_refusals() {
    let engine = Engine::builder(MemoryStore::new())
        .refusals(|rejection| {
            let response = Response::builder().status(rejection.status).header("x-own", "1");
            response.body(Bytes::from(format!("<{}>", rejection.code))).unwrap()
        })
        .build()
        .unwrap();
    let (app, _) = app(&engine, async |_| "done");
    send(&app, post("k")).await.answered(200, "done");
    let reused = send(&app, posted("k", "other")).await;
    reused.answered(422, "<key-reused>");
    assert_eq!(reused.header("x-own"), Some("1"));
    assert_eq!(reused.outcome(), &Outcome::Refused(Code::KeyReused));
    send(&app, post("\"k")).await.answered(400, "<invalid-key>");
}
