//! Access to the admin listener, and the headers of its responses.

use std::process::Command;

use crate::support::http_client::{ask, get, post};
use crate::support::operated_gateway::OperatedGateway;

#[test]
fn the_public_listener_knows_nothing_of_operators() {
    let gateway = OperatedGateway::start("path = \"/orders\"\npolicy = { scope = \"shared\" }");
    for path in ["/", "/metrics", "/api/overview", "/healthz", "/readyz", "/page.js"] {
        assert_eq!(get(gateway.public, path).reply().status, 404, "{path}");
    }
}

#[test]
fn with_a_token_everything_but_the_page_and_the_probes_wants_it() {
    let gateway = OperatedGateway::configured("", "token = \"s3cret\"", "");
    for path in ["/metrics", "/api/overview", "/api/records", "/nonsense"] {
        let reply = gateway.ask(path).reply();
        assert_eq!(reply.status, 401, "{path}");
        assert_eq!(reply.header("www-authenticate"), Some("bearer"));
        let wrong = gateway.ask(path).header("authorization", "Bearer secret").reply();
        assert_eq!(wrong.status, 401, "{path}");
    }
    for path in ["/", "/page.css", "/page.js", "/healthz"] {
        assert_eq!(gateway.ask(path).reply().status, 200, "{path}");
    }
    let bearer = |path| gateway.ask(path).header("authorization", "Bearer s3cret").reply().status;
    let refused = "rejected admin request without the token: GET /api/overview from=127.0.0.1";
    assert!(gateway.log().contains(refused), "{}", gateway.log());
    assert_eq!((bearer("/metrics"), bearer("/api/overview"), bearer("/nonsense")), (200, 200, 404));
    let id = format!("/api/records/{}:{}/forget", "0".repeat(32), "0".repeat(32));
    let forget = post(gateway.admin, &id, "{}").deliberate("alice");
    assert_eq!(forget.clone().reply().status, 401);
    assert_eq!(forget.header("authorization", "Bearer s3cret").reply().status, 404);
}

#[test]
fn another_name_for_this_address_is_not_answered() {
    let gateway = OperatedGateway::start("");
    for path in ["/", "/healthz", "/metrics", "/api/overview"] {
        let rebound = gateway.ask(path).header("host", "evil.example").reply();
        assert_eq!(rebound.status, 421, "{path}");
        let named =
            gateway.ask(path).header("host", &format!("localhost:{}", gateway.admin.port()));
        assert_ne!(named.reply().status, 421, "{path}");
    }
}

#[test]
fn a_form_of_another_site_changes_nothing() {
    let gateway = OperatedGateway::start("");
    post(gateway.public, "/orders", "tea").key("k").reply();
    let path = format!("/api/records/{}/forget", gateway.only_record());
    let body = "{\"seen\":\"done.1\"}";
    let plain = post(gateway.admin, &path, body).header("content-type", "text/plain");
    assert_eq!(plain.clone().reply().status, 403);
    assert_eq!(plain.header("cookie", "token=x").reply().status, 403);
    let site =
        post(gateway.admin, &path, body).deliberate("x").header("sec-fetch-site", "cross-site");
    assert_eq!(site.reply().status, 403);
    let preflight = ask(gateway.admin, "OPTIONS", &path)
        .header("origin", "http://evil.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "idempotency-admin")
        .reply();
    assert_ne!(preflight.status, 200);
    assert_eq!(preflight.header("access-control-allow-origin"), None);
    gateway.only_record();
}

#[test]
fn every_answer_keeps_browsers_from_being_turned_against_operators() {
    let gateway = OperatedGateway::start("");
    for path in ["/", "/page.js", "/api/overview", "/metrics", "/nonsense", "/healthz"] {
        let reply = gateway.ask(path).reply();
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("x-frame-options"), Some("deny"));
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
    }
}

#[test]
fn a_wrong_method_is_told_the_right_one() {
    let gateway = OperatedGateway::start("");
    let id = format!("{}:{}", "0".repeat(32), "0".repeat(32));
    for (method, path, allowed) in [
        ("DELETE", "/", "get, head"),
        ("PUT", "/api/overview", "get, head"),
        ("PUT", "/api/search", "post"),
        ("DELETE", &*format!("/api/records/{id}"), "get, head"),
        ("GET", &*format!("/api/records/{id}/forget"), "post"),
    ] {
        let reply = ask(gateway.admin, method, path).deliberate("alice").reply();
        assert_eq!((reply.status, reply.header("allow")), (405, Some(allowed)), "{method} {path}");
    }
}

#[test]
fn the_simple_case_has_an_admin_listener_where_it_is_asked_for() {
    let gateway = OperatedGateway::by_flags(&["--admin", "127.0.0.1:0"]);
    assert_eq!(gateway.ask("/healthz").reply().status, 200);
    let open = Command::new(env!("CARGO_BIN_EXE_idemptx"))
        .args(["serve", "--upstream", "http://127.0.0.1:9", "--admin", "0.0.0.0:0"])
        .env_remove("IDEMPTX_ADMIN_TOKEN")
        .output()
        .unwrap();
    assert_eq!(open.status.code(), Some(2));
    assert!(String::from_utf8(open.stderr).unwrap().contains("set IDEMPTX_ADMIN_TOKEN"));
}

#[test]
fn a_body_that_is_too_large_or_no_json_is_refused() {
    let gateway = OperatedGateway::start("");
    for (body, why) in [("x".repeat(3 << 20), "exceeds"), ("{".to_owned(), "not valid JSON")] {
        let reply = post(gateway.admin, "/api/search", &body).deliberate("alice").reply();
        assert!(reply.status == 400 && reply.body.contains(why), "{reply:?}");
    }
}
