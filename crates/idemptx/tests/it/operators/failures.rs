//! Decisions on a store that fails, and on one that only knows the steps of requests.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use idemptx::PolicyBuilder;
use idemptx::operator::{Operator, OperatorError, RecordStatus, RecordView, Resolution, Resolved};
use idemptx_core::policy::OnOrphan;
use idemptx_core::store::ErrorKind;
use idemptx_testkit::scripted_store::{Behavior, Gate, Operation, ScriptedStore};
use tokio::task::JoinHandle;

use crate::support::app::{App, engine};
use crate::support::http_client::Reply;

#[tokio::test]
async fn an_owner_that_comes_back_after_the_decision_gets_the_answer_that_was_decided() {
    let trial = Trial::new(|policy| policy).await;
    trial.resolve().await.unwrap();
    trial.app.gate.open();
    let reply = trial.client.await.unwrap();
    reply.answered(200, "found");
    assert!(reply.is_replay());
}

#[tokio::test]
async fn who_waits_for_a_decision_is_woken_by_it() {
    let trial = Trial::new(|policy| policy).await;
    let gate = Gate::closed();
    trial.store.next(Operation::Settle, Behavior::DelayOperation(gate.clone()));
    let deciding = tokio::spawn({
        let (operator, id) = (trial.operator.clone(), trial.orphan.id);
        async move { operator.resolve(&id, answer(&operator)).await }
    });
    trial.store.called(Operation::Settle, 1).await;
    let patient = |policy: PolicyBuilder| policy.wait(Duration::from_secs(20));
    let other = App::quick(engine(trial.store.clone(), patient));
    let waiter = other.client("k");
    trial.store.called(Operation::Claim, 3).await;
    gate.open();
    deciding.await.unwrap().unwrap();
    let reply = waiter.await.unwrap();
    reply.answered(200, "found");
    assert!(reply.is_replay());
}

#[tokio::test]
async fn steps_whose_verdicts_are_lost_are_taken_again() {
    let trial = Trial::new(|policy| policy).await;
    for step in [Operation::Claim, Operation::Settle] {
        trial.store.next(step, Behavior::LoseReply(ErrorKind::Unavailable));
        trial.store.next(step, Behavior::Fail(ErrorKind::Internal));
    }
    let resolved = trial.resolve().await.unwrap();
    assert_eq!((resolved.was, resolved.now), (trial.orphan.clone(), trial.look().await));

    let trial = Trial::new(|policy| policy).await;
    trial.store.next(Operation::Release, Behavior::LoseReply(ErrorKind::Unavailable));
    trial.operator.resolve(&trial.orphan.id, Resolution::Release).await.unwrap();
    assert_eq!(trial.look().await, None);
}

#[tokio::test(start_paused = true)]
async fn without_a_verdict_on_the_claim_nothing_is_decided() {
    let trial = Trial::new(|policy| policy).await;
    trial.store.always(Operation::Claim, Behavior::Fail(ErrorKind::Unavailable));
    let refused = trial.resolve().await.unwrap_err();
    assert!(matches!(refused, OperatorError::Store(_)), "{refused:?}");
    assert_eq!(trial.look().await, Some(trial.orphan.clone()));
    assert_eq!(trial.store.calls(Operation::Settle) + trial.store.calls(Operation::Release), 0);
}

/// To release it would be to decide that it did not happen.
#[tokio::test(start_paused = true)]
async fn a_decision_that_cannot_be_stored_leaves_an_orphan_and_never_a_free_key() {
    let trial = Trial::new(|policy| policy).await;
    trial.store.always(Operation::Settle, Behavior::Fail(ErrorKind::Unavailable));
    let refused = trial.resolve().await.unwrap_err();
    assert!(matches!(refused, OperatorError::Store(_)), "{refused:?}");
    let Err(OperatorError::InFlight(left)) = trial.resolve().await else {
        panic!("nobody owns it")
    };
    trial.store.always(Operation::Settle, Behavior::Succeed);
    trial.store.advance(left);
    assert_eq!(trial.look().await.unwrap().status, RecordStatus::Orphaned);
    assert_eq!(trial.resolve().await.unwrap().was.claim.attempt, 2);
    let other = App::quick(engine(trial.store.clone(), |policy| policy));
    other.post("k").await.answered(200, "found");
}

