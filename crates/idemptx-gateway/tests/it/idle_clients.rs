//! Clients that hold a connection without using it, and what it counts as.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{PATIENCE, Running, post, send, simple, started};
use crate::support::raw_upstream::{RawUpstream, rest, send_raw};

#[tokio::test]
async fn a_connection_on_which_nothing_complete_comes_is_closed() {
    let upstream = HyperService::mirror().await;
    let gateway = impatient(&upstream).await;
    for bytes in
        [&b""[..], b"PRI * HT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"POST / HTTP/1.1\r\nHost:"]
    {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut received = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut received)).await;
        assert!(ended.is_ok(), "open after {bytes:?}");
    }
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn an_http2_connection_without_requests_is_closed_though_it_answers_pings() {
    let upstream = HyperService::mirror().await;
    let gateway = impatient(&upstream).await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let request = Request::get("http://shop/").body(()).unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    assert_eq!(timeout(PATIENCE, answer).await.unwrap().unwrap().status(), 201);
    // `client` is kept: the connection ends although nobody gave it up here.
    assert!(timeout(PATIENCE, connection).await.is_ok());
    drop(client);
}

#[tokio::test]
async fn a_slow_handler_does_not_make_its_connection_idle() {
    let gate = Arc::new(Notify::new());
    let opens = Arc::clone(&gate);
    let upstream = HyperService::start(move |_, _| {
        let opens = Arc::clone(&opens);
        async move {
            opens.notified().await;
            Response::new(full("at last"))
        }
    })
    .await;
    let gateway = impatient(&upstream).await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let mut connection = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let request = Request::get("http://shop/").body(()).unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    // Several times the limit of an idle connection.
    assert!(timeout(HEAD_MAX * 3, &mut connection).await.is_err(), "closed under a request");
    gate.notify_one();
    assert_eq!(timeout(PATIENCE, answer).await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn an_http2_client_that_takes_no_answer_is_cut_off() {
    let upstream = HyperService::start(async |_, _| {
        let endless =
            futures_util::stream::repeat_with(|| Ok(Frame::data(Bytes::from("x".repeat(1000)))));
        Response::new(BodyExt::boxed(StreamBody::new(endless)))
    })
    .await;
    let text = simple(upstream.address, "protect = false") + "[limits]\npause_ms = 1000\n";
    let gateway = started(&text).await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let (client, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let request = Request::get("http://shop/").body(()).unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
    assert!(timeout(PATIENCE, connection).await.is_ok(), "the connection is held");
    drop(answer);
}

#[tokio::test]
async fn a_websocket_counts_as_a_connection_until_it_ends() {
    let upstream = websocket_service().await;
    let text = simple(upstream.address, "") + "[limits]\nconnections_max = 1\n";
    let gateway = started(&text).await;
    let mut tunnel = open_websocket(&gateway).await;
    tunnel.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    timeout(PATIENCE, tunnel.read_exact(&mut echoed)).await.unwrap().unwrap();
    let mut second = TcpStream::connect(gateway.address).await.unwrap();
    second.write_all(UPGRADE).await.unwrap();
    let mut byte = [0];
    assert!(timeout(HEAD_MAX, second.read(&mut byte)).await.is_err(), "there was no room");
    drop(tunnel);
    assert_eq!(timeout(PATIENCE, second.read(&mut byte)).await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn a_websocket_counts_as_a_connection_to_its_upstream_until_it_ends() {
    let upstream = websocket_service().await;
    let text = simple(upstream.address, "")
        .replace("response_timeout_ms", "connections_max = 1\nresponse_timeout_ms");
    let gateway = started(&text).await;
    let tunnel = open_websocket(&gateway).await;
    let refused = send_raw(gateway.address, UPGRADE).await;
    assert!(refused.text.contains("\"code\":\"upstream-busy\""), "{}", refused.text);
    drop(tunnel);
    open_websocket(&gateway).await;
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn a_websocket_counts_as_a_request_in_flight() {
    let (chat, idle) = (websocket_service().await, HyperService::mirror().await);
    let both = format!(
        "\"http://{}\", \"http://{}\"]\nbalance = \"least-requests\"\n",
        chat.address, idle.address
    );
    let text = simple(chat.address, "protect = false");
    let text = text.replace(&format!("\"http://{}\"]", chat.address), &both);
    let gateway = started(&text).await;
    let _tunnel = open_websocket(&gateway).await;
    for _ in 0..5 {
        assert_eq!(send(gateway.address, post("k", "tea")).await.status, 201);
    }
    assert_eq!((chat.connections(), idle.requests()), (1, 5));
}

#[tokio::test]
async fn a_websocket_without_traffic_is_closed() {
    let upstream = websocket_service().await;
    let text = simple(upstream.address, "")
        .replace("response_timeout_ms", "pause_timeout_ms = 500\nresponse_timeout_ms");
    let gateway = started(&text).await;
    let mut tunnel = open_websocket(&gateway).await;
    assert!(rest(&mut tunnel).await.closed);
}

#[tokio::test]
async fn a_client_that_gives_its_requests_up_one_after_the_other_is_cut_off() {
    let upstream = HyperService::start(async |_, _| std::future::pending().await).await;
    let gateway = started(&simple(upstream.address, "protect = false")).await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    // Each reaches the upstream before it is given up, as fast resets do not.
    for number in 1..=FLOOD {
        let request = Request::get("http://shop/").body(()).unwrap();
        let Ok((answer, mut stream)) = client.send_request(request, true) else { break };
        let arrived = async {
            while upstream.requests() < number && !connection.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, arrived).await.unwrap();
        stream.send_reset(h2::Reason::CANCEL);
        drop(answer);
    }
    assert!(timeout(PATIENCE, connection).await.is_ok(), "the connection is held");
    assert!(upstream.requests() < FLOOD, "{} have reached the upstream", upstream.requests());
    // Others are served.
    let other = TcpStream::connect(gateway.address).await.unwrap();
    let (other, connection) = h2::client::handshake(other).await.unwrap();
    tokio::spawn(connection);
    assert!(timeout(PATIENCE, other.ready()).await.unwrap().is_ok());
}

/// A gateway that closes idle connections soon.
async fn impatient(upstream: &HyperService) -> Running {
    let limits = format!("[limits]\nhead_ms = {}\npause_ms = 100\n", HEAD_MAX.as_millis());
    started(&(simple(upstream.address, "protect = false") + &limits)).await
}

/// A service that agrees to an upgrade and returns what it gets.
async fn websocket_service() -> RawUpstream {
    RawUpstream::start(async |_, mut connection| {
        connection.request().await;
        connection.write(AGREED).await;
        let mut bytes = [0; 64];
        while let Ok(count @ 1..) = connection.stream.read(&mut bytes).await {
            connection.write(&bytes[..count]).await;
        }
    })
    .await
}

async fn open_websocket(gateway: &Running) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(UPGRADE).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap();
        head.push(byte);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

/// More than a connection may give up.
const FLOOD: usize = 400;
/// Long enough for a request to come in time on a busy machine.
const HEAD_MAX: Duration = Duration::from_secs(1);
const UPGRADE: &[u8] =
    b"GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const AGREED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
