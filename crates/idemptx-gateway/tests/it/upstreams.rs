//! Misbehaving upstreams: nothing of their output is taken for an answer, stored as one, or left in
//! a connection for the next request.

mod misbehaviors;
mod scripted_upstream;

use std::net::SocketAddr;

use misbehaviors::{CASES, Case, Expect};
use scripted_upstream::ScriptedUpstream;

use crate::support::gateway_process::GatewayProcess;
use crate::support::raw_client::{Answer, RawClient, post};

#[test]
fn an_upstream_that_misbehaves_has_not_answered() {
    let upstream = ScriptedUpstream::start();
    let mut gateway = GatewayProcess::start(upstream.address(), ROUTES);
    let address = gateway.address();
    let wrong: Vec<_> = CASES
        .iter()
        .enumerate()
        .filter_map(|(number, case)| {
            let told = check(address, &upstream, number, case).err()?;
            Some(format!("{}: {told}", case.name))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
    assert!(gateway.is_running());
    // The operator is told of each, and of nobody's key.
    gateway.logged("code=upstream-failed", CASES.len() + 1);
    let log = gateway.log();
    assert!(log.contains("no response"), "{log}");
    assert!(!log.contains("/unknown-") && !log.contains("key-"), "{log}");
}

fn check(
    gateway: SocketAddr,
    upstream: &ScriptedUpstream,
    number: usize,
    case: &Case,
) -> Result<(), String> {
    match case.expect {
        Expect::Lost(status) => {
            let unknown = lost(gateway, upstream, ("/unknown", number), case, status);
            unknown.map_err(|told| format!("as unknown: {told}"))?;
            let released = lost(gateway, upstream, ("/release", number), case, status);
            released.map_err(|told| format!("as released: {told}"))
        }
        Expect::Truncated => truncated(gateway, upstream, number, case),
        Expect::Answered(status, body) | Expect::AnsweredOnce(status, body) => {
            let request = post("/unknown", &format!("key-{number}"), "hi");
            upstream.next(case.script.clone());
            let first = exchange(gateway, &request)?;
            if (first.status, &*first.text()) != (status, body) {
                return Err(format!("answered {} {}", first.status, first.text()));
            }
            let again = exchange(gateway, &request)?;
            let as_expected = match case.expect {
                Expect::AnsweredOnce(..) => again.status == 409 && !again.is_replay(),
                _ => (again.status, &*again.text(), again.is_replay()) == (status, body, true),
            };
            if !as_expected {
                return Err(format!("then answered {} {}", again.status, again.text()));
            }
            is_itself(gateway, upstream, number)
        }
    }
}

/// Answered with this status, and a retry is refused or executes: it gets no part of what came.
fn lost(
    gateway: SocketAddr,
    upstream: &ScriptedUpstream,
    (route, number): (&str, usize),
    case: &Case,
    status: u16,
) -> Result<(), String> {
    let request = post(route, &format!("{route}-{number}"), "hi");
    upstream.next(case.script.clone());
    let first = exchange(gateway, &request)?;
    if first.status != status || first.is_replay() {
        return Err(format!("answered {} {}", first.status, first.text()));
    }
    if first.header("idempotency-stored") != Some("false") {
        return Err(format!("it looks stored: {}", first.head));
    }
    let again = exchange(gateway, &request)?;
    let expected = if route == "/release" { 200 } else { 409 };
    if again.status != expected || again.is_replay() {
        return Err(format!("then answered {} {}", again.status, again.text()));
    }
    if expected == 200 && !exchange(gateway, &request)?.is_replay() {
        return Err("what went well was not stored".to_owned());
    }
    is_itself(gateway, upstream, number)
}

/// The client sees that it breaks off, and a retry is not answered with what came.
fn truncated(
    gateway: SocketAddr,
    upstream: &ScriptedUpstream,
    number: usize,
    case: &Case,
) -> Result<(), String> {
    let request = post("/unknown", &format!("key-{number}"), "hi");
    upstream.next(case.script.clone());
    let mut client = RawClient::connect(gateway);
    client.send(&request);
    if let Ok(answer) = client.answer() {
        return Err(format!("answered as if it were whole: {}", answer.status));
    }
    let again = exchange(gateway, &request)?;
    if again.status != 409 || again.is_replay() {
        return Err(format!("then answered {} {}", again.status, again.text()));
    }
    is_itself(gateway, upstream, number)
}

/// Checks that the next request gets the answer meant for it, over a new connection.
fn is_itself(
    gateway: SocketAddr,
    upstream: &ScriptedUpstream,
    number: usize,
) -> Result<(), String> {
    let next = exchange(gateway, &post("/unknown", &format!("next-{number}"), "hi"))?;
    if (next.status, &*next.text()) != (200, "fine") {
        return Err(format!("the next one was answered {} {}", next.status, next.text()));
    }
    let reused = upstream.take_reused();
    if reused > 0 { Err(format!("its connection was used {reused} times more")) } else { Ok(()) }
}

fn exchange(gateway: SocketAddr, request: &str) -> Result<Answer, String> {
    let mut client = RawClient::connect(gateway);
    client.send(request);
    client.answer().map_err(|nothing| format!("{nothing:?}"))
}

const ROUTES: &str = "
connect_timeout_ms = 5000
response_timeout_ms = 2000
pause_timeout_ms = 1000
[[route]]
path = '/unknown'
upstream = 'app'
policy = { scope = 'shared' }
[[route]]
path = '/release'
upstream = 'app'
on_ambiguous = 'release'
policy = { scope = 'shared' }
[log]
level = 'debug'
";
