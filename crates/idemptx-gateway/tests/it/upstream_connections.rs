//! Connections to upstreams that are closed under a request, or used for long.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use tokio::time::timeout;

use crate::support::hyper_service::HyperService;
use crate::support::in_process::{PATIENCE, Running, in_front_of, send, simple, started};
use crate::support::raw_upstream::RawUpstream;

/// Starts an upstream that closes each connection when a second request comes on it, which it has
/// read.
async fn closing() -> RawUpstream {
    RawUpstream::start(|_, mut wire| async move {
        wire.request().await;
        wire.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        wire.read().await;
    })
    .await
}

async fn ask(gateway: &Running, method: &Method, key: Option<&str>, body: &str) -> u16 {
    let mut request = Request::builder().method(method).uri("/orders");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let body = Full::new(Bytes::from(body.to_owned()));
    send(gateway.address, request.body(body).unwrap()).await.status.as_u16()
}

#[tokio::test]
async fn a_safe_request_without_a_key_survives_the_closing_of_an_idle_connection() {
    let keyed_get = "[route.policy]\nmethods = [\"GET\", \"POST\"]";
    let unprotected = "protect = false";
    for (method, key, body, route, is_repeated) in [
        (Method::GET, None, "", unprotected, true),
        (Method::HEAD, None, "", unprotected, true),
        (Method::OPTIONS, None, "", "", true),
        (Method::GET, None, "", "", true),
        // A key that no policy looks at protects nothing.
        (Method::GET, Some("k"), "", "", true),
        (Method::GET, Some("k"), "", keyed_get, false),
        (Method::GET, None, "a body", unprotected, false),
        (Method::POST, None, "", unprotected, false),
        (Method::PUT, None, "", unprotected, false),
        (Method::DELETE, None, "", unprotected, false),
        (Method::POST, None, "tea", "", false),
        (Method::POST, Some("k"), "tea", "", false),
    ] {
        let upstream = closing().await;
        let gateway = in_front_of(upstream.address, route).await;
        let case = format!("{method} {key:?} {body} {route}");
        assert_eq!(ask(&gateway, &Method::GET, None, "").await, 200, "{case}");
        let (status, connections) = if is_repeated { (200, 2) } else { (502, 1) };
        assert_eq!(ask(&gateway, &method, key, body).await, status, "{case}");
        let lines = upstream.request_lines();
        assert_eq!((lines.len(), upstream.connections()), (1 + connections, connections), "{case}");
    }
}

#[tokio::test]
async fn a_safe_request_that_a_new_connection_loses_is_not_sent_again() {
    let upstream = RawUpstream::start(async |_, mut wire| _ = wire.request().await).await;
    let gateway = in_front_of(upstream.address, "protect = false").await;
    assert_eq!(ask(&gateway, &Method::GET, None, "").await, 502);
    assert_eq!(upstream.request_lines().len(), 1);
}

#[tokio::test]
async fn a_busy_connection_is_replaced_at_its_age_so_that_its_name_is_resolved_again() {
    for version in ["", "http2 = true\n"] {
        for (age, is_replaced) in [("connection_age_max_ms = 50\n", true), ("", false)] {
            let upstream = HyperService::mirror().await;
            let lines = format!("name = \"up\"\n{version}{age}");
            let text = simple(upstream.address, "protect = false")
                .replace("name = \"up\"", &lines)
                // A name, which is resolved for each connection.
                .replace("127.0.0.1:", "localhost:")
                .replace("\"localhost:0\"", "\"127.0.0.1:0\"");
            let gateway = started(&text).await;
            let asked = async {
                let mut count = 0;
                while if is_replaced { upstream.connections() < 3 } else { count < 50 } {
                    assert_eq!(ask(&gateway, &Method::GET, None, "").await, 201);
                    count += 1;
                }
            };
            timeout(PATIENCE, asked).await.expect("connections are replaced");
            assert!(is_replaced || upstream.connections() == 1, "{}", upstream.connections());
        }
    }
}
