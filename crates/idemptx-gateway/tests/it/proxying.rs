//! Forwarding of requests and responses.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{
    PATIENCE, Reply, in_front_of, post, send, send_http2, simple, started,
};
use crate::support::raw_upstream::{RawUpstream, rest, send_raw};

#[tokio::test]
async fn a_retry_gets_the_first_answer_and_the_upstream_sees_one_request() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "").await;
    let first = send(gateway.address, post("k", "tea")).await;
    assert_eq!(first.status, 201);
    assert!(!first.is_replay());
    let again = send(gateway.address, post("k", "tea")).await;
    assert!(again.is_replay());
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    let over_http2 = send_http2(gateway.address, post("k", "tea")).await;
    assert!(over_http2.is_replay() && over_http2.body == first.body);
    send(gateway.address, post("k", "cake")).await.refused(422, "key-reused");
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn the_upstream_is_told_who_asked_and_nothing_of_the_connection() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "").await;
    let request = Request::get("/a%20b/c?d=%2F")
        .header("host", "shop.example:8080")
        .header("connection", "x-hop, keep-alive")
        .header("x-hop", "1")
        .header("keep-alive", "timeout=5")
        .header("proxy-authorization", "Basic abc")
        .header("te", "gzip, trailers")
        .header("upgrade", "h2c")
        .header("http2-settings", "AAMAAABkAAQCAAAAAAIAAAAA")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-forwarded-proto", "https")
        .header("forwarded", "for=6.6.6.6")
        .header("x-real-ip", "6.6.6.6")
        .header("idempotency-attempt", "7")
        .header("idempotency-outcome", "store")
        .header("x-request-id", "abc")
        .body(Full::default())
        .unwrap();
    let seen = send(gateway.address, request).await;
    let lines: Vec<&str> = seen.text().lines().collect();
    let expected = [
        "1 GET /a%20b/c?d=%2F",
        "host: shop.example:8080",
        "te: trailers",
        "x-request-id: abc",
        "x-forwarded-for: 127.0.0.1",
        "forwarded: for=127.0.0.1;proto=http;host=\"shop.example:8080\"",
        "x-forwarded-proto: http",
        "x-forwarded-host: shop.example:8080",
        "via: 1.1 idemptx",
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn what_something_trusted_has_forwarded_is_added_to() {
    let upstream = HyperService::mirror().await;
    let text = simple(upstream.address, "")
        .replace("[[upstream]]", "forwarded = \"append\"\n[[upstream]]");
    let gateway = started(&text).await;
    let request = Request::get("/").header("x-forwarded-for", "6.6.6.6");
    let request = request.header("x-forwarded-proto", "https").header("forwarded", "for=6.6.6.6");
    let seen = send(gateway.address, request.body(Full::default()).unwrap()).await;
    for line in ["x-forwarded-for: 6.6.6.6, 127.0.0.1", "x-forwarded-proto: https"] {
        assert!(seen.text().lines().any(|it| it == line), "{line}: {}", seen.text());
    }
    assert!(seen.text().contains("forwarded: for=6.6.6.6, for=127.0.0.1;"), "{}", seen.text());
}

#[tokio::test]
async fn the_upstream_may_be_sent_its_own_host() {
    let upstream = HyperService::mirror().await;
    let text =
        simple(upstream.address, "").replace("name = \"up\"", "name = \"up\"\nhost = \"upstream\"");
    let gateway = started(&text).await;
    let request = Request::get("/").header("host", "shop.example").body(Full::default()).unwrap();
    let seen = send(gateway.address, request).await;
    assert!(seen.text().contains(&format!("host: {}\n", upstream.address)), "{}", seen.text());
    assert!(seen.text().contains("x-forwarded-host: shop.example\n"), "{}", seen.text());
}

#[tokio::test]
async fn an_upstream_may_speak_http2() {
    let upstream = HyperService::mirror().await;
    let text = simple(upstream.address, "").replace("name = \"up\"", "name = \"up\"\nhttp2 = true");
    let gateway = started(&text).await;
    for number in 1..=3 {
        let seen = send(gateway.address, post(&format!("k{number}"), "tea")).await;
        assert!(seen.text().contains(&format!("{number} POST http://{}/orders", gateway.address)));
        assert!(seen.text().ends_with("tea"));
    }
    assert!(send(gateway.address, post("k1", "tea")).await.is_replay());
}

#[tokio::test]
async fn what_concerns_the_upstreams_connection_stays_with_it() {
    let upstream = HyperService::start(|_, _| async {
        Response::builder()
            .header("connection", "x-hop")
            .header("x-hop", "1")
            .header("keep-alive", "timeout=5")
            .header("upgrade", "h2c")
            .header("idempotency-outcome", "store")
            .header("x-multi", "1")
            .header("x-multi", "2")
            .body(full("done"))
            .unwrap()
    })
    .await;
    for more in ["", "protect = false"] {
        let gateway = in_front_of(upstream.address, more).await;
        let answer = send(gateway.address, post("k", "tea")).await;
        let mut names: Vec<&str> = answer.headers.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "date", "x-multi"]);
        assert_eq!(answer.headers.get_all("x-multi").iter().count(), 2);
    }
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it_before_it_sends() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "").await;
    for key in ["Idempotency-Key: k\r\n", ""] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        let head = format!(
            "POST /orders HTTP/1.1\r\nHost: a\r\n{key}Content-Length: 3\r\n\
             Expect: 100-continue\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut piece = [0; 64];
        let bytes = timeout(PATIENCE, stream.read(&mut piece)).await.unwrap().unwrap();
        assert!(piece[..bytes].starts_with(b"HTTP/1.1 100 Continue\r\n"));
        stream.write_all(b"tea").await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.text.contains("201 Created") && answer.text.ends_with("tea"), "{answer:?}");
        assert!(!answer.text.contains("expect:"), "{answer:?}");
    }
    let other = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\nContent-Length: 1\r\n\r\n";
    assert_eq!(send_raw(gateway.address, other).await.statuses(), [417]);
}

