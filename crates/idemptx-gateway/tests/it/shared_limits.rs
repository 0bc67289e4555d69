//! Limits that several routes have together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::sync::Semaphore;

use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{Reply, Running, config, send, simple, started};

/// Returns two routes, `/a` and `/b`, with these policies, and one to another service at `/c`.
fn routes(upstream: &HyperService, first: &str, second: &str, tables: &str) -> String {
    let text = simple(upstream.address, "path = \"/a\"");
    let (head, tail) = text.split_once("[store]").unwrap();
    format!(
        "{head}policy = {{ {first} }}\n\
         [[route]]\nupstream = \"up\"\npath = \"/b\"\npolicy = {{ {second} }}\n\
         [[upstream]]\nname = \"other\"\nurls = [\"http://{}\"]\n\
         [[route]]\nupstream = \"other\"\npath = \"/c\"\npolicy = {{ {first} }}\n\
         [store]{tail}{tables}",
        upstream.address
    )
}

async fn ask(gateway: &Running, path: &str, key: &str) -> Reply {
    send(gateway.address, request(path, key)).await
}

fn request(path: &str, key: &str) -> Request<Full<Bytes>> {
    let request = Request::post(path).header("host", "shop").header("idempotency-key", key);
    request.body(Full::default()).unwrap()
}

#[tokio::test]
async fn routes_of_one_policy_and_one_service_count_new_keys_together() {
    let upstream = HyperService::mirror().await;
    let limit = "new_keys_per_minute_max = 2";
    let text = routes(&upstream, limit, limit, "");
    let gateway = started(&text).await;
    assert_eq!(ask(&gateway, "/a", "1").await.status, 201);
    assert_eq!(ask(&gateway, "/b", "2").await.status, 201);
    for path in ["/a", "/b"] {
        ask(&gateway, path, "3").await.refused(429, "too-many-keys");
    }
    assert!(ask(&gateway, "/b", "2").await.is_replay(), "that is no new key");
    // A key at another service is another one.
    assert_eq!(ask(&gateway, "/c", "1").await.status, 201);
    // A reload neither forgets nor forgives, whatever the routes are called.
    let renamed = text.replace("path = \"/b\"", "name = \"b\"\npath = \"/b\"");
    for reloaded in [&text, &renamed, &text] {
        gateway.gateway.reload(&config(reloaded)).await.unwrap();
        for path in ["/a", "/b"] {
            ask(&gateway, path, "3").await.refused(429, "too-many-keys");
        }
    }
    // Another policy has a count of its own.
    let other = routes(&upstream, limit, "new_keys_per_minute_max = 3", "");
    gateway.gateway.reload(&config(&other)).await.unwrap();
    ask(&gateway, "/a", "3").await.refused(429, "too-many-keys");
    assert_eq!(ask(&gateway, "/b", "3").await.status, 201);
}

/// A service that counts what it has begun, and ends it when it is let.
struct Held {
    service: HyperService,
    begun: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
}

impl Held {
    async fn start() -> Self {
        let (begun, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let (counted, opens) = (Arc::clone(&begun), Arc::clone(&gate));
        let service = HyperService::start(move |_, _| {
            counted.fetch_add(1, Ordering::SeqCst);
            let opens = Arc::clone(&opens);
            async move {
                opens.acquire().await.unwrap().forget();
                Response::builder().status(201).body(full("done")).unwrap()
            }
        })
        .await;
        Self { service, begun, gate }
    }

    async fn has_begun(&self, count: usize) {
        while self.begun.load(Ordering::SeqCst) < count {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn executions_are_limited_for_all_routes_of_a_service_together() {
    let upstream = Held::start().await;
    let limits = "[limits]\nexecutions_max = 1\n";
    let quick = "store_timeout_ms = { claim = 100 }";
    let text = routes(&upstream.service, quick, "store_timeout_ms = { claim = 101 }", limits);
    let gateway = started(&text).await;
    let first = tokio::spawn(send(gateway.address, request("/a", "1")));
    upstream.has_begun(1).await;
    ask(&gateway, "/b", "2").await.refused(503, "store-unavailable");
    // The next configuration goes on with what runs.
    let other = text.replace("claim = 101", "claim = 102");
    gateway.gateway.reload(&config(&other)).await.unwrap();
    ask(&gateway, "/b", "2").await.refused(503, "store-unavailable");
    // A service that hangs takes nothing from another one.
    let third = tokio::spawn(send(gateway.address, request("/c", "1")));
    upstream.has_begun(2).await;
    upstream.gate.add_permits(2);
    for asked in [first, third] {
        assert_eq!(asked.await.unwrap().status, 201);
    }
    gateway.gateway.drain().await;
}

#[tokio::test]
async fn what_runs_under_a_former_configuration_is_in_the_metrics_until_it_ends() {
    let upstream = Held::start().await;
    let tables = "[admin]\naddress = \"127.0.0.1:0\"\n[limits]\nexecutions_max = 10\n";
    let text = routes(&upstream.service, "wait_ms = 0", "wait_ms = 1", tables);
    let gateway = started(&text).await;
    let metrics = async || {
        let request = Request::get("/metrics").body(Full::default()).unwrap();
        send(gateway.admin(), request).await.text().to_owned()
    };
    let mut asked = Vec::new();
    for number in 1..=3 {
        let key = number.to_string();
        asked.push(tokio::spawn(send(gateway.address, request("/a", &key))));
        upstream.has_begun(number).await;
        // Its engines do not go on under another limit.
        let other = text.replace("max = 10", &format!("max = 10{number}"));
        gateway.gateway.reload(&config(&other)).await.unwrap();
        let expected = format!("idemptx_executing {number}\n");
        assert!(metrics().await.contains(&expected), "{expected}");
    }
    upstream.gate.add_permits(3);
    for asked in asked {
        assert_eq!(asked.await.unwrap().status, 201);
    }
    while !metrics().await.contains("idemptx_executing 0\n") {}
}

#[tokio::test]
async fn waiting_requests_are_limited_for_all_routes_of_a_service_together() {
    let upstream = Held::start().await;
    let policy = "wait_ms = 20000, waiters_total_max = 1";
    let text = routes(&upstream.service, policy, policy, "[admin]\naddress = \"127.0.0.1:0\"\n");
    let gateway = started(&text).await;
    let ask_behind = |path, key| tokio::spawn(send(gateway.address, request(path, key)));
    let running = [ask_behind("/a", "1"), ask_behind("/b", "2")];
    upstream.has_begun(2).await;
    let waiting = ask_behind("/a", "1");
    let metrics = async || {
        let request = Request::get("/metrics").body(Full::default()).unwrap();
        send(gateway.admin(), request).await.text().to_owned()
    };
    while !metrics().await.contains("idemptx_waiting 1\n") {}
    assert!(metrics().await.contains("idemptx_executing 2\n"), "each is counted once");
    ask(&gateway, "/b", "2").await.refused(409, "in-progress");
    upstream.gate.add_permits(2);
    for asked in running {
        assert_eq!(asked.await.unwrap().status, 201);
    }
    assert!(waiting.await.unwrap().is_replay());
}
