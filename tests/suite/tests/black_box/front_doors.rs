//! Front doors over one store: they are one engine, and keep the same records.

use hyper::HeaderMap;
use hyper::header::{CONNECTION, DATE, SERVER, SET_COOKIE};
use serde_json::{Value, json};
use target_tests::{Answer, Journal, Request, SharedStore, Target, retry_until};
use tokio::task::JoinHandle;

#[tokio::test]
async fn what_one_front_door_has_stored_another_replays_byte_for_byte() {
    let store = SharedStore::durable().await;
    for scope in [json!("shared"), json!({ "header": "X-Tenant" })] {
        let (tested, reference) = pair(&store, json!({ "scope": scope })).await;
        for (writer, reader) in [(&tested, &reference), (&reference, &tested)] {
            for path in [
                "/count",
                "/echo",
                "/headers",
                "/cookie",
                "/bytes?n=100000",
                "/stream?chunks=3&gap=1",
                "/status/204",
                "/status/303",
                "/status/410",
                "/execution",
            ] {
                let key = format!("{scope} {path} {}", writer.address());
                let key = format!("\"{}\"", key.replace('"', "\\\""));
                let request = writer.post(path).key(&key).header("x-tenant", "one").body("é");
                let first = request.send().await;
                first.assert_fresh(first.status.as_u16());
                let own = request.send().await;
                let other = request.clone().to(reader).send().await;
                other.assert_replay_of(&first);
                assert_eq!(lasting(&other), lasting(&own), "{path}");
                let reused = request.clone().to(reader).body("e").send().await;
                reused.assert_refused(422, "key-reused");
            }
        }
        assert_eq!(starts(&tested.journal), 20);
    }
}

