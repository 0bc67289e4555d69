//! The start and the end of a target.

use serde_json::json;
use target_tests::{Difference, Journal, SharedStore, Target, refused_start, retry_until};

#[tokio::test]
async fn what_cannot_be_meant_is_refused_at_start() {
    let refused: [&[&str]; 16] = [
        &["--colour", "red"],
        &["--listen", "nonsense"],
        &["--listen", "127.0.0.1:99999"],
        &["--store", "nonsense"],
        &["--store", "ftp://127.0.0.1/"],
        &["--store", "redis://127.0.0.1:port"],
        &["--profile", "nonsense"],
        &["--profile", "payments"],
        &["--policy", "nonsense"],
        &["--policy", "[]"],
        &["--policy", r#"{"nonsense":1}"#],
        &["--policy", r#"{"lease_ms":"long"}"#],
        &["--policy", r#"{"lease_ms":-1}"#],
        &["--policy", r#"{"retain_ms":2000,"key_retain_ms":1000}"#],
        &["--policy", r#"{"store_statuses":["9xx"]}"#],
        &["--policy", r#"{"mismatch_status":200}"#],
    ];
    for flags in refused {
        let mut all = vec!["--listen", "127.0.0.1:0"];
        all.extend(flags);
        let flags = if flags[0] == "--listen" { flags } else { &all };
        let ended = refused_start(flags).await;
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{flags:?}: {said}");
        assert!(ended.stdout.is_empty(), "{flags:?} has started");
        assert!(!said.trim().is_empty(), "{flags:?} is refused without a word");
        assert!(!said.contains("panicked") && !said.contains("Traceback"), "{flags:?}: {said}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_policy_is_named() {
    for (policy, word) in [
        (r#"{"lease_millis":1}"#, "lease_millis"),
        (r#"{"on_orphan":"pray"}"#, "on_orphan"),
        (r#"{"fingerprint":{"body":"cooked"}}"#, "fingerprint.body"),
    ] {
        let ended = refused_start(&["--listen", "127.0.0.1:0", "--policy", policy]).await;
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains(word), "{policy}: {said}");
    }
    let ended = refused_start(&["--listen", "127.0.0.1:0", "--profile", "payments"]).await;
    assert!(String::from_utf8_lossy(&ended.stderr).contains("scope"), "{ended:?}");
}

#[tokio::test]
async fn a_store_that_is_away_at_start_is_waited_for() {
    if Difference::StoreHasNoServer.applies() {
        return;
    }
    let mut store = SharedStore::absent().await;
    let target = Target::builder().store(store.url()).start().await;
    look_at_the_store(&target).await;
    target.says(&["store", "reach"]).await;
    let request = target.post("/count").key("k");
    request.send().await.assert_refused(503, "store-unavailable");
    assert_eq!(target.post("/count").send().await.status, 201);
    target.journal.assert_executions("k", 0, 0);
    store.restart().await;
    let answer = retry_until(&request, |answer| answer.status != 503).await;
    answer.assert_fresh(201);
    request.send().await.assert_replay_of(&answer);
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_store_that_may_lose_records_is_complained_about() {
    if Difference::StoreHasNoServer.applies() {
        return;
    }
    let mut store = SharedStore::start().await;
    let complaint = store.endanger().await;
    let target = Target::builder().store(store.url()).start().await;
    look_at_the_store(&target).await;
    target.says(complaint).await;
    target.post("/count").key("k").send().await.assert_fresh(201);
}

#[tokio::test]
async fn payments_are_not_trusted_to_a_store_that_may_lose_records() {
    if Difference::StoreHasNoServer.applies() {
        return;
    }
    let mut store = SharedStore::start().await;
    let complaint = store.endanger().await;
    let builder = Target::builder().store(store.url()).profile("payments");
    let target = builder.policy(json!({ "scope": "shared" })).start().await;
    look_at_the_store(&target).await;
    target.says(complaint).await;
    target.post("/count").key("k").send().await.assert_refused(503, "store-unavailable");
    target.journal.assert_executions("k", 0, 0);
}

#[tokio::test]
async fn a_terminated_process_finishes_what_it_runs_and_refuses_the_rest() {
    let store = SharedStore::start().await;
    let mut target = Target::builder().store(store.url()).start().await;
    let slow = target.post("/slow?ms=800").key("k");
    let running = slow.start();
    target.journal.started("k", 1).await;
    target.terminate();
    let first = running.await.expect("an answer");
    first.assert_fresh(201);
    assert_eq!(target.exited().await.code(), Some(0));
    assert!(slow.try_send().await.is_err(), "nobody is there any more");
    let successor = Target::builder().store(store.url()).journal(&target.journal).start().await;
    slow.to(&successor).send().await.assert_replay_of(&first);
    successor.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_terminated_process_finishes_what_nobody_waits_for() {
    let store = SharedStore::start().await;
    let mut target = Target::builder().store(store.url()).start().await;
    let slow = target.post("/slow?ms=800").key("k");
    let leaving = slow.start();
    target.journal.started("k", 1).await;
    leaving.abort();
    target.terminate();
    assert_eq!(target.exited().await.code(), Some(0));
    target.journal.assert_executions("k", 1, 1);
    let successor = Target::builder().store(store.url()).journal(&target.journal).start().await;
    let replay = slow.to(&successor).send().await;
    assert!(replay.status == 201 && replay.is_replay(), "{replay:?}");
    successor.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn draining_ends_even_if_a_handler_does_not() {
    let store = SharedStore::start().await;
    // Far more of the lease is left after the drain than a busy machine takes to ask the successor.
    let policy = json!({ "drain_ms": 300, "lease_ms": 5000 });
    let journal = Journal::new();
    let builder = || {
        let builder = Target::builder().store(store.url()).journal(&journal);
        builder.policy(policy.clone())
    };
    // The successor is there in time, however long it takes to start.
    let (mut target, successor) = tokio::join!(builder().start(), builder().start());
    let slow = target.post("/slow?ms=5000").key("k");
    let cut_off = tokio::spawn({
        let slow = slow.clone();
        async move { slow.try_send().await }
    });
    target.journal.started("k", 1).await;
    target.terminate();
    assert_eq!(target.exited().await.code(), Some(0));
    assert!(cut_off.await.expect("no panic").is_err(), "the handler was to be cut off");
    target.journal.assert_executions("k", 1, 0);
    // Its claim stays, and lapses.
    let slow = slow.to(&successor);
    slow.send().await.assert_refused(409, "in-progress");
    retry_until(&slow, |answer| answer.status == 201).await.assert_fresh(201);
    successor.journal.assert_executions("k", 2, 1);
}

/// Makes a target look at its store that would not by itself.
async fn look_at_the_store(target: &Target) {
    if Difference::StoreIsLookedAtWhenItIsUsed.applies() {
        target.post("/count").key("first").send().await;
    }
}
