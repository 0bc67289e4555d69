//! Behaviour that only Redis can be brought to show; skipped over other stores.
//!
//! The suite skips this module by its name.

use serde_json::{Value, json};
use target_tests::{Journal, Monitor, RedisServer, Target};
use target_tests::{assert_one_success, retry_until};

#[tokio::test]
async fn a_new_request_is_two_commands_and_a_replay_is_one() {
    let redis = RedisServer::start().await;
    let target = Target::builder().store(redis.url()).start().await;
    // Connections, scripts and checks come first.
    target.post("/count").key("warm").send().await;
    target.post("/count").key("warm").send().await;
    let mut monitor = redis.monitor().await;
    for number in 0..50 {
        target.post("/count").key(&format!("k-{number}")).send().await.assert_fresh(201);
    }
    let new = work(&mut monitor).await;
    assert_eq!(new.len(), 100, "{new:?}");
    for number in 0..50 {
        let replay = target.post("/count").key(&format!("k-{number}")).send().await;
        assert!(replay.is_replay(), "{replay:?}");
    }
    let hits = work(&mut monitor).await;
    assert_eq!(hits.len(), 50, "{hits:?}");
}

#[tokio::test]
async fn those_who_wait_in_one_process_cost_the_store_nothing() {
    let redis = RedisServer::start().await;
    let policy = json!({ "wait_ms": 60_000, "waiters_max": 1000 });
    let target = Target::builder().store(redis.url()).policy(policy).start().await;
    target.post("/count").key("warm").send().await;
    let mut monitor = redis.monitor().await;
    let answers = target.post("/slow?ms=5000").key("k").send_at_once(201).await;
    assert_one_success(&answers);
    let commands = work(&mut monitor).await;
    assert!(commands.len() <= 10, "{commands:?}");
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn those_who_wait_for_another_process_watch_together() {
    const WAITING: usize = 200;
    let redis = RedisServer::start().await;
    let (one, another) = pair(&redis, json!({ "wait_ms": 60_000, "waiters_max": 1000 })).await;
    another.post("/count").key("warm").send().await;
    let slow = one.post("/slow?ms=5000").key("k");
    let running = slow.start();
    one.journal.started("k", 1).await;
    let mut monitor = redis.monitor().await;
    let answers = slow.to(&another).send_at_once(WAITING).await;
    let first = running.await.expect("an answer");
    answers.iter().for_each(|answer| answer.assert_replay_of(&first));
    let commands = work(&mut monitor).await;
    // They grow with the time that is waited, and not with those who wait.
    assert!(commands.len() < WAITING, "{} commands: {commands:?}", commands.len());
}

#[tokio::test]
async fn a_store_that_comes_back_empty_yields_no_second_unmarked_success() {
    let mut redis = RedisServer::start().await;
    let target = Target::builder().store(redis.url()).policy(impatient()).start().await;
    let request = target.post("/slow?ms=3000").key("k");
    let running = request.start();
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
    let request = target.post("/slow?ms=5000").key("k");
    let running = request.start();
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
    let running = target.post("/slow?ms=3000").key("running");
    let first = running.start();
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
    let running = request.start();
    target.journal.started("k", 1).await;
    redis.forget_scripts().await;
    let first = running.await.expect("an answer");
    first.assert_fresh(201);
    request.send().await.assert_replay_of(&first);
}

/// Two processes over one store, with one journal.
async fn pair(redis: &RedisServer, policy: Value) -> (Target, Target) {
    let journal = Journal::new();
    let start = || {
        let builder = Target::builder().store(redis.url()).journal(&journal);
        builder.policy(policy.clone()).start()
    };
    tokio::join!(start(), start())
}

/// The commands that requests have caused: a connection's own upkeep is not theirs.
async fn work(monitor: &mut Monitor) -> Vec<String> {
    let upkeep = ["PING", "HELLO", "CLIENT", "INFO", "CONFIG"];
    let commands = monitor.commands().await;
    commands.into_iter().filter(|command| !upkeep.contains(&command.as_str())).collect()
}

/// Returns a policy with a short settle timeout.
fn impatient() -> Value {
    json!({ "store_timeout_ms": { "settle": 500 } })
}
