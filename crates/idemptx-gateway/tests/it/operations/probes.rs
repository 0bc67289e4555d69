//! Probes and metrics.

use idemptx_testkit::Signal;

use crate::support::http_client::{get, post};
use crate::support::operated_gateway::{OperatedGateway, eventually};

#[test]
fn a_gateway_is_alive_and_becomes_ready_with_its_store() {
    let gateway = OperatedGateway::start("");
    let alive = gateway.ask("/healthz").reply();
    assert_eq!((alive.status, &*alive.body), (200, "alive\n"));
    eventually(|| gateway.ask("/readyz").reply().status == 200);
}

#[test]
fn without_its_store_a_gateway_stays_ready_for_what_needs_none() {
    // A well-formed address where nobody listens.
    let gateway = OperatedGateway::without_store("");
    assert_eq!(gateway.ask("/healthz").reply().status, 200);
    eventually(|| gateway.ask("/readyz").reply().body == "ready, but the store is unavailable\n");
    assert_eq!(gateway.ask("/readyz").reply().status, 200);
    assert!(gateway.metrics().contains("idemptx_store_up 0"));
    assert_eq!(gateway.ask("/api/records").reply().status, 503);
    assert_eq!(gateway.ask("/api/overview").json()["store"]["reachable"], false);
}

#[test]
fn a_gateway_that_needs_its_store_is_not_ready_without() {
    let gateway = OperatedGateway::without_store("required_for_readiness = true");
    eventually(|| gateway.ask("/readyz").reply().body == "not ready: the store is unavailable\n");
    assert_eq!(gateway.ask("/readyz").reply().status, 503);
}

#[test]
fn a_gateway_that_is_about_to_end_is_not_ready_and_still_serves() {
    let mut gateway = OperatedGateway::limited("lame_duck_ms = 600000");
    eventually(|| gateway.ask("/readyz").reply().status == 200);
    gateway.signal(Signal::TERM);
    eventually(|| gateway.ask("/readyz").reply().body == "not ready: draining\n");
    assert_eq!(post(gateway.public, "/orders", "tea").key("k").reply().status, 201);
    // A second signal does not wait for the end of that time.
    gateway.signal(Signal::TERM);
    assert!(!gateway.exits_successfully());
    assert!(gateway.log().contains("ended at once by a second signal"), "{}", gateway.log());
}

#[test]
fn the_log_tells_of_an_outage_and_of_a_drain_each_once() {
    let mut gateway = OperatedGateway::without_store("");
    for number in 0..4 {
        let refused = post(gateway.public, "/orders", "tea").key(&number.to_string()).reply();
        assert_eq!(refused.status, 503);
    }
    gateway.signal(Signal::TERM);
    assert!(gateway.exits_successfully());
    let log = gateway.log();
    for text in ["store unavailable", "about to end", "draining:", "drained"] {
        assert_eq!(log.matches(text).count(), 1, "{text}: {log}");
    }
}

#[test]
fn a_gateway_that_drains_is_not_ready_and_ends_well() {
    let mut gateway = OperatedGateway::start("");
    eventually(|| gateway.ask("/readyz").reply().status == 200);
    let (public, upstream) = (gateway.public, gateway.upstream.clone());
    let client = std::thread::spawn(move || post(public, "/slow", "tea").key("k").reply());
    upstream.reach(1);
    gateway.signal(Signal::TERM);
    eventually(|| gateway.ask("/readyz").reply().body == "not ready: draining\n");
    assert_eq!(gateway.ask("/healthz").reply().status, 200);
    assert_eq!(gateway.ask("/api/overview").json()["gateway"]["draining"], true);
    upstream.open();
    assert_eq!(client.join().unwrap().status, 201);
    assert!(gateway.exits_successfully());
}

#[test]
fn what_has_not_ended_when_a_gateway_has_to_keeps_its_claim() {
    let mut gateway =
        OperatedGateway::start("on_ambiguous = \"release\"\npolicy = { drain_ms = 200 }");
    let (public, upstream) = (gateway.public, gateway.upstream.clone());
    let client = std::thread::spawn(move || post(public, "/slow", "tea").key("k").reply());
    upstream.reach(1);
    gateway.signal(Signal::TERM);
    assert!(gateway.exits_successfully());
    assert!(client.join().is_err(), "it was to be cut off");
    let successor = OperatedGateway::sharing(&gateway.store());
    let page = successor.ask("/api/records?view=all").json();
    assert_eq!(page["records"][0]["state"], "running", "{page}");
    upstream.open();
}

