//! Scarcity: of descriptors for connections, and of a store for operators.

#[cfg(target_os = "linux")]
use idemptx_testkit::Signal;
#[cfg(target_os = "linux")]
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::support::http_client::ask;
use crate::support::operated_gateway::{OperatedGateway, eventually};
#[cfg(target_os = "linux")]
use crate::support::raw_client::RawClient;

/// Sets how many descriptors a process may have, and returns how many it could have before.
#[cfg(target_os = "linux")]
fn limit_descriptors(process: u32, limit: Option<u64>) -> Option<u64> {
    let process = Pid::from_raw(process.try_into().unwrap());
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let wanted = Rlimit { current: limit, maximum };
    prlimit(process, Resource::Nofile, wanted).unwrap().current
}

// Only Linux lets a test change the limit of another process.
#[cfg(target_os = "linux")]
#[test]
fn a_gateway_without_descriptors_says_so_now_and_then_and_goes_on() {
    let gateway = OperatedGateway::start("");
    // A connection that is there stays in use.
    let mut operator = RawClient::connect(gateway.admin);
    let mut refused = || {
        let metrics = operator.exchange("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").text();
        let series = "idemptx_connections_refused_total{reason=\"accept\"} ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)).unwrap();
        line.parse::<usize>().unwrap()
    };
    assert_eq!(refused(), 0);
    let before = limit_descriptors(gateway.process_id(), Some(3));
    let mut client = RawClient::connect(gateway.public);
    let _other = RawClient::connect(gateway.admin);
    eventually(|| refused() >= 40);
    let told = gateway.log().matches("cannot accept a").count();
    assert!((1..=20).contains(&told), "{}", gateway.log());
    limit_descriptors(gateway.process_id(), before);
    // The client that waited is served.
    let answer = client.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(answer.status / 100, 2, "{answer:?}");
    eventually(|| gateway.log().contains("connections are accepted again, after "));
    gateway.signal(Signal::TERM);
}

#[test]
fn requests_that_operators_may_not_make_and_their_failures_are_some_lines() {
    let gateway = OperatedGateway::without_store("");
    for _ in 0..30 {
        assert_eq!(ask(gateway.admin, "POST", "/api/search").reply().status, 403);
        assert_eq!(gateway.ask("/api/records").reply().status, 503);
    }
    for line in [
        "rejected admin request without Idempotency-Admin: POST /api/search from=127.0.0.1",
        "a call of an operator failed: ",
    ] {
        eventually(|| gateway.log().contains(line));
        let log = gateway.log();
        let told = log.matches(line).count();
        assert!((1..30).contains(&told), "{told} times {line}: {log}");
    }
}
