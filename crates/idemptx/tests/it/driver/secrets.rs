//! Secrets that rotate.

use idemptx::{Engine, Policy};
use idemptx_core::secret::Secret;
use idemptx_testkit::scripted_store::{Operation, ScriptedStore};

use crate::support::app::{App, engine};
use crate::support::http_client::{posted, send};

#[tokio::test]
async fn a_record_under_the_old_secret_is_replayed_under_the_new_one() {
    let store = ScriptedStore::new();
    let before = App::quick(signed(&store, &[1]));
    before.post("k").await.answered(200, "run 1");
    let after = App::quick(signed(&store, &[2, 1]));
    let retry = after.post("k").await;
    retry.answered(200, "run 1");
    assert!(retry.is_replay());
    send(&after.router, posted("k", "other")).await.refused(422, "key-reused");
    assert_eq!(after.runs.began(), 0);
    // What the new one writes, the new one reads without the old.
    after.post("new").await.answered(200, "run 1");
    let alone = App::quick(signed(&store, &[2]));
    assert!(alone.post("new").await.is_replay());
}

#[tokio::test]
async fn a_claim_under_the_old_secret_is_waited_for() {
    let store = ScriptedStore::new();
    let before = App::slow(signed(&store, &[1]));
    let client = before.client("k");
    before.runs.reach(1).await;
    let patient =
        signed_with(&store, &[2, 1], |policy| policy.wait(std::time::Duration::from_secs(10)));
    let after = App::quick(patient);
    App::quick(signed(&store, &[2, 1])).post("k").await.refused(409, "in-progress");
    let waiter = after.client("k");
    store.performed(Operation::Lookup, 3).await;
    before.gate.open();
    client.await.unwrap().answered(200, "run 1");
    waiter.await.unwrap().answered(200, "run 1");
    assert_eq!(after.runs.began(), 0);
}

#[tokio::test]
async fn without_the_old_secret_a_record_is_neither_replayed_nor_executed_again() {
    let store = ScriptedStore::new();
    App::quick(signed(&store, &[1])).post("k").await.answered(200, "run 1");
    let other = App::quick(engine(store.clone(), |policy| policy));
    other.post("k").await.refused(422, "key-reused");
    assert_eq!(other.runs.began(), 0);
}

fn signed(store: &ScriptedStore, secrets: &[u8]) -> Engine<ScriptedStore> {
    signed_with(store, secrets, |policy| policy)
}

fn signed_with(
    store: &ScriptedStore,
    secrets: &[u8],
    change: impl FnOnce(idemptx::PolicyBuilder) -> idemptx::PolicyBuilder,
) -> Engine<ScriptedStore> {
    let secrets = secrets.iter().map(|id| Secret::new(*id, &[*id; 32]).unwrap());
    let policy = Policy::draft().into_builder().secrets(secrets);
    Engine::builder(store.clone()).policy(change(policy).build().unwrap()).build().unwrap()
}
