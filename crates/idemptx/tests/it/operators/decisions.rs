//! Resolving doubts, and forgetting.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use idemptx::operator::{OperatorError, RecordStatus, Resolution};
use idemptx::store::AnyStore;
use idemptx_core::policy::{OnOrphan, OnPanic};

use super::environment::{Environment, id};
use crate::support::app::App;

pub(crate) async fn a_doubt_is_resolved_once_and_for_all(place: &Environment) {
    an_orphan_gets_an_answer(place).await;
    an_orphan_is_released(place).await;
    an_unknown_outcome_gets_an_answer(place).await;
    of_two_who_decide_one_does(place).await;
}

pub(crate) async fn what_is_in_no_doubt_is_left_alone(place: &Environment) {
    a_live_claim_is_left_alone(place).await;
    a_result_is_forgotten_but_not_replaced(place).await;
    nothing_is_done_about_nothing(place).await;
    an_answer_that_cannot_be_kept_is_refused(place).await;
}

async fn an_orphan_gets_an_answer(place: &Environment) {
    let (orphan, operator) = (place.orphan("answered").await, place.operator());
    let app = careful(place);
    app.post("answered").await.refused(409, "outcome-unknown");

    let mut headers = HeaderMap::new();
    headers.insert("location", "/payouts/1001".parse().unwrap());
    headers.insert("set-cookie", "nobody else's".parse().unwrap());
    let answer = operator.response(StatusCode::CREATED, &headers, "payout 1001");
    let resolved = operator.resolve(&orphan.id, answer.clone().into()).await.unwrap();
    assert_eq!(resolved.was, orphan);
    let now = resolved.now.unwrap();
    assert_eq!(
        (now.status, now.claim.attempt, now.response.as_ref()),
        (RecordStatus::Completed, 2, Some(&answer))
    );
    assert!(now.claim.fence > orphan.claim.fence);
    assert_eq!(operator.lookup(&orphan.id).await.unwrap(), Some(now));

    let reply = app.post("answered").await;
    reply.answered(201, "payout 1001");
    assert!(reply.is_replay());
    assert_eq!(
        (reply.header("location"), reply.header("set-cookie")),
        (Some("/payouts/1001"), None)
    );
    assert_eq!(app.runs.began(), 0);

    let again = operator.resolve(&orphan.id, Resolution::Release).await.unwrap_err();
    let OperatorError::AlreadySettled(was) = again else { panic!("{again:?}") };
    assert_eq!(was.response, Some(answer));
}

async fn an_orphan_is_released(place: &Environment) {
    let (orphan, operator) = (place.orphan("released").await, place.operator());
    let app = careful(place);
    app.post("released").await.refused(409, "outcome-unknown");
    let resolved = operator.resolve(&orphan.id, Resolution::Release).await.unwrap();
    assert_eq!((resolved.was, resolved.now), (orphan.clone(), None));
    assert_eq!(operator.lookup(&orphan.id).await.unwrap(), None);
    app.post("released").await.answered(200, "run 1");
    assert!(app.post("released").await.is_replay());
}

async fn an_unknown_outcome_gets_an_answer(place: &Environment) {
    let (app, operator) = (careful(place), place.operator());
    app.runs.break_down();
    app.post("broken").await.refused(500, "handler-failed");
    app.post("broken").await.refused(409, "outcome-unknown");
    let unknown = place.comes_to("broken", RecordStatus::Unknown).await;
    let answer = operator.response(StatusCode::OK, &HeaderMap::new(), "it went through");
    let resolved = operator.resolve(&unknown.id, answer.into()).await.unwrap();
    assert_eq!(resolved.was, unknown);
    app.post("broken").await.answered(200, "it went through");
    assert_eq!(app.runs.began(), 1);
}

