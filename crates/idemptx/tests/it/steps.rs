//! Recovery points: what an earlier attempt has done is not done again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use http::StatusCode;
use idemptx::store::MemoryStore;
use idemptx::{Engine, Execution, Policy, StepError};
use idemptx_core::policy::{OnStoreError, PolicyBuilder};
use idemptx_core::store::{ErrorKind, Store};
use idemptx_testkit::scripted_store::{Behavior, Operation, ScriptedStore};
use serde::{Deserialize, Serialize};

use crate::support::http_client::{Reply, posted, send};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Charge {
    number: u32,
}

/// A payment provider that counts.
#[derive(Clone, Debug, Default)]
struct Provider(Arc<AtomicU32>);

impl Provider {
    async fn charge(&self, key: String) -> Result<Charge, String> {
        assert_eq!(key.len(), 40);
        Ok(Charge { number: self.0.fetch_add(1, Ordering::SeqCst) + 1 })
    }

    fn charges(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Charges, and then ends as the body says.
async fn pay(
    State(provider): State<Provider>,
    Extension(execution): Extension<Execution>,
    body: String,
) -> Response {
    let charging =
        execution.step("charge", async || provider.charge(execution.derive("charge")).await).await;
    let charge: Charge = match charging {
        Ok(charge) => charge,
        Err(error) => {
            return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
        }
    };
    let status = if execution.attempt() == 1 && body == "fail" { 500 } else { 201 };
    (StatusCode::from_u16(status).unwrap(), format!("charge {}", charge.number)).into_response()
}

struct Shop {
    provider: Provider,
    router: Router,
}

impl Shop {
    fn open<S: Store>(engine: &Engine<S>) -> Self {
        let provider = Provider::default();
        let router = Router::new().fallback(pay).with_state(provider.clone());
        Self { provider, router: router.layer(engine.layer()) }
    }

    async fn post(&self, key: &str, body: &str) -> Reply {
        send(&self.router, posted(key, body.to_owned())).await
    }
}

fn engine<S: Store>(store: S, change: impl FnOnce(PolicyBuilder) -> PolicyBuilder) -> Engine<S> {
    let policy = change(Policy::draft().into_builder()).build().unwrap();
    Engine::builder(store).policy(policy).build().unwrap()
}

#[tokio::test]
async fn a_step_that_has_run_is_not_run_again() {
    let shop = Shop::open(&engine(MemoryStore::new(), |policy| policy));
    shop.post("k", "fail").await.answered(500, "charge 1");
    shop.post("k", "fail").await.answered(500, "charge 1");
    assert_eq!(shop.provider.charges(), 1);
    shop.post("l", "fine").await.answered(201, "charge 2");
    assert!(shop.post("l", "fine").await.is_replay());
    assert_eq!(shop.provider.charges(), 2);
}

#[tokio::test]
async fn a_step_of_another_request_under_the_key_is_no_step_of_this_one() {
    let shop = Shop::open(&engine(MemoryStore::new(), |policy| policy));
    shop.post("k", "fail").await.answered(500, "charge 1");
    let reply = shop.post("k", "fine").await;
    assert!(reply.text().contains("another request"), "{reply:?}");
    assert_eq!(shop.provider.charges(), 1);
}

#[tokio::test]
async fn a_step_whose_result_is_found_to_be_there_takes_that() {
    let engine = engine(MemoryStore::new(), |policy| policy);
    let (tell, scripted) = tokio::sync::oneshot::channel();
    let failed = engine.run("k", b"", async move |execution| {
        tell.send(execution).unwrap();
        Err::<u32, _>("no".to_owned())
    });
    assert!(failed.await.is_err());
    // Something of the former attempt goes on beside the next.
    let (former, inner) = (scripted.await.unwrap(), held(&engine).await);
    let execution = inner.clone();
    let late: u32 = former
        .step("a", async || {
            let first: u32 = inner.step("a", async || Ok::<_, String>(1)).await.unwrap();
            Ok::<_, String>(first + 1)
        })
        .await
        .unwrap();
    assert_eq!(late, 1);
    assert_eq!(execution.recall::<u32>("a").await.unwrap(), Some(1));
    assert_eq!(execution.recall::<u32>("b").await.unwrap(), None);
}

#[tokio::test]
async fn what_cannot_be_kept_is_an_error() {
    let execution = held(&engine(MemoryStore::new(), |policy| policy)).await;
    let failed = execution.step("a", async || Err::<u32, _>("no")).await;
    assert!(matches!(failed, Err(StepError::Failed("no"))));
    assert_eq!(execution.recall::<u32>("a").await.unwrap(), None);
    for label in [String::new(), "l".repeat(256)] {
        let step = execution.step(&label, async || Ok::<_, String>(1)).await;
        assert!(matches!(step, Err(StepError::Label)), "{step:?}");
    }
    let number = execution.step("a", async || Ok::<_, String>(1)).await;
    assert_eq!(number.unwrap(), 1);
    let other = execution.step("a", async || Ok::<_, String>(String::new())).await;
    assert!(matches!(other, Err(StepError::Unfit(_))), "{other:?}");
}

#[tokio::test]
async fn a_step_whose_result_cannot_be_kept_never_runs_again() {
    let engine = engine(MemoryStore::new(), |policy| policy);
    let failed = engine.run("k", b"", async |execution| {
        let large = execution.step("large", async || Ok::<_, String>("x".repeat(2 << 20))).await;
        assert!(matches!(large, Err(StepError::TooLarge)), "{large:?}");
        // JSON has no keys but text.
        let unfit = HashMap::from([((1, 2), 3)]);
        let unfit = execution.step("unfit", async || Ok::<_, String>(unfit)).await;
        assert!(matches!(unfit, Err(StepError::Unfit(_))), "{unfit:?}");
        let again = execution.step("large", never).await;
        assert!(matches!(again, Err(StepError::NotKept)), "{again:?}");
        Err::<u32, _>("no".to_owned())
    });
    assert!(failed.await.is_err());
    let execution = held(&engine).await;
    for label in ["large", "unfit"] {
        let again = execution.step(label, never).await;
        assert!(matches!(again, Err(StepError::NotKept)), "{again:?}");
        let recalled = execution.recall::<u32>(label).await;
        assert!(matches!(recalled, Err(StepError::NotKept)), "{recalled:?}");
    }
}

#[tokio::test]
async fn that_a_step_has_no_result_is_kept_though_the_store_forgets_to_say_so() {
    let store = ScriptedStore::new();
    let execution = held(&engine(store.clone(), |policy| policy)).await;
    store.next(Operation::Claim, Behavior::LoseReply(ErrorKind::Unavailable));
    store.next(Operation::Settle, Behavior::Fail(ErrorKind::Unavailable));
    let large = execution.step("a", async || Ok::<_, String>("x".repeat(2 << 20))).await;
    assert!(matches!(large, Err(StepError::TooLarge)), "{large:?}");
    let again = execution.step("a", never).await;
    assert!(matches!(again, Err(StepError::NotKept)), "{again:?}");
}

#[tokio::test]
async fn an_execution_has_a_hundred_steps() {
    let execution = held(&engine(MemoryStore::new(), |policy| policy)).await;
    for number in 0..100_u32 {
        let label = number.to_string();
        assert_eq!(execution.step(&label, async || Ok::<_, String>(number)).await.unwrap(), number);
    }
    let step = execution.step("one more", async || Ok::<_, String>(0)).await;
    assert!(matches!(step, Err(StepError::TooMany)), "{step:?}");
}

#[tokio::test(start_paused = true)]
async fn a_step_is_not_begun_once_the_operation_is_lost() {
    let store = ScriptedStore::new();
    let execution = held(&engine(store.clone(), |policy| policy)).await;
    store.always(Operation::Renew, Behavior::Fail(ErrorKind::Fenced));
    execution.lost().await;
    let step = execution.step("a", never).await;
    assert!(matches!(step, Err(StepError::Lost)), "{step:?}");
}

#[tokio::test]
async fn a_result_is_kept_though_the_store_forgets_to_say_so() {
    let store = ScriptedStore::new();
    let execution = held(&engine(store.clone(), |policy| policy)).await;
    store.next(Operation::Claim, Behavior::LoseReply(ErrorKind::Unavailable));
    store.next(Operation::Settle, Behavior::LoseReply(ErrorKind::Unavailable));
    store.next(Operation::Settle, Behavior::Fail(ErrorKind::Unavailable));
    let value = execution.step("a", async || Ok::<_, String>(7)).await.unwrap();
    assert_eq!((value, execution.recall::<u32>("a").await.unwrap()), (7, Some(7)));
}

#[tokio::test]
async fn nothing_runs_while_the_store_cannot_say_whether_it_has() {
    let store = ScriptedStore::new();
    let execution = held(&engine(store.clone(), |policy| policy)).await;
    store.next(Operation::Lookup, Behavior::Fail(ErrorKind::Unavailable));
    let step = execution.step("a", never).await;
    assert!(matches!(step, Err(StepError::Store(_))), "{step:?}");
}

#[tokio::test]
async fn without_a_claim_a_step_just_runs() {
    let store = ScriptedStore::new();
    let open = |policy: PolicyBuilder| {
        policy.on_store_error(OnStoreError::FailOpen).claim_timeout(Duration::from_millis(50))
    };
    let engine = engine(store.clone(), open);
    store.always(Operation::Claim, Behavior::Fail(ErrorKind::Unavailable));
    let runs = engine.run("k", b"", async |execution| {
        let first: u32 = execution.step("a", async || Ok::<_, String>(1)).await.unwrap();
        let second: u32 = execution.step("a", async || Ok::<_, String>(2)).await.unwrap();
        Ok::<_, String>((first, second))
    });
    assert_eq!(runs.await.unwrap(), (1, 2));
}

#[tokio::test]
async fn a_step_that_is_under_way_is_not_begun_again_beside_itself() {
    let execution = held(&engine(ScriptedStore::new(), |policy| policy)).await;
    let (beside, ran) = (execution.clone(), AtomicU32::new(0));
    let outer = execution.step("a", async || {
        let again = async || Ok::<_, String>(ran.fetch_add(1, Ordering::SeqCst));
        let inner = beside.step("a", again).await.map_err(|error| error.to_string());
        assert_eq!(inner, Err("a step of this label runs in this execution".to_owned()));
        beside.step("b", async || Ok::<_, String>(1)).await.map_err(|error| error.to_string())
    });
    assert_eq!((outer.await.unwrap(), ran.load(Ordering::SeqCst)), (1, 0));
    // What was given up or failed may be run again.
    let fails = execution.step("c", async || Err::<u32, _>("no"));
    assert!(matches!(fails.await, Err(StepError::Failed("no"))));
    let given_up = execution.step("c", std::future::pending::<Result<u32, String>>);
    assert!(tokio::time::timeout(Duration::from_millis(1), given_up).await.is_err());
    assert_eq!(execution.step("c", async || Ok::<_, String>(3)).await.unwrap(), 3);
}

async fn never() -> Result<u32, String> {
    panic!("it ran");
}

/// An execution that goes on until the test ends.
async fn held<S: Store>(engine: &Engine<S>) -> Execution {
    let (tell, scripted) = tokio::sync::oneshot::channel();
    let engine = engine.clone();
    tokio::spawn(async move {
        let run = engine.run("k", b"", async move |execution| {
            tell.send(execution).unwrap();
            std::future::pending::<Result<u32, String>>().await
        });
        run.await
    });
    scripted.await.unwrap()
}