#[test]
fn metrics_tell_what_happened() {
    let gateway = OperatedGateway::start("policy = { scope = \"shared\" }");
    post(gateway.public, "/orders", "tea").key("k").reply();
    post(gateway.public, "/orders", "tea").key("k").reply();
    post(gateway.public, "/orders", "coffee").key("k").reply();
    get(gateway.public, "/orders").reply();
    post(gateway.public, "/die", "tea").key("d").reply();
    let accepts = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let modern = gateway.ask("/metrics").header("accept", accepts).reply();
    assert!(modern.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    assert!(modern.body.ends_with("# EOF\n"));
    let reply = gateway.ask("/metrics").reply();
    assert!(reply.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let text = reply.body;
    let of_process =
        |name: &str| text.lines().any(|line| line.starts_with(&format!("process_{name} ")));
    assert!(of_process("cpu_seconds_total") && of_process("open_fds"), "{text}");
    for line in [
        r#"idemptx_requests_total{route="orders",outcome="executed",reason=""} 1"#,
        r#"idemptx_requests_total{route="orders",outcome="replayed",reason=""} 1"#,
        r#"idemptx_requests_total{route="orders",outcome="refused",reason="key-reused"} 1"#,
        r#"idemptx_requests_total{route="orders",outcome="passed",reason="method"} 1"#,
        r#"idemptx_upstream_answers_total{upstream="shop",answer="2xx"} 2"#,
        r#"idemptx_upstream_answers_total{upstream="shop",answer="broken"} 1"#,
        r#"idemptx_store_step_seconds_count{operation="claim",result="ok"} 2"#,
        r#"idemptx_store_step_seconds_count{operation="claim",result="settled"} 2"#,
        "idemptx_executing 0",
        "idemptx_store_up 1",
        "idemptx_connections_accepted_total 5",
        "idemptx_build_info{version=",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

#[test]
fn an_answer_that_breaks_off_half_way_is_counted_and_logged_as_broken() {
    let gateway = OperatedGateway::start("policy = { scope = \"shared\" }");
    assert_eq!(post(gateway.public, "/half", "tea").key("k").reply().status, 502);
    let text = gateway.metrics();
    for line in [
        r#"idemptx_requests_total{route="orders",outcome="unstored",reason=""} 1"#,
        r#"idemptx_upstream_answers_total{upstream="shop",answer="broken"} 1"#,
        r#"idemptx_own_answers_total{code="upstream-failed"} 1"#,
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    let log = gateway.log();
    assert!(log.contains("WARN no response: its body broke off"), "{log}");
    assert!(log.contains("outcome=unstored"), "{log}");
}

#[test]
fn replays_from_results_at_hand_are_counted() {
    let gateway = OperatedGateway::near();
    let send = || post(gateway.public, "/orders", "tea").key("k").reply().body;
    assert_eq!((send(), send()), ("{\"n\":1}".into(), "{\"n\":1}".into()));
    assert!(gateway.metrics().contains("idemptx_near_hits_total 1"), "{}", gateway.metrics());
    assert!(!gateway.metrics().contains("idemptx_near_bytes 0"));
    assert_eq!(gateway.ask("/api/overview").json()["store"]["kind"], "SQLite");
}

#[test]
fn reloads_are_counted_whether_they_were_taken_or_not() {
    let gateway = OperatedGateway::start("");
    gateway.signal(Signal::HUP);
    let taken = r#"idemptx_reloads_total{result="taken"} 1"#;
    eventually(|| gateway.metrics().contains(taken));
    let file = gateway.config();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("[admin]", "[admin]\ntoken = \"new\"")).unwrap();
    gateway.signal(Signal::HUP);
    let refused = r#"idemptx_reloads_total{result="refused"} 1"#;
    eventually(|| gateway.metrics().contains(refused));
}

#[test]
fn probes_are_answered_among_clients_where_that_is_configured() {
    let gateway = OperatedGateway::listening("probes = true");
    assert_eq!(get(gateway.public, "/healthz").reply().body, "alive\n");
    eventually(|| get(gateway.public, "/readyz").reply().body == "ready\n");
    assert_eq!(get(gateway.public, "/metrics").reply().status, 201, "that is the service's");
}
