//! Replays and refusals: those of the gateway, in every way in which Envoy shows them.

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};

use super::{HeldService, orders};
use crate::support::envoy_process::EnvoyProcess;
use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{Reply, post, send, send_http2, started};

#[tokio::test]
async fn a_retry_through_envoy_is_replayed_byte_for_byte() {
    let service = HyperService::start(|number, request| async move {
        let names = request.headers().keys().map(|name| name.as_str().to_owned());
        let names: Vec<_> = names.filter(|name| name.starts_with("idem")).collect();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::builder()
            .status(201)
            .header("content-type", "application/json")
            .header("location", "/orders/1")
            .header("x-twice", "one")
            .header("x-twice", "two")
            .header("x-obs", &b"caf\xe9"[..])
            .header("set-cookie", "secret=1")
            .body(full(format!("{number} {names:?} {}\u{0}\u{1f375}", body.len())))
            .unwrap()
    })
    .await;
    let envoy = EnvoyProcess::start(service.address, "", &[]).await;
    let order = |key: &str| {
        let mut order = post(key, "{\"item\": \"tea\"}");
        order.headers_mut().insert("idempotency-attempt", "7".parse().unwrap());
        order.headers_mut().insert("idempotency_attempt", "8".parse().unwrap());
        order
    };
    for (key, expected) in [("a", 1), ("b", 2)] {
        let first = send(envoy.address, order(key)).await;
        assert_eq!(first.status, 201, "{first:?}");
        let text = format!("{expected} [\"idempotency-key\"] 15\u{0}\u{1f375}");
        assert_eq!(first.text(), text, "what only the processor may say is removed");
        assert!(!first.is_replay() && first.header("set-cookie").is_some(), "{first:?}");
        assert_eq!(first.header("idempotency-stored"), None);
        for again in
            [send(envoy.address, order(key)).await, send_http2(envoy.address, order(key)).await]
        {
            assert!(again.is_replay(), "{again:?}");
            assert_eq!((again.status, &again.body), (first.status, &first.body));
            for name in ["content-type", "location", "x-twice", "x-obs"] {
                let lines = |reply: &Reply| -> Vec<_> {
                    reply.headers.get_all(name).iter().cloned().collect()
                };
                assert_eq!(lines(&again), lines(&first), "{name}");
            }
            assert_eq!(again.header("set-cookie"), None);
            assert!(again.headers.contains_key("x-request-id"), "{again:?}");
        }
    }
    assert_eq!(service.requests(), 2);
}

#[tokio::test]
async fn what_envoy_adds_to_each_request_makes_a_retry_no_other_one() {
    let service = orders().await;
    let all = "policy.fingerprint = { headers = \"all\" }";
    let envoy = EnvoyProcess::start(service.address, all, &[]).await;
    let versioned = |version: &'static str| {
        let mut order = post("k", "tea");
        order.headers_mut().insert("api-version", version.parse().unwrap());
        order
    };
    assert_eq!(send(envoy.address, versioned("1")).await.status, 201);
    let again = send(envoy.address, versioned("1")).await;
    assert!(again.is_replay(), "{again:?}");
    send(envoy.address, versioned("2")).await.refused(422, "key-reused");
    assert_eq!(service.requests(), 1);
}

#[tokio::test]
async fn refusals_are_those_of_the_gateway() {
    let service = orders().await;
    let envoy = EnvoyProcess::start(service.address, "policy.required = true", &[]).await;
    let bare = |body: &str| Request::post("/orders").body(Full::from(body.to_owned())).unwrap();
    send(envoy.address, bare("tea")).await.refused(400, "missing-key");
    send(envoy.address, post("a b,c", "tea")).await.refused(400, "invalid-key");
    let mut twice = post("k", "tea");
    twice.headers_mut().append("idempotency-key", "other".parse().unwrap());
    send(envoy.address, twice).await.refused(400, "invalid-key");
    assert_eq!(send(envoy.address, post("k", "tea")).await.status, 201);
    let reused = send(envoy.address, post("k", "coffee")).await;
    reused.refused(422, "key-reused");
    assert_eq!(reused.header("cache-control"), Some("no-store"));
    assert!(reused.header("link").unwrap().contains("describedby"), "{reused:?}");
    let without_body = Request::post("/orders").header("idempotency-key", "empty");
    let without_body = || without_body.method("PATCH").body(Full::<Bytes>::default()).unwrap();
    assert_eq!(send(envoy.address, without_body()).await.status, 201);
    assert_eq!(service.requests(), 2);
}

#[tokio::test]
async fn of_concurrent_duplicates_one_is_executed_and_the_others_wait_or_are_refused() {
    for (policy, status, code) in [
        ("", 409, Some("in-progress")),
        ("policy.wait_ms = 10000", 201, None),
        ("policy.in_flight_status = 425", 425, Some("in-progress")),
    ] {
        let mut held = HeldService::start().await;
        let envoy = EnvoyProcess::start(held.service.address, policy, &[]).await;
        let address = envoy.address;
        let first = tokio::spawn(async move { send(address, post("k", "tea")).await });
        assert_eq!(held.arrival().await, 1);
        let others = join_all([(); 8].map(|()| send(address, post("k", "tea"))));
        let others = match code {
            Some(code) => {
                let others = others.await;
                others.iter().for_each(|other| other.refused(status, code));
                assert!(others[0].headers.contains_key("retry-after"), "{others:?}");
                held.release(1);
                others
            }
            None => {
                let others = tokio::spawn(others);
                // One that waits has asked the processor, of which no other sign is seen from here.
                tokio::task::yield_now().await;
                held.release(1);
                others.await.unwrap()
            }
        };
        assert_eq!(first.await.unwrap().text(), "order 1");
        assert!(code.is_some() || others.iter().all(Reply::is_replay), "{others:?}");
        let again = send(address, post("k", "tea")).await;
        // The first answer has none, which Envoy does not do without.
        assert!(again.is_replay() && again.header("content-type") == Some("text/plain"));
        assert_eq!(held.service.requests(), 1, "{policy}");
    }
}

#[tokio::test]
async fn records_are_shared_with_the_gateway_in_both_directions() {
    let service = orders().await;
    let envoy = EnvoyProcess::start(service.address, "", &[]).await;
    let store = envoy.processor().directory().join("shop.db");
    let gateway = started(&format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"shop\"\nurls = [\"http://{}\"]\n\
         [[route]]\nupstream = \"shop\"\n[store]\nurl = \"sqlite:{}\"\n",
        service.address,
        store.display(),
    ))
    .await;
    let of = |key: &str| {
        let mut request = post(key, "tea");
        request.headers_mut().insert("host", "shop.example".parse().unwrap());
        request.headers_mut().insert("authorization", "Bearer alice".parse().unwrap());
        request
    };
    for (key, first, second) in
        [("a", envoy.address, gateway.address), ("b", gateway.address, envoy.address)]
    {
        let made = send(first, of(key)).await;
        let replay = send(second, of(key)).await;
        assert!(!made.is_replay() && replay.is_replay(), "{made:?} {replay:?}");
        assert_eq!((made.status, &made.body), (replay.status, &replay.body));
        let mut other = of(key);
        other.headers_mut().insert("authorization", "Bearer bob".parse().unwrap());
        send(second, other).await.refused(422, "key-reused");
    }
    assert_eq!(service.requests(), 2);
}
