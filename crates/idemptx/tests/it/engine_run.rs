//! The engine without HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use idemptx::store::MemoryStore;
use idemptx::{Code, Engine, Execution, Policy, PolicyBuilder, RunError, Scope};
use idemptx_core::key::InvalidKey;
use idemptx_core::policy::{KeyPattern, Mode, OnPanic, OnStoreError};
use idemptx_core::store::ErrorKind;
use idemptx_testkit::scripted_store::{Behavior, Gate, Operation, ScriptedStore};
use serde_json::{Value, json};

#[tokio::test]
async fn a_value_is_stored_and_returned_again() {
    let jobs = Jobs::new(|policy| policy);
    for _ in 0..3 {
        let value = jobs.run("k", b"order", Ok(json!({"invoice": 1001}))).await.unwrap();
        assert_eq!(value, json!({"invoice": 1001}));
    }
    assert_eq!(jobs.runs(), 1);
}

#[tokio::test]
async fn the_key_for_another_request_is_refused() {
    let jobs = Jobs::new(|policy| policy);
    jobs.run("k", b"order", Ok(json!(1))).await.unwrap();
    assert_eq!(refused(jobs.run("k", b"other", Ok(json!(2))).await), Code::KeyReused);
    assert_eq!(jobs.runs(), 1);
}

#[tokio::test]
async fn a_key_has_the_form_that_the_policy_and_the_application_demand() {
    let jobs = Jobs::new(|policy| policy.key_pattern(KeyPattern::new("job-[0-9]+").unwrap()));
    let reason = |outcome| match outcome {
        Err(RunError::InvalidKey(reason)) => reason,
        other => panic!("{other:?}"),
    };
    let outcome = jobs.run("undefined", b"order", Ok(json!(1))).await;
    assert_eq!(reason(outcome), InvalidKey::Placeholder);
    let outcome = jobs.run("order-17", b"order", Ok(json!(1))).await;
    assert_eq!(reason(outcome), InvalidKey::Pattern);
    assert_eq!(jobs.run("job-17", b"order", Ok(json!(1))).await.unwrap(), json!(1));
    assert_eq!(jobs.runs(), 1);
    let picky = Engine::builder(MemoryStore::new()).accept_keys(|key| key.as_str() == "job");
    let picky = picky.build().unwrap();
    let outcome = picky.run("other", b"order", async |_| Ok::<_, Failed>(json!(1))).await;
    assert_eq!(reason(outcome), InvalidKey::Refused);
}

#[tokio::test]
async fn scopes_are_apart() {
    let jobs = Jobs::new(|policy| policy);
    for (scope, expected) in [("one", 1), ("other", 2), ("one", 1)] {
        let work = async move |_| Ok::<_, Failed>(expected);
        let value = jobs.engine.run_in(Scope::new(scope), "k", b"order", work).await.unwrap();
        assert_eq!(value, expected);
    }
}

#[tokio::test]
async fn an_error_is_the_callers_and_frees_the_key() {
    let jobs = Jobs::new(|policy| policy);
    let error = jobs.run("k", b"order", Err(Failed)).await.unwrap_err();
    assert!(matches!(error, RunError::Failed(Failed)));
    assert_eq!(jobs.run("k", b"order", Ok(json!(1))).await.unwrap(), json!(1));
    assert_eq!(jobs.runs(), 2);
}

#[tokio::test]
async fn an_error_leaves_the_outcome_in_doubt_where_the_policy_says_so() {
    let jobs = Jobs::new(|policy| policy.on_panic(OnPanic::Quarantine));
    let error = jobs.run("k", b"order", Err(Failed)).await.unwrap_err();
    assert!(matches!(error, RunError::Failed(Failed)));
    assert_eq!(refused(jobs.run("k", b"order", Ok(json!(1))).await), Code::OutcomeUnknown);
    assert_eq!(jobs.runs(), 1);
}

#[tokio::test]
async fn a_panic_stays_within() {
    let jobs = Jobs::new(|policy| policy);
    let panics = async |_| -> Result<Value, Failed> { panic!("work may panic") };
    let error = jobs.engine.run("k", b"order", panics).await.unwrap_err();
    assert!(matches!(&error, RunError::Panicked(rejection) if rejection.retryable));
    assert_eq!(jobs.run("k", b"order", Ok(json!(1))).await.unwrap(), json!(1));
}

#[tokio::test]
async fn concurrent_runs_are_one_execution() {
    let jobs = Jobs::new(|policy| policy.wait(Duration::from_secs(10)).waiters_max(100));
    let gate = Gate::closed();
    let runs: Vec<_> = (0..50)
        .map(|_| {
            let (jobs, gate) = (jobs.clone(), gate.clone());
            tokio::spawn(async move {
                let count = Arc::clone(&jobs.count);
                let work = async move |_| {
                    gate.opened().await;
                    Ok::<_, Failed>(count.fetch_add(1, Ordering::SeqCst) + 1)
                };
                jobs.engine.run("k", b"order", work).await.unwrap()
            })
        })
        .collect();
    tokio::task::yield_now().await;
    gate.open();
    for run in runs {
        assert_eq!(run.await.unwrap(), 1);
    }
    assert_eq!(jobs.runs(), 1);
}

