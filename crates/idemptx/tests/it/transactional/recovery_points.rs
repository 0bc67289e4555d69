//! Steps whose effects are in the database that keeps their results.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use idemptx::store::Transactional;
use idemptx::store::postgres::PostgresStore;
use idemptx::store::sqlite::SqliteStore;
use idemptx::{Engine, Execution, StepError};
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Token;
use idemptx_core::store::{Claim, ClaimRequest, Expected, RecordSnapshot, Store};
use rusqlite::{Connection, TransactionBehavior};
use tokio_postgres::Client;

use super::manual::SALES;
use super::shop::{App, AppError, Shop, engine};

#[tokio::test]
async fn a_step_and_its_result_are_committed_together() {
    let shop = Shop::open().await;
    let client = Arc::new(tokio::sync::Mutex::new(shop.server.session().await));
    let handler = async |State(own): State<Arc<tokio::sync::Mutex<Client>>>,
                         Extension(it): Extension<Execution>,
                         body: String| {
        let recalled = it.recall::<i64>("order").await?;
        let number = match recalled {
            Some(number) => number,
            None => place(&mut *own.lock().await, &it, body != "forget").await?,
        };
        let status = if body == "fail" { StatusCode::BAD_GATEWAY } else { StatusCode::CREATED };
        Ok::<_, AppError>((status, format!("order {number}")))
    };
    let router = axum::Router::new().fallback(handler).with_state(client);
    let app = App(router.layer(shop.engine().layer()));
    app.post("k", "fail").await.answered(502, "order 1");
    app.post("k", "fail").await.answered(502, "order 1");
    assert_eq!(shop.orders("k").await, [1]);
    // What was rolled back has no result either, and is done anew.
    app.post("l", "forget").await.answered(201, "order 2");
    assert_eq!(shop.orders("l").await, [0_i32; 0]);
    assert_eq!(shop.records('D').await, 2);
}

async fn place(client: &mut Client, it: &Execution, commits: bool) -> Result<i64, AppError> {
    let tx = client.transaction().await.unwrap();
    let row = tx.query_one(super::shop::INSERT, &[&it.key(), &1_i32]).await.unwrap();
    let number: i64 = row.get(0);
    it.step_in(&tx, "order", &number).await?;
    if commits {
        tx.commit().await.unwrap();
    }
    Ok(number)
}

#[tokio::test]
async fn who_comes_second_with_a_step_rolls_back_and_takes_the_firsts_result() {
    let shop = Shop::open().await;
    let clients = [shop.server.session().await, shop.server.session().await];
    let clients = Arc::new(tokio::sync::Mutex::new(clients));
    let handler = async |State(own): State<Arc<tokio::sync::Mutex<[Client; 2]>>>,
                         Extension(it): Extension<Execution>| {
        let [one, two] = &mut *own.lock().await;
        let (first, second) = (one.transaction().await.unwrap(), two.transaction().await.unwrap());
        it.step_in(&first, "order", &1).await?;
        // It waits for the end of the first.
        let waits = it.step_in(&second, "order", &2);
        let (committed, late) = tokio::join!(first.commit(), waits);
        committed.unwrap();
        assert!(matches!(late, Err(StepError::Kept | StepError::Store(_))), "{late:?}");
        drop(second);
        let late = it.step_in(&two.transaction().await.unwrap(), "order", &3).await;
        assert!(matches!(late, Err(StepError::Kept)), "{late:?}");
        let kept = it.recall::<i32>("order").await?;
        Ok::<_, AppError>(format!("{kept:?}"))
    };
    let router = axum::Router::new().fallback(handler).with_state(clients);
    let app = App(router.layer(shop.engine().layer()));
    app.post("k", "").await.answered(200, "Some(1)");
}

/// A process that dies while it keeps a step's result leaves a claim of it behind.
#[tokio::test]
async fn a_step_that_died_before_its_result_was_kept_can_be_kept_in_a_transaction() {
    let shop = Shop::open().await;
    let store = Arc::new(shop.store());
    let client = Arc::new(tokio::sync::Mutex::new(shop.server.session().await));
    let handler = async |State((store, own)): State<(
        Arc<PostgresStore>,
        Arc<tokio::sync::Mutex<Client>>,
    )>,
                         Extension(it): Extension<Execution>| {
        let mut own = own.lock().await;
        let row = own.query_one("SELECT id FROM idemptx.records", &[]).await.unwrap();
        let operation = RecordId::from_bytes(row.get::<_, &[u8]>(0).try_into().unwrap());
        let died = died_in_a_step();
        assert!(matches!(
            store.claim(&operation.step("order"), &died).await,
            Ok(Claim::Granted(_))
        ));
        let transaction = own.transaction().await.unwrap();
        it.step_in(&transaction, "order", &7).await?;
        let again = it.step_in(&transaction, "order", &8).await;
        assert!(matches!(again, Err(StepError::Kept)), "{again:?}");
        transaction.commit().await.unwrap();
        Ok::<_, AppError>(format!("{:?}", it.recall::<i32>("order").await?))
    };
    let router = axum::Router::new().fallback(handler).with_state((store, client));
    let app = App(router.layer(shop.engine().layer()));
    app.post("k", "").await.answered(200, "Some(7)");
}