#[tokio::test]
async fn what_is_not_under_a_key_streams_in_both_directions() {
    let upstream = HyperService::start(|_, request| async move {
        let pieces = request.into_body().map_err(std::io::Error::other);
        Response::new(pieces.boxed())
    })
    .await;
    let gateway = in_front_of(upstream.address, "").await;
    let (mut pieces, body) = http_body_util::channel::Channel::<Bytes>::new(1);
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("/").header("host", "a").body(body).unwrap();
    pieces.send_data(Bytes::from_static(b"first")).await.unwrap();
    let answer = timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap();
    let mut body = answer.into_body();
    let mut next = async || {
        let frame = timeout(PATIENCE, body.frame()).await.unwrap();
        frame.map(|frame| frame.unwrap().into_data().unwrap())
    };
    assert_eq!(next().await.unwrap(), "first");
    pieces.send_data(Bytes::from_static(b"second")).await.unwrap();
    assert_eq!(next().await.unwrap(), "second");
    drop(pieces);
    assert!(next().await.is_none());
}

#[tokio::test]
async fn an_event_stream_under_a_key_flows() {
    let more = Arc::new(Notify::new());
    let later = Arc::clone(&more);
    let upstream = HyperService::start(move |_, _| {
        let later = Arc::clone(&later);
        async move {
            let (mut pieces, body) =
                http_body_util::channel::Channel::<Bytes, std::io::Error>::new(1);
            tokio::spawn(async move {
                let _ = pieces.send_data(Bytes::from_static(b"data: 1\n\n")).await;
                later.notified().await;
                let _ = pieces.send_data(Bytes::from_static(b"data: 2\n\n")).await;
            });
            let response = Response::builder().header("content-type", "text/event-stream");
            response.body(body.boxed()).unwrap()
        }
    })
    .await;
    let gateway = in_front_of(upstream.address, "").await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = "POST /e HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let first = rest(&mut stream).await;
    assert!(first.text.contains("data: 1") && !first.text.contains("data: 2"), "{first:?}");
    more.notify_one();
    assert!(rest(&mut stream).await.text.contains("data: 2"));
    send(
        gateway.address,
        Request::post("/e")
            .header("host", "a")
            .header("idempotency-key", "k")
            .body(Full::default())
            .unwrap(),
    )
    .await
    .refused(409, "result-unavailable");
}

#[tokio::test]
async fn a_websocket_is_joined_once_the_upstream_agrees() {
    let upstream = RawUpstream::start(|_, mut wire| async move {
        wire.request().await;
        let early = wire.all();
        assert!(!String::from_utf8_lossy(&early).contains("too early"));
        wire.write("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello").await;
        let before = wire.all().len();
        while wire.read().await > 0 {
            let echo = wire.all()[before..].to_vec();
            if echo.ends_with(b"!") {
                wire.write(echo).await;
            }
        }
    })
    .await;
    let gateway = in_front_of(upstream.address, "").await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Key: x\r\n\r\n";
    // What comes behind the request waits until the upstream has agreed.
    stream.write_all(format!("{head}too early").as_bytes()).await.unwrap();
    let agreed = rest(&mut stream).await;
    assert_eq!(agreed.statuses(), [101]);
    assert!(agreed.text.to_lowercase().contains("upgrade: websocket"), "{agreed:?}");
    assert!(agreed.text.ends_with("hello"), "{agreed:?}");
    stream.write_all(b" ping!").await.unwrap();
    assert_eq!(rest(&mut stream).await.text, "too early ping!");
    let request = String::from_utf8_lossy(&upstream.received()).to_lowercase();
    assert!(
        request.contains("connection: upgrade\r\n") && request.contains("upgrade: websocket\r\n")
    );
}

