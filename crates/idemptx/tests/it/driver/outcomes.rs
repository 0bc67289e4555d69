//! The ends of executions, and what the application learns of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use idemptx::{Code, Directive, Engine, Outcome, Policy, ProbeResult, RunError};
use idemptx_core::policy::ScopeRule;

use crate::support::app::{App, engine, slow};
use idemptx_testkit::scripted_store::{Behavior, Gate, Operation, ScriptedStore};

#[tokio::test]
async fn a_fenced_execution_is_an_outcome() {
    let (store, late) = slow(|policy| policy);
    let client = late.client("k");
    late.runs.reach(1).await;
    store.advance(late.engine.policy().lease * 2);
    let other = App::quick(engine(store.clone(), |policy| policy));
    other.runs.answer_with(201);
    other.post("k").await.answered(201, "run 1");
    late.gate.open();
    let reply = client.await.unwrap();
    reply.answered(201, "run 1");
    assert!(reply.is_replay());
    assert_eq!(reply.outcome(), &Outcome::Fenced { attempt: 1, code: None });
}

#[tokio::test]
async fn a_fenced_execution_without_an_answer_is_an_outcome() {
    let (store, late) = slow(|policy| policy);
    let client = late.client("k");
    late.runs.reach(1).await;
    store.advance(late.engine.policy().lease * 2);
    let other = App::quick(engine(store.clone(), |policy| policy));
    other.runs.answer_with(503);
    other.post("k").await.answered(503, "run 1");
    late.gate.open();
    let reply = client.await.unwrap();
    reply.refused(409, "in-progress");
    let outcome = Outcome::Fenced { attempt: 1, code: Some(Code::InProgress) };
    assert_eq!(reply.outcome(), &outcome);
}

#[tokio::test]
async fn work_says_that_its_error_leaves_nothing_behind() {
    let engine = payments(&ScriptedStore::new());
    let declined = engine.run("k", b"", async |execution| {
        execution.set_outcome(Directive::Release);
        Err::<u32, _>(Declined)
    });
    assert!(matches!(declined.await, Err(RunError::Failed(Declined))));
    assert_eq!(engine.run("k", b"", async |_| Ok::<_, Declined>(7)).await.unwrap(), 7);
}

#[tokio::test]
async fn work_says_that_its_error_is_final() {
    let engine = payments(&ScriptedStore::new());
    let declined = engine.run("k", b"", async |execution| {
        execution.set_outcome(Directive::Store);
        Err::<u32, _>(Declined)
    });
    assert!(matches!(declined.await, Err(RunError::Failed(Declined))));
    let again = engine.run("k", b"", async |_| Ok::<_, Declined>(7)).await;
    let Err(RunError::Refused(rejection)) = again else { panic!("{again:?}") };
    assert_eq!(rejection.code, Code::ResultUnavailable);
}

#[tokio::test]
async fn work_says_that_its_outcome_is_unknown() {
    let engine = engine(ScriptedStore::new(), |policy| policy);
    let doubtful = engine.run("k", b"", async |execution| {
        execution.set_outcome(Directive::Unknown);
        Ok::<_, Declined>(7)
    });
    assert_eq!(doubtful.await.unwrap(), 7);
    let again = engine.run("k", b"", async |_| Ok::<_, Declined>(8)).await;
    let Err(RunError::Refused(rejection)) = again else { panic!("{again:?}") };
    assert_eq!(rejection.code, Code::OutcomeUnknown);
}

#[tokio::test]
async fn an_orphan_is_asked_about_once_at_a_time() {
    let (store, first) = slow(|policy| policy);
    first.client("k");
    first.runs.reach(1).await;
    store.advance(first.engine.policy().lease * 2);

    let (asking, most, gate) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Gate::closed());
    let (asks, peak, answer) = (Arc::clone(&asking), Arc::clone(&most), gate.clone());
    let builder = Engine::builder(store.clone()).executions_max(2).probe(move |_| {
        let (asks, peak, answer) = (Arc::clone(&asks), Arc::clone(&peak), answer.clone());
        async move {
            peak.fetch_max(asks.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            answer.opened().await;
            asks.fetch_sub(1, Ordering::SeqCst);
            ProbeResult::Unknown
        }
    });
    let app = App::quick(builder.build().unwrap());
    let clients: Vec<_> = (0..500).map(|_| app.client("k")).collect();
    while asking.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // One that leaves while it asks lets another ask.
    clients[0].abort();
    tokio::time::sleep(Duration::from_millis(20)).await;
    gate.open();
    for client in clients.into_iter().skip(1) {
        client.await.unwrap().refused(409, "outcome-unknown");
    }
    assert!(most.load(Ordering::SeqCst) <= 2, "{most:?} hooks at once for one record");
    first.gate.open();
}

#[tokio::test]
async fn a_store_that_renews_too_slowly_is_given_up_soon() {
    let store = ScriptedStore::new();
    let lease = Duration::from_millis(100);
    let app = App::quick(engine(store.clone(), |policy| policy.lease(lease)));
    let late = Gate::closed();
    store.next(Operation::Claim, Behavior::DelayReply(late.clone()));
    let client = app.client("k");
    store.performed(Operation::Claim, 1).await;
    for number in 1..20 {
        let renewal = Gate::closed();
        store.next(Operation::Renew, Behavior::DelayReply(renewal.clone()));
        let store = store.clone();
        tokio::spawn(async move {
            store.called(Operation::Renew, number).await;
            tokio::time::sleep(lease * 6 / 10).await;
            renewal.open();
        });
    }
    tokio::time::sleep(lease * 6 / 10).await;
    late.open();
    client.await.unwrap().refused(503, "store-unavailable");
    assert!(store.calls(Operation::Renew) < 10, "{} renewals", store.calls(Operation::Renew));
    assert!(app.engine.drain().await);
    assert_eq!(app.runs.began(), 0);
}

#[test]
fn a_policy_that_cannot_be_carried_out_is_refused_by_name() {
    let mut policy = Policy::draft();
    policy.lease = Duration::ZERO;
    let error = Engine::builder(ScriptedStore::new()).policy(policy).build().unwrap_err();
    assert!(error.to_string().contains("lease_ms"), "{error}");
}

#[tokio::test]
async fn what_is_printed_for_a_log_shows_no_body() {
    let app = App::quick(engine(ScriptedStore::new(), |policy| policy));
    let reply = app.post("k").await;
    let id = reply.extensions.get().unwrap();
    let operator = app.engine.operator();
    let seen = operator.lookup(id).await.unwrap().unwrap();
    let resolution = idemptx::operator::Resolution::Release;
    let refused = operator.resolve(id, resolution).await.unwrap_err();
    let body = operator.response(http::StatusCode::OK, &http::HeaderMap::new(), "run 1");
    for text in [format!("{seen:?}"), format!("{refused:?}"), format!("{body:?}")] {
        assert!(!text.contains("run 1") && !text.contains("114, 117"), "{text}");
    }
}

/// A policy under which an error leaves the outcome in doubt.
fn payments(store: &ScriptedStore) -> Engine<ScriptedStore> {
    let policy = Policy::payments().into_builder().scope(ScopeRule::Shared).build().unwrap();
    Engine::builder(store.clone()).policy(policy).build().unwrap()
}

#[derive(Debug)]
struct Declined;
