//! Requests that the processor leaves to Envoy.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};

use super::orders;
use crate::support::envoy_process::EnvoyProcess;
use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{post, send, send_http2};
use crate::support::raw_upstream::send_raw;

#[tokio::test]
async fn requests_without_a_key_and_routes_without_protection_are_envoys_alone() {
    let service = HyperService::start(|number, request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let text = format!("{number} {}", body.len());
        Response::builder().header("content-length", text.len()).body(full(text)).unwrap()
    })
    .await;
    let envoy = EnvoyProcess::start(service.address, "report_ignored = true", &[]).await;
    let bare =
        |path: &str, body: usize| Request::post(path).body(Full::from(vec![b'x'; body])).unwrap();
    let mut protected_not = post("k", "tea");
    *protected_not.uri_mut() = "/health".parse().unwrap();
    let get = Request::get("/orders").header("idempotency-key", "k");
    let get = get.body(Full::<Bytes>::default()).unwrap();
    let large = 4 << 20;
    for (number, (request, body, status)) in [
        (bare("/orders", 3), 3, None),
        // Larger than what Envoy holds, where it holds nothing.
        (bare("/uploads", large), large, None),
        (bare("/health", 1 << 20), 1 << 20, None),
        (protected_not, 3, None),
        (get, 0, Some("ignored")),
    ]
    .into_iter()
    .enumerate()
    {
        for (turn, send_it) in [false, true].into_iter().enumerate() {
            let request = request.clone();
            let reply = match send_it {
                false => send(envoy.address, request).await,
                true => send_http2(envoy.address, request).await,
            };
            let expected = format!("{} {body}", number * 2 + turn + 1);
            assert_eq!((reply.status.as_u16(), reply.text()), (200, &*expected), "{reply:?}");
            assert_eq!(reply.header("idempotency-status"), status, "{reply:?}");
            assert!(status.is_some() || reply.headers.contains_key("content-length"), "{reply:?}");
        }
    }
}

#[tokio::test]
async fn a_target_that_two_servers_read_differently_is_refused() {
    let service = orders().await;
    let envoy = EnvoyProcess::start(service.address, "", &[]).await;
    for path in ["/a/../orders", "//orders", "/orders%2f", "/orders/%2e%2e/x"] {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: shop\r\nIdempotency-Key: k\r\n\
             Connection: close\r\nContent-Length: 3\r\n\r\ntea"
        );
        let reply = send_raw(envoy.address, request.as_bytes()).await;
        assert_eq!(reply.statuses(), [400], "{path}: {}", reply.text);
        assert!(reply.text.contains("ambiguous-path"), "{path}: {}", reply.text);
    }
    assert_eq!(service.requests(), 0);
}

#[tokio::test]
async fn a_grpc_call_under_a_key_is_refused_and_any_other_passes() {
    let service = orders().await;
    let envoy = EnvoyProcess::start(service.address, "", &[]).await;
    let call = |key: Option<&str>| {
        let mut call =
            Request::post("/shop.Orders/Create").header("content-type", "application/grpc");
        if let Some(key) = key {
            call = call.header("idempotency-key", key);
        }
        call.body(Full::from("\0\0\0\0\0")).unwrap()
    };
    let refused = send_http2(envoy.address, call(Some("k"))).await;
    assert_eq!((refused.status.as_u16(), refused.header("grpc-status")), (200, Some("12")));
    assert_eq!(service.requests(), 0);
    assert_eq!(send_http2(envoy.address, call(None)).await.status, 201);
}

#[tokio::test]
async fn a_reload_changes_what_is_protected() {
    let service = orders().await;
    let envoy = EnvoyProcess::start(service.address, "", &[]).await;
    let bare = || Request::post("/orders").body(Full::from("tea")).unwrap();
    assert_eq!(send(envoy.address, bare()).await.status, 201);
    assert_eq!(send(envoy.address, post("k", "tea")).await.status, 201);
    let stricter = envoy.configuration().replace("[store]", "policy.required = true\n[store]");
    envoy.processor().reload(&stricter);
    envoy.processor().logs("configuration reloaded").await;
    send(envoy.address, bare()).await.refused(400, "missing-key");
    assert!(send(envoy.address, post("k", "tea")).await.is_replay());
}
