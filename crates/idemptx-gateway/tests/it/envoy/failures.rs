//! Services, clients and processors that leave in the middle.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use idemptx_testkit::{CertificateAuthority, RedisServer, ReservedPort, Signal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{HeldService, order, orders};
use crate::support::envoy_process::EnvoyProcess;
use crate::support::hyper_service::HyperService;
use crate::support::in_process::{Reply, post, send};
use crate::support::raw_upstream::RawUpstream;

#[tokio::test]
async fn a_service_that_was_not_reached_leaves_the_key_free() {
    let port = ReservedPort::reserve();
    let envoy = EnvoyProcess::start(port.address(), "", &[]).await;
    for _ in 0..2 {
        let reply = send(envoy.address, post("k", "tea")).await;
        assert_eq!(reply.status, 503, "{reply:?}");
        assert_eq!(reply.header("idempotency-stored"), Some("false"), "{reply:?}");
    }
}

#[tokio::test]
async fn what_a_service_says_in_the_head_of_an_answer_that_breaks_off_counts() {
    for (said, becomes) in [("unknown", "outcome-unknown"), ("store", "result-unavailable")] {
        let service = RawUpstream::start(move |_, mut connection| async move {
            connection.request().await;
            let head = format!("HTTP/1.1 201 Created\r\nIdempotency-Outcome: {said}\r\n");
            connection.write(&head).await;
            connection.write("Content-Length: 7\r\n\r\norder").await;
            connection.reset();
        })
        .await;
        let route = "on_ambiguous = \"release\"\npolicy.wait_ms = 10000";
        let envoy = EnvoyProcess::start(service.address, route, &[]).await;
        assert_eq!(send(envoy.address, post("k", "tea")).await.status, 502);
        send(envoy.address, post("k", "tea")).await.refused(409, becomes);
        assert_eq!(service.connections(), 1, "{said}");
    }
}

#[tokio::test]
async fn a_service_that_breaks_off_leaves_the_outcome_unknown() {
    let cut_head = "HTTP/1.1 201 Created\r\nContent-Le";
    let cut_body = "HTTP/1.1 201 Created\r\nContent-Length: 7\r\n\r\norder";
    for answer in ["", cut_head, cut_body] {
        let service = RawUpstream::start(move |_, mut connection| async move {
            connection.request().await;
            connection.write(answer).await;
            connection.reset();
        })
        .await;
        let envoy = EnvoyProcess::start(service.address, "policy.wait_ms = 10000", &[]).await;
        let lost = send(envoy.address, post("k", "tea")).await;
        // Once there is a head, Envoy answers a break by itself.
        if answer == cut_body {
            assert_eq!(lost.status, 502, "{lost:?}");
        } else {
            lost.refused(502, "upstream-failed");
            assert_eq!(lost.header("idempotency-stored"), Some("false"), "{lost:?}");
        }
        send(envoy.address, post("k", "tea")).await.refused(409, "outcome-unknown");
        assert_eq!(service.connections(), 1, "{answer:?}");
    }
}

#[tokio::test]
async fn a_connect_that_fails_proves_nothing_after_a_first_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        drop(listener);
        let bytes = stream.read(&mut [0; 1024]).await.unwrap();
        assert!(bytes > 0);
        stream.set_zero_linger().unwrap();
    });
    let retry = [(
        "route: { cluster: shop, timeout: 60s }",
        "route: { cluster: shop, retry_policy: { retry_on: 'reset,connect-failure' } }",
    )];
    let envoy = EnvoyProcess::start(address, "", &retry).await;
    let lost = send(envoy.address, post("k", "tea")).await;
    lost.refused(502, "upstream-failed");
    send(envoy.address, post("k", "tea")).await.refused(409, "outcome-unknown");
}

#[tokio::test]
async fn a_service_that_does_not_answer_in_time_leaves_the_outcome_unknown_or_the_key_free() {
    for (route, retry) in [("", 409), ("on_ambiguous = \"release\"", 201)] {
        let mut held = HeldService::start().await;
        let short = [("timeout: 60s", "timeout: 0.3s")];
        let envoy = EnvoyProcess::start(held.service.address, route, &short).await;
        let late = send(envoy.address, post("k", "tea")).await;
        late.refused(504, "upstream-timeout");
        assert_eq!(held.arrival().await, 1);
        // For the one that was given up, and for another one.
        held.release(2);
        let again = send(envoy.address, post("k", "tea")).await;
        assert_eq!(again.status, retry, "{again:?}");
        assert_eq!(held.service.requests(), if retry == 201 { 2 } else { 1 });
    }
}

#[tokio::test]
async fn a_client_that_leaves_makes_envoy_give_the_request_up_and_the_outcome_unknown() {
    let mut held = HeldService::start().await;
    let envoy = EnvoyProcess::start(held.service.address, "policy.wait_ms = 10000", &[]).await;
    let mut client = TcpStream::connect(envoy.address).await.unwrap();
    let request = "POST /orders HTTP/1.1\r\nHost: shop\r\nIdempotency-Key: k\r\n\
                   Content-Length: 3\r\n\r\ntea";
    client.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(held.arrival().await, 1);
    drop(client);
    let mut again = post("k", "tea");
    again.headers_mut().insert("host", "shop".parse().unwrap());
    // It waits for the first one, whose end is its record's.
    send(envoy.address, again).await.refused(409, "outcome-unknown");
    assert_eq!(held.service.requests(), 1);
}

