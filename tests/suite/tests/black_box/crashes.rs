//! A process that dies or freezes in the middle of an operation.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use target_tests::{Answer, Journal, Request, SharedStore, Target, retry_until, until};
use tokio::task::JoinHandle;

#[tokio::test]
async fn an_operation_whose_process_was_killed_is_executed_again_after_the_lease() {
    let store = SharedStore::start().await;
    let (mut one, another) = pair(&store, "draft", json!({ "lease_ms": 5000 })).await;
    let request = one.post("/execution?ms=3000").key("k");
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
    let first_attempt = elsewhere.post("/execution?ms=3000").key("k").send().await.json();
    assert_eq!(first_attempt["attempt"], 1);
    assert_eq!(first_attempt["derived"], answer.json()["derived"]);
    assert_ne!(first_attempt["token"], answer.json()["token"]);
}

#[tokio::test]
async fn duplicates_after_a_crash_are_one_execution() {
    let store = SharedStore::start().await;
    let policy = json!({ "lease_ms": 3000, "wait_ms": 60_000, "waiters_max": 100 });
    let (mut one, another) = pair(&store, "draft", policy).await;
    let request = one.post("/slow?ms=3000").key("k");
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
    let store = SharedStore::durable().await;
    let policy = json!({ "scope": "shared", "lease_ms": 5000, "on_unsafe_store": "warn" });
    let (mut one, another) = pair(&store, "payments", policy).await;
    let request = one.post("/slow?ms=60000").key("k");
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
    let store = SharedStore::start().await;
    let (one, another) = pair(&store, "draft", json!({ "lease_ms": 3000 })).await;
    let request = one.post("/slow?ms=3000").key("k");
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
    let store = SharedStore::start().await;
    let (one, another) = pair(&store, "draft", json!({ "lease_ms": 3000 })).await;
    let request = one.post("/slow?ms=2000").key("k");
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
    // Where the late one gave up waiting, the end may not have been heard of yet.
    let later = retry_until(&request, |answer| answer.status != 409).await;
    later.assert_replay_of(&taken_over);
    one.journal.assert_executions("k", 2, 2);
}

#[tokio::test]
async fn a_handler_keeps_its_claim_for_as_long_as_it_runs() {
    let store = SharedStore::start().await;
    // Between two beats of the heart, a third of the lease apart, a busy machine may rest long.
    let lease = Duration::from_secs(3);
    let policy = json!({ "lease_ms": lease.as_millis() });
    let (one, another) = pair(&store, "draft", policy).await;
    let request = one.post("/slow?ms=9000").key("k");
    let running = send(&request);
    one.journal.started("k", 1).await;
    let started = Instant::now();
    let retry = request.to(&another);
    let mut kept_for = Duration::ZERO;
    let replay = retry_until(&retry, |answer| {
        if answer.code() == "in-progress" {
            kept_for = started.elapsed();
        }
        answer.status == 201
    });
    let replay = replay.await;
    assert!(kept_for > lease, "{kept_for:?}");
    replay.assert_replay_of(&running.await.expect("no panic").expect("an answer"));
    one.journal.assert_executions("k", 1, 1);
}

/// Eight times, one of two processes is killed while forty operations of three clients each run:
/// twenty new ones, and the last twenty once more.
#[tokio::test(flavor = "multi_thread")]
async fn however_often_processes_die_all_clients_of_a_key_get_one_answer() {
    const KILLS: usize = 8;
    const KEYS: usize = 40;
    const NEW_KEYS: usize = KEYS / 2;
    const CLIENTS: usize = 3;
    let store = SharedStore::start().await;
    let journal = Journal::new();
    let policy = json!({ "lease_ms": 500, "wait_ms": 3000 });
    let mut answers: HashMap<String, Answer> = HashMap::new();
    let mut check = |key: String, answer: Result<Answer, String>| {
        let Ok(answer) = answer.map_err(|_| "its process was killed") else { return };
        if answer.status == 201 {
            let first = answers.entry(key).or_insert_with(|| answer.clone());
            assert_eq!(answer.body, first.body, "two successes for one key");
        }
    };
    for round in 0..KILLS {
        let start = || {
            let builder = Target::builder().store(store.url()).journal(&journal);
            builder.policy(policy.clone()).start()
        };
        let (mut doomed, survivor) = tokio::join!(start(), start());
        let begun = journal.entries().len();
        let mut sent = Vec::new();
        for (client, number) in (0..CLIENTS).flat_map(|it| (0..KEYS).map(move |key| (it, key))) {
            let key = format!("k-{}", round * NEW_KEYS + number);
            let target = if (client + number) % 2 == 0 { &doomed } else { &survivor };
            sent.push((key.clone(), send(&target.post("/slow?ms=100").key(&key))));
        }
        // At another moment in each round, which comes: each new key has a start and an end.
        let moment = begun + 1 + round * NEW_KEYS * 2 / KILLS;
        until("some handlers have started", || async { journal.entries().len() >= moment }).await;
        doomed.kill().await;
        for (key, answer) in sent {
            check(key, answer.await.expect("no panic"));
        }
    }
    let last = Target::builder().store(store.url()).journal(&journal).policy(policy).start().await;
    for number in 0..NEW_KEYS * (KILLS + 1) {
        let key = format!("k-{number}");
        let request = last.post("/slow?ms=100").key(&key);
        let answer = retry_until(&request, |answer| answer.status == 201).await;
        check(key.clone(), Ok(answer));
        assert!(journal.starts(&key) <= 1 + KILLS && journal.ends(&key) >= 1, "{key}");
    }
}

/// Two processes over one store, with one journal.
async fn pair(store: &SharedStore, profile: &str, policy: Value) -> (Target, Target) {
    let journal = Journal::new();
    let start = || {
        let builder = Target::builder().store(store.url()).journal(&journal);
        builder.profile(profile).policy(policy.clone()).start()
    };
    tokio::join!(start(), start())
}

fn send(request: &Request) -> JoinHandle<Result<Answer, String>> {
    let request = request.clone();
    tokio::spawn(async move { request.try_send().await })
}
