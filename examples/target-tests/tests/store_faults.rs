//! A store that dies, freezes or is full: nothing runs in doubt, and nothing that ran is lost.

use serde_json::json;
use target_tests::{Answer, RedisServer, Request, Target, retry_until};
use tokio::task::JoinHandle;

#[tokio::test]
async fn nothing_runs_while_the_store_is_away() {
    let mut redis = RedisServer::start().await;
    let target = Target::builder().store(redis.url()).start().await;
    target.post("/count").key("before").send().await.assert_fresh(201);
    redis.kill();
    let request = target.post("/count").key("k");
    for _ in 0..3 {
        let answer = request.send().await;
        let problem = answer.assert_refused(503, "store-unavailable");
        assert_eq!(
            (&problem["retryable"], &problem["safe_new_key"]),
            (&json!(true), &json!(false))
        );
        assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    }
    assert_eq!(target.post("/count").send().await.status, 201, "without a key nothing changes");
    target.journal.assert_executions("k", 0, 0);
    redis.restart().await;
    let answer = retry_until(&request, |answer| answer.status != 503).await;
    answer.assert_fresh(201);
    request.send().await.assert_replay_of(&answer);
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_claim_that_the_store_carries_out_late_does_not_block_the_key() {
    let redis = RedisServer::start().await;
    let policy = json!({ "store_timeout_ms": { "claim": 300, "settle": 5000 } });
    let target = Target::builder().store(redis.url()).policy(policy).start().await;
    target.post("/count").key("before").send().await.assert_fresh(201);
    redis.pause();
    let request = target.post("/count").key("k");
    request.send().await.assert_refused(503, "store-unavailable");
    target.journal.assert_executions("k", 0, 0);
    redis.resume();
    // The lease of 15 s would outlast the patience of this suite by far if nobody released it.
    let answer = retry_until(&request, |answer| answer.status == 201).await;
    answer.assert_fresh(201);
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn an_answer_whose_store_died_meanwhile_is_given_and_stored_later() {
    let mut redis = RedisServer::durable().await;
    let target = Target::builder().store(redis.url()).policy(impatient()).start().await;
    let request = target.post("/slow?ms=500").key("k");
    let running = send(&request);
    target.journal.started("k", 1).await;
    redis.kill();
    let own = running.await.expect("an answer");
    own.assert_unstored(201);
    let meanwhile = request.send().await;
    assert!(["in-progress", "store-unavailable"].contains(&&*meanwhile.code()), "{meanwhile:?}");
    redis.restart().await;
    let replay = retry_until(&request, |answer| answer.status == 201).await;
    replay.assert_replay_of(&own);
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn an_answer_whose_store_froze_meanwhile_is_given_and_stored_later() {
    let redis = RedisServer::start().await;
    let target = Target::builder().store(redis.url()).policy(impatient()).start().await;
    let request = target.post("/slow?ms=500").key("k");
    let running = send(&request);
    target.journal.started("k", 1).await;
    redis.pause();
    let own = running.await.expect("an answer");
    own.assert_unstored(201);
    redis.resume();
    let replay = retry_until(&request, |answer| answer.status == 201).await;
    replay.assert_replay_of(&own);
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_short_absence_of_the_store_is_not_even_noticed() {
    let mut redis = RedisServer::durable().await;
    let target = Target::builder().store(redis.url()).start().await;
    let request = target.post("/slow?ms=500").key("k");
    let running = send(&request);
    target.journal.started("k", 1).await;
    redis.kill();
    target.journal.ended("k", 1).await;
    redis.restart().await;
    let own = running.await.expect("an answer");
    own.assert_fresh(201);
    request.send().await.assert_replay_of(&own);
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_store_that_comes_back_empty_yields_no_second_unmarked_success() {
    let mut redis = RedisServer::start().await;
    let target = Target::builder().store(redis.url()).policy(impatient()).start().await;
    let request = target.post("/slow?ms=500").key("k");
    let running = send(&request);
    target.journal.started("k", 1).await;
    redis.kill();
    // The only one that may be followed by another: it says so.
    let own = running.await.expect("an answer");
    own.assert_unstored(201);
    redis.restart().await;
    let later = retry_until(&request, |answer| answer.status == 201).await;
    for _ in 0..3 {
        request.send().await.assert_replay_of(&later);
    }
}

#[tokio::test]
async fn a_claim_that_vanished_from_the_store_earns_no_success() {
    let mut redis = RedisServer::start().await;
    let target = Target::builder().store(redis.url()).start().await;
    let request = target.post("/slow?ms=800").key("k");
    let running = send(&request);
    target.journal.started("k", 1).await;
    // Gone and back within the handler's time, and empty.
    redis.kill();
    redis.restart().await;
    let answer = running.await.expect("an answer");
    answer.assert_refused(409, "in-progress");
    let later = retry_until(&request, |answer| answer.status == 201).await;
    request.send().await.assert_replay_of(&later);
    target.journal.assert_executions("k", 2, 2);
}

#[tokio::test]
async fn a_full_store_takes_nothing_new_and_still_settles_what_runs() {
    let redis = RedisServer::start().await;
    let target = Target::builder().store(redis.url()).start().await;
    let running = target.post("/slow?ms=500").key("running");
    let first = send(&running);
    target.journal.started("running", 1).await;
    redis.configure("maxmemory", "1").await;
    let new = target.post("/count").key("new");
    new.send().await.assert_refused(503, "store-unavailable");
    target.journal.assert_executions("new", 0, 0);
    let first = first.await.expect("an answer");
    first.assert_fresh(201);
    redis.configure("maxmemory", "0").await;
    running.send().await.assert_replay_of(&first);
    retry_until(&new, |answer| answer.status == 201).await.assert_fresh(201);
    target.journal.assert_executions("running", 1, 1);
    target.journal.assert_executions("new", 1, 1);
}

#[tokio::test]
async fn a_store_without_its_scripts_goes_on() {
    let redis = RedisServer::start().await;
    let target = Target::builder().store(redis.url()).start().await;
    let request = target.post("/slow?ms=300").key("k");
    let running = send(&request);
    target.journal.started("k", 1).await;
    redis.forget_scripts().await;
    let first = running.await.expect("an answer");
    first.assert_fresh(201);
    request.send().await.assert_replay_of(&first);
}

/// Tells the client soon that its answer is not stored.
fn impatient() -> serde_json::Value {
    json!({ "store_timeout_ms": { "claim": 500, "settle": 500 } })
}

fn send(request: &Request) -> JoinHandle<Answer> {
    let request = request.clone();
    tokio::spawn(async move { request.send().await })
}
