//! The trace that a request belongs to, and the decision to export it (W3C Trace Context).

use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use super::collector::{Collector, Shown, only};
use super::{SHARED, traced};
use crate::support::hyper_service::HyperService;
use crate::support::in_process::{Reply, Running, send, send_http2, started};

#[tokio::test]
async fn the_trace_of_a_client_is_continued_to_the_upstream() {
    let (collector, upstream) = (Collector::start().await, HyperService::mirror().await);
    let running = traced(upstream.address, &collector, SHARED).await;
    let reply =
        send(running.address, from(&[(PARENT, SAMPLED), (STATE, "a=1"), (STATE, "b=2")])).await;
    running.gateway.drain().await;
    let spans = collector.spans();
    let (server, client) = (only(&spans, "POST /**"), only(&spans, "POST"));
    assert_eq!((server.trace(), server.parent()), (TRACE.into(), SPAN.into()));
    assert_eq!(client.trace(), TRACE);
    assert_eq!(told(&reply, PARENT), [format!("00-{TRACE}-{}-01", client.id())]);
    assert_eq!(told(&reply, STATE), ["a=1", "b=2"]);
}

#[tokio::test]
async fn requests_without_a_key_and_of_unprotected_routes_are_continued_too() {
    for (route, http2) in [(SHARED, false), ("protect = false", false), ("protect = false", true)] {
        let (collector, upstream) = (Collector::start().await, HyperService::mirror().await);
        let running = traced(upstream.address, &collector, route).await;
        let request = Request::get("/orders").header(PARENT, SAMPLED).body(Full::default());
        let reply = match http2 {
            false => send(running.address, request.unwrap()).await,
            true => send_http2(running.address, request.unwrap()).await,
        };
        running.gateway.drain().await;
        let spans = collector.spans();
        let (server, client) = (only(&spans, "GET /**"), only(&spans, "GET"));
        assert_eq!((server.parent(), client.parent()), (SPAN.into(), server.id()));
        assert_eq!(told(&reply, PARENT), [format!("00-{TRACE}-{}-01", client.id())]);
        assert_eq!(server.attribute("idempotency.outcome").as_deref(), Some("passed"));
        let version = server.attribute("network.protocol.version").unwrap();
        assert_eq!(version, if http2 { "2" } else { "1.1" });
    }
}

#[tokio::test]
async fn a_trace_that_is_not_sampled_is_passed_on_and_not_exported() {
    let (collector, upstream) = (Collector::start().await, HyperService::mirror().await);
    let running = traced(upstream.address, &collector, SHARED).await;
    let reply = send(running.address, from(&[(PARENT, UNSAMPLED), (STATE, "a=1")])).await;
    running.gateway.drain().await;
    assert!(collector.spans().is_empty(), "{:?}", collector.spans());
    let [parent] = &told(&reply, PARENT)[..] else { panic!("{}", reply.text()) };
    assert!(parent.starts_with(&format!("00-{TRACE}-")) && parent.ends_with("-00"), "{parent}");
    assert_eq!(told(&reply, STATE), ["a=1"]);
}

#[tokio::test]
async fn the_ratio_is_for_requests_that_come_without_a_decision() {
    let (collector, upstream) = (Collector::start().await, HyperService::mirror().await);
    let running = none_of_our_own(&collector, &upstream).await;
    let reply = send(running.address, from(&[])).await;
    let [parent] = &told(&reply, PARENT)[..] else { panic!("{}", reply.text()) };
    assert!(parent.len() == SAMPLED.len() && parent.ends_with("-00"), "{parent}");
    send(running.address, from(&[(PARENT, SAMPLED)])).await;
    running.gateway.drain().await;
    let spans = collector.spans();
    assert!(!spans.is_empty() && spans.iter().all(|span| span.trace() == TRACE), "{spans:?}");
}

#[tokio::test]
async fn what_is_no_trace_context_begins_a_new_trace() {
    let twice = [(PARENT, SAMPLED), (PARENT, UNSAMPLED), (STATE, "a=1")];
    let zero = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
    let short = "00-4bf92f3577b34da6-00f067aa0ba902b7-01-02";
    for lines in [&twice[..], &[(PARENT, zero), (STATE, "a=1")], &[(PARENT, short)]] {
        let (collector, upstream) = (Collector::start().await, HyperService::mirror().await);
        let running = traced(upstream.address, &collector, SHARED).await;
        let reply = send(running.address, from(lines)).await;
        running.gateway.drain().await;
        let spans = collector.spans();
        let (server, client) = (only(&spans, "POST /**"), only(&spans, "POST"));
        assert_eq!(server.parent(), "");
        assert_ne!(server.trace(), TRACE);
        let expected = format!("00-{}-{}-01", server.trace(), client.id());
        assert_eq!(told(&reply, PARENT), [expected]);
        assert!(told(&reply, STATE).is_empty(), "it was another trace's");
    }
}

#[tokio::test]
async fn without_the_table_trace_context_passes_as_it_is() {
    let upstream = HyperService::mirror().await;
    let running = crate::support::in_process::in_front_of(upstream.address, SHARED).await;
    let lines = [(PARENT, SAMPLED), (PARENT, "nonsense"), (STATE, "a=1")];
    let reply = send(running.address, from(&lines)).await;
    assert_eq!(told(&reply, PARENT), [SAMPLED, "nonsense"]);
    assert_eq!(told(&reply, STATE), ["a=1"]);
}

async fn none_of_our_own(collector: &Collector, upstream: &HyperService) -> Running {
    let simple = crate::support::in_process::simple(upstream.address, "protect = false");
    started(&format!("{simple}{}sample_ratio = 0\n", collector.table())).await
}

/// A POST under a key, with these lines.
fn from(lines: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let request = Request::post("/orders").header("idempotency-key", "k");
    let add = |request: http::request::Builder, (name, value): &(&str, &str)| {
        request.header(*name, *value)
    };
    lines.iter().fold(request, add).body(Full::from("tea")).unwrap()
}

/// Returns the header lines of this name that the mirror received.
fn told(reply: &Reply, name: &str) -> Vec<String> {
    let lines = reply.text().lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(it, _)| *it == name).map(|(_, value)| value.to_owned()).collect()
}

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
