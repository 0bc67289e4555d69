//! Handlers that begin and commit their transactions themselves.

use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use idemptx::store::near::NearCache;
use idemptx::store::seal::{SealKey, SealKeys, Sealed};
use idemptx::store::sqlite::SqliteStore;
use idemptx::{Engine, Execution, SettleError};
use idemptx_core::policy::PolicyBuilder;
use rusqlite::{Connection, TransactionBehavior};
use tokio_postgres::Client;

use super::shop::{App, AppError, INSERT, Shop, end, engine, soon, told};

/// A connection of the application's own.
type Own = State<Arc<tokio::sync::Mutex<Client>>>;

#[tokio::test]
async fn an_order_is_committed_with_its_record_by_the_application() {
    let shop = Shop::open().await;
    let app = own(&shop, async |own: Own, Extension(it): Extension<Execution>, body: String| {
        let mut client = own.lock().await;
        let tx = client.transaction().await.unwrap();
        let number = place(&tx, &it).await;
        let response = it.settle_in(&tx, end(&body, format!("order {number}"))?).await?;
        tx.commit().await.unwrap();
        Ok::<_, AppError>(response)
    })
    .await;
    let reply = app.post("k", "201").await;
    reply.answered(201, "order 1");
    assert!(!reply.is_replay() && !reply.is_unstored());
    assert_eq!(reply.header("idempotency-outcome"), None);
    assert_eq!((shop.orders("k").await, shop.records('D').await), (vec![1], 1));
    let again = app.post("k", "201").await;
    again.answered(201, "order 1");
    assert!(again.is_replay());
    // A status that would give the key up has been stored all the same.
    app.post("l", "503").await.answered(503, "order 2");
    assert!(app.post("l", "503").await.is_replay());
}

/// Sealed and near-cached stores settle in transactions like the plain one.
#[tokio::test]
async fn a_decorated_store_settles_in_transactions_too() {
    let shop = Shop::open().await;
    let keys = SealKeys::new(SealKey::new(1, &[1, 2, 3, 4].repeat(8)).unwrap());
    let store = NearCache::new(Sealed::new(shop.store(), keys), 1 << 20);
    let engine = engine(store, |policy| policy);
    let client = Arc::new(tokio::sync::Mutex::new(shop.server.session().await));
    let handler = async |own: Own, Extension(it): Extension<Execution>, body: String| {
        let mut client = own.lock().await;
        let tx = client.transaction().await.unwrap();
        let number = place(&tx, &it).await;
        it.step_in(&tx, "place", &number).await?;
        let response = it.settle_in(&tx, end(&body, format!("order {number}"))?).await?;
        tx.commit().await.unwrap();
        assert_eq!(it.recall("place").await?, Some(number));
        Ok::<_, AppError>(response)
    };
    let by_hand =
        App(axum::Router::new().fallback(handler).with_state(client).layer(engine.layer()));
    let extracted = App::of(&engine, super::shop::order);
    for (key, app, answer) in [("k", &by_hand, "order 1"), ("l", &extracted, "order 2")] {
        for is_replay in [false, true, true] {
            let reply = app.post(key, "201").await;
            reply.answered(201, answer);
            assert_eq!(reply.is_replay(), is_replay);
        }
        assert_eq!(shop.orders(key).await, [1]);
    }
    // Two operations and a step.
    assert_eq!(shop.records('D').await, 3);
    let open = "SELECT count(*) FROM idemptx.records WHERE position('order'::bytea IN record) > 0";
    assert_eq!(shop.number(open).await, 0);
}

#[tokio::test]
async fn an_error_after_the_commit_is_answered_with_what_was_committed() {
    let shop = Shop::open().await;
    let app = own(&shop, async |own: Own, Extension(it): Extension<Execution>, body: String| {
        let mut client = own.lock().await;
        let tx = client.transaction().await.unwrap();
        let number = place(&tx, &it).await;
        let answer = (StatusCode::CREATED, format!("order {number}")).into_response();
        drop(it.settle_in(&tx, answer).await?);
        tx.commit().await.unwrap();
        end(&body, "not this".into())
    })
    .await;
    for (number, body) in ["500", "error", "panic", "422", "200"].into_iter().enumerate() {
        let reply = app.post(body, body).await;
        reply.answered(201, &format!("order {}", number + 1));
        assert_eq!(shop.orders(body).await, [1]);
    }
}

