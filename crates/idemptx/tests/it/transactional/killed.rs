//! Processes that are killed wherever they are, again and again.

use std::path::Path;
use std::time::Duration;

use axum::response::Response;
use idemptx::store::sqlite::SqliteStore;
use idemptx::{Execution, IdempotentTransaction};
use idemptx_core::policy::PolicyBuilder;
use idemptx_core::record::{Record, State};
use idemptx_testkit::PostgresServer;
use rusqlite::Connection;

use super::manual::{SALES, till};
use super::processes::{LEASE, Orders, Part, answer_all, say};
use super::shop::{App, AppError, ORDERS, Shop, engine, order, patient};

/// The promise of this mode, under three hundred kills in eight processes, of which some stand
/// still for a while first.
#[test]
fn on_postgresql_every_key_has_one_effect_and_one_record_whoever_is_killed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let shop = runtime.block_on(async {
        let server = PostgresServer::start(&["fsync = off", "max_connections = 300"]);
        server.session().await.batch_execute(ORDERS).await.unwrap();
        drop(patient(server.url()).connect().await.unwrap());
        Shop { server }
    });
    let orders = Orders::of(KEYS, 304);
    orders.take(Part { role: "postgres", target: &shop.server.url() });
    assert!(orders.kills() >= 300, "{} kills", orders.kills());
    runtime.block_on(async {
        let rows = "SELECT key, 'order ' || number, attempt FROM orders ORDER BY key";
        let rows = shop.server.session().await.query(rows, &[]).await.unwrap();
        let effects: Vec<(String, String)> =
            rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        audit(&orders, &effects);
        // None is missing, none is double, and none of either is without the other.
        assert_eq!(shop.records('D').await, KEYS as i64);
        assert_eq!(shop.number("SELECT count(*) FROM idemptx.records").await, KEYS as i64);
        let taken_over = rows.iter().filter(|row| row.get::<_, i32>(2) > 1).count();
        assert!(taken_over > 50, "only {taken_over} executions were killed before their end");
    });
}

#[test]
fn on_sqlite_every_key_has_one_effect_and_one_record_whoever_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    drop(SqliteStore::open(&path).unwrap());
    Connection::open(&path).unwrap().execute_batch(SALES).unwrap();
    let orders = Orders::of(KEYS / 2, 104);
    orders.take(Part { role: "sqlite", target: path.to_str().unwrap() });
    assert!(orders.kills() >= 100, "{} kills", orders.kills());
    let connection = Connection::open(&path).unwrap();
    let mut effects =
        connection.prepare("SELECT key, 'order ' || number FROM sales ORDER BY key").unwrap();
    let effects = effects.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    audit(&orders, &effects.collect::<Result<Vec<_>, _>>().unwrap());
    let mut records = connection.prepare("SELECT id, record FROM records").unwrap();
    let records = records.query_map([], |row| {
        let (id, record): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let id = idemptx_core::key::RecordId::from_bytes(id.try_into().unwrap());
        Ok(Record::decode(&id, &record.into()).unwrap().state)
    });
    let states: Vec<State> = records.unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(states.len(), KEYS / 2);
    assert!(states.iter().all(|state| *state == State::Completed), "{states:?}");
    let sound: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
}

/// Checks that each key has one effect, the one that every client got as its answer.
fn audit(orders: &Orders, effects: &[(String, String)]) {
    let answers: Vec<_> = orders.answers().into_iter().collect();
    assert_eq!(effects.len(), answers.len());
    assert_eq!(effects, answers);
}

#[tokio::test]
async fn a_step_that_was_taken_before_the_kill_is_not_taken_again() {
    let shop = Shop::open().await;
    let make = "CREATE TABLE charges (key text)";
    shop.server.session().await.batch_execute(make).await.unwrap();
    let url = shop.server.url();
    let part = Part { role: "steps", target: &url };
    let mut first = part.start();
    first.tell("key-1");
    assert_eq!(first.next_line().unwrap(), "charged, attempt 1");
    drop(first.kill());
    let mut second = part.start();
    second.tell("key-1");
    assert_eq!(second.next_line().unwrap(), "key-1 order 1");
    second.finish();
    assert_eq!(shop.number("SELECT count(*) FROM charges").await, 1);
    assert_eq!(shop.orders("key-1").await, [2]);
}

/// Runs as a child of a test that started this executable; does nothing when run as a test.
#[tokio::test]
async fn a_process_plays_its_part() {
    let Some((role, target)) = Part::of_this_process() else { return };
    let postgres = || patient(target.clone()).sessions(2).transactions(4).open().unwrap();
    match role.as_str() {
        "postgres" => answer_all(App::of(&engine(postgres(), brief), busy_order)).await,
        "sqlite" => {
            let path = Path::new(&target);
            let engine = engine(SqliteStore::open(path).unwrap(), brief);
            answer_all(till(&engine, path)).await;
        }
        _ => {
            let url = target.clone();
            let handler = async move |tx: IdempotentTransaction| {
                let execution = tx.execution().clone();
                let charge = async || charge(&url, &execution).await;
                let charged: String = execution.step("charge", charge).await.map_err(failed)?;
                if execution.attempt() == 1 {
                    say(&format!("{charged}, attempt {}", execution.attempt()));
                    std::future::pending::<()>().await;
                }
                order(tx, "201".into()).await
            };
            answer_all(App::of(&engine(postgres(), brief), handler)).await;
        }
    }
}

/// Takes as long as one that has something else to do besides: long enough to be killed in it.
async fn busy_order(tx: IdempotentTransaction, body: String) -> Result<Response, AppError> {
    let taken = order(tx, body).await;
    tokio::time::sleep(Duration::from_millis(4)).await;
    taken
}

/// An effect that is in no transaction of ours.
async fn charge(url: &str, execution: &Execution) -> Result<String, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    client.execute("INSERT INTO charges VALUES ($1)", &[&execution.derive("charge")]).await?;
    Ok("charged".into())
}

fn failed(error: impl std::fmt::Debug) -> AppError {
    AppError(format!("{error:?}"))
}

fn brief(policy: PolicyBuilder) -> PolicyBuilder {
    policy.lease(LEASE).wait(Duration::from_secs(5))
}

const KEYS: usize = 600;
