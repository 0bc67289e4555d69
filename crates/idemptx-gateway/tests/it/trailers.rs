//! Trailers of requests and responses.

use http::{HeaderMap, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

use crate::support::hyper_service::HyperService;
use crate::support::in_process::in_front_of;
use crate::support::raw_upstream::send_raw;

#[tokio::test]
async fn trailers_go_both_ways() {
    let upstream = HyperService::start(|_, request| async move {
        let body = request.into_body().collect().await.unwrap();
        let trailer = body.trailers().and_then(|it| it.get("x-sum")).cloned();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-seen", trailer.unwrap_or_else(|| "nothing".parse().unwrap()));
        let frames = [Frame::data(body.to_bytes()), Frame::trailers(trailers)].map(Ok);
        let body = StreamBody::new(futures_util::stream::iter(frames));
        Response::builder().header("trailer", "x-seen").body(BodyExt::boxed(body)).unwrap()
    })
    .await;
    for (key, more) in [("k", ""), ("k", "protect = false")] {
        let gateway = in_front_of(upstream.address, more).await;
        let request = format!(
            "POST /orders HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: te\r\n\
             Idempotency-Key: {key}\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\ntea\r\n0\r\nx-sum: 42\r\n\r\n"
        );
        let answer = send_raw(gateway.address, request.as_bytes()).await;
        assert!(answer.text.contains("tea"), "{}", answer.text);
        assert!(answer.text.ends_with("x-seen: 42\r\n\r\n"), "{}", answer.text);
    }
}

#[tokio::test]
async fn an_outcome_in_a_trailer_is_obeyed_and_not_passed_on() {
    let upstream = HyperService::start(|number, _| async move {
        let mut trailers = HeaderMap::new();
        trailers.insert("idempotency-outcome", "STORE".parse().unwrap());
        trailers.insert("x-number", number.into());
        let frames = [Frame::data("tea".into()), Frame::trailers(trailers)].map(Ok);
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let names = "idempotency-outcome, x-number";
        let response = Response::builder().status(503).header("trailer", names);
        response.body(BodyExt::boxed(body)).unwrap()
    })
    .await;
    // A replay declares no trailers, without which HTTP/1.1 sends none.
    let rows = [
        ("", ["x-number: 1\r\n\r\n", "0\r\n\r\n"]),
        ("protect = false", ["x-number: 2\r\n\r\n", "x-number: 3\r\n\r\n"]),
    ];
    for (more, ends) in rows {
        let gateway = in_front_of(upstream.address, more).await;
        for end in ends {
            let request = b"POST /orders HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: te\r\n\
                Idempotency-Key: k\r\nContent-Length: 0\r\n\r\n";
            let answer = send_raw(gateway.address, request).await;
            assert!(answer.text.contains("503 Service Unavailable"), "{}", answer.text);
            assert!(answer.text.ends_with(end), "{}", answer.text);
            assert!(!answer.text.contains("idempotency-outcome: "), "{}", answer.text);
        }
    }
    assert_eq!(upstream.requests(), 3);
}