#[tokio::test]
async fn a_commit_that_was_forgotten_is_no_success() {
    let shop = Shop::open().await;
    let app = own(&shop, async |own: Own, Extension(it): Extension<Execution>| {
        let mut client = own.lock().await;
        let tx = client.transaction().await.unwrap();
        place(&tx, &it).await;
        Ok::<_, AppError>(it.settle_in(&tx, Response::new(Body::empty())).await?)
    })
    .await;
    app.post("k", "").await.refused(503, "store-unavailable");
    assert_eq!(shop.orders("k").await, [0_i32; 0]);
    assert_eq!(shop.number("SELECT count(*) FROM idemptx.records").await, 0);
}

#[tokio::test]
async fn an_execution_that_was_taken_over_cannot_settle() {
    let shop = Shop::open().await;
    let other = shop.app();
    let lapse = Arc::new(shop);
    let shop = lapse.clone();
    let refused: Arc<Mutex<Option<SettleError>>> = Arc::default();
    let refusal = refused.clone();
    let app = own(&shop, async move |own: Own, Extension(it): Extension<Execution>| {
        let mut client = own.lock().await;
        let tx = client.transaction().await.unwrap();
        place(&tx, &it).await;
        lapse.lapse().await;
        other.post("k", "201").await.answered(201, "order 2");
        let error = it.settle_in(&tx, Response::new(Body::empty())).await.unwrap_err();
        *refusal.lock().unwrap() = Some(error);
        Err::<Response, _>(AppError("taken over".into()))
    })
    .await;
    let reply = app.post("k", "201").await;
    reply.answered(201, "order 2");
    assert!(reply.is_replay());
    assert!(matches!(*refused.lock().unwrap(), Some(SettleError::Fenced(_))), "{refused:?}");
    assert_eq!(shop.orders("k").await, [2]);
}

#[tokio::test]
async fn a_transaction_elsewhere_is_refused() {
    let shop = Shop::open().await;
    shop.server.session().await.batch_execute("CREATE DATABASE other").await.unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{}/other", shop.server.port());
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let handler = async |own: Own, Extension(it): Extension<Execution>| {
        let mut client = own.lock().await;
        let tx = client.transaction().await.unwrap();
        Ok::<_, AppError>(it.settle_in(&tx, Response::new(Body::empty())).await?)
    };
    let engine = shop.engine();
    let client = Arc::new(tokio::sync::Mutex::new(client));
    let router = axum::Router::new().fallback(handler).with_state(client.clone());
    let app = App(router.layer(engine.layer()));
    let reply = app.post("k", "").await;
    assert_eq!(reply.status, 500);
    assert!(reply.text().contains("idemptx.records\" does not exist"), "{reply:?}");
    // Nor is one where there is another store.
    let other = super::shop::patient(url.clone()).connect().await.unwrap();
    let reply = app.post("k", "").await;
    assert_eq!(reply.status, 500);
    assert!(reply.text().contains("the store's own database"), "{reply:?}");
    drop(other);
}

#[tokio::test]
async fn a_response_that_cannot_be_kept_is_refused() {
    let shop = Shop::open().await;
    let app = own(&shop, async |own: Own, Extension(it): Extension<Execution>, body: String| {
        let mut client = own.lock().await;
        let tx = client.transaction().await.unwrap();
        place(&tx, &it).await;
        let response = match body.as_str() {
            "large" => vec![0; 2 << 20].into_response(),
            "live" => ([("content-type", "text/event-stream")], "x").into_response(),
            _ => (StatusCode::CONTINUE, "").into_response(),
        };
        Ok::<_, AppError>(it.settle_in(&tx, response).await?)
    })
    .await;
    for key in ["large", "live", "informational"] {
        let reply = app.post(key, key).await;
        assert!(reply.text().contains("too large"), "{reply:?}");
        assert_eq!(shop.orders(key).await, [0_i32; 0]);
    }
}

#[tokio::test]
async fn an_operation_is_settled_in_one_transaction_only() {
    let shop = Shop::open().await;
    let app = own(&shop, async |own: Own, Extension(it): Extension<Execution>| {
        let mut client = own.lock().await;
        let mut sells = async || {
            let tx = client.transaction().await.unwrap();
            let number = place(&tx, &it).await;
            let settled = it.settle_in(&tx, format!("order {number}").into_response()).await?;
            tx.commit().await.unwrap();
            Ok::<_, AppError>(settled)
        };
        drop(sells().await?);
        // As whoever tries again after a commit whose answer was lost.
        sells().await
    })
    .await;
    let reply = app.post("k", "").await;
    reply.answered(200, "order 1");
    assert!(reply.is_replay());
    assert_eq!(shop.orders("k").await, [1]);
}

