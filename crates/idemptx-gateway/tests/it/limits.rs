//! Limits on size and time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use idemptx_gateway::serve::Gateway;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{
    PATIENCE, config, in_front_of, post, send, simple, started, try_send,
};
use crate::support::raw_upstream::{RawUpstream, rest, send_raw};

#[tokio::test]
async fn a_body_larger_than_memory_is_fingerprinted_on_its_way() {
    let upstream = HyperService::start(|_, request| async move {
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(full(format!("{} bytes", bytes.len())))
    })
    .await;
    let gateway = in_front_of(upstream.address, "[route.policy]\nrequest_bytes_max = 1000").await;
    let large = "x".repeat(3_000_000);
    let first = send(gateway.address, post("k", &large)).await;
    assert_eq!(first.text(), "3000000 bytes");
    assert!(send(gateway.address, post("k", &large)).await.is_replay());
    let other = format!("{}y", &large[1..]);
    send(gateway.address, post("k", &other)).await.refused(422, "key-reused");
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn a_body_over_the_gateways_limit_is_refused_whatever_it_is() {
    let upstream = HyperService::mirror().await;
    let text = simple(upstream.address, "") + "[limits]\nbody_bytes_max = 1000\n";
    let gateway = started(&text).await;
    let large = Full::from("x".repeat(1001));
    send(gateway.address, Request::post("/").body(large).unwrap())
        .await
        .refused(413, "body-too-large");
    let chunk = "x".repeat(600);
    let chunk = format!("258\r\n{chunk}\r\n");
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answer =
        send_raw(gateway.address, format!("{head}{chunk}{chunk}0\r\n\r\n").as_bytes()).await;
    assert_eq!(answer.statuses(), [413], "{answer:?}");
    assert!(answer.closed);
}

#[tokio::test]
async fn an_answer_that_does_not_need_the_body_reaches_a_client_that_is_still_sending() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "policy = { required = true }").await;
    for (path, status) in [("/", 400), ("/a//b", 400)] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // More than the buffers of both ends hold.
        stream.write_all(&vec![b'x'; LARGE]).await.unwrap();
        let answer = rest(&mut stream).await;
        assert_eq!(answer.statuses(), [status], "{answer:?}");
    }
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn a_body_that_pauses_too_long_is_given_up() {
    let upstream = HyperService::mirror().await;
    let gateway = started(&(simple(upstream.address, "") + "[limits]\npause_ms = 100\n")).await;
    for (key, status) in [("", 408), ("Idempotency-Key: k\r\n", 400)] {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{key}Content-Length: 10\r\n\r\nabc");
        let answer = send_raw(gateway.address, head.as_bytes()).await;
        assert_eq!(answer.statuses(), [status], "{answer:?}");
    }
}

