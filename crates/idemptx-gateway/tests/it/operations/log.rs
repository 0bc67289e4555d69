//! The access log, and the secrets it must not contain.

use crate::support::http_client::post;
use crate::support::operated_gateway::OperatedGateway;

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
    let log = gateway.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("path=/orders")).collect();
    assert_eq!(lines.len(), 2, "{log}");
    for (line, outcome) in lines.into_iter().zip(["executed", "replayed"]) {
        for part in [
            "method=POST",
            "client=127.0.0.1",
            "route=orders",
            "upstream=shop",
            "status=201",
            &format!("outcome={outcome}"),
            &format!("record={}", &id[33..41]),
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
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
    let log = gateway.log();
    let warnings: Vec<_> =
        log.lines().filter(|line| line.contains("a placeholder as its key")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].contains("WARN") && !log.contains("ORDER_KEY"), "{log}");
}
