//! A rolling upgrade: processes of a former release and of this one share a store.
//!
//! `.ci/upgrade.sh` builds the target of the former release, as `axum-former`, and runs these.

use std::collections::HashMap;

use serde_json::{Value, json};
use target_tests::{Answer, Journal, SharedStore, Target, assert_one_success, retry_until};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread")]
async fn on_redis_two_releases_execute_each_key_once_and_answer_alike() {
    upgrade("redis").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite_two_releases_execute_each_key_once_and_answer_alike() {
    upgrade("sqlite").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres_two_releases_execute_each_key_once_and_answer_alike() {
    upgrade("postgres").await;
}

#[tokio::test]
async fn on_redis_each_release_takes_over_what_a_killed_process_of_the_other_left() {
    take_over("redis").await;
}

#[tokio::test]
async fn on_sqlite_each_release_takes_over_what_a_killed_process_of_the_other_left() {
    take_over("sqlite").await;
}

#[tokio::test]
async fn on_postgres_each_release_takes_over_what_a_killed_process_of_the_other_left() {
    take_over("postgres").await;
}

/// Replaces the former release under load, and goes back to it.
async fn upgrade(store: &str) {
    let fleet = Fleet::over(store, json!({ "wait_ms": 60_000, "waiters_max": 100 })).await;
    // The tables are those that the former release makes.
    let mut former = fleet.start(FORMER).await;
    let today = fleet.start(TODAY).await;
    let mut firsts = race(0, &former, &today).await;

    let request = former.post("/slow?ms=1500").key("in-flight");
    let unfinished = request.start();
    fleet.journal.started("in-flight", 1).await;
    let waiting = request.clone().to(&today).start();
    today.post("/count").key("in-flight").send().await.assert_refused(422, "key-reused");
    former.terminate();
    let (unfinished, waiting) = (unfinished.await.unwrap(), waiting.await.unwrap());
    unfinished.assert_fresh(201);
    waiting.assert_replay_of(&unfinished);
    former.exited().await;
    fleet.journal.assert_executions("in-flight", 1, 1);

    // Back to the former release, over what this one has written meanwhile.
    let former = fleet.start(FORMER).await;
    firsts.extend(race(KEYS, &today, &former).await);
    for (key, first) in &firsts {
        let request = today.post("/count?ms=5").key(key);
        request.send().await.assert_replay_of(first);
        request.to(&former).send().await.assert_replay_of(first);
        for target in [&former, &today] {
            let other_path = target.post("/headers").key(key);
            other_path.send().await.assert_refused(422, "key-reused");
        }
        fleet.journal.assert_executions(key, 1, 1);
    }
}

/// Kills a process of each release in the middle of an operation.
async fn take_over(store: &str) {
    let fleet = Fleet::over(store, json!({ "lease_ms": 3000, "wait_ms": 60_000 })).await;
    for (doomed, survivor) in [(FORMER, TODAY), (TODAY, FORMER)] {
        let mut doomed_process = fleet.start(doomed).await;
        let survivor = fleet.start(survivor).await;
        let request = doomed_process.post("/execution?ms=3000").key(doomed);
        let lost = {
            let request = request.clone();
            tokio::spawn(async move { request.try_send().await })
        };
        fleet.journal.started(doomed, 1).await;
        doomed_process.kill().await;
        assert!(lost.await.unwrap().is_err(), "a killed process cannot answer");
        let answer =
            retry_until(&request.to(&survivor), |answer| answer.code() != "in-progress").await;
        answer.assert_fresh(200);
        assert_eq!(answer.json()["attempt"], 2);
        fleet.journal.assert_executions(doomed, 2, 1);
    }
}

/// Sends duplicates of each key to both releases at once, and returns each key's first answer.
async fn race(offset: usize, one: &Target, another: &Target) -> HashMap<String, Answer> {
    let mut answers: HashMap<String, Vec<Answer>> = HashMap::new();
    for keys in (offset..offset + KEYS).collect::<Vec<_>>().chunks(KEYS_AT_ONCE) {
        let mut sent = JoinSet::new();
        for (number, duplicate) in
            keys.iter().flat_map(|key| (0..DUPLICATES).map(move |it| (key, it)))
        {
            let key = format!("k-{number}");
            // Each release is the first for every other key.
            let target = if (number + duplicate) % 2 == 0 { one } else { another };
            let request = target.post("/count?ms=5").key(&key);
            sent.spawn(async move { (key, request.send().await) });
        }
        for (key, answer) in sent.join_all().await {
            answers.entry(key).or_default().push(answer);
        }
    }
    let first = |(key, answers): (String, Vec<Answer>)| {
        assert_one_success(&answers);
        (key, answers.into_iter().find(|answer| !answer.is_replay()).unwrap())
    };
    answers.into_iter().map(first).collect()
}

/// Processes over one store, with one journal and one policy.
struct Fleet {
    store: SharedStore,
    journal: Journal,
    policy: Value,
}

impl Fleet {
    async fn over(store: &str, policy: Value) -> Self {
        Self { store: SharedStore::named(store).await, journal: Journal::new(), policy }
    }

    async fn start(&self, front_door: &str) -> Target {
        let builder = Target::builder().front_door(front_door).store(self.store.url());
        builder.journal(&self.journal).policy(self.policy.clone()).start().await
    }
}

const FORMER: &str = "axum-former";
const TODAY: &str = "axum";
const KEYS: usize = 150;
const KEYS_AT_ONCE: usize = 25;
const DUPLICATES: usize = 6;