#[tokio::test]
async fn a_processor_that_is_killed_in_the_middle_does_not_let_a_retry_run() {
    let mut held = HeldService::start().await;
    let route = "profile = \"payments\"\npolicy.scope = \"shared\"\npolicy.lease_ms = 300\n\
                 policy.wait_ms = 10000\npolicy.on_unsafe_store = \"warn\"";
    let mut envoy = EnvoyProcess::start(held.service.address, route, &[]).await;
    let address = envoy.address;
    let first = tokio::spawn(async move { send(address, post("k", "tea")).await });
    assert_eq!(held.arrival().await, 1);
    envoy.restart_processor();
    assert_eq!(first.await.unwrap().status, 500, "Envoy does not go on alone");
    held.release(8);
    // It waits until the lease has lapsed.
    send(address, post("k", "tea")).await.refused(409, "outcome-unknown");
    let other = send(address, post("other", "tea")).await;
    assert_eq!(other.status, 201, "{other:?} {}", envoy.processor().log());
    assert_eq!(held.service.requests(), 2);
}

#[tokio::test]
async fn a_processor_that_does_not_answer_lets_nothing_through() {
    let service = orders().await;
    let short = [("message_timeout: 15s", "message_timeout: 0.3s")];
    let envoy = EnvoyProcess::start(service.address, "policy.wait_ms = 10000", &short).await;
    envoy.processor().signal(Signal::STOP);
    assert_eq!(send(envoy.address, post("k", "tea")).await.status, 504);
    assert_eq!(service.requests(), 0);
    envoy.processor().signal(Signal::CONT);
    assert_eq!(send(envoy.address, post("k", "tea")).await.text(), "order 1");
}

#[tokio::test]
async fn a_processor_at_its_limits_lets_nothing_through() {
    let mut held = HeldService::start().await;
    let settings = [(
        "[[route]]\nupstream = \"shop\"\npath",
        "streams_max = 1\n\
        message_bytes_max = 4096\n[[route]]\nupstream = \"shop\"\npath",
    )];
    let envoy = EnvoyProcess::configured(held.service.address, &settings, &[]).await;
    let address = envoy.address;
    let first = tokio::spawn(async move { send(address, post("k", "tea")).await });
    assert_eq!(held.arrival().await, 1);
    assert_eq!(send(address, post("other", "tea")).await.status, 500);
    held.release(1);
    assert_eq!(first.await.unwrap().status, 201);
    assert_eq!(send(address, post("large", &"x".repeat(8192))).await.status, 500);
    assert_eq!(held.service.requests(), 1);
}

#[tokio::test]
async fn without_a_store_nothing_is_executed_and_replays_wait_for_it() {
    let service = orders().await;
    let mut redis = RedisServer::start(&[]);
    let url = redis.url();
    let settings = [("sqlite:shop.db", &*url)];
    let envoy = EnvoyProcess::configured(service.address, &settings, &[]).await;
    assert_eq!(send(envoy.address, post("k", "tea")).await.status, 201);
    redis.kill();
    send(envoy.address, post("k", "tea")).await.refused(503, "store-unavailable");
    send(envoy.address, post("other", "tea")).await.refused(503, "store-unavailable");
    assert_eq!(service.requests(), 1);
}

#[tokio::test]
async fn envoy_and_the_processor_know_each_other_by_certificates_and_by_health() {
    let service = orders().await;
    let (authority, directory) = (CertificateAuthority::generate(), tempfile::tempdir().unwrap());
    authority.issue_into(directory.path());
    authority.issue_client_into(directory.path(), "envoy");
    let file = |name: &str| directory.path().join(name).display().to_string();
    let tls = format!(
        "[ext_proc]\ntls = {{ certificate = {:?}, key = {:?}, client_ca = {:?} }}\n",
        file("server.pem"),
        file("server.key"),
        file("ca.pem"),
    );
    let transport = |certificate: &str| {
        format!(
            "  - name: idemptx\n    transport_socket:\n      name: envoy.transport_sockets.tls\n\
             \x20     typed_config:\n\
             \x20       \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext\n\
             \x20       common_tls_context:\n\
             \x20         validation_context: {{ trusted_ca: {{ filename: {:?} }} }}\n{certificate}\
             \x20   common_lb_config: {{ healthy_panic_threshold: {{ value: 0 }} }}\n\
             \x20   health_checks:\n    - {{ timeout: 5s, interval: 5s, unhealthy_threshold: 1, \
             healthy_threshold: 1, grpc_health_check: {{}} }}\n",
            file("ca.pem"),
        )
    };
    let own = format!(
        "          tls_certificates: [{{ certificate_chain: {{ filename: {:?} }}, \
         private_key: {{ filename: {:?} }} }}]\n",
        file("client.pem"),
        file("client.key"),
    );
    for (certificate, status) in [(&*own, 201), ("", 500)] {
        let envoy = EnvoyProcess::configured(
            service.address,
            &[("[ext_proc]\n", &tls)],
            &[("  - name: idemptx\n", &transport(certificate))],
        )
        .await;
        let reply = send(envoy.address, post("k", "tea")).await;
        assert_eq!(reply.status, status, "{reply:?} {}", envoy.log());
    }
    assert_eq!(service.requests(), 1);
}

