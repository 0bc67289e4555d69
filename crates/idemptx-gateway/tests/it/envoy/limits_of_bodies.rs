//! Bodies that are larger than what Envoy or a policy keeps, and those without an end.

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};

use crate::support::envoy_process::EnvoyProcess;
use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{post, send};
use crate::support::raw_upstream::RawUpstream;

#[tokio::test]
async fn a_response_that_is_too_large_is_passed_on_whole_and_not_replayed() {
    let service = HyperService::start(|_, request| async move {
        let bytes: usize = request.headers()["x-bytes"].to_str().unwrap().parse().unwrap();
        let is_declared = request.headers().contains_key("x-declared");
        let body = full(vec![b'x'; bytes]);
        // Without a length it is sent in chunks.
        let body = if is_declared { body } else { body.map_frame(|frame| frame).boxed() };
        Response::builder().status(201).body(body).unwrap()
    })
    .await;
    let envoy = EnvoyProcess::start(service.address, "", &[]).await;
    // The policy keeps 1 MiB, Envoy two.
    for (bytes, is_stored) in [(1 << 20, true), ((1 << 20) + 1, false), (5 << 20, false)] {
        for declared in ["yes", "no"] {
            let request = || {
                let mut request = post(&format!("{bytes}-{declared}"), "tea");
                let headers = request.headers_mut();
                headers.insert("x-bytes", bytes.into());
                if declared == "yes" {
                    headers.insert("x-declared", "1".parse().unwrap());
                }
                request
            };
            let first = send(envoy.address, request()).await;
            assert_eq!((first.status.as_u16(), first.body.len()), (201, bytes), "{declared}");
            let stored = first.header("idempotency-stored");
            assert_eq!(stored, (!is_stored).then_some("false"), "{bytes} {declared}");
            let again = send(envoy.address, request()).await;
            if is_stored {
                assert!(again.is_replay());
                assert_eq!(again.body, first.body);
            } else {
                again.refused(409, "result-unavailable");
            }
        }
    }
    assert_eq!(service.requests(), 6);
}

#[tokio::test]
async fn a_request_that_envoy_cannot_hold_is_refused_and_claims_nothing() {
    let service = HyperService::start(|_, request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::builder().status(201).body(full(body.len().to_string())).unwrap()
    })
    .await;
    let envoy = EnvoyProcess::start(service.address, "", &[]).await;
    let of = |bytes: usize| {
        let request = Request::post("/orders").header("idempotency-key", "k");
        request.body(Full::from(vec![b'x'; bytes])).unwrap()
    };
    let refused = send(envoy.address, of(5 << 20)).await;
    assert_eq!(refused.status, 413, "{refused:?}");
    // More than the policy holds in memory, less than Envoy.
    let large = (1 << 20) + 4096;
    assert_eq!(send(envoy.address, of(large)).await.text(), large.to_string());
    assert!(send(envoy.address, of(large)).await.is_replay());
    send(envoy.address, of(large + 1)).await.refused(422, "key-reused");
    assert_eq!(service.requests(), 1);
}

#[tokio::test]
async fn a_response_whose_end_nothing_marks_is_not_replayed() {
    let service = RawUpstream::start(|_, mut connection| async move {
        connection.request().await;
        connection.write("HTTP/1.1 201 Created\r\n\r\norder 1").await;
    })
    .await;
    let envoy = EnvoyProcess::start(service.address, "", &[]).await;
    let first = send(envoy.address, post("k", "tea")).await;
    assert_eq!((first.status.as_u16(), first.text()), (201, "order 1"), "{first:?}");
    assert_eq!(first.header("idempotency-stored"), Some("false"));
    send(envoy.address, post("k", "tea")).await.refused(409, "result-unavailable");
    assert_eq!(service.connections(), 1);
}

#[tokio::test]
async fn over_http2_a_response_without_a_length_is_stored_where_the_file_says_so() {
    let service = HyperService::start(|number, _| async move {
        let body = full(format!("order {number}")).map_frame(|frame| frame).boxed();
        Response::builder().status(201).body(body).unwrap()
    })
    .await;
    let http2 = "  clusters:\n  - name: shop\n    typed_extension_protocol_options:\n\
        \x20     envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n\
        \x20       \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n\
        \x20       explicit_http_config: { http2_protocol_options: {} }\n";
    for says_so in [true, false] {
        let settings = format!("[ext_proc]\nupstream_http2 = {says_so}\n");
        let envoy = EnvoyProcess::configured(
            service.address,
            &[("[ext_proc]\n", &settings)],
            &[("  clusters:\n  - name: shop\n", http2)],
        )
        .await;
        let key = says_so.to_string();
        let first = send(envoy.address, post(&key, "tea")).await;
        assert_eq!(first.header("idempotency-stored"), (!says_so).then_some("false"));
        let again = send(envoy.address, post(&key, "tea")).await;
        match says_so {
            true => assert!(again.is_replay() && again.body == first.body, "{again:?}"),
            false => again.refused(409, "result-unavailable"),
        }
    }
}

#[tokio::test]
async fn an_event_stream_flows_while_it_is_made() {
    let service = RawUpstream::start(|_, mut connection| async move {
        connection.request().await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";
        connection.write(head).await;
        connection.write("9\r\ndata: 1\n\n\r\n").await;
        // It ends when its client leaves.
        connection.read().await;
    })
    .await;
    let envoy = EnvoyProcess::start(service.address, "", &[]).await;
    let stream = tokio::net::TcpStream::connect(envoy.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let mut request = post("k", "tea");
    request.headers_mut().insert("host", "shop".parse().unwrap());
    let mut response = sender.send_request(request).await.unwrap();
    assert_eq!(response.headers()["idempotency-stored"], "false");
    let event = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(event, "data: 1\n\n");
    send(envoy.address, post("k", "tea")).await.refused(422, "key-reused");
}
