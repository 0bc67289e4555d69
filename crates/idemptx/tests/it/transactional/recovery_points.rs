//! Steps whose effects are in the database that keeps their results.

use std::path::Path;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use idemptx::store::sqlite::SqliteStore;
use idemptx::{Engine, Execution, StepError};
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