#[tokio::test]
async fn a_settlement_that_was_given_up_and_committed_all_the_same_is_the_answer() {
    let shop = Shop::open().await;
    let app = own(&shop, async |own: Own, Extension(it): Extension<Execution>| {
        let mut client = own.lock().await;
        let tx = client.transaction().await.unwrap();
        let number = place(&tx, &it).await;
        let mut settling = it.settle_in(&tx, format!("order {number}").into_response());
        // It is on its way to the server.
        let sent = std::future::poll_fn(|cx| settling.as_mut().poll(cx).map(drop).map(Ok::<_, ()>));
        let late = tokio::time::timeout(std::time::Duration::ZERO, sent).await;
        assert!(late.is_err(), "quicker than it can be");
        drop(settling);
        tx.batch_execute("SELECT 1").await.unwrap();
        tx.commit().await.unwrap();
        "another answer"
    })
    .await;
    let first = app.post("k", "").await;
    let again = app.post("k", "").await;
    assert_eq!((first.status, first.text()), (again.status, again.text()));
}

/// The engine settles the handler's answer from its end on; two answers must not race.
#[tokio::test]
async fn a_task_that_outlives_its_handler_cannot_settle() {
    let shop = Shop::open().await;
    let (hand_over, mut handed_over) = tokio::sync::mpsc::unbounded_channel();
    let end = Arc::new(tokio::sync::Notify::new());
    let ending = end.clone();
    let handler = async move |Extension(it): Extension<Execution>| {
        hand_over.send(it).unwrap();
        ending.notified().await;
        "the handler's answer"
    };
    // Only the settlement waits for the lock, and for as long as the test has patience.
    let patience = super::shop::PATIENCE;
    let patient = |policy: PolicyBuilder| policy.lease(patience * 4).settle_timeout(patience);
    let app = App::of(&engine(shop.store(), patient), handler);
    let client = app.client("k", "");
    let execution = soon(handed_over.recv()).await.unwrap();
    let mut own = shop.server.session().await;
    let tx = own.transaction().await.unwrap();
    // The engine's settlement cannot come in between.
    tx.execute("SELECT 1 FROM idemptx.records FOR UPDATE", &[]).await.unwrap();
    end.notify_one();
    let settling = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    soon(async {
        while shop.number(settling).await == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    let late = execution.settle_in(&tx, "another answer".into_response()).await;
    assert!(matches!(late, Err(SettleError::Finished)), "{late:?}");
    tx.rollback().await.unwrap();
    client.await.unwrap().answered(200, "the handler's answer");
}

#[tokio::test]
async fn on_sqlite_a_task_that_outlives_its_handler_cannot_settle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let (hand_over, mut handed_over) = tokio::sync::mpsc::unbounded_channel();
    let handler = async move |Extension(it): Extension<Execution>| {
        hand_over.send(it).unwrap();
        "the handler's answer"
    };
    App::of(&small_shop(&path), handler).post("k", "").await.answered(200, "the handler's answer");
    let execution = handed_over.recv().await.unwrap();
    let mut connection = Connection::open(&path).unwrap();
    let tx = connection.transaction().unwrap();
    let late = execution.settle_in(&tx, "another answer".into_response());
    assert!(matches!(late, Err(SettleError::Finished)), "{late:?}");
}

/// An application that does everything itself, on a separate connection.
async fn own<H, T>(shop: &Shop, handler: H) -> App
where
    H: axum::handler::Handler<T, Arc<tokio::sync::Mutex<Client>>>,
    T: 'static,
{
    let client = Arc::new(tokio::sync::Mutex::new(shop.server.session().await));
    let router = axum::Router::new().fallback(handler).with_state(client);
    App(router.layer(shop.engine().layer()))
}

async fn place(tx: &tokio_postgres::Transaction<'_>, execution: &Execution) -> i64 {
    let attempt = execution.attempt() as i32;
    tx.query_one(INSERT, &[&execution.key(), &attempt]).await.unwrap().get(0)
}

#[tokio::test]
async fn on_sqlite_an_order_is_committed_with_its_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let engine = small_shop(&path);
    let app = till(&engine, &path);
    let reply = app.post("k", "201").await;
    reply.answered(201, "order 1");
    assert!(!reply.is_replay() && !reply.is_unstored());
    let again = till(&engine, &path).post("k", "201").await;
    again.answered(201, "order 1");
    assert!(again.is_replay());
    assert_eq!(sold(&path), ["k"]);
}