#[tokio::test]
async fn an_upgrade_that_the_upstream_declines_is_an_ordinary_answer() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "").await;
    let head = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let answer = send_raw(gateway.address, head.as_bytes()).await;
    assert_eq!(answer.statuses(), [201]);
}

#[tokio::test]
async fn a_request_under_a_key_does_not_change_protocols() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "").await;
    let request = "POST /orders HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Idempotency-Key: k\r\nContent-Length: 0\r\n\r\n";
    for replays in [0, 1] {
        let answer = send_raw(gateway.address, request.as_bytes()).await;
        assert_eq!(answer.statuses(), [201]);
        assert!(!answer.text.contains("upgrade:"), "{answer:?}");
        assert_eq!(answer.text.matches("idempotent-replayed").count(), replays);
    }
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn a_grpc_call_is_protected_like_any_request() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "").await;
    for is_replay in [false, true] {
        let request = Request::post("/a.B/C").header("content-type", "application/grpc+proto");
        let request = request.header("idempotency-key", "k").header("te", "trailers");
        let answer = send_http2(gateway.address, request.body(Full::default()).unwrap()).await;
        assert!(answer.text().starts_with("1 POST /a.B/C"), "{}", answer.text());
        assert!(answer.text().contains("te: trailers"), "{}", answer.text());
        assert_eq!(answer.is_replay(), is_replay);
    }
    let reused = Request::post("/a.B/Other").header("content-type", "application/grpc+proto");
    let reused = reused.header("idempotency-key", "k").body(Full::default()).unwrap();
    let refused = send_http2(gateway.address, reused).await;
    assert_eq!((refused.status.as_u16(), refused.text()), (200, ""));
    assert_eq!(refused.header("grpc-status"), Some("9"));
    assert_eq!(refused.header("content-type"), Some("application/grpc+proto"));
}

#[tokio::test]
async fn a_key_on_a_route_without_protection_is_forwarded_and_reported() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "protect = false\nreport_ignored = true").await;
    for _ in 0..2 {
        let answer = send(gateway.address, post("k", "tea")).await;
        assert_eq!(answer.header("idempotency-status"), Some("ignored"));
        assert!(answer.text().contains("idempotency-key: k"));
    }
    assert_eq!(upstream.requests(), 2);
    let gateway = in_front_of(upstream.address, "protect = false").await;
    let answer = send(gateway.address, post("k", "tea")).await;
    assert_eq!(answer.header("idempotency-status"), None);
}

#[tokio::test]
async fn routes_are_chosen_by_host_method_and_path() {
    let (one, other) = (HyperService::mirror().await, HyperService::mirror().await);
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"one\"\nurls = [\"http://{}\"]\n\
         [[upstream]]\nname = \"other\"\nurls = [\"http://{}\"]\n\
         [[route]]\nhost = \"a.example\"\npath = \"/orders/*/refund\"\nmethods = [\"POST\"]\n\
         upstream = \"one\"\n[route.policy]\nrequired = true\n\
         [[route]]\nhost = \"a.example\"\npath = \"/orders/**\"\nupstream = \"other\"\nprotect = false\n",
        one.address, other.address
    );
    let gateway = started(&text).await;
    let ask = async |method: &str, host: &str, path: &str| {
        let request = Request::builder().method(method).uri(path).header("host", host);
        send(gateway.address, request.body(Full::default()).unwrap()).await
    };
    ask("POST", "a.example", "/orders/1/refund").await.refused(400, "missing-key");
    assert_eq!(ask("GET", "A.EXAMPLE:80", "/orders/1/refund").await.status, 201);
    assert_eq!(ask("POST", "a.example", "/orders/1").await.status, 201);
    ask("POST", "b.example", "/orders/1/refund").await.refused(404, "no-route");
    ask("POST", "a.example", "/order").await.refused(404, "no-route");
    assert_eq!((one.requests(), other.requests()), (0, 2));
}

#[tokio::test]
async fn requests_of_one_connection_may_name_several_hosts() {
    let upstream = HyperService::mirror().await;
    let more = "protect = false\nhost = \"a.example\"";
    let gateway = in_front_of(upstream.address, more).await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for (host, status) in [
        ("a.example", 201),
        ("a.example", 201),
        ("A.example:80", 201),
        ("b.example", 404),
        ("b.example", 404),
        ("a..example", 400),
        ("a..example", 400),
        ("a.example", 201),
    ] {
        sender.ready().await.unwrap();
        let request = Request::get("/").header("host", host).body(Full::<Bytes>::default());
        let response = sender.send_request(request.unwrap());
        let reply = Reply::of(timeout(PATIENCE, response).await.unwrap().unwrap()).await;
        assert_eq!(reply.status, status, "{host}");
        let forwarded = format!("forwarded: for=127.0.0.1;proto=http;host=\"{host}\"\n");
        assert_eq!(reply.text().contains(&forwarded), status == 201, "{}", reply.text());
    }
}

