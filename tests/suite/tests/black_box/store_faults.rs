//! A store that dies, freezes or is full: nothing runs in doubt, and nothing that ran is lost.

use serde_json::{Value, json};
use target_tests::{Difference, Journal, SharedStore, Target, retry_until};

#[tokio::test]
async fn nothing_runs_while_the_store_is_away() {
    let mut store = SharedStore::start().await;
    let target = Target::builder().store(store.url()).start().await;
    target.post("/count").key("before").send().await.assert_fresh(201);
    store.kill();
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
    store.restart().await;
    // A file that was locked has the claims to carry out that were given up meanwhile.
    let answer = retry_until(&request, |answer| answer.status == 201).await;
    answer.assert_fresh(201);
    request.send().await.assert_replay_of(&answer);
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_claim_that_the_store_carries_out_late_does_not_block_the_key() {
    let mut store = SharedStore::start().await;
    // If nobody released it, its lease would outlast the patience of this suite by far.
    let policy = json!({ "lease_ms": 600_000, "store_timeout_ms": { "claim": 2000 } });
    let target = Target::builder().store(store.url()).policy(policy).start().await;
    target.post("/count").key("before").send().await.assert_fresh(201);
    store.pause();
    let request = target.post("/count").key("k");
    request.send().await.assert_refused(503, "store-unavailable");
    target.journal.assert_executions("k", 0, 0);
    store.resume();
    let answer = retry_until(&request, |answer| answer.status == 201).await;
    answer.assert_fresh(201);
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn an_answer_whose_store_died_meanwhile_is_given_and_stored_later() {
    let mut store = SharedStore::durable().await;
    let target = Target::builder().store(store.url()).policy(impatient()).start().await;
    let request = target.post("/slow?ms=3000").key("k");
    let running = request.start();
    target.journal.started("k", 1).await;
    store.kill();
    let own = running.await.expect("an answer");
    own.assert_unstored(201);
    let meanwhile = request.send().await;
    assert!(["in-progress", "store-unavailable"].contains(&&*meanwhile.code()), "{meanwhile:?}");
    store.restart().await;
    let replay = retry_until(&request, |answer| answer.status == 201).await;
    replay.assert_replay_of(&own);
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn an_answer_whose_store_froze_meanwhile_is_given_and_stored_later() {
    let mut store = SharedStore::start().await;
    let target = Target::builder().store(store.url()).policy(impatient()).start().await;
    let request = target.post("/slow?ms=3000").key("k");
    let running = request.start();
    target.journal.started("k", 1).await;
    store.pause();
    let own = running.await.expect("an answer");
    own.assert_unstored(201);
    store.resume();
    let replay = retry_until(&request, |answer| answer.status == 201).await;
    replay.assert_replay_of(&own);
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_short_absence_of_the_store_is_not_even_noticed() {
    let mut store = SharedStore::durable().await;
    let target = Target::builder().store(store.url()).policy(patient()).start().await;
    let request = target.post("/slow?ms=3000").key("k");
    let running = request.start();
    target.journal.started("k", 1).await;
    store.kill();
    target.journal.ended("k", 1).await;
    store.restart().await;
    let own = running.await.expect("an answer");
    own.assert_fresh(201);
    request.send().await.assert_replay_of(&own);
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_lost_connection_costs_neither_the_first_nor_those_who_wait_their_answer() {
    if Difference::StoreHasNoServer.applies() {
        return;
    }
    let mut store = SharedStore::start().await;
    let (one, another) = pair(&store).await;
    let request = one.post("/slow?ms=5000").key("k");
    let running = request.start();
    one.journal.started("k", 1).await;
    let waiting: Vec<_> = (0..5).map(|_| request.clone().to(&another).start()).collect();
    store.disconnect_all().await;
    let first = running.await.expect("an answer");
    first.assert_fresh(201);
    for waiter in waiting {
        let mut answer = waiter.await.expect("an answer");
        if answer.status == 503 {
            // It did not wait yet: its claim was under way when the connection was cut.
            answer.assert_refused(503, "store-unavailable");
            answer = request.clone().to(&another).start().await.expect("an answer");
        }
        answer.assert_replay_of(&first);
    }
    one.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_store_that_is_restarted_under_those_who_wait_makes_none_of_them_execute() {
    let mut store = SharedStore::durable().await;
    let (one, another) = pair(&store).await;
    let request = one.post("/slow?ms=5000").key("k");
    let running = request.start();
    one.journal.started("k", 1).await;
    let waiting: Vec<_> = (0..5).map(|_| request.clone().to(&another).start()).collect();
    store.kill();
    store.restart().await;
    let first = running.await.expect("an answer");
    first.assert_fresh(201);
    for waiter in waiting {
        let answer = waiter.await.expect("an answer");
        match answer.status.as_u16() {
            201 => answer.assert_replay_of(&first),
            503 => drop(answer.assert_refused(503, "store-unavailable")),
            _ => drop(answer.assert_refused(409, "in-progress")),
        }
    }
    let replay = retry_until(&request.to(&another), |answer| answer.status == 201).await;
    replay.assert_replay_of(&first);
    one.journal.assert_executions("k", 1, 1);
}

/// Two processes over one store, with one journal, whose duplicates wait.
async fn pair(store: &SharedStore) -> (Target, Target) {
    let journal = Journal::new();
    let start = || {
        let builder = Target::builder().store(store.url()).journal(&journal);
        builder.policy(patient()).start()
    };
    tokio::join!(start(), start())
}

/// Returns a policy that soon reports a response as not stored, and keeps its claim until it is.
fn impatient() -> Value {
    json!({ "lease_ms": 120_000, "store_timeout_ms": { "settle": 500 } })
}

/// Waits for as long as a store may take to come back, and for other requests.
fn patient() -> Value {
    let timeouts = json!({ "claim": 5000, "settle": 60_000 });
    json!({ "lease_ms": 120_000, "wait_ms": 60_000, "store_timeout_ms": timeouts })
}
