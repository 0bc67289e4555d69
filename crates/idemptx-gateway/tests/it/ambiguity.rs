//! Requests without a response from the upstream.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use idemptx_testkit::ReservedPort;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{Running, in_front_of, post, send, simple, started};
use crate::support::raw_upstream::RawUpstream;

const RELEASE: &str = "on_ambiguous = \"release\"";

/// Sends a POST under a key, and the same again.
async fn twice(gateway: &Running, key: &str) -> [crate::support::in_process::Reply; 2] {
    let first = send(gateway.address, post(key, "tea")).await;
    [first, send(gateway.address, post(key, "tea")).await]
}

#[tokio::test]
async fn what_was_never_sent_frees_the_key() {
    let nobody = ReservedPort::reserve();
    let gateway = in_front_of(nobody.address(), "").await;
    for answer in twice(&gateway, "k").await {
        answer.refused(502, "upstream-unreachable");
        assert_eq!(answer.header("idempotency-stored"), Some("false"));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    let again = send(gateway.address, post("k", "another body, for the key is free")).await;
    again.refused(502, "upstream-unreachable");
}

#[tokio::test]
async fn another_address_is_tried_where_the_first_cannot_be_reached() {
    let (nobody, there) = (ReservedPort::reserve(), HyperService::mirror().await);
    let away = nobody.address();
    let text = simple(away, "");
    let urls = format!("urls = [\"http://{away}\", \"http://{}\"]", there.address);
    let gateway = started(&text.replace(&format!("urls = [\"http://{away}\"]"), &urls)).await;
    for number in 0..6 {
        let answer = send(gateway.address, post(&format!("k{number}"), "tea")).await;
        assert_eq!(answer.status, 201);
    }
    assert_eq!(there.requests(), 6);
}

#[tokio::test]
async fn no_request_under_a_key_is_sent_twice_wherever_the_upstream_resets() {
    // However much of the request the upstream reads before it resets, it sees one request.
    let length = {
        let upstream = RawUpstream::start(|_, mut wire| async move {
            wire.request().await;
            wire.reset();
        })
        .await;
        let gateway = in_front_of(upstream.address, "").await;
        send(gateway.address, post("k", "tea")).await.refused(502, "upstream-failed");
        upstream.received().len()
    };
    assert!(length > 200, "{length}");
    let mut tried = Vec::new();
    for bytes in 0..=length {
        tried.push(tokio::spawn(async move {
            let upstream = RawUpstream::start(move |_, mut wire| async move {
                wire.read_until(bytes).await;
                wire.reset();
            })
            .await;
            let gateway = in_front_of(upstream.address, "").await;
            let [first, second] = twice(&gateway, "k").await;
            assert_eq!(first.header("idempotency-stored"), Some("false"), "{bytes}: {first:?}");
            let code = first.code();
            if code == "upstream-unreachable" {
                // It was closed before anything was written.
                return;
            }
            assert_eq!(code, "upstream-failed", "{bytes}");
            second.refused(409, "outcome-unknown");
            assert!(upstream.request_lines().len() <= 1, "{bytes}: {:?}", upstream.request_lines());
        }));
    }
    for one in tried {
        one.await.unwrap();
    }
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_over_there_costs_nobody_an_answer() {
    // Each connection answers once and is closed, without saying so.
    let upstream = RawUpstream::start(|_, mut wire| async move {
        if wire.request().await {
            wire.write("HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let gateway = in_front_of(upstream.address, "").await;
    for number in 0..20 {
        let answer = send(gateway.address, post(&format!("k{number}"), "tea")).await;
        assert_eq!(answer.status, 201, "{number}: {answer:?}");
    }
    assert_eq!(upstream.request_lines().len(), 20);
}

#[tokio::test]
async fn a_lost_answer_leaves_the_outcome_unknown_or_frees_the_key_as_configured() {
    let part = |what: &'static str| async move {
        RawUpstream::start(move |_, mut wire| async move {
            wire.request().await;
            wire.write(what).await;
        })
        .await
    };
    let lost = [
        "",
        "HTTP/1.1 2",
        "HTTP/1.1 201 Created\r\nContent-Le",
        "HTTP/1.1 201 Created\r\nContent-Length: 10\r\n\r\n",
        "HTTP/1.1 201 Created\r\nContent-Length: 10\r\n\r\n12345",
        "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
        "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n",
        "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n12345\r\n0\r\n\r\n",
        "HTTP/1.1 201 Created\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n123456",
        "HTTP/1.1 201 Created\r\nContent-Length: -5\r\n\r\n12345",
        "HTTP/1.1 201 Created\r\nContent Length: 5\r\n\r\n12345",
        "HTTP/1.1 201 Created\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 20x Created\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "\0\0\0\0",
        "garbage without an end",
    ];
    for what in lost {
        let upstream = part(what).await;
        let gateway = in_front_of(upstream.address, "").await;
        let [first, second] = twice(&gateway, "k").await;
        first.refused(502, "upstream-failed");
        assert_eq!(first.header("idempotency-stored"), Some("false"), "{what}");
        second.refused(409, "outcome-unknown");
        assert_eq!(upstream.request_lines().len(), 1, "{what}");

        let upstream = part(what).await;
        let gateway = in_front_of(upstream.address, RELEASE).await;
        for answer in twice(&gateway, "k").await {
            answer.refused(502, "upstream-failed");
        }
        assert_eq!(upstream.request_lines().len(), 2, "{what}");
    }
}

#[tokio::test]
async fn an_upstream_that_hangs_is_given_up_and_its_outcome_is_unknown() {
    let begun = "HTTP/1.1 201 Created\r\nContent-Length: 10\r\n\r\n12345";
    for (what, limit) in [("", "response_timeout_ms = 200"), (begun, "pause_timeout_ms = 200")] {
        let upstream = RawUpstream::start(move |_, mut wire| async move {
            wire.request().await;
            wire.write(what).await;
            while wire.read().await > 0 {}
        })
        .await;
        let text = simple(upstream.address, "").replace("response_timeout_ms = 15000", limit);
        let gateway = started(&text).await;
        let [first, second] = twice(&gateway, "k").await;
        match what {
            "" => first.refused(504, "upstream-timeout"),
            _ => first.refused(502, "upstream-failed"),
        }
        assert_eq!(first.header("idempotency-stored"), Some("false"));
        second.refused(409, "outcome-unknown");
        assert_eq!(upstream.request_lines().len(), 1);
    }
}

#[tokio::test]
async fn a_slow_upload_does_not_count_as_a_late_answer() {
    let upstream = HyperService::mirror().await;
    let text = simple(upstream.address, "").replace("_ms = 15000", "_ms = 1000");
    let gateway = started(&text).await;
    let upload = async |length: Option<&str>| {
        let (mut pieces, body) = http_body_util::channel::Channel::<Bytes>::new(1);
        let stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        let io = TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::put("/").header("host", "a").body(body).unwrap();
        if let Some(length) = length {
            request.headers_mut().insert("content-length", length.parse().unwrap());
        }
        let answer = tokio::spawn(async move { sender.send_request(request).await });
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            pieces.send_data(Bytes::from_static(b"x")).await.unwrap();
        }
        drop(pieces);
        assert_eq!(answer.await.unwrap().unwrap().status(), 201, "{length:?}");
    };
    // However little it declares to be.
    tokio::join!(upload(None), upload(Some("5")));
}

#[tokio::test]
async fn what_the_upstream_says_of_its_outcome_is_obeyed() {
    let upstream = HyperService::start(|number, request| async move {
        let word = request.uri().query().unwrap_or_default().to_owned();
        let response = Response::builder().status(if word == "store" { 503 } else { 200 });
        response.header("idempotency-outcome", word).body(full(number.to_string())).unwrap()
    })
    .await;
    let gateway = in_front_of(upstream.address, "").await;
    let ask = async |word: &str| {
        let request = Request::post(format!("/?{word}")).header("idempotency-key", word);
        let request = request.header("idempotency-outcome", "store");
        send(gateway.address, request.body(Full::default()).unwrap()).await
    };
    assert_eq!(ask("store").await.text(), "1");
    assert!(ask("store").await.is_replay());
    assert_eq!(ask("release").await.text(), "2");
    assert_eq!(ask("release").await.text(), "3");
    assert_eq!(ask("unknown").await.header("idempotency-stored"), Some("false"));
    ask("unknown").await.refused(409, "outcome-unknown");
}

#[tokio::test]
async fn an_upstream_without_room_is_busy_and_the_key_is_free() {
    let (gate, begun) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (opened, begins) = (Arc::clone(&gate), Arc::clone(&begun));
    let upstream = HyperService::start(move |_, _| {
        let (opened, begins) = (Arc::clone(&opened), Arc::clone(&begins));
        async move {
            if begins.fetch_add(1, Ordering::SeqCst) == 0 {
                opened.notified().await;
            }
            Response::new(full("done"))
        }
    })
    .await;
    let text = simple(upstream.address, "");
    let text =
        text.replace("_ms = 15000", "_ms = 15000\nconnections_max = 1\nconnect_timeout_ms = 1000");
    let gateway = started(&text).await;
    let first = tokio::spawn(send(gateway.address, post("first", "tea")));
    while begun.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    send(gateway.address, post("k", "tea")).await.refused(503, "upstream-busy");
    gate.notify_one();
    assert_eq!(first.await.unwrap().text(), "done");
    assert_eq!(send(gateway.address, post("k", "tea")).await.text(), "done");
}

#[tokio::test]
async fn a_stream_that_an_http2_upstream_refuses_was_never_looked_at() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            tokio::spawn(async move {
                let mut count = 0;
                while let Some(Ok((_, mut answer))) = connection.accept().await {
                    count += 1;
                    let reason = match count {
                        1 => h2::Reason::REFUSED_STREAM,
                        _ => h2::Reason::INTERNAL_ERROR,
                    };
                    answer.send_reset(reason);
                }
            });
        }
    });
    let text = simple(address, "").replace("name = \"up\"", "name = \"up\"\nhttp2 = true");
    let gateway = started(&text).await;
    let [first, second] = twice(&gateway, "k").await;
    first.refused(502, "upstream-unreachable");
    // The key was free, and the next stream is reset for another reason.
    second.refused(502, "upstream-failed");
    send(gateway.address, post("k", "tea")).await.refused(409, "outcome-unknown");
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_may_be_half_of_one_and_is_never_replayed() {
    let upstream = RawUpstream::start(async |_, mut connection| {
        connection.request().await;
        connection.write("HTTP/1.1 201 Created\r\nLocation: /orders/1\r\n\r\nhalf of ").await;
    })
    .await;
    let gateway = in_front_of(upstream.address, "").await;
    let [first, second] = twice(&gateway, "k").await;
    assert_eq!((first.status.as_u16(), first.text()), (201, "half of "));
    assert_eq!(first.header("idempotency-stored"), Some("false"));
    second.refused(409, "result-unavailable");
    assert_eq!(second.header("location"), Some("/orders/1"));
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn the_answer_for_one_that_broke_off_says_what_a_repetition_gets() {
    let rows = [
        ("", RELEASE, None),
        ("release", RELEASE, None),
        ("unknown", RELEASE, Some("outcome-unknown")),
        ("what?", RELEASE, Some("outcome-unknown")),
        ("store", RELEASE, Some("result-unavailable")),
        ("", "", Some("outcome-unknown")),
        ("release", "", Some("outcome-unknown")),
        ("store", "", Some("result-unavailable")),
    ];
    for (said, route, becomes) in rows {
        let upstream = RawUpstream::start(move |_, mut connection| async move {
            connection.request().await;
            let field = match said {
                "" => String::new(),
                said => format!("Idempotency-Outcome: {said}\r\n"),
            };
            let head = format!("HTTP/1.1 201 Created\r\n{field}Content-Length: 99\r\n\r\nhalf of ");
            connection.write(&head).await;
        })
        .await;
        let gateway = in_front_of(upstream.address, route).await;
        let [first, second] = twice(&gateway, "k").await;
        first.refused(502, "upstream-failed");
        assert_eq!(first.header("idempotency-stored"), Some("false"));
        let problem: serde_json::Value = serde_json::from_str(first.text()).unwrap();
        assert_eq!(problem["retryable"], becomes.is_none(), "{said} {route}");
        match becomes {
            Some(code) => second.refused(409, code),
            None => second.refused(502, "upstream-failed"),
        }
        assert_eq!(upstream.connections(), 1 + usize::from(becomes.is_none()), "{said} {route}");
    }
}

#[tokio::test]
async fn a_request_that_waits_for_a_stream_was_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (executed, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (counted, opens) = (Arc::clone(&executed), Arc::clone(&gate));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (counted, opens) = (Arc::clone(&counted), Arc::clone(&opens));
            let service = service_fn(move |_| {
                counted.fetch_add(1, Ordering::SeqCst);
                let opens = Arc::clone(&opens);
                async move {
                    opens.acquire().await.unwrap().forget();
                    Ok::<_, Infallible>(Response::new(full("done")))
                }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(1)
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(server);
        }
    });
    let text = simple(address, "policy = { scope = \"shared\" }")
        .replace("name = \"up\"", "name = \"up\"\nhttp2 = true\nconnect_timeout_ms = 2000");
    let gateway = started(&text).await;
    let ask = |key: usize| send(gateway.address, post(&format!("k{key}"), "tea"));
    let mut asked: JoinSet<_> = (0..8).map(ask).collect();
    // One has the stream; the others are refused meanwhile.
    for _ in 0..7 {
        asked.join_next().await.unwrap().unwrap().refused(503, "upstream-busy");
    }
    gate.add_permits(8);
    assert_eq!(asked.join_next().await.unwrap().unwrap().status, 200);
    for key in 0..8 {
        assert_eq!(ask(key).await.status, 200);
    }
    assert_eq!(executed.load(Ordering::SeqCst), 8);
}
