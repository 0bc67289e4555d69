//! A handler that takes its transaction as an argument.

use std::sync::{Arc, Mutex};

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use idemptx::store::MemoryStore;
use idemptx::store::{AnyStore, Transactional};
use idemptx::{
    Code, Directive, Engine, Execution, IdempotentTransaction, Policy, RunError, TransactionError,
};
use tokio::sync::Semaphore;

use super::shop::{App, AppError, PATIENCE, Shop, end, engine, keyless, order, patient, place};
use crate::support::http_client::send;

#[tokio::test]
async fn an_order_and_its_record_are_committed_together() {
    let shop = Shop::open().await;
    let app = shop.app();
    let first = app.post("k", "201").await;
    first.answered(201, "order 1");
    assert!(!first.is_replay() && !first.is_unstored());
    assert_eq!((shop.orders("k").await, shop.records('D').await), (vec![1], 1));
    let again = shop.app().post("k", "201").await;
    again.answered(201, "order 1");
    assert!(again.is_replay());
    assert_eq!(shop.orders("k").await, [1]);
}

#[tokio::test]
async fn whatever_is_no_success_leaves_nothing() {
    let shop = Shop::open().await;
    let app = shop.app();
    for (body, status, record) in [
        ("422", 422, Some('D')),
        ("404 store", 404, Some('D')),
        ("500", 500, None),
        ("503 store", 503, Some('D')),
        ("201 release", 201, None),
        ("201 unknown", 201, Some('U')),
        ("error", 500, None),
        ("panic", 500, None),
    ] {
        let key = body.replace(' ', "-");
        let reply = app.post(&key, body).await;
        assert_eq!(reply.status.as_u16(), status, "{body}");
        assert_eq!(shop.orders(&key).await, [0_i32; 0], "{body}");
        let left = shop.number("SELECT count(*) FROM idemptx.records").await;
        assert_eq!(left, i64::from(record.is_some()), "{body}");
        assert_eq!(shop.records(record.unwrap_or('D')).await, left, "{body}");
        shop.server.session().await.batch_execute("TRUNCATE idemptx.records").await.unwrap();
    }
    // Nor does any of them spoil a session for those that come after.
    app.post("k", "201").await.answered(201, "order 9");
}

#[tokio::test]
async fn a_client_that_leaves_does_not_undo_its_order() {
    let shop = Shop::open().await;
    let gate = Arc::new(Semaphore::new(0));
    let slow = async |State(gate): State<Arc<Semaphore>>, tx: IdempotentTransaction| {
        place(&tx).await?;
        gate.add_permits(1);
        let _open = gate.acquire_many(2).await.unwrap();
        Ok::<_, AppError>(StatusCode::CREATED)
    };
    let engine = shop.engine();
    let router = axum::Router::new().fallback(slow).with_state(gate.clone());
    let app = App(router.layer(engine.layer()));
    let client = app.client("k", "201");
    let begun = gate.acquire().await.unwrap();
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    drop(begun);
    gate.add_permits(1);
    assert!(engine.drain().await);
    assert_eq!((shop.orders("k").await, shop.records('D').await), (vec![1], 1));
}

