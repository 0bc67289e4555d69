//! The access log, and the secrets it must not contain.

use crate::support::http_client::post;
use crate::support::operated_gateway::{OperatedGateway, eventually};
use crate::support::raw_client::RawClient;

#[test]
fn a_request_is_one_line_with_its_outcome_and_a_hashed_key() {
    let gateway = OperatedGateway::start("");
    for _ in 0..2 {
        post(gateway.public, "/orders?card=4111", "secret body")
            .key("very-secret-key")
            .header("authorization", "Bearer s3cret")
            .reply();
    }
    let id = gateway.only_record();
    // A line is written when its answer has been.
    eventually(|| gateway.log().matches("path=/orders").count() == 2);
    let log = gateway.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("path=/orders")).collect();
    assert_eq!(lines.len(), 2, "{log}");
    for (line, outcome) in lines.into_iter().zip(["executed", "replayed"]) {
        for part in [
            "method=POST",
            "client=127.0.0.1",
            "route=orders",
            "upstream=shop",
            "request_id=",
            "bytes_in=11",
            "bytes_out=7",
            "head_ms=",
            "status=201",
            &format!("outcome={outcome}"),
            &format!("record={}", &id[33..41]),
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        let is_executed = outcome == "executed";
        assert_eq!(line.contains("address=http://127.0.0.1:"), is_executed, "{line}");
        assert!(!line.contains("client_gone"), "{line}");
    }
    for secret in ["very-secret-key", "s3cret", "secret body", "4111"] {
        assert!(!log.contains(secret), "{secret} in\n{log}");
    }
}

#[test]
fn for_machines_a_line_is_an_object() {
    let log = "[log]\nformat = \"json\"\naccess = true\n";
    let gateway = OperatedGateway::configured("", "", log);
    post(gateway.public, "/orders", "tea").key("k").reply();
    eventually(|| gateway.log().contains("/orders"));
    let log = gateway.log();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = lines.iter().find(|line| line["path"] == "/orders").unwrap();
    assert_eq!((&line["outcome"], &line["status"]), (&"executed".into(), &201.into()), "{line}");
    assert_eq!((&line["level"], &line["target"]), (&"INFO".into(), &"idemptx::access".into()));
}

#[test]
fn without_access_lines_requests_are_for_developers() {
    let gateway = OperatedGateway::configured("", "", "[log]\nlevel = \"info\"\n");
    post(gateway.public, "/orders", "tea").key("k").reply();
    assert!(!gateway.log().contains("path=/orders"));
}

#[test]
fn a_placeholder_instead_of_a_key_is_logged_once_without_its_value() {
    let gateway = OperatedGateway::start("");
    for key in ["good", "${ORDER_KEY}", "undefined", "undefined"] {
        assert_eq!(post(gateway.public, "/orders", "tea").key(key).reply().status, 201);
    }
    eventually(|| gateway.log().contains("a placeholder as its key"));
    let log = gateway.log();
    let warnings: Vec<_> =
        log.lines().filter(|line| line.contains("a placeholder as its key")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].contains("WARN") && !log.contains("ORDER_KEY"), "{log}");
}

#[test]
fn a_request_has_an_id_that_service_client_and_log_share() {
    let gateway = OperatedGateway::start("policy = { required = true }");
    let refused = post(gateway.public, "/orders", "tea").reply();
    let id = refused.header("x-request-id").unwrap().to_owned();
    assert_eq!((refused.status, id.len()), (400, 32), "{refused:?}");
    let given = post(gateway.public, "/a/../b", "").header("x-request-id", "abc-1").reply();
    assert_eq!(given.header("x-request-id"), Some("abc-1"), "{given:?}");
    let odd = post(gateway.public, "/orders", "").header("x-request-id", "a b\"c").reply();
    assert_ne!(odd.header("x-request-id"), Some("a b\"c"));
    eventually(|| gateway.log().lines().filter(|it| it.contains("request_id=")).count() == 3);
    for (id, part) in [(&*id, "reason=missing-key"), ("abc-1", "code=ambiguous-path")] {
        let log = gateway.log();
        let line = log.lines().find(|it| it.contains(&format!("request_id={id}"))).unwrap();
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn what_the_gateway_answers_itself_is_not_logged_as_passed_on() {
    let tables = "[log]\naccess = true\n[limits]\nbody_bytes_max = 3\n";
    let gateway = OperatedGateway::configured("", "", tables);
    post(gateway.public, "/a/../b", "").reply();
    post(gateway.public, "/odd", "").header("expect", "a-miracle").reply();
    assert_eq!(post(gateway.public, "/large", "coffee").reply().status, 413);
    post(gateway.public, "/plain", "").reply();
    for (path, labels) in [
        ("/a/../b", "outcome=refused reason=ambiguous-path"),
        ("/odd", "outcome=refused reason=expectation-failed"),
        ("/large", "outcome=refused reason=body-too-large"),
        ("/plain", "outcome=passed reason=no-key"),
    ] {
        eventually(|| gateway.log().contains(&format!("path={path} ")));
        let log = gateway.log();
        let line = log.lines().find(|it| it.contains(&format!("path={path} "))).unwrap();
        assert!(line.contains(labels), "{labels} in {line}");
    }
}

#[test]
fn requests_are_logged_as_web_servers_do_for_their_tools() {
    let log = "[log]\naccess = true\naccess_format = \"common\"\n";
    let gateway = OperatedGateway::configured("", "", log);
    post(gateway.public, "/orders?card=4111", "tea").key("k").reply();
    eventually(|| gateway.log().contains("/orders"));
    let log = gateway.log();
    let line = log.lines().find(|line| line.contains("/orders")).unwrap();
    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
    assert!(line.contains(" +0000] \"POST /orders HTTP/1.1\" 201 7 request_id="), "{line}");
    assert!(line.contains(" route=orders upstream=shop outcome=executed record="), "{line}");
}

#[test]
fn what_is_no_request_is_counted_and_logged() {
    let gateway = OperatedGateway::start("");
    let mut client = RawClient::connect(gateway.public);
    client.send("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\n");
    assert_eq!(client.answer().unwrap().status, 400);
    eventually(|| {
        gateway.metrics().contains("connections_refused_total{reason=\"malformed\"} 1")
            && gateway.log().contains("connection refused client=127.0.0.1 reason=malformed")
    });
}

#[test]
fn an_outage_of_the_service_is_some_lines_and_not_one_for_each_request() {
    let gateway = OperatedGateway::start("");
    for number in 0..50 {
        post(gateway.public, "/die", "tea").key(&number.to_string()).reply();
    }
    eventually(|| gateway.log().matches("path=/die").count() == 50);
    let lines = gateway.log().matches("no response").count();
    assert!((1..=20).contains(&lines), "{lines}");
}