#[tokio::test]
async fn the_upstream_is_told_of_its_execution_if_it_wants_to_be() {
    let upstream = HyperService::mirror().await;
    let more = "forward = [\"attempt\", \"fence\", \"derived\"]";
    let gateway = in_front_of(upstream.address, more).await;
    let mut request = post("k", "tea");
    request.headers_mut().insert("idempotency-fence", "1".parse().unwrap());
    request.headers_mut().insert("accept-encoding", "gzip".parse().unwrap());
    let answer = send(gateway.address, request).await;
    assert!(answer.text().contains("idempotency-attempt: 1\n"), "{}", answer.text());
    assert!(answer.text().contains("idempotency-derived: "), "{}", answer.text());
    assert_eq!(answer.text().matches("idempotency-fence: ").count(), 1);
    assert!(!answer.text().contains("idempotency-fence: 1\n"), "{}", answer.text());
    assert!(!answer.text().contains("accept-encoding"), "{}", answer.text());
}

#[tokio::test]
async fn the_handler_outlives_the_client() {
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, goes_on) = (Arc::clone(&begun), Arc::clone(&go_on));
    let upstream = HyperService::start(move |number, _| {
        let (begins, goes_on) = (Arc::clone(&begins), Arc::clone(&goes_on));
        async move {
            begins.notify_one();
            goes_on.notified().await;
            Response::new(full(format!("run {number}")))
        }
    })
    .await;
    let gateway = in_front_of(upstream.address, "[route.policy]\nwait_ms = 20000").await;
    let leaving = tokio::spawn(send(gateway.address, post("k", "tea")));
    timeout(PATIENCE, begun.notified()).await.unwrap();
    leaving.abort();
    let again = tokio::spawn(send(gateway.address, post("k", "tea")));
    tokio::task::yield_now().await;
    go_on.notify_one();
    let again = again.await.unwrap();
    assert!(again.is_replay() && again.text() == "run 1", "{again:?}");
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn a_shadow_refuses_and_replays_nothing() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "[route.policy]\nmode = \"shadow\"").await;
    assert_eq!(send(gateway.address, post("k", "tea")).await.status, 201);
    let again = send(gateway.address, post("k", "tea")).await;
    assert_eq!(again.header("idempotency-status"), Some("would-replay"));
    assert!(again.text().starts_with("2 POST"));
    let other = send(gateway.address, post("k", "cake")).await;
    assert_eq!(other.header("idempotency-status"), Some("would-refuse-key-reused"));
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let upstream = HyperService::start(|_, request| async move {
        let response = Response::builder().header("content-length", "5");
        match request.method().as_str() {
            "HEAD" => response.body(full("")).unwrap(),
            _ => Response::builder().status(204).body(full("")).unwrap(),
        }
    })
    .await;
    let gateway = in_front_of(upstream.address, "").await;
    let head = send_raw(
        gateway.address,
        b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    )
    .await;
    assert_eq!(head.statuses(), [200, 204]);
    assert!(head.text.contains("content-length: 5\r\n"), "{head:?}");
    for replays in [0, 1] {
        let answer = send(gateway.address, post("k", "tea")).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));
        assert_eq!(usize::from(answer.is_replay()), replays);
    }
}

#[tokio::test]
async fn http2_streams_are_answered_side_by_side() {
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    let upstream = HyperService::start(move |_, request| {
        let opened = Arc::clone(&opened);
        async move {
            if request.uri().path() == "/slow" {
                opened.notified().await;
            }
            Response::new(full(request.uri().path().to_owned()))
        }
    })
    .await;
    let gateway = in_front_of(upstream.address, "").await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let ask = |path: &str| {
        let mut sender = sender.clone();
        let uri = format!("http://a{path}");
        async move {
            let request = Request::get(uri).body(Full::<Bytes>::default()).unwrap();
            Reply::of(sender.send_request(request).await.unwrap()).await
        }
    };
    let slow = tokio::spawn(ask("/slow"));
    assert_eq!(ask("/quick").await.text(), "/quick");
    gate.notify_one();
    assert_eq!(slow.await.unwrap().text(), "/slow");
}

#[tokio::test]
async fn a_cookie_that_http2_has_cut_is_put_together() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "").await;
    let request = Request::get("/").header("cookie", "a=1").header("cookie", "b=2");
    let seen = send_http2(gateway.address, request.body(Full::default()).unwrap()).await;
    assert!(seen.text().contains("cookie: a=1; b=2\n"), "{}", seen.text());
}