#[tokio::test]
async fn on_sqlite_what_is_not_committed_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let app = till(&small_shop(&path), &path);
    // It is told to roll back, and answers all the same.
    app.post("k", "forget").await.refused(503, "store-unavailable");
    assert_eq!(sold(&path), [""; 0]);
    // It fails after it has committed.
    app.post("l", "fail").await.answered(201, "order 1");
    assert_eq!(sold(&path), ["l"]);
    // It tries again what it has committed.
    app.post("m", "again").await.answered(201, "order 2");
    assert_eq!(sold(&path), ["l", "m"]);
    app.post("k", "forget").await.refused(503, "store-unavailable");
}

#[tokio::test]
async fn on_sqlite_whoever_waits_is_woken_by_the_applications_commit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let store = SqliteStore::open(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch(SALES).unwrap();
    let waits = |policy: PolicyBuilder| policy.wait(super::shop::PATIENCE);
    let first = till(&engine(store, waits), &path);
    let second = till(&engine(SqliteStore::open(&path).unwrap(), waits), &path);
    let clients: Vec<_> = (0..4).map(|n| [&first, &second][n % 2].client("k", "201")).collect();
    for client in clients {
        soon(client).await.unwrap().answered(201, "order 1");
    }
    assert_eq!(sold(&path), ["k"]);
}

#[tokio::test]
async fn on_sqlite_another_file_or_a_careless_connection_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let engine = small_shop(&path);
    let other = folder.path().join("other.db");
    drop(SqliteStore::open(&other).unwrap());
    Connection::open(&other).unwrap().execute_batch(SALES).unwrap();
    let reply = till(&engine, &other).post("k", "201").await;
    assert!(reply.text().contains("on another file"), "{reply:?}");
    let reply = till(&engine, &path).post("k", "careless").await;
    assert!(reply.text().contains("PRAGMA synchronous"), "{reply:?}");
    assert_eq!(sold(&path), [""; 0]);
    assert_eq!(sold(&other), [""; 0]);
    till(&engine, &path).post("k", "201").await.answered(201, "order 1");
}

/// An application that opens its own connections to a file.
pub(crate) fn till(engine: &Engine<SqliteStore>, path: &Path) -> App {
    let path = path.to_owned();
    let handler = async move |Extension(execution): Extension<Execution>, body: String| {
        let path = path.clone();
        let sold = tokio::task::spawn_blocking(move || sell(&path, &execution, &body));
        sold.await.unwrap()
    };
    App::of(engine, handler)
}

/// The body says how it ends.
fn sell(path: &Path, execution: &Execution, body: &str) -> Result<Response, AppError> {
    let mut connection = Connection::open(path).unwrap();
    connection.busy_timeout(super::shop::PATIENCE).unwrap();
    if body == "careless" {
        connection.pragma_update(None, "synchronous", "normal").unwrap();
    }
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    tx.execute("INSERT INTO sales (key) VALUES (?1)", [execution.key()]).unwrap();
    let answer = (StatusCode::CREATED, format!("order {}", tx.last_insert_rowid()));
    let response = execution.settle_in(&tx, answer.into_response())?;
    match body {
        "forget" => tx.rollback().unwrap(),
        _ => tx.commit().unwrap(),
    }
    if body == "again" {
        return sell(path, execution, "201");
    }
    if body == "fail" {
        return Err(AppError("after the commit".into()));
    }
    Ok(response.into_response())
}

fn small_shop(path: &Path) -> Engine<SqliteStore> {
    let store = SqliteStore::open(path).unwrap();
    Connection::open(path).unwrap().execute_batch(SALES).unwrap();
    engine(store, |policy| policy)
}

fn sold(path: &Path) -> Vec<String> {
    let connection = Connection::open(path).unwrap();
    let mut keys = connection.prepare("SELECT key FROM sales ORDER BY number").unwrap();
    let keys = keys.query_map([], |row| row.get(0)).unwrap();
    keys.collect::<Result<_, _>>().unwrap()
}

#[test]
fn an_error_tells_what_to_do() {
    let error = SettleError::NotTransactional;
    assert!(told(&error).contains("EngineBuilder::transactional"));
}

pub(crate) const SALES: &str = "CREATE TABLE sales (number integer PRIMARY KEY, key text)";
