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

fn starts(journal: &Journal) -> usize {
    journal.entries().len() / 2
}

fn send(request: &Request) -> JoinHandle<Result<Answer, String>> {
    let request = request.clone();
    tokio::spawn(async move { request.try_send().await })
}

/// The front door that all others are compared with.
const REFERENCE: &str = "axum";