#[tokio::test]
async fn a_client_that_sends_no_head_is_let_go() {
    let upstream = HyperService::mirror().await;
    let gateway = started(&(simple(upstream.address, "") + "[limits]\nhead_ms = 100\n")).await;
    let answer = send_raw(gateway.address, b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ").await;
    assert!(answer.closed, "{answer:?}");
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn connections_of_one_address_are_limited() {
    let upstream = HyperService::mirror().await;
    let gateway =
        started(&(simple(upstream.address, "") + "[limits]\nconnections_per_ip_max = 2\n")).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert_eq!(rest(&mut stream).await.statuses(), [201]);
        kept.push(stream);
    }
    assert!(send_raw(gateway.address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.text.is_empty());
    drop(kept.pop());
    // The place is free as soon as the gateway has noticed.
    let answered = async {
        while try_send(gateway.address, Request::get("/").body(Full::default()).unwrap())
            .await
            .is_err()
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, answered).await.unwrap();
}

#[tokio::test]
async fn a_large_answer_under_a_key_flows_and_is_not_kept() {
    let upstream = HyperService::start(|_, _| async {
        let pieces = (0..100).map(|_| Ok(Frame::data(Bytes::from(vec![7; 30_000]))));
        let body = StreamBody::new(futures_util::stream::iter(pieces));
        Response::builder().status(201).header("location", "/x").body(BodyExt::boxed(body)).unwrap()
    })
    .await;
    let gateway = in_front_of(upstream.address, "").await;
    let first = send(gateway.address, post("k", "tea")).await;
    assert_eq!((first.status, first.body.len()), (StatusCode::CREATED, 3_000_000));
    assert_eq!(first.header("idempotency-stored"), Some("false"));
    let retry = send(gateway.address, post("k", "tea")).await;
    retry.refused(409, "result-unavailable");
    assert_eq!(retry.header("location"), Some("/x"));
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn connections_to_the_upstream_are_used_again_until_they_have_idled() {
    let upstream = RawUpstream::start(|_, mut wire| async move {
        let mut seen = 0;
        while wire.read().await > 0 {
            let requests = String::from_utf8_lossy(&wire.all()).matches("\r\n\r\n").count();
            while seen < requests {
                seen += 1;
                wire.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    let text = simple(upstream.address, "")
        .replace("name = \"up\"", "name = \"up\"\nidle_timeout_ms = 2000");
    let gateway = started(&text).await;
    let ask = async || {
        let answer = send(gateway.address, Request::get("/").body(Full::default()).unwrap()).await;
        assert_eq!(answer.text(), "ok");
    };
    for _ in 0..5 {
        ask().await;
    }
    assert_eq!(upstream.connections(), 1);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    ask().await;
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn a_client_that_takes_nothing_does_not_keep_its_answer_for_ever() {
    let sent = Arc::new(Notify::new());
    let ended = Arc::clone(&sent);
    let upstream = HyperService::start(move |_, _| {
        let ended = Arc::clone(&ended);
        async move {
            let pieces = futures_util::stream::unfold(Ends(ended), |ends| async move {
                Some((Ok(Frame::data(Bytes::from(vec![7; 65536]))), ends))
            });
            Response::new(BodyExt::boxed(StreamBody::new(pieces)))
        }
    })
    .await;
    let gateway = started(&(simple(upstream.address, "") + "[limits]\npause_ms = 200\n")).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    // Nothing is read: the upstream's body is dropped once the gateway has lost its patience.
    timeout(PATIENCE, sent.notified()).await.unwrap();
}

/// Notifies when it is dropped.
struct Ends(Arc<Notify>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn an_http2_body_is_as_long_as_it_says() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "").await;
    for (length, body) in [("5", "abc"), ("2", "abc")] {
        let stream = TcpStream::connect(gateway.address).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://a/").header("content-length", length);
        let request = request.header("idempotency-key", "k").body(()).unwrap();
        let mut sender = sender.ready().await.unwrap();
        let (answer, mut data) = sender.send_request(request, false).unwrap();
        data.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
        match timeout(PATIENCE, answer).await.unwrap() {
            Ok(answer) => assert_eq!(answer.status(), 400, "{length}"),
            Err(error) => assert!(error.is_reset(), "{length}: {error}"),
        }
    }
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn a_route_of_streams_has_no_time_limits_and_another_has_its_own() {
    let upstream = HyperService::start(async |_, request| {
        if request.uri().path() == "/never" {
            std::future::pending::<()>().await;
        }
        // Frames that come more slowly than the limits of other routes allow.
        let pieces = futures_util::stream::unfold(0, async |number| {
            tokio::time::sleep(Duration::from_millis(400)).await;
            (number < 3).then(|| (Ok(Frame::data(Bytes::from_static(b"x"))), number + 1))
        });
        let _ = request.into_body().collect().await;
        Response::new(BodyExt::boxed(StreamBody::new(pieces)))
    })
    .await;
    let text = simple(upstream.address, "path = '/unary'\nprotect = false").replace(
        "response_timeout_ms = 15000",
        "pause_timeout_ms = 200\nresponse_timeout_ms = 15000",
    );
    let routes = "[limits]\npause_ms = 200\nbody_bytes_max = 10\n\
        [[route]]\npath = '/stream'\nupstream = 'up'\nprotect = false\nlimits = { stream = true }\n\
        [[route]]\npath = '/never'\nupstream = 'up'\nprotect = false\n\
        limits = { response_timeout_ms = 100, body_bytes_max = 20 }\n";
    let gateway = started(&(text + routes)).await;
    let get = |path: &str| Request::get(path).body(Full::default()).unwrap();
    assert!(try_send(gateway.address, get("/unary")).await.is_err(), "it paused too long");
    assert_eq!(send(gateway.address, get("/stream")).await.text(), "xxx");
    send(gateway.address, get("/never")).await.refused(504, "upstream-timeout");
    let put = |path: &str, bytes| Request::put(path).body(Full::from("x".repeat(bytes))).unwrap();
    send(gateway.address, put("/unary", 11)).await.refused(413, "body-too-large");
    send(gateway.address, put("/never", 20)).await.refused(504, "upstream-timeout");
    send(gateway.address, put("/never", 21)).await.refused(413, "body-too-large");
    // A body in pieces, each of which comes after the limit of a pause.
    for (path, status) in [("/stream", 200), ("/unary", 408)] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            let _ = stream.write_all(b"x").await;
        }
        let answer = rest(&mut stream).await;
        assert_eq!(answer.statuses(), [status], "{answer:?}");
    }
}

#[tokio::test]
async fn a_client_that_has_closed_its_half_gets_its_answer() {
    let upstream = HyperService::start(|_, _| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Response::new(full("tea"))
    })
    .await;
    for more in ["", "protect = false"] {
        let gateway = in_front_of(upstream.address, more).await;
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        let request = "POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\n\
            Content-Length: 3\r\n\r\ntea";
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = rest(&mut stream).await;
        assert_eq!((answer.statuses(), answer.closed), (vec![200], true), "{answer:?}");
    }
}

const LARGE: usize = 20 << 20;

#[tokio::test]
async fn a_spool_directory_in_which_no_file_can_be_written_prevents_a_start() {
    let text = |route: &str| {
        let upstream = ([127, 0, 0, 1], 9).into();
        config(&(simple(upstream, route) + "[limits]\nspool_directory = \"/nowhere/at/all\"\n"))
    };
    let refused = Gateway::start(text("")).await.unwrap_err();
    let expected = "`spool_directory`: no file can be written in /nowhere/at/all";
    assert_eq!(refused.to_string(), expected);
    for route in ["policy = { on_large_body = \"reject\" }", "protect = false"] {
        assert!(Gateway::start(text(route)).await.is_ok(), "{route} writes none");
    }
}

#[tokio::test]
async fn idle_connections_of_one_host_leave_room_for_the_probes_of_another() {
    let upstream = HyperService::mirror().await;
    let admin = "[admin]\naddress = \"127.0.0.1:0\"\n";
    let gateway = started(&(simple(upstream.address, "") + admin)).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(gateway.admin()).await.unwrap());
    }
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
    let mut prober = socket.connect(gateway.admin()).await.unwrap();
    prober.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert_eq!(rest(&mut prober).await.statuses(), [200]);
}
