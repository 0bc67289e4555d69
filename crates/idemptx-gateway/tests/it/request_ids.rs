//! The ids of requests: in the log, in the answers that the gateway gives itself, and in none that
//! it only passes on.

use http::{Request, Response};
use http_body_util::Full;
use serde_json::Value;

use crate::support::gateway_process::GatewayProcess;
use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{Reply, in_front_of, post, send};

/// A problem document of a service, which looks much like one of the gateway.
const PROBLEM: &str = "{\"type\": \"about:blank\", \"status\": 402 }";

#[tokio::test]
async fn a_problem_of_the_gateway_has_the_id_of_its_request_and_of_its_line() {
    let service = HyperService::start(|_, _| async {
        let problem = Response::builder().status(402);
        let problem = problem.header("content-type", "application/problem+json");
        problem.body(full(PROBLEM)).unwrap()
    })
    .await;
    let gone = "[[upstream]]\nname = 'gone'\nurls = ['http://127.0.0.1:1']\n";
    let tables = format!(
        "{gone}[store]\nurl = 'memory:'\n[log]\naccess = true\n\
         [[route]]\npath = '/gone'\nupstream = 'gone'\n\
         [[route]]\npath = '/flat'\nupstream = 'app'\n\
         policy = {{ problem = {{ format = 'flat' }}, required = true }}\n\
         [[route]]\npath = '/orders'\nupstream = 'app'\npolicy = {{ required = true }}\n"
    );
    let gateway = GatewayProcess::start(service.address, &tables);
    let ask = async |path: &str, key: Option<&str>, body: &str, id: Option<&str>| -> Reply {
        let mut request = Request::post(path);
        for (name, value) in [("idempotency-key", key), ("x-request-id", id)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        send(gateway.address(), request.body(Full::from(body.to_owned())).unwrap()).await
    };
    let first = send(gateway.address(), post("k", "tea")).await;
    assert_eq!((first.status.as_u16(), first.text()), (402, PROBLEM));
    for (path, key, body, status, code) in [
        ("/orders", None, "tea", 400, "missing-key"),
        ("/orders", Some("k"), "coffee", 422, "key-reused"),
        ("/gone", Some("k"), "tea", 502, "upstream-unreachable"),
        ("/gone", None, "tea", 502, "upstream-unreachable"),
        ("/nowhere", None, "", 404, "no-route"),
        ("/a//b", None, "", 400, "ambiguous-path"),
    ] {
        for id in [None, Some("ticket-17")] {
            let reply = ask(path, key, body, id).await;
            reply.refused(status, code);
            let problem: Value = serde_json::from_slice(&reply.body).unwrap();
            let named = problem["request_id"].as_str().unwrap();
            assert_eq!(reply.header("x-request-id"), Some(named), "{reply:?}");
            assert_eq!(named, id.unwrap_or(named));
            assert_eq!(reply.header("content-length"), Some(&*reply.body.len().to_string()));
            gateway.logs(&format!("path={path} client=127.0.0.1 request_id={named} ")).await;
        }
    }
    let log = gateway.log();
    let lost = log.lines().find(|line| line.contains("no response: not sent")).unwrap();
    assert!(lost.contains("route=/gone upstream=gone request_id="), "{lost}");
    // The form of a protocol's errors has no room for it.
    let flat = ask("/flat", None, "tea", None).await;
    assert_eq!(flat.status, 400);
    assert!(!flat.text().contains("request_id") && flat.header("x-request-id").is_some());
    // A replay is what it was, whatever it looks like.
    let again = ask("/orders", Some("k"), "tea", Some("ticket-18")).await;
    assert!(again.is_replay());
    assert_eq!((again.text(), again.header("x-request-id")), (PROBLEM, Some("ticket-18")));
}

#[tokio::test]
async fn an_id_that_the_gateway_makes_is_no_part_of_what_a_retry_is_compared_by() {
    let service = HyperService::mirror().await;
    let policy = "policy = { fingerprint = { headers = \"all\" } }";
    let gateway = in_front_of(service.address, policy).await;
    let ask = async |key: &str, connection: &str| {
        let mut request = post(key, "tea");
        request.headers_mut().insert("connection", connection.parse().unwrap());
        send(gateway.address, request).await
    };
    // The service gets one whatever a client wants to have taken off.
    for (key, connection) in [("a", "keep-alive"), ("b", "x-request-id")] {
        assert!(ask(key, connection).await.text().contains("\nx-request-id: "));
        assert!(ask(key, connection).await.is_replay());
    }
}

#[tokio::test]
async fn ids_and_hops_that_a_proxy_in_front_draws_anew_are_no_part_of_it_either() {
    let service = HyperService::mirror().await;
    let policy = "policy = { fingerprint = { headers = \"all\" } }";
    let gateway = in_front_of(service.address, policy).await;
    let ask = async |number: usize| {
        let mut request = post("k", "tea");
        for name in ["x-request-id", "traceparent", "x-forwarded-for", "x-envoy-attempt-count"] {
            request.headers_mut().insert(name, number.to_string().parse().unwrap());
        }
        send(gateway.address, request).await
    };
    assert!(ask(1).await.text().contains("\nx-request-id: 1"));
    assert!(ask(2).await.is_replay());
}
