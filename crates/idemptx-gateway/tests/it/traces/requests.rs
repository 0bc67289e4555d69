//! The spans of a request.

use std::sync::Arc;

use http::{Request, Response};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::collector::{Collector, Shown, names, only};
use super::{SHARED, metrics, traced};
use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{post, send, started};
use crate::support::raw_upstream::RawUpstream;

#[tokio::test]
async fn a_new_request_is_a_span_with_one_for_each_step_and_one_for_the_upstream() {
    let (collector, upstream) = (Collector::start().await, HyperService::mirror().await);
    let running = traced(upstream.address, &collector, SHARED).await;
    let request = Request::post("/orders?q=secret-query")
        .header("idempotency-key", "secret-key")
        .header("authorization", "Bearer secret-token")
        .body(Full::from("secret-body"));
    assert_eq!(send(running.address, request.unwrap()).await.status, 201);
    running.gateway.drain().await;
    let spans = collector.spans();
    assert_eq!(names(&spans), ["POST /**", "claim", "POST", "settle"]);
    let [server, claim, client, settle] = &spans[..] else { panic!() };
    for child in [claim, client, settle] {
        assert_eq!((child.trace(), child.parent()), (server.trace(), server.id()));
        assert!(child.end_time_unix_nano <= server.end_time_unix_nano);
    }
    assert_eq!((server.kind, client.kind, server.parent()), (2, 3, String::new()));
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/**"),
        ("idemptx.route", "/**"),
        ("url.path", "/orders"),
        ("url.scheme", "http"),
        ("client.address", "127.0.0.1"),
        ("network.protocol.version", "1.1"),
        ("http.response.status_code", "201"),
        ("idempotency.outcome", "executed"),
        ("idempotency.attempt", "1"),
    ] {
        assert_eq!(server.attribute(name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(server.attribute("idempotency.key.hash").unwrap().len(), 8);
    assert_eq!(client.attribute("url.full"), Some(format!("http://{}/orders", upstream.address)));
    assert_eq!(client.attribute("server.port"), Some(upstream.address.port().to_string()));
    assert_eq!(client.attribute("idemptx.upstream").as_deref(), Some("up"));
    assert_eq!(client.attribute("http.response.status_code").as_deref(), Some("201"));
    for step in [claim, settle] {
        assert_eq!(step.attribute("idempotency.store.result").as_deref(), Some("ok"));
    }
    assert!(!spans.iter().any(|span| span.is_error() || span.attribute("error.type").is_some()));
    assert!(!format!("{spans:?}").contains("secret"), "{spans:?}");
}

#[tokio::test]
async fn a_replay_and_a_refusal_have_no_span_for_an_upstream() {
    let (collector, upstream) = (Collector::start().await, HyperService::mirror().await);
    let running = traced(upstream.address, &collector, SHARED).await;
    send(running.address, post("k", "tea")).await;
    assert!(send(running.address, post("k", "tea")).await.is_replay());
    send(running.address, post("k", "coffee")).await.refused(422, "key-reused");
    running.gateway.drain().await;
    let spans = collector.spans();
    let server: Vec<_> = spans.iter().filter(|span| span.name == "POST /**").collect();
    let [executed, replayed, refused] = server[..] else { panic!("{:?}", names(&spans)) };
    assert_eq!(replayed.attribute("idempotency.outcome").as_deref(), Some("replayed"));
    assert_eq!(refused.attribute("idempotency.outcome").as_deref(), Some("refused"));
    assert_eq!(refused.attribute("idempotency.reason").as_deref(), Some("key-reused"));
    assert!(!refused.is_error(), "that is the client's fault");
    let hash = executed.attribute("idempotency.key.hash");
    assert!(hash.is_some() && hash == replayed.attribute("idempotency.key.hash"));
    // The result was in this process; another request under the key has to ask the store.
    for (span, claims) in [(replayed, 0), (refused, 1)] {
        let children = spans.iter().filter(|it| it.parent() == span.id());
        let children: Vec<_> = children.collect();
        assert_eq!(children.len(), claims, "{children:?}");
        for child in children {
            let result = child.attribute("idempotency.store.result");
            assert_eq!((&*child.name, result.as_deref()), ("claim", Some("settled")));
        }
    }
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_an_error_of_both_spans() {
    let collector = Collector::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let running = traced(listener.local_addr().unwrap(), &collector, SHARED).await;
    let breaking = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_u8().await.unwrap();
    });
    send(running.address, post("k", "tea")).await.refused(502, "upstream-failed");
    breaking.await.unwrap();
    running.gateway.drain().await;
    let spans = collector.spans();
    let (server, client) = (only(&spans, "POST /**"), only(&spans, "POST"));
    assert!(server.is_error() && client.is_error());
    assert_eq!(server.attribute("error.type").as_deref(), Some("502"));
    assert_eq!(server.attribute("idempotency.outcome").as_deref(), Some("unstored"));
    assert_eq!(client.attribute("error.type").as_deref(), Some("broken"));
}

#[tokio::test]
async fn each_address_that_is_tried_has_a_span() {
    let (collector, upstream) = (Collector::start().await, HyperService::mirror().await);
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[upstream]]\nname = \"up\"\n\
         urls = [\"http://{nobody}\", \"http://{}\"]\n\
         [[route]]\nname = \"orders\"\npath = \"/orders/**\"\nupstream = \"up\"\n{SHARED}\n{}",
        upstream.address,
        collector.table()
    );
    let running = started(&text).await;
    let reply = send(running.address, post("k", "tea")).await;
    assert_eq!(reply.status, 201);
    running.gateway.drain().await;
    let spans = collector.spans();
    let server = only(&spans, "POST /orders/**");
    assert_eq!(server.attribute("idemptx.route").as_deref(), Some("orders"));
    let clients: Vec<_> = spans.iter().filter(|span| span.name == "POST").collect();
    let [unsent, sent] = clients[..] else { panic!("{:?}", names(&spans)) };
    assert_eq!((unsent.parent(), sent.parent()), (server.id(), server.id()));
    assert_eq!(unsent.attribute("error.type").as_deref(), Some("unsent"));
    assert_eq!(unsent.attribute("server.port"), Some(nobody.port().to_string()));
    assert_eq!(sent.attribute("http.request.resend_count").as_deref(), Some("1"));
    assert_eq!(sent.attribute("http.response.status_code").as_deref(), Some("201"));
    let named = format!("traceparent: 00-{}-{}-01\n", sent.trace(), sent.id());
    assert!(reply.text().contains(&named), "{} in {}", named, reply.text());
}

#[tokio::test]
async fn what_is_done_for_a_client_that_has_left_stays_in_its_trace() {
    let (reached, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (collector, gates) = (Collector::start().await, (Arc::clone(&reached), go_on.clone()));
    let upstream = HyperService::start(move |_, _| {
        let (reached, go_on) = gates.clone();
        async move {
            reached.notify_one();
            go_on.notified().await;
            Response::new(full("done"))
        }
    })
    .await;
    let more = format!("{SHARED}\n[admin]\naddress = \"127.0.0.1:0\"");
    let running = traced(upstream.address, &collector, &more).await;
    let (address, admin) = (running.address, running.admin());
    let mut client = TcpStream::connect(address).await.unwrap();
    let request = "POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\n\
        Content-Length: 3\r\n\r\ntea";
    client.write_all(request.as_bytes()).await.unwrap();
    reached.notified().await;
    // One that only says that it sends nothing more may still read.
    client.set_zero_linger().unwrap();
    drop(client);
    while !metrics(admin).await.contains("idemptx_connections 0\n") {}
    go_on.notify_one();
    running.gateway.drain().await;
    let spans = collector.spans();
    let (server, settle) = (only(&spans, "POST /**"), only(&spans, "settle"));
    assert_eq!(server.attribute("error.type").as_deref(), Some("client-gone"));
    assert_eq!((settle.trace(), settle.parent()), (server.trace(), server.id()));
    assert!(settle.start_time_unix_nano >= server.end_time_unix_nano);
}

#[tokio::test]
async fn a_websocket_is_traced_to_the_head_of_its_answer() {
    let collector = Collector::start().await;
    let upstream = RawUpstream::start(|_, mut wire| async move {
        wire.request().await;
        let agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                      Upgrade: websocket\r\n\r\nhello";
        wire.write(agreed).await;
        while wire.read().await > 0 {}
    })
    .await;
    let running = traced(upstream.address, &collector, SHARED).await;
    let mut client = TcpStream::connect(running.address).await.unwrap();
    let head = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut agreed = Vec::new();
    while !agreed.ends_with(b"hello") {
        assert_ne!(client.read_buf(&mut agreed).await.unwrap(), 0, "{agreed:?}");
    }
    // Both sides still talk, which may be for hours; a drain waits for their end.
    let hang_up = async { drop(client) };
    tokio::join!(running.gateway.drain(), hang_up);
    let spans = collector.spans();
    assert_eq!(names(&spans), ["GET /**", "GET"]);
    let [server, sent] = &spans[..] else { panic!() };
    assert_eq!((sent.trace(), sent.parent()), (server.trace(), server.id()));
    for span in [server, sent] {
        assert_eq!(span.attribute("http.response.status_code").as_deref(), Some("101"));
        assert!(!span.is_error() && span.attribute("error.type").is_none(), "{span:?}");
    }
    let told = String::from_utf8_lossy(&upstream.received()).into_owned();
    assert!(told.contains(&format!("traceparent: 00-{}-{}-01", sent.trace(), sent.id())), "{told}");
}

#[tokio::test]
async fn a_request_for_no_route_is_traced_without_one() {
    let (collector, upstream) = (Collector::start().await, HyperService::mirror().await);
    let running = traced(upstream.address, &collector, "path = \"/orders\"").await;
    let request = Request::builder().method("BREW").uri("/pot").body(Full::default()).unwrap();
    send(running.address, request).await.refused(404, "no-route");
    running.gateway.drain().await;
    let spans = collector.spans();
    assert_eq!(names(&spans), ["HTTP"]);
    assert_eq!(spans[0].attribute("http.request.method").as_deref(), Some("_OTHER"));
    assert_eq!(spans[0].attribute("http.response.status_code").as_deref(), Some("404"));
    assert_eq!(spans[0].attribute("http.route"), None);
}
