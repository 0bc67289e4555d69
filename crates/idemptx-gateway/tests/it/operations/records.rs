//! Records: listed, searched, inspected, and resolved by an operator.

use idemptx_testkit::RedisServer;
use serde_json::json;

use crate::support::http_client::post;
use crate::support::operated_gateway::{OperatedGateway, eventually};

#[test]
fn a_key_in_flight_is_listed_and_then_done() {
    let gateway = OperatedGateway::start("");
    let (public, upstream) = (gateway.public, gateway.upstream.clone());
    let client = std::thread::spawn(move || post(public, "/slow", "tea").key("k").reply());
    upstream.reach(1);
    let page = gateway.ask("/api/records?view=in-flight").json();
    let record = &page["records"][0];
    assert_eq!((&record["state"], &record["attempt"]), (&json!("running"), &json!(1)), "{page}");
    assert!(record["lease_ms"].as_u64().unwrap() > 0);
    let overview = gateway.ask("/api/overview").json();
    assert_eq!(overview["now"]["executing"], 1, "{overview}");
    upstream.open();
    assert_eq!(client.join().unwrap().status, 201);
    assert_eq!(gateway.ask("/api/records?view=in-flight").json()["records"], json!([]));
    let overview = gateway.ask("/api/overview").json();
    assert_eq!(overview["routes"][0]["executed"], 1, "{overview}");
    assert_eq!(overview["requests"]["executed"], 1);
    assert_eq!(overview["store"]["kind"], "SQLite");
}

