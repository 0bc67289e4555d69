//! How fast the PostgreSQL store claims, every claim on disk, against the bare statement.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use idemptx::store::postgres::PostgresStore;
use idemptx_core::record::State;
use idemptx_core::store::{Claim, Settlement, Store};
use tokio_postgres::{Client, NoTls, Statement};

use crate::in_process::on_one_thread;
use crate::postgres_server::PostgresServer;
use crate::redis_rates::{DAY, PAYLOAD_BYTES, bid, id};
use crate::report::{Report, Table, count, ratio};
use crate::series::in_turns;
use crate::{Effort, Measured};

/// Adds the table.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let postgres = PostgresServer::start(&["shared_buffers = 256MB", "max_wal_size = 4GB"]);
    let mut table = Table::new(
        "Durable claims through the PostgreSQL store",
        "Baseline: a prepared `INSERT … ON CONFLICT DO NOTHING` of one row of the same size into a \
         table with the same indexes, over one connection, one after the other, in the same \
         round; with more tasks, they are pipelined on that connection.\n\
         The client has one thread on core 0; the server goes where it likes, and flushes every \
         commit.\n\
         Goals: with 256 tasks 15 times the baseline; with one task no more than 1.1 times its \
         time, which is a ratio of 0.91.",
        &["", "tasks", "a second", "over the bare statement"],
    );
    let cells: Vec<(Step, u32)> = [1, 64, 256]
        .into_iter()
        .flat_map(|tasks| [Step::Bare, Step::Claim, Step::ClaimSettle].map(|step| (step, tasks)))
        .collect();
    let series = in_turns(effort.rounds.div_ceil(2), &cells, |cell| {
        let (url, (step, tasks), window) = (postgres.url(), *cell, effort.window);
        Ok([on_one_thread(move || rate(url, step, tasks, window))?])
    })?;
    for ((step, tasks), [rate]) in cells.iter().zip(&series) {
        table.row([
            step.name().to_owned(),
            tasks.to_string(),
            count(rate.median()),
            ratio(rate.over(&series[0][0]).median()),
        ]);
    }
    report.add(&table);
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Bare,
    Claim,
    ClaimSettle,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare statement",
            Self::Claim => "claim",
            Self::ClaimSettle => "claim + settle",
        }
    }
}

async fn rate(url: String, step: Step, tasks: u32, window: Duration) -> Measured<f64> {
    let store = Arc::new(PostgresStore::connect(&*url).await?);
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute(BARE_TABLE).await?;
    let statement = client.prepare(BARE).await?;
    let client = Arc::new(client);
    // Sessions are opened when they are first needed, which is not what is measured.
    warmed(&store, tasks).await?;
    let done = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let running: Vec<_> = (0..tasks)
        .map(|_| {
            let (store, client, done) = (store.clone(), client.clone(), done.clone());
            let statement = statement.clone();
            tokio::spawn(async move {
                let told = |error: Box<dyn std::error::Error>| error.to_string();
                while began.elapsed() < window {
                    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                    match step {
                        Step::Bare => {
                            bare_claim(&client, &statement, number).await.map_err(told)?
                        }
                        _ => claimed(&store, number, step).await.map_err(told)?,
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, String>(())
            })
        })
        .collect();
    for task in running {
        task.await??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

async fn warmed(store: &Arc<PostgresStore>, tasks: u32) -> Measured<()> {
    let running: Vec<_> = (0..tasks)
        .map(|_| {
            let store = store.clone();
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move { store.claim(&id(number), &bid(number)).await.map(drop) })
        })
        .collect();
    for task in running {
        task.await??;
    }
    Ok(())
}

async fn claimed(store: &PostgresStore, number: u64, step: Step) -> Measured<()> {
    let Claim::Granted(lease) = store.claim(&id(number), &bid(number)).await? else {
        return Err("a claim was not granted".into());
    };
    if matches!(step, Step::ClaimSettle) {
        let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
        store.settle(&lease, &Settlement::new(State::Done, payload, DAY, DAY)).await?;
    }
    Ok(())
}

async fn bare_claim(client: &Client, statement: &Statement, number: u64) -> Measured<()> {
    let (id, token, record) = (id(number), number.to_be_bytes().repeat(2), [b'c'; CLAIM_BYTES]);
    client.execute(statement, &[&&id.as_bytes()[..], &token, &&record[..]]).await?;
    Ok(())
}

/// Counts on from one measurement to the next: no key is claimed twice.
static NUMBER: AtomicU64 = AtomicU64::new(0);
/// Of a record without its payload.
const CLAIM_BYTES: usize = 127;
const BARE_TABLE: &str = "CREATE TABLE IF NOT EXISTS bare (LIKE idemptx.records INCLUDING ALL)";
const BARE: &str = "INSERT INTO bare (id, token, record, state, fence, attempt, lease_until, \
    expires_at, due_at) VALUES ($1, $2, $3, 'R', 1, 1, clock_timestamp() + interval '15 s', \
    clock_timestamp() + interval '1 day', clock_timestamp() + interval '1 day') \
    ON CONFLICT (id) DO NOTHING";