async fn of_two_who_decide_one_does(place: &Environment) {
    let orphan = place.orphan("contended").await;
    let (one, other) = (place.operator(), place.operator());
    let answer = one.response(StatusCode::OK, &HeaderMap::new(), "found");
    let (resolved, forgotten) =
        tokio::join!(one.resolve(&orphan.id, answer.into()), other.forget(&orphan.id));
    let reply = careful(place).post("contended").await;
    match (resolved, forgotten) {
        (Ok(_), Ok(forgotten)) => {
            // One after the other: what was forgotten is the answer.
            assert_eq!(forgotten.was.status, RecordStatus::Completed);
            reply.answered(200, "run 1");
        }
        (Ok(_), Err(error)) => {
            assert!(!matches!(error, OperatorError::Store(_)), "{error:?}");
            reply.answered(200, "found");
        }
        (Err(error), Ok(forgotten)) => {
            assert!(!matches!(error, OperatorError::Store(_)), "{error:?}");
            assert_eq!(forgotten.was, orphan);
            reply.answered(200, "run 1");
        }
        both => panic!("nobody decided: {both:?}"),
    }
}

async fn a_live_claim_is_left_alone(place: &Environment) {
    let (app, operator) = (place.process(|policy| policy), place.operator());
    let lease = app.engine.policy().lease;
    let slow = App::slow(app.engine.clone());
    let client = slow.client("live");
    slow.runs.reach(1).await;
    let id = id(&operator, "live");
    let refused = [
        operator.resolve(&id, Resolution::Release).await.map(drop),
        operator.forget(&id).await.map(drop),
    ];
    for refused in refused {
        let Err(OperatorError::InFlight(left)) = refused else { panic!("{refused:?}") };
        assert!(left > Duration::ZERO && left <= lease, "{left:?} of {lease:?}");
    }
    slow.gate.open();
    client.await.unwrap().answered(200, "run 1");
    assert!(app.post("live").await.is_replay());
}

async fn a_result_is_forgotten_but_not_replaced(place: &Environment) {
    let (app, operator) = (place.process(|policy| policy), place.operator());
    app.post("done").await.answered(200, "run 1");
    let id = id(&operator, "done");
    let answer = operator.response(StatusCode::OK, &HeaderMap::new(), "another");
    let refused = operator.resolve(&id, answer.into()).await.unwrap_err();
    assert!(
        matches!(&refused, OperatorError::AlreadySettled(was) if was.status == RecordStatus::Completed)
    );
    app.post("done").await.answered(200, "run 1");
    let forgotten = operator.forget(&id).await.unwrap();
    assert_eq!(forgotten.was.response.unwrap().body, "run 1");
    assert_eq!(operator.lookup(&id).await.unwrap(), None);
    app.post("done").await.answered(200, "run 2");
}

async fn nothing_is_done_about_nothing(place: &Environment) {
    let operator = place.operator();
    let id = id(&operator, "never");
    for refused in [
        operator.resolve(&id, Resolution::Release).await.map(drop),
        operator.forget(&id).await.map(drop),
    ] {
        assert!(matches!(refused, Err(OperatorError::Absent)), "{refused:?}");
    }
    assert_eq!(operator.entry(&id).await.unwrap(), None);
}

async fn an_answer_that_cannot_be_kept_is_refused(place: &Environment) {
    let (orphan, operator) = (place.orphan("too-much").await, place.operator());
    let large = operator.response(StatusCode::OK, &HeaderMap::new(), vec![0; (1 << 20) + 1]);
    let early = operator.response(StatusCode::CONTINUE, &HeaderMap::new(), "");
    for answer in [large, early] {
        let refused = operator.resolve(&orphan.id, answer.into()).await.unwrap_err();
        assert!(matches!(refused, OperatorError::Unstorable), "{refused:?}");
    }
    assert_eq!(operator.lookup(&orphan.id).await.unwrap(), Some(orphan));
}

/// A process that executes nothing twice.
fn careful(place: &Environment) -> App<AnyStore> {
    place.process(|policy| policy.on_orphan(OnOrphan::Quarantine).on_panic(OnPanic::Quarantine))
}