#[tokio::test]
async fn an_execution_that_was_taken_over_is_rolled_back() {
    let shop = Shop::open().await;
    let (begun, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (begins, waits) = (begun.clone(), gate.clone());
    let slow = async move |tx: IdempotentTransaction, body: String| {
        let number = place(&tx).await?;
        begins.add_permits(1);
        let _open = waits.acquire().await.unwrap();
        end(&body, format!("order {number}"))
    };
    let slow = App::of(&shop.engine(), slow);
    let client = slow.client("k", "201");
    drop(begun.acquire().await.unwrap());
    shop.lapse().await;
    shop.app().post("k", "201").await.answered(201, "order 2");
    gate.add_permits(1);
    let reply = client.await.unwrap();
    reply.answered(201, "order 2");
    assert!(reply.is_replay());
    assert_eq!(shop.orders("k").await, [2]);
}

#[tokio::test]
async fn without_a_key_there_is_no_transaction() {
    let shop = Shop::open().await;
    let app = shop.app();
    let reply = send(&app.0, keyless()).await;
    reply.refused(400, "missing-key");
    let optional = async |tx: Option<IdempotentTransaction>| match tx {
        None => "none",
        Some(_) => "one",
    };
    let app = App::of(&shop.engine(), optional);
    assert_eq!(send(&app.0, keyless()).await.text(), "none");
    assert_eq!(app.post("k", "").await.text(), "one");
    let unwrapped = axum::Router::new().fallback(order);
    let reply = send(&unwrapped, keyless()).await;
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(reply.text().contains("Engine::layer"), "{reply:?}");
}

#[tokio::test]
async fn only_an_engine_on_the_database_has_transactions() {
    let shop = Shop::open().await;
    let plain = Engine::builder(shop.store()).build().unwrap();
    let reply = App::of(&plain, order).post("k", "201").await;
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(reply.text().contains("EngineBuilder::transactional"), "{reply:?}");

    let memory = AnyStore::from(MemoryStore::new());
    assert!(Engine::builder(memory).transactional().build().is_err());
    let shadow = Policy::draft().into_builder().mode(idemptx_core::policy::Mode::Shadow);
    let engine = Engine::builder(shop.store()).policy(shadow.build().unwrap());
    assert!(engine.transactional().build().is_err());
    let any = AnyStore::from_url(&shop.server.url()).unwrap();
    assert!(any.is_transactional());
    App::of(&engine_of(any), order).post("k", "201").await.answered(201, "order 1");
}

fn engine_of(store: AnyStore) -> Engine<AnyStore> {
    Engine::builder(store).transactional().build().unwrap()
}

#[tokio::test]
async fn a_job_has_a_transaction_too() {
    let shop = Shop::open().await;
    let engine = shop.engine();
    let bill = async |fails: bool| {
        let work = async move |execution: Execution| {
            let tx = execution.begin().await.map_err(AppError::from)?;
            let number = place(&tx).await?;
            if fails { Err(AppError("as it was told".into())) } else { Ok(number) }
        };
        engine.run("k", b"", work).await
    };
    assert!(matches!(bill(true).await, Err(RunError::Failed(_))));
    assert_eq!(shop.orders("k").await, [0_i32; 0]);
    assert_eq!(bill(false).await.unwrap(), 2);
    assert_eq!(bill(false).await.unwrap(), 2);
    assert_eq!((shop.orders("k").await, shop.records('D').await), (vec![1], 1));
}

/// An error commits nothing, whatever the job says of its record, as a failed request does not.
#[tokio::test]
async fn a_job_that_fails_commits_nothing_although_its_error_is_final() {
    let shop = Shop::open().await;
    let engine = shop.engine();
    for (key, outcome, refused) in [
        ("final", Directive::Store, Some(Code::ResultUnavailable)),
        ("doubtful", Directive::Unknown, Some(Code::OutcomeUnknown)),
        ("harmless", Directive::Release, None),
    ] {
        let bill = async move |execution: Execution| {
            let tx = execution.begin().await.map_err(AppError::from)?;
            place(&tx).await?;
            execution.set_outcome(outcome);
            Err::<i32, _>(AppError("declined".into()))
        };
        let failed = engine.run(key, b"", bill).await;
        assert!(matches!(failed, Err(RunError::Failed(_))), "{key}: {failed:?}");
        assert_eq!(shop.orders(key).await, [0_i32; 0], "{key}");
        match (engine.run(key, b"", async |_| Ok::<_, AppError>(7)).await, refused) {
            (Err(RunError::Refused(rejection)), Some(code)) => {
                assert_eq!((rejection.code, rejection.original_status), (code, None), "{key}");
            }
            (again, refused) => assert!(matches!(again, Ok(7)) && refused.is_none(), "{again:?}"),
        }
    }
}

#[tokio::test]
async fn a_transaction_that_the_handler_ends_itself_is_a_failure() {
    let shop = Shop::open().await;
    for (key, ends, orders) in [("a", "COMMIT", 1), ("b", "ROLLBACK", 0), ("c", "COMMIT; BEGIN", 1)]
    {
        let by_hand = async move |tx: IdempotentTransaction| {
            place(&tx).await?;
            tx.batch_execute(ends).await?;
            Ok::<_, AppError>(StatusCode::CREATED)
        };
        let reply = App::of(&shop.engine(), by_hand).post(key, "").await;
        reply.refused(503, "store-unavailable");
        assert_eq!(shop.orders(key).await.len(), orders, "{ends}");
        assert_eq!(shop.number("SELECT count(*) FROM idemptx.records").await, 0, "{ends}");
    }
}

#[tokio::test]
async fn a_statement_that_fails_fails_the_whole() {
    let shop = Shop::open().await;
    let careless = async |tx: IdempotentTransaction| {
        place(&tx).await?;
        let refused = tx.execute("SELECT 1 / 0", &[]).await;
        assert!(matches!(refused, Err(TransactionError::Database(_))), "{refused:?}");
        Ok::<_, AppError>(StatusCode::CREATED)
    };
    let app = App::of(&shop.engine(), careless);
    app.post("k", "").await.refused(503, "store-unavailable");
    assert_eq!(shop.orders("k").await, [0_i32; 0]);
    assert_eq!(shop.number("SELECT count(*) FROM idemptx.records").await, 0);
}

#[tokio::test]
async fn what_is_rolled_back_by_the_handler_is_not_there_and_its_answer_is() {
    let shop = Shop::open().await;
    let thinks_twice = async |tx: IdempotentTransaction| {
        let execution = tx.execution().clone();
        assert!(matches!(execution.begin().await, Err(TransactionError::Begun)));
        place(&tx).await?;
        tx.rollback().await;
        let tx = execution.begin().await?;
        let number = place(&tx).await?;
        Ok::<_, AppError>((StatusCode::CREATED, format!("order {number}")))
    };
    let app = App::of(&shop.engine(), thinks_twice);
    app.post("k", "").await.answered(201, "order 2");
    assert_eq!(shop.orders("k").await, [1]);
}

/// A handler whose transaction outlives it in another task.
#[tokio::test]
async fn a_transaction_that_is_leaked_has_ended_with_its_handler() {
    let shop = Shop::open().await;
    let leaked: Arc<Mutex<Option<IdempotentTransaction>>> = Arc::default();
    let keeps = leaked.clone();
    let leaks = async move |Extension(it): Extension<Execution>, tx: IdempotentTransaction| {
        place(&tx).await?;
        *keeps.lock().unwrap() = Some(tx);
        Ok::<_, AppError>(it.key().to_owned())
    };
    App::of(&shop.engine(), leaks).post("k", "").await.answered(200, "k");
    let tx = leaked.lock().unwrap().take().unwrap();
    assert!(matches!(place(&tx).await, Err(TransactionError::Finished)));
    assert!(matches!(tx.execution().begin().await, Err(TransactionError::Finished)));
    assert_eq!(shop.orders("k").await, [1]);
}

#[tokio::test]
async fn nothing_of_one_handlers_session_is_left_to_the_next() {
    let shop = Shop::open().await;
    let store = patient(shop.server.url()).transactions(1).open().unwrap();
    let app = App::of(&engine(store, |policy| policy), async |tx: IdempotentTransaction| {
        let look = "SELECT pg_backend_pid(), current_setting('search_path'), \
                    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'), \
                    current_setting('transaction_isolation')";
        let row = tx.query_one(look, &[]).await?;
        let (process, path): (i32, String) = (row.get(0), row.get(1));
        let (locks, isolation): (i64, String) = (row.get(2), row.get(3));
        tx.batch_execute("SET search_path = pg_catalog; SELECT pg_advisory_lock(1)").await?;
        Ok::<_, AppError>(format!("{process} {path} {locks} {isolation}"))
    });
    let first = app.post("1", "").await;
    let second = app.post("2", "").await;
    assert_eq!(first.text(), second.text());
    assert!(first.text().ends_with(" \"$user\", public 0 read committed"), "{first:?}");
}

#[tokio::test]
async fn a_session_in_which_a_handler_has_prepared_something_is_not_used_again() {
    let shop = Shop::open().await;
    let store = patient(shop.server.url()).transactions(1).open().unwrap();
    let app = App::of(&engine(store, |policy| policy), async |tx: IdempotentTransaction| {
        tx.batch_execute("PREPARE \"it's\" AS SELECT 1").await?;
        Ok::<_, AppError>("prepared")
    });
    for key in ["1", "2", "3"] {
        app.post(key, "").await.answered(200, "prepared");
    }
}

#[tokio::test]
async fn who_finds_no_session_in_time_may_try_again() {
    let shop = Shop::open().await;
    let patience = std::time::Duration::from_secs(2);
    let store = patient(shop.server.url()).transactions(1).timeout(patience).open().unwrap();
    let (begun, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (begins, waits) = (begun.clone(), gate.clone());
    let slow = async move |tx: IdempotentTransaction| -> Result<Response, AppError> {
        let number = place(&tx).await?;
        begins.add_permits(1);
        let _open = waits.acquire().await.unwrap();
        end("201", format!("order {number}"))
    };
    let app = App::of(&engine(store, |policy| policy.claim_timeout(PATIENCE)), slow);
    let first = app.client("1", "");
    drop(begun.acquire().await.unwrap());
    app.post("2", "").await.refused(503, "store-unavailable");
    gate.add_permits(2);
    first.await.unwrap().answered(201, "order 1");
    app.post("2", "").await.answered(201, "order 2");
}

/// The extractor comes before the body, which may yet be refused.
#[tokio::test]
async fn a_body_that_is_refused_by_a_later_extractor_leaves_nothing() {
    let shop = Shop::open().await;
    let handler = async |tx: IdempotentTransaction, _: axum::Json<u32>| {
        place(&tx).await?;
        Ok::<_, AppError>(StatusCode::CREATED)
    };
    let app = App::of(&shop.engine(), handler);
    let mut request = crate::support::http_client::posted("k", "no number");
    request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    let reply = send(&app.0, request).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert_eq!(shop.orders("k").await, [0_i32; 0]);
    let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    assert_eq!(shop.number(open).await, 0);
}
