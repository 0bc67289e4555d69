//! A process that dies or freezes in the middle of an operation.

use serde_json::{Value, json};
use target_tests::{Answer, Journal, RedisServer, Request, Target, retry_until};
use tokio::task::JoinHandle;

#[tokio::test]
async fn an_operation_whose_process_was_killed_is_executed_again_after_the_lease() {
    let redis = RedisServer::start().await;
    let (mut one, another) = pair(&redis, "draft", json!({ "lease_ms": 1000 })).await;
    let request = one.post("/execution?ms=1500").key("k");
    let lost = send(&request);
    one.journal.started("k", 1).await;
    one.kill().await;
    assert!(lost.await.expect("no panic").is_err(), "a killed process cannot answer");

    let retry = request.to(&another);
    retry.send().await.assert_refused(409, "in-progress");
    let answer = retry_until(&retry, |answer| answer.status != 409).await;
    answer.assert_fresh(200);
    assert_eq!((&answer.json()["attempt"], &answer.json()["key"]), (&json!(2), &json!("k")));
    retry.send().await.assert_replay_of(&answer);
    another.journal.assert_executions("k", 2, 1);

    // What the first attempt passed on to other systems is what the second one passes on.
    let elsewhere = Target::start().await;
    let first_attempt = elsewhere.post("/execution?ms=1500").key("k").send().await.json();
    assert_eq!(first_attempt["attempt"], 1);
    assert_eq!(first_attempt["derived"], answer.json()["derived"]);
    assert_ne!(first_attempt["token"], answer.json()["token"]);
}

#[tokio::test]
async fn duplicates_after_a_crash_are_one_execution() {
    let redis = RedisServer::start().await;
    let policy = json!({ "lease_ms": 1000, "wait_ms": 20_000, "waiters_max": 100 });
    let (mut one, another) = pair(&redis, "draft", policy).await;
    let request = one.post("/slow?ms=500").key("k");
    let lost = send(&request);
    one.journal.started("k", 1).await;
    one.kill().await;
    assert!(lost.await.expect("no panic").is_err(), "a killed process cannot answer");
    let answers = request.to(&another).send_at_once(20).await;
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), 1, "{answers:#?}");
    assert!(answers.iter().all(|answer| answer.body == answers[0].body), "{answers:#?}");
    another.journal.assert_executions("k", 2, 1);
}

#[tokio::test]
async fn a_payment_whose_process_was_killed_is_never_executed_again() {
    let redis = RedisServer::durable().await;
    let policy = json!({ "scope": "shared", "lease_ms": 1000, "on_unsafe_store": "warn" });
    let (mut one, another) = pair(&redis, "payments", policy).await;
    let request = one.post("/slow?ms=300").key("k");
    let lost = send(&request);
    one.journal.started("k", 1).await;
    one.kill().await;
    assert!(lost.await.expect("no panic").is_err(), "a killed process cannot answer");
    let retry = request.to(&another);
    retry.send().await.assert_refused(409, "in-progress");
    let answer = retry_until(&retry, |answer| answer.code() != "in-progress").await;
    let problem = answer.assert_refused(409, "outcome-unknown");
    assert_eq!((&problem["retryable"], &problem["safe_new_key"]), (&json!(false), &json!(false)));
    retry.send().await.assert_refused(409, "outcome-unknown");
    another.post("/count").key("k").send().await.assert_refused(422, "key-reused");
    another.journal.assert_executions("k", 1, 0);
}

#[tokio::test]
async fn a_process_that_was_frozen_beyond_its_lease_cannot_have_a_success_of_its_own() {
    let redis = RedisServer::start().await;
    let (one, another) = pair(&redis, "draft", json!({ "lease_ms": 1000 })).await;
    let request = one.post("/slow?ms=800").key("k");
    let frozen = send(&request);
    one.journal.started("k", 1).await;
    one.pause();
    let retry = request.clone().to(&another);
    let taken_over = retry_until(&retry, |answer| answer.status != 409).await;
    taken_over.assert_fresh(201);
    one.resume();
    let late = frozen.await.expect("no panic").expect("an answer");
    match late.status.as_u16() {
        201 => late.assert_replay_of(&taken_over),
        _ => drop(late.assert_refused(409, "in-progress")),
    }
    for target in [&one, &another] {
        request.clone().to(target).send().await.assert_replay_of(&taken_over);
    }
    one.journal.assert_executions("k", 2, 2);
}

#[tokio::test]
async fn a_frozen_process_whose_successor_still_runs_waits_for_the_one_answer() {
    let redis = RedisServer::start().await;
    let (one, another) = pair(&redis, "draft", json!({ "lease_ms": 1000 })).await;
    let request = one.post("/slow?ms=800").key("k");
    let frozen = send(&request);
    one.journal.started("k", 1).await;
    one.pause();
    let retry = request.clone().to(&another);
    let successor =
        tokio::spawn(async move { retry_until(&retry, |answer| answer.status != 409).await });
    one.journal.started("k", 2).await;
    one.resume();
    let (late, taken_over) = tokio::join!(frozen, successor);
    let (late, taken_over) = (late.expect("no panic"), taken_over.expect("an answer"));
    let late = late.expect("an answer");
    match late.status.as_u16() {
        201 => late.assert_replay_of(&taken_over),
        _ => drop(late.assert_refused(409, "in-progress")),
    }
    taken_over.assert_fresh(201);
    request.send().await.assert_replay_of(&taken_over);
    one.journal.assert_executions("k", 2, 2);
}

#[tokio::test]
async fn a_handler_keeps_its_claim_for_as_long_as_it_runs() {
    let redis = RedisServer::start().await;
    let (one, another) = pair(&redis, "draft", json!({ "lease_ms": 600 })).await;
    let request = one.post("/slow?ms=3000").key("k");
    let running = send(&request);
    one.journal.started("k", 1).await;
    let retry = request.to(&another);
    let mut refused = 0;
    let replay = retry_until(&retry, |answer| {
        refused += usize::from(answer.code() == "in-progress");
        answer.status == 201
    });
    let replay = replay.await;
    assert!(refused > 10, "{refused}");
    replay.assert_replay_of(&running.await.expect("no panic").expect("an answer"));
    one.journal.assert_executions("k", 1, 1);
}

/// Two processes over one store, with one journal.
async fn pair(redis: &RedisServer, profile: &str, policy: Value) -> (Target, Target) {
    let journal = Journal::new();
    let start = || {
        let builder = Target::builder().store(redis.url()).journal(&journal);
        builder.profile(profile).policy(policy.clone()).start()
    };
    tokio::join!(start(), start())
}

fn send(request: &Request) -> JoinHandle<Result<Answer, String>> {
    let request = request.clone();
    tokio::spawn(async move { request.try_send().await })
}
