//! Several processes over one store are one engine to the client.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};
use target_tests::{Answer, Event, Journal, SharedStore, Target, assert_one_success};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

#[tokio::test]
async fn an_answer_of_one_process_is_replayed_by_another() {
    let store = SharedStore::start().await;
    let (one, another) = pair(&store, json!({})).await;
    let request = one.post("/headers").key("k");
    let first = request.send().await;
    first.assert_fresh(200);
    let replay = request.clone().to(&another).send().await;
    replay.assert_replay_of(&first);
    for name in ["x-multi", "x-latin", "etag", "location"] {
        assert_eq!(replay.header_lines(name), first.header_lines(name), "{name}");
    }
    another.post("/count").key("k").send().await.assert_refused(422, "key-reused");
    one.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_duplicate_at_another_process_is_refused_while_the_first_runs() {
    let store = SharedStore::start().await;
    let (one, another) = pair(&store, json!({})).await;
    let slow = one.post("/slow?ms=5000").key("k");
    let running = slow.start();
    one.journal.started("k", 1).await;
    slow.clone().to(&another).send().await.assert_refused(409, "in-progress");
    another.post("/count").key("k").send().await.assert_refused(422, "key-reused");
    one.journal.assert_executions("k", 1, 0);
    let first = running.await.expect("an answer");
    slow.to(&another).send().await.assert_replay_of(&first);
}

#[tokio::test]
async fn five_hundred_duplicates_over_two_processes_are_one_execution() {
    let store = SharedStore::start().await;
    let (one, another) = pair(&store, json!({ "wait_ms": 60_000, "waiters_max": 1000 })).await;
    let request = one.post("/slow?ms=300").key("k");
    let elsewhere = request.clone().to(&another);
    let (here, there) = tokio::join!(request.send_at_once(250), elsewhere.send_at_once(250));
    let answers: Vec<_> = here.into_iter().chain(there).collect();
    assert_one_success(&answers);
    one.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_waiter_at_another_process_takes_over_when_the_first_gives_the_key_up() {
    let store = SharedStore::start().await;
    let (one, another) = pair(&store, json!({ "wait_ms": 60_000 })).await;
    let released = one.post("/outcome?o=release&ms=400").key("k");
    let running = released.start();
    one.journal.started("k", 1).await;
    let (waited, first) = tokio::join!(async { released.to(&another).send().await }, running);
    first.expect("an answer").assert_unstored(200);
    waited.assert_unstored(200);
    one.journal.assert_executions("k", 2, 2);
}

/// 13,500 requests: nine duplicates at once for each of 1,500 keys, over two processes.
#[tokio::test(flavor = "multi_thread")]
async fn fifteen_hundred_keys_under_fire_are_fifteen_hundred_executions() {
    const KEYS: usize = 1500;
    const DUPLICATES: usize = 9;
    let store = SharedStore::start().await;
    // No answer may be lost, however late a busy machine gives it.
    let policy = json!({ "wait_ms": 60_000, "store_timeout_ms": { "claim": 20_000 } });
    let (one, another) = pair(&store, policy).await;
    let connections = Arc::new(Semaphore::new(200));
    let mut sent = JoinSet::new();
    for number in 0..KEYS * DUPLICATES {
        let key = format!("k-{}", number / DUPLICATES);
        let target = if number % 2 == 0 { &one } else { &another };
        let request = target.post("/count?ms=5").key(&key);
        let permit = connections.clone().acquire_owned().await.expect("never closed");
        sent.spawn(async move {
            let answer = request.send().await;
            drop(permit);
            (key, answer)
        });
    }
    let mut answers: HashMap<String, Vec<Answer>> = HashMap::new();
    for (key, answer) in sent.join_all().await {
        answers.entry(key).or_default().push(answer);
    }
    assert_eq!(answers.len(), KEYS);
    answers.values().for_each(|answers| assert_one_success(answers));
    let entries = one.journal.entries();
    let starts = entries.iter().filter(|entry| entry.event == Event::Start);
    assert_eq!((starts.count(), entries.len()), (KEYS, 2 * KEYS));
}

/// Two processes over one store, with one journal.
async fn pair(store: &SharedStore, policy: Value) -> (Target, Target) {
    let journal = Journal::new();
    let start = || {
        let builder = Target::builder().store(store.url()).journal(&journal);
        builder.policy(policy.clone()).start()
    };
    tokio::join!(start(), start())
}