#[tokio::test]
async fn on_sqlite_a_step_that_died_before_its_result_was_kept_can_be_kept_in_a_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let engine = engine(SqliteStore::open(&path).unwrap(), |policy| policy);
    let store = Arc::new(SqliteStore::open(&path).unwrap());
    let handler = async move |Extension(it): Extension<Execution>| {
        let mut connection = Connection::open(&path).unwrap();
        let select = "SELECT id FROM records";
        let operation = connection.query_row(select, [], |row| row.get::<_, [u8; 32]>(0)).unwrap();
        let step = RecordId::from_bytes(operation).step("order");
        store.claim(&step, &died_in_a_step()).await.unwrap();
        let keep = move || {
            let behavior = TransactionBehavior::Immediate;
            let transaction = connection.transaction_with_behavior(behavior).unwrap();
            it.step_in(&transaction, "order", &7)?;
            transaction.commit().unwrap();
            Ok::<_, AppError>(it)
        };
        let it = tokio::task::spawn_blocking(keep).await.unwrap()?;
        Ok::<_, AppError>(format!("{:?}", it.recall::<i32>("order").await?))
    };
    App::of(&engine, handler).post("k", "").await.answered(200, "Some(7)");
}

fn died_in_a_step() -> ClaimRequest {
    let fingerprint =
        Fingerprint { config: 1, digest: [2; 32], binding: [3; 16], operation: [4; 16] };
    let hour = Duration::from_secs(3600);
    ClaimRequest::new(Token::from_bytes([0xDE; 16]), fingerprint, Duration::ZERO, hour)
}

/// The only claim of an operation that expects a state replaces what is in that state, and nothing
/// else.
#[tokio::test]
async fn a_claim_in_a_transaction_replaces_what_it_expects() {
    let shop = Shop::open().await;
    let store = shop.store();
    let id = RecordId::from_bytes([7; 32]);
    let Claim::Granted(orphan) = store.claim(&id, &died_in_a_step()).await.unwrap() else {
        panic!()
    };
    let mut client = shop.server.session().await;
    let request = |token: u8| {
        let mut request = died_in_a_step();
        request.token = Token::from_bytes([token; 16]);
        request
    };
    let transaction = client.transaction().await.unwrap();
    let other = request(1).expecting(Expected::Orphan(Token::from_bytes([9; 16])));
    let claim = store.claim_in_postgres((&transaction).into(), &id, &other).await.unwrap();
    assert!(matches!(claim, Claim::Found(RecordSnapshot::Held(_))), "{claim:?}");
    let takeover = request(2).expecting(Expected::Orphan(orphan.token));
    let claim = store.claim_in_postgres((&transaction).into(), &id, &takeover).await.unwrap();
    let Claim::Granted(lease) = claim else { panic!("{claim:?}") };
    assert!(lease.attempt == 2 && lease.fence > orphan.fence, "{lease:?}");
    transaction.rollback().await.unwrap();
    match store.lookup(&id).await.unwrap() {
        Some(RecordSnapshot::Held(holder)) => assert_eq!(holder.token, orphan.token),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn on_sqlite_a_step_and_its_result_are_committed_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let store = SqliteStore::open(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch(SALES).unwrap();
    let app = stepping(&engine(store, |policy| policy), &path);
    app.post("k", "fail").await.answered(502, "order 1");
    app.post("k", "fail").await.answered(502, "order 1");
    app.post("l", "forget").await.answered(201, "order 2");
    let connection = Connection::open(&path).unwrap();
    let sold: i64 = connection.query_row("SELECT count(*) FROM sales", [], |it| it.get(0)).unwrap();
    assert_eq!(sold, 1);
}

fn stepping(engine: &Engine<SqliteStore>, path: &Path) -> App {
    let path = path.to_owned();
    let handler = async move |Extension(it): Extension<Execution>, body: String| {
        let recalled = it.recall::<i64>("order").await?;
        let (path, told) = (path.clone(), body.clone());
        let place = move || sell(&path, &it, told != "forget");
        let number = match recalled {
            Some(number) => number,
            None => tokio::task::spawn_blocking(place).await.unwrap()?,
        };
        let status = if body == "fail" { StatusCode::BAD_GATEWAY } else { StatusCode::CREATED };
        Ok::<Response, AppError>((status, format!("order {number}")).into_response())
    };
    App::of(engine, handler)
}

fn sell(path: &Path, execution: &Execution, commits: bool) -> Result<i64, AppError> {
    let mut connection = Connection::open(path).unwrap();
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    tx.execute("INSERT INTO sales (key) VALUES (?1)", [execution.key()]).unwrap();
    let number = tx.last_insert_rowid();
    execution.step_in(&tx, "order", &number)?;
    let again = execution.step_in(&tx, "order", &number);
    assert!(matches!(again, Err(StepError::Kept)), "{again:?}");
    if commits {
        tx.commit().unwrap();
    }
    Ok(number)
}
