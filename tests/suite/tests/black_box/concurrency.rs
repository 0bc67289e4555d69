//! Many at once: one executes, the others wait or are refused, and clients that leave do no harm.

use serde_json::json;
use target_tests::{Answer, Target, retry_until};
use tokio::task::JoinHandle;

#[tokio::test]
async fn fifty_duplicates_at_once_are_one_execution() {
    let target = Target::start().await;
    let request = target.post("/slow?ms=300").key("k");
    let answers = request.send_at_once(50).await;
    let (done, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 201);
    assert_eq!(done.iter().filter(|answer| !answer.is_replay()).count(), 1);
    assert!(done.iter().all(|answer| answer.body == done[0].body));
    for answer in refused {
        answer.assert_refused(409, "in-progress");
    }
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn duplicates_that_wait_all_get_the_one_answer() {
    let target = Target::with_policy(json!({ "wait_ms": 60_000, "waiters_max": 100 })).await;
    let answers = target.post("/slow?ms=300").key("k").send_at_once(50).await;
    let own: Vec<_> = answers.iter().filter(|answer| !answer.is_replay()).collect();
    let [first] = own.as_slice() else { panic!("several executions answered: {own:#?}") };
    first.assert_fresh(201);
    for answer in answers.iter().filter(|answer| answer.is_replay()) {
        answer.assert_replay_of(first);
    }
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn those_who_find_no_place_to_wait_are_refused() {
    let target = Target::with_policy(json!({ "wait_ms": 60_000, "waiters_max": 3 })).await;
    let answers = target.post("/slow?ms=5000").key("k").send_at_once(20).await;
    let (done, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 201);
    assert_eq!((done.len(), refused.len()), (4, 16));
    for answer in refused {
        answer.assert_refused(409, "in-progress");
    }
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_waiter_takes_over_when_the_first_gives_the_key_up() {
    let target = Target::with_policy(json!({ "wait_ms": 60_000 })).await;
    let answers = target.post("/flaky?fails=1&ms=200").key("k").send_at_once(8).await;
    let failed: Vec<_> = answers.iter().filter(|answer| answer.status == 503).collect();
    let done: Vec<_> = answers.iter().filter(|answer| answer.status == 201).collect();
    assert_eq!((failed.len(), done.len()), (1, 7), "{answers:#?}");
    failed[0].assert_unstored(503);
    assert_eq!(done.iter().filter(|answer| !answer.is_replay()).count(), 1);
    assert!(done.iter().all(|answer| answer.body == done[0].body));
    target.journal.assert_executions("k", 2, 2);
}

#[tokio::test]
async fn a_waiter_takes_over_when_the_first_breaks_down() {
    let target = Target::with_policy(json!({ "wait_ms": 60_000 })).await;
    let answers = target.post("/raise?ms=200").alone().key("k").send_at_once(3).await;
    for answer in answers {
        answer.assert_failed(true);
    }
    target.journal.assert_executions("k", 3, 0);
}

#[tokio::test]
async fn waiting_ends_when_the_policy_says_so() {
    let target = Target::with_policy(json!({ "wait_ms": 100 })).await;
    let slow = target.post("/slow?ms=5000").key("k");
    let running = slow.start();
    target.journal.started("k", 1).await;
    slow.send().await.assert_refused(409, "in-progress");
    target.journal.assert_executions("k", 1, 0);
    running.await.expect("an answer").assert_fresh(201);
}

#[tokio::test]
async fn a_different_request_does_not_wait() {
    let target = Target::with_policy(json!({ "wait_ms": 60_000 })).await;
    let slow = target.post("/slow?ms=5000").key("k");
    let running = slow.start();
    target.journal.started("k", 1).await;
    target.post("/count").key("k").send().await.assert_refused(422, "key-reused");
    target.journal.assert_executions("k", 1, 0);
    running.await.expect("an answer").assert_fresh(201);
}

#[tokio::test]
async fn a_handler_outlives_its_client() {
    let target = Target::start().await;
    let slow = target.post("/slow?ms=500").key("k");
    let leaving = slow.start();
    target.journal.started("k", 1).await;
    leaving.abort();
    target.journal.ended("k", 1).await;
    let answer = retry_until(&slow, |answer| answer.status == 201).await;
    assert!(answer.is_replay(), "{answer:?}");
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_waiter_that_leaves_makes_room_for_another() {
    let target = Target::with_policy(json!({ "wait_ms": 60_000, "waiters_max": 1 })).await;
    let slow = target.post("/slow?ms=5000").key("k");
    let running = slow.start();
    target.journal.started("k", 1).await;
    // Of two that would wait one is refused, so the other one waits.
    let (mut one, mut other) = (slow.start(), slow.start());
    let (refused, waiting) = tokio::select! {
        answer = &mut one => (answer, other),
        answer = &mut other => (answer, one),
    };
    refused.expect("an answer").assert_refused(409, "in-progress");
    waiting.abort();
    let answer = retry_until(&slow, |answer| answer.status != 409).await;
    assert!(answer.is_replay(), "{answer:?}");
    answer.assert_replay_of(&running.await.expect("an answer"));
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_flood_of_clients_that_leave_costs_no_execution_and_doubles_none() {
    let target = Target::start().await;
    let keys: Vec<_> = (0..300).map(|number| format!("k-{number}")).collect();
    for keys in keys.chunks(50) {
        let sent: Vec<_> =
            keys.iter().map(|key| target.post("/slow?ms=50").key(key).start()).collect();
        tokio::task::yield_now().await;
        target.post("/count").send().await;
        sent.iter().for_each(JoinHandle::abort);
    }
    for key in &keys {
        let request = target.post("/slow?ms=50").key(key);
        retry_until(&request, |answer| answer.status == 201).await;
        target.journal.assert_executions(key, 1, 1);
    }
}

#[tokio::test]
async fn different_keys_do_not_hinder_each_other() {
    let target = Target::start().await;
    let mut sent = tokio::task::JoinSet::new();
    for number in 0..100 {
        let request = target.post("/slow?ms=300").key(&format!("k-{number}"));
        sent.spawn(async move { request.send().await });
    }
    let answers = sent.join_all().await;
    let serials: std::collections::HashSet<_> = answers.iter().map(Answer::n).collect();
    assert_eq!(serials.len(), 100);
    answers.iter().for_each(|answer| answer.assert_fresh(201));
}