/// The same requests at two front doors, each over a store with nothing in it: what the engine has
/// to say is the same, word for word.
#[tokio::test]
async fn whatever_is_answered_is_answered_alike() {
    let policy = json!({
        "required": true, "request_bytes_max": 1000, "response_bytes_max": 1000,
        "on_large_body": "reject", "scope": "shared", "expose": ["status", "key"],
    });
    let start =
        |front_door: &str| Target::builder().front_door(front_door).policy(policy.clone()).start();
    let (tested, reference) = tokio::join!(start(&target_tests::front_door()), start(REFERENCE));
    let long = "k".repeat(256);
    let large = "x".repeat(1001);
    let mut differences = Vec::new();
    for (key, path, bodies) in [
        ("", "/count", ["a", "a"]),
        ("\"\"", "/count", ["a", "a"]),
        ("a,b", "/count", ["a", "a"]),
        ("\"open", "/count", ["a", "a"]),
        (long.as_str(), "/count", ["a", "a"]),
        ("again", "/count", ["a", "a"]),
        ("reused", "/count", ["a", "b"]),
        ("large", "/echo", [large.as_str(), large.as_str()]),
        ("bytes", "/bytes?n=1001", ["a", "a"]),
        ("events", "/events?chunks=2", ["a", "a"]),
        ("records", "/events?chunks=2&kind=application/jsonl", ["a", "a"]),
        ("unbuffered", "/events?chunks=2&kind=a/b&buffering=no", ["a", "a"]),
        ("released", "/events?chunks=1&o=release", ["a", "b"]),
        ("unknown", "/outcome?o=unknown", ["a", "a"]),
        ("nonsense", "/outcome?o=nonsense", ["a", "a"]),
        ("release", "/outcome?o=release", ["a", "b"]),
        ("store", "/outcome?o=store", ["a", "b"]),
        ("created", "/headers", ["a", "a"]),
        ("cookie", "/cookie", ["a", "a"]),
        ("204", "/status/204", ["a", "a"]),
        ("304", "/status/304", ["a", "a"]),
        ("404", "/status/404", ["a", "b"]),
        ("409", "/status/409", ["a", "b"]),
        ("422", "/status/422", ["a", "b"]),
        ("429", "/status/429", ["a", "b"]),
        ("503", "/status/503", ["a", "b"]),
    ] {
        for body in bodies {
            let ask = async |target: &Target| {
                let request = target.post(path).alone().body(body.to_owned());
                let request = if key.is_empty() { request } else { request.key(key) };
                comparable(&request.send().await)
            };
            let (tested, reference) = tokio::join!(ask(&tested), ask(&reference));
            if tested != reference {
                differences.push(format!("{key} {path}: {tested:#?} instead of {reference:#?}"));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test]
async fn a_call_of_grpc_is_refused_as_its_clients_expect() {
    let target = Target::start().await;
    for kind in ["application/grpc", "application/grpc-web+proto"] {
        let call = target.post("/count").alone().key(kind).header("content-type", kind);
        // The application is none of gRPC: what it answers has its HTTP status.
        call.clone().body("a").send().await.assert_fresh(201);
        let reused = call.body("b").send().await;
        assert_eq!((reused.status.as_u16(), reused.body.len()), (200, 0), "{reused:?}");
        assert_eq!(reused.header("content-type"), Some(kind));
        assert_eq!(reused.header("grpc-status"), Some("9"), "{reused:?}");
    }
}

#[tokio::test]
async fn all_derive_the_same_keys_for_other_systems() {
    let policy = json!({ "scope": { "header": "X-Tenant" } });
    let start =
        |front_door: &str| Target::builder().front_door(front_door).policy(policy.clone()).start();
    let (tested, reference) = tokio::join!(start(&target_tests::front_door()), start(REFERENCE));
    let derived = async |target: &Target| {
        let request = target.post("/execution").key("k").header("x-tenant", "one");
        request.send().await.json()["derived"].clone()
    };
    let expected = derived(&reference).await;
    assert!(expected.is_string(), "{expected}");
    assert_eq!(derived(&tested).await, expected);
}

#[tokio::test]
async fn those_who_wait_at_another_front_door_get_the_answer() {
    let store = SharedStore::start().await;
    let (tested, reference) = pair(&store, json!({ "wait_ms": 60_000 })).await;
    for (writer, reader, key) in [(&tested, &reference, "there"), (&reference, &tested, "here")] {
        let slow = writer.post("/slow?ms=500").key(key);
        let running = send(&slow);
        writer.journal.started(key, 1).await;
        let waited = slow.to(reader).send_at_once(5).await;
        let first = running.await.expect("no panic").expect("an answer");
        first.assert_fresh(201);
        waited.iter().for_each(|answer| answer.assert_replay_of(&first));
        writer.journal.assert_executions(key, 1, 1);
    }
}

#[tokio::test]
async fn an_operation_of_a_killed_process_is_taken_over_by_another_front_door() {
    let store = SharedStore::start().await;
    for tested_is_killed in [true, false] {
        let (tested, reference) = pair(&store, json!({ "lease_ms": 5000 })).await;
        let (mut doomed, survivor) =
            if tested_is_killed { (tested, reference) } else { (reference, tested) };
        let key = format!("k-{tested_is_killed}");
        let request = doomed.post("/execution?ms=3000").key(&key);
        let lost = send(&request);
        doomed.journal.started(&key, 1).await;
        doomed.kill().await;
        assert!(lost.await.expect("no panic").is_err(), "a killed process cannot answer");
        let retry = request.to(&survivor);
        retry.send().await.assert_refused(409, "in-progress");
        let answer = retry_until(&retry, |answer| answer.status != 409).await;
        answer.assert_fresh(200);
        assert_eq!(answer.json()["attempt"], 2);
        survivor.journal.assert_executions(&key, 2, 1);
    }
}

/// The target under test, and the one that all are measured by, over one store with one journal.
async fn pair(store: &SharedStore, policy: Value) -> (Target, Target) {
    let journal = Journal::new();
    let start = |front_door: &str| {
        let builder = Target::builder().front_door(front_door);
        builder.store(store.url()).journal(&journal).policy(policy.clone()).start()
    };
    tokio::join!(start(&target_tests::front_door()), start(REFERENCE))
}

/// Returns the fields that belong to a stored answer, and are not added to each answer by a server.
fn lasting(answer: &Answer) -> HeaderMap {
    let mut headers = answer.headers.clone();
    for name in [CONNECTION, DATE, SERVER, SET_COOKIE] {
        headers.remove(name);
    }
    // The gateway's own, of this request.
    headers.remove("x-request-id");
    headers
}

/// Returns what the engine has said in an answer: its status, its fields, and a problem's document.
fn comparable(answer: &Answer) -> (u16, Vec<String>, Value) {
    let is_problem = !answer.code().is_empty();
    let ours = |name: &str| {
        let named = ["cache-control", "link", "location", "retry-after", "x-should-retry"];
        // The media type of a response is the application's.
        name.starts_with("idempot") || named.contains(&name) || is_problem && name == "content-type"
    };
    let lines = answer.headers.iter().filter(|(name, _)| ours(name.as_str()));
    let mut lines: Vec<_> = lines.map(|(name, value)| format!("{name}: {value:?}")).collect();
    lines.sort();
    let mut problem = Value::Null;
    if is_problem {
        problem = answer.json();
        // The gateway names its request there.
        problem.as_object_mut().expect("an object").remove("request_id");
    }
    (answer.status.as_u16(), lines, problem)
}

fn starts(journal: &Journal) -> usize {
    journal.entries().len() / 2
}

fn send(request: &Request) -> JoinHandle<Result<Answer, String>> {
    let request = request.clone();
    tokio::spawn(async move { request.try_send().await })
}

/// The front door that all others are compared with.
const REFERENCE: &str = "axum";