#[test]
fn a_record_tells_its_story() {
    let gateway = OperatedGateway::start("policy = { wait_ms = 10000 }");
    let (public, upstream) = (gateway.public, gateway.upstream.clone());
    let send = move || post(public, "/slow", "tea").key("k").reply();
    let first = std::thread::spawn(send);
    upstream.reach(1);
    let second = std::thread::spawn(send);
    eventually(|| gateway.ask("/api/overview").json()["now"]["waiting"] == 1);
    upstream.open();
    assert_eq!((first.join().unwrap().status, second.join().unwrap().status), (201, 201));
    assert_eq!((send().status, send().status), (201, 201));
    assert_eq!(post(public, "/slow", "coffee").key("k").reply().status, 422);
    let told = gateway.ask(&format!("/api/records/{}", gateway.only_record())).json();
    let story: Vec<_> = told["story"].as_array().unwrap().iter().map(|it| &it["text"]).collect();
    // The first client and the one that waited are answered at the same time.
    let (beginning, rest) = story.split_at(2);
    assert_eq!(beginning, ["Claimed, attempt 1", "Answer stored"]);
    for text in [
        "Answer sent",
        "Replayed to a request that waited",
        "Replayed",
        "Request refused: key-reused",
    ] {
        assert!(rest.iter().any(|it| *it == text), "{text}: {story:?}");
    }
    let replays = told["story"].as_array().unwrap().iter().find(|it| it["text"] == "Replayed");
    assert_eq!(replays.unwrap()["times"], 2);
    assert_eq!(told["answer"]["status"], 201);
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_key_is_found_by_what_the_client_sent() {
    let gateway = OperatedGateway::start("policy = { scope = { header = \"X-Account\" } }");
    let order = |account| {
        post(gateway.public, "/orders", "tea").key("\"k 1\"").header("x-account", account).reply()
    };
    assert_eq!((order("a").status, order("b").status), (201, 201));
    let find = |key: &str, scope: &str| {
        let asked = json!({ "key": key, "scope": scope, "method": "POST", "path": "/orders" });
        let search = post(gateway.admin, "/api/search", &asked.to_string()).deliberate("alice");
        search.json()["matches"].clone()
    };
    let found = find("\"k 1\"", "a");
    assert_eq!(found[0]["record"]["state"], "completed", "{found}");
    assert_eq!(found[0]["routes"], json!(["orders"]));
    assert_ne!(find("\"k 1\"", "b")[0]["id"], found[0]["id"]);
    assert_eq!(find("\"k 1\"", ""), json!([]), "without an account it is nobody's");
    assert!(find("other", "a")[0]["record"].is_null());
    assert!(!gateway.log().contains("k 1"), "no key is logged");
}

#[test]
fn a_key_in_doubt_is_answered_by_an_operator_or_released() {
    let gateway = OperatedGateway::start("policy = { scope = \"shared\" }");
    for (action, expected) in [("answer", "told"), ("release", "{\"n\":3}")] {
        let send = || post(gateway.public, "/die", "tea").key(action).reply();
        assert_eq!(send().status, 502);
        assert_eq!(send().status, 409, "its outcome is unknown");
        let doubt = gateway.ask("/api/records?view=in-doubt").json();
        let id = doubt["records"][0]["id"].as_str().unwrap();
        let told = gateway.ask(&format!("/api/records/{id}")).json();
        let actions = told["actions"].as_array().unwrap();
        let offered = actions.iter().find(|it| it["name"] == action).unwrap();
        let seen = &offered["seen"];
        let path = format!("/api/records/{id}/{action}");
        let stale = json!({ "seen": "running.1" }).to_string();
        assert_eq!(post(gateway.admin, &path, &stale).deliberate("alice").reply().status, 409);
        let answer = json!({ "status": 200, "content_type": "text/plain", "body": "told" });
        let decision = json!({ "seen": seen, "answer": answer }).to_string();
        let done = post(gateway.admin, &path, &decision).deliberate("alice").json();
        assert!(done["done"].as_str().unwrap().contains("next request") == (action == "release"));
        let again = post(gateway.admin, &path, &decision).deliberate("alice").reply();
        assert!([404, 409].contains(&again.status), "{again:?}");
        if action == "answer" {
            let reply = send();
            assert_eq!((reply.status, &*reply.body), (200, expected));
            assert_eq!(reply.header("idempotent-replayed"), Some("true"));
        } else {
            assert_eq!(send().status, 502, "it is executed again");
            assert_eq!(gateway.upstream.executed(), 3);
        }
        eventually(|| gateway.log().contains(&format!("action={action}")));
        let log = gateway.log();
        let line = log.lines().rfind(|line| line.contains("an operator decided")).unwrap();
        let record = &id[33..41];
        for part in [format!("action={action}"), format!("record={record}"), "by=alice".into()] {
            assert!(line.contains(&part), "{part} in {line}");
        }
        let events = gateway.ask(&format!("/api/records/{id}")).json()["story"].clone();
        let by_operator = |it: &serde_json::Value| it["kind"] == "operator";
        assert!(events.as_array().unwrap().iter().any(by_operator), "{events}");
    }
}

#[test]
fn an_answer_that_no_server_can_send_is_refused() {
    let gateway = OperatedGateway::start("");
    post(gateway.public, "/die", "tea").key("k").reply();
    let path = format!("/api/records/{}", gateway.only_record());
    let seen = gateway.ask(&path).json()["actions"][0]["seen"].clone();
    let answer = |status: u16, body: &str| {
        let decision = json!({ "seen": seen, "answer": { "status": status, "body": body } });
        post(gateway.admin, &format!("{path}/answer"), &decision.to_string()).deliberate("alice")
    };
    for status in [101, 204, 304, 600] {
        let reply = answer(status, "paid").reply();
        assert_eq!(reply.status, 400, "{status}: {reply:?}");
    }
    answer(204, "").json();
    assert_eq!(post(gateway.public, "/die", "tea").key("k").reply().status, 204);
}

#[test]
fn a_settled_record_can_be_forgotten() {
    let gateway = OperatedGateway::start("");
    let send = || post(gateway.public, "/orders", "tea").key("k").reply();
    assert_eq!((send().body, send().body), ("{\"n\":1}".into(), "{\"n\":1}".into()));
    let id = gateway.only_record();
    let told = gateway.ask(&format!("/api/records/{id}")).json();
    let offered: Vec<_> =
        told["actions"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(offered, ["forget"]);
    let body = json!({ "seen": told["actions"][0]["seen"] }).to_string();
    let path = format!("/api/records/{id}/forget");
    post(gateway.admin, &path, &body).deliberate("alice").json();
    assert_eq!(send().body, "{\"n\":2}");
}

#[test]
fn what_another_gateway_does_is_seen_in_the_store_and_told_as_such() {
    let redis = RedisServer::start(&[]);
    let (here, there) = (
        OperatedGateway::sharing(&redis.patient_url()),
        OperatedGateway::sharing(&redis.patient_url()),
    );
    let (public, upstream) = (there.public, there.upstream);
    let client = std::thread::spawn(move || post(public, "/slow", "tea").key("k").reply());
    upstream.reach(1);
    let record = here.ask("/api/records?view=in-flight").json()["records"][0].clone();
    assert_eq!(record["state"], "running", "{record}");
    let told = here.ask(&format!("/api/records/{}", record["id"].as_str().unwrap())).json();
    assert_eq!(told["story"], json!([]));
    assert!(told["story_note"].as_str().unwrap().contains("Other gateways may have"), "{told}");
    assert_eq!(told["actions"], json!([]), "its owner is alive");
    assert_eq!(here.ask("/api/overview").json()["now"]["executing"], 0);
    upstream.open();
    assert_eq!(client.join().unwrap().status, 201);
    assert_eq!(post(here.public, "/slow", "tea").key("k").reply().body, "{\"n\":1}");
}

#[test]
fn a_store_with_many_records_is_paged() {
    let gateway = OperatedGateway::start("");
    for number in 0..5 {
        post(gateway.public, "/orders", "tea").key(&format!("k{number}")).reply();
    }
    let (mut seen, mut path) = (Vec::new(), "/api/records?view=completed&limit=2".to_owned());
    loop {
        let page = gateway.ask(&path).json();
        seen.extend(page["records"].as_array().unwrap().iter().map(|it| it["id"].to_string()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/api/records?view=completed&limit=2&after={next}");
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 5);
    for bad in ["view=nonsense", "limit=x", "after=%20", "after=zzz", "order=age"] {
        assert_eq!(gateway.ask(&format!("/api/records?{bad}")).reply().status, 400, "{bad}");
    }
}