#[tokio::test]
async fn a_filter_that_hides_the_bodies_is_refused_by_name() {
    let service = orders().await;
    let route = "route: { cluster: shop, timeout: 60s }\n";
    let overridden = "route: { cluster: shop }\n\
        \x20               typed_per_filter_config:\n\
        \x20                 envoy.filters.http.ext_proc:\n\
        \x20                   \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute\n\
        \x20                   overrides: { processing_mode: { response_body_mode: BUFFERED } }\n";
    for (old, new, setting) in [
        (route, overridden, "request_body_mode"),
        ("request_body_mode: BUFFERED", "request_body_mode: NONE", "request_body_mode"),
        ("response_body_mode: BUFFERED_PARTIAL", "response_body_mode: NONE", "response_body_mode"),
        ("request_body_mode: BUFFERED", "request_body_mode: STREAMED", "request_body_mode"),
    ] {
        let envoy = EnvoyProcess::start(service.address, "", &[(old, new)]).await;
        let reply = send(envoy.address, post("k", "tea")).await;
        assert_eq!(reply.status, 500, "{reply:?}");
        envoy.processor().logs(setting).await;
    }
    assert_eq!(service.requests(), 0);
}

#[tokio::test]
async fn requests_in_flight_are_finished_when_the_processor_is_told_to_end() {
    let mut held = HeldService::start().await;
    let mut envoy = EnvoyProcess::start(held.service.address, "", &[]).await;
    let address = envoy.address;
    let first = tokio::spawn(async move { send(address, post("k", "tea")).await });
    assert_eq!(held.arrival().await, 1);
    envoy.processor().signal(Signal::TERM);
    envoy.processor().logs("draining").await;
    held.release(1);
    assert_eq!(first.await.unwrap().text(), "order 1");
    assert!(envoy.processor_mut().exited().await.success());
    envoy.restart_processor();
    assert!(send(address, post("k", "tea")).await.is_replay());
}

#[tokio::test]
async fn thousands_of_requests_end_no_other_one_on_their_connection() {
    let (let_go, arrived) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (held, arrives) = (Arc::clone(&let_go), Arc::clone(&arrived));
    let service = HyperService::start(move |number, request| {
        let (held, arrives) = (Arc::clone(&held), Arc::clone(&arrives));
        async move {
            let is_slow = request.headers().get("idempotency-key").is_some_and(|key| key == "slow");
            // A connection with an unread body would be closed.
            request.into_body().collect().await.unwrap();
            if is_slow {
                arrives.add_permits(1);
                held.acquire().await.unwrap().forget();
            }
            order(number)
        }
    })
    .await;
    let memory = [("sqlite:shop.db", "memory:")];
    let envoy = EnvoyProcess::configured(service.address, &memory, &[]).await;
    let address = envoy.address;
    assert_eq!(send(address, post("replayed", "tea")).await.status, 201);
    let mut sender = connect(address).await;
    let slow = tokio::spawn(async move {
        let mut slow = post("slow", "tea");
        *slow.uri_mut() = format!("http://{address}/orders").parse().unwrap();
        sender.send_request(slow).await.unwrap().status()
    });
    arrived.acquire().await.unwrap().forget();
    // Envoy has a connection to the processor for each of its threads.
    for _ in 0..2 {
        let sender = connect(address).await;
        for number in 0..30 {
            let asked = (0..40).map(|other| ask(address, sender.clone(), number + other));
            for (answer, expected) in join_all(asked).await {
                assert_eq!(answer.status, expected, "{answer:?}");
            }
        }
    }
    // Envoy ends a call for each client that leaves, often before it was taken up.
    for _ in 0..8 {
        let sender = connect(address).await;
        let asked = join_all((0..100).map(|number| ask(address, sender.clone(), number)));
        drop(timeout(Duration::from_millis(2), asked).await);
    }
    let_go.add_permits(1);
    assert_eq!(slow.await.unwrap(), 201);
}

async fn connect(address: SocketAddr) -> http2::SendRequest<Full<Bytes>> {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends a request that is refused, replayed or passed on, and returns the answer and the expected
/// status.
async fn ask(
    address: SocketAddr,
    mut sender: http2::SendRequest<Full<Bytes>>,
    number: usize,
) -> (Reply, u16) {
    let (path, body, expected) =
        [("orders", "coffee", 422), ("orders", "tea", 201), ("health", "tea", 201)][number % 3];
    let mut request = post("replayed", body);
    *request.uri_mut() = format!("http://{address}/{path}").parse().unwrap();
    (Reply::of(sender.send_request(request).await.unwrap()).await, expected)
}