#[tokio::test]
async fn a_decision_goes_on_without_whoever_made_it() {
    let trial = Trial::new(|policy| policy).await;
    let gate = Gate::closed();
    trial.store.next(Operation::Claim, Behavior::DelayOperation(gate.clone()));
    tokio::select! {
        biased;
        decided = trial.resolve() => panic!("{decided:?}"),
        () = trial.store.called(Operation::Claim, 2) => {}
    }
    gate.open();
    trial.store.performed(Operation::Settle, 1).await;
    assert_eq!(trial.look().await.unwrap().status, RecordStatus::Completed);
}

#[tokio::test]
async fn what_expires_before_it_is_decided_is_absent() {
    let trial = Trial::new(|policy| policy).await;
    let gate = Gate::closed();
    trial.store.next(Operation::Lookup, Behavior::DelayReply(gate.clone()));
    let looks = trial.store.calls(Operation::Lookup);
    let meanwhile = async {
        trial.store.performed(Operation::Lookup, looks + 1).await;
        trial.store.advance(trial.app.engine.policy().key_retain);
        gate.open();
    };
    let (decided, ()) = tokio::join!(trial.resolve(), meanwhile);
    assert!(matches!(decided, Err(OperatorError::Absent)), "{decided:?}");
    assert_eq!(trial.look().await, None);
}

#[tokio::test]
async fn what_was_taken_over_since_the_look_is_left_alone() {
    let trial = Trial::new(|policy| policy).await;
    let gate = Gate::closed();
    trial.store.next(Operation::Lookup, Behavior::DelayReply(gate.clone()));
    let looks = trial.store.calls(Operation::Lookup);
    let meanwhile = async {
        trial.store.performed(Operation::Lookup, looks + 1).await;
        let other = trial.operator.resolve(&trial.orphan.id, answer(&trial.operator));
        other.await.unwrap();
        gate.open();
    };
    let decided = trial.operator.resolve(&trial.orphan.id, Resolution::Release);
    let (decided, ()) = tokio::join!(decided, meanwhile);
    let Err(OperatorError::Changed(Some(now))) = decided else { panic!("{decided:?}") };
    assert_eq!(Some(*now), trial.look().await);
}

/// A dead process, and an operator who resolves its operation.
struct Trial {
    store: ScriptedStore,
    app: App<ScriptedStore>,
    client: JoinHandle<Reply>,
    operator: Operator<ScriptedStore>,
    orphan: RecordView,
}

impl Trial {
    async fn new(change: impl FnOnce(PolicyBuilder) -> PolicyBuilder) -> Self {
        let store = ScriptedStore::new();
        let careful = |policy: PolicyBuilder| change(policy.on_orphan(OnOrphan::Quarantine));
        let app = App::slow(engine(store.clone(), careful));
        let client = app.client("k");
        app.runs.reach(1).await;
        store.advance(app.engine.policy().lease);
        let operator = app.engine.operator();
        let ids =
            operator.ids(&idemptx::Scope::shared(), &idemptx::Key::new("k", 255).unwrap(), None);
        let orphan = operator.find(&ids).await.unwrap().unwrap();
        assert_eq!(orphan.status, RecordStatus::Orphaned);
        Self { store, app, client, operator, orphan }
    }

    async fn resolve(&self) -> Result<Resolved, OperatorError> {
        self.operator.resolve(&self.orphan.id, answer(&self.operator)).await
    }

    async fn look(&self) -> Option<RecordView> {
        self.operator.lookup(&self.orphan.id).await.unwrap()
    }
}

fn answer(operator: &Operator<ScriptedStore>) -> Resolution {
    operator.response(StatusCode::OK, &HeaderMap::new(), "found").into()
}