#[tokio::test]
async fn without_waiting_a_second_run_is_refused() {
    let jobs = Jobs::new(|policy| policy);
    let gate = Gate::closed();
    let (engine, opens) = (jobs.engine.clone(), gate.clone());
    let first = tokio::spawn(async move {
        let work = async move |_| {
            opens.opened().await;
            Ok::<_, Failed>(1)
        };
        engine.run("k", b"order", work).await
    });
    tokio::task::yield_now().await;
    assert_eq!(refused(jobs.run("k", b"order", Ok(json!(2))).await), Code::InProgress);
    gate.open();
    assert_eq!(first.await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn a_value_that_is_too_large_is_returned_once_and_never_made_again() {
    let jobs = Jobs::new(|policy| policy.response_bytes_max(10));
    let large = json!("more than ten bytes");
    assert_eq!(jobs.run("k", b"order", Ok(large.clone())).await.unwrap(), large);
    assert_eq!(refused(jobs.run("k", b"order", Ok(large)).await), Code::ResultUnavailable);
    assert_eq!(jobs.runs(), 1);
}

#[tokio::test]
async fn a_value_of_another_type_is_told_apart() {
    let jobs = Jobs::new(|policy| policy);
    jobs.run("k", b"order", Ok(json!("text"))).await.unwrap();
    let error = jobs.engine.run("k", b"order", async |_| Ok::<u64, Failed>(1)).await.unwrap_err();
    assert!(matches!(error, RunError::Undecodable(_)));
}

#[tokio::test]
async fn what_is_no_key_is_no_run() {
    let jobs = Jobs::new(|policy| policy);
    for key in ["", "line\nbreak", &"x".repeat(256)] {
        let error = jobs.run(key, b"order", Ok(json!(1))).await.unwrap_err();
        assert!(matches!(error, RunError::InvalidKey(_)), "{key:?}");
    }
    assert_eq!(jobs.runs(), 0);
}

#[tokio::test]
async fn work_knows_its_execution() {
    let jobs = Jobs::new(|policy| policy);
    let work = async |execution: Execution| {
        assert_eq!((execution.key(), execution.attempt()), ("k", 1));
        Ok::<_, Failed>(execution.derive("charge"))
    };
    let derived = jobs.engine.run("k", b"order", work).await.unwrap();
    assert!(!derived.is_empty());
}

#[tokio::test]
async fn work_goes_on_when_its_caller_is_gone() {
    let store = ScriptedStore::new();
    let engine = Engine::builder(store.clone()).build().unwrap();
    let (gate, reached) = (Gate::closed(), Gate::closed());
    let (runner, opens, reaches) = (engine.clone(), gate.clone(), reached.clone());
    let caller = tokio::spawn(async move {
        let work = async move |_| {
            reaches.open();
            opens.opened().await;
            Ok::<_, Failed>(1)
        };
        runner.run("k", b"order", work).await
    });
    reached.opened().await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    gate.open();
    store.performed(Operation::Settle, 1).await;
    let again = engine.run("k", b"order", async |_| Ok::<_, Failed>(2)).await.unwrap();
    assert_eq!(again, 1);
}

#[tokio::test]
async fn without_a_store_nothing_runs_unless_the_policy_says_so() {
    for (choice, ran) in [(OnStoreError::FailClosed, false), (OnStoreError::FailOpen, true)] {
        let store = ScriptedStore::new();
        store.always(Operation::Claim, Behavior::Fail(ErrorKind::Unavailable));
        let policy = Policy::draft().into_builder().on_store_error(choice).build().unwrap();
        let engine = Engine::builder(store).policy(policy).build().unwrap();
        let run = engine.run("k", b"order", async |execution: Execution| {
            assert_eq!((execution.fence(), execution.attempt()), (0, 1));
            Ok::<_, Failed>(execution.key().to_owned())
        });
        match run.await {
            Ok(key) => assert!(ran && key == "k"),
            refusal => assert!(!ran && refused(refusal) == Code::StoreUnavailable),
        }
    }
}

#[tokio::test]
async fn a_shadow_runs_everything() {
    let jobs = Jobs::new(|policy| policy.mode(Mode::Shadow));
    for number in 0..3 {
        let value = jobs.run("k", b"order", Ok(json!(number))).await.unwrap();
        assert_eq!(value, json!(number));
    }
    assert_eq!(jobs.runs(), 3);
}

/// An engine that counts what it runs.
#[derive(Clone)]
struct Jobs {
    engine: Engine<MemoryStore>,
    count: Arc<AtomicU32>,
}

impl Jobs {
    fn new(change: impl FnOnce(PolicyBuilder) -> PolicyBuilder) -> Self {
        let policy = change(Policy::draft().into_builder()).build().unwrap();
        let engine = Engine::builder(MemoryStore::new()).policy(policy).build().unwrap();
        Self { engine, count: Arc::default() }
    }

    async fn run(
        &self,
        key: &str,
        request: &[u8],
        result: Result<Value, Failed>,
    ) -> Result<Value, RunError<Failed>> {
        let count = Arc::clone(&self.count);
        let work = async move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            result
        };
        self.engine.run(key, request, work).await
    }

    fn runs(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, RunError<Failed>>) -> Code {
    match outcome {
        Err(RunError::Refused(rejection)) => rejection.code,
        other => panic!("{other:?}"),
    }
}

#[derive(Debug)]
struct Failed;
