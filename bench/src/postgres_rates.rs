//! The claim rate of the PostgreSQL store, every claim on disk, against the bare statement.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use idemptx::store::postgres::PostgresStore;
use idemptx_core::record::State;
use idemptx_core::store::{Claim, Settlement, Store};
use idemptx_testkit::PostgresServer;
use tokio_postgres::{Client, NoTls, Statement};

use crate::durable::appended;
use crate::in_process::on_one_thread;
use crate::redis_rates::{DAY, PAYLOAD_BYTES, claim_request, id};
use crate::report::{Report, Table, count, ratio};
use crate::series::{Series, in_turns};
use crate::{Effort, Measured};

/// Adds the table.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let postgres = PostgresServer::start(&["shared_buffers = 256MB", "max_wal_size = 4GB"]);
    let mut table = Table::new(
        "Durable claims through the PostgreSQL store",
        "Baselines: a record appended to a file with `fdatasync`, and a prepared `INSERT … ON CONFLICT DO NOTHING` of one row of the same size into a \
         table with the same indexes, over one connection, one after the other; \
         with more tasks, they are pipelined on that connection.\n\
         With one task the rows take turns statement by statement, and the rate is that of the \
         median time.\n\
         The client has one thread on core 0; the server goes where it likes, and flushes every \
         commit.\n\
         Goals: with 256 tasks 15 times the baseline; with one task no more than 1.1 times its \
         time, which is a ratio of 0.91.",
        &["", "tasks", "a second", "over fdatasync", "over the bare statement"],
    );
    let file = postgres.directory().join("appended");
    let flushes = appended(&file, effort.window)?;
    let name = "append + fdatasync".to_owned();
    table.row([name, "1".to_owned(), count(flushes), ratio(1.0), String::new()]);
    let mut row = |step: Step, tasks: u32, rate: f64, baseline: f64| {
        let (over_disk, over_bare) = (ratio(rate / flushes), ratio(rate / baseline));
        table.row([step.name().to_owned(), tasks.to_string(), count(rate), over_disk, over_bare]);
    };
    let (url, samples) = (postgres.url(), effort.samples * 5);
    let alone = on_one_thread(move || one_by_one(url, samples))?;
    let baseline = MICROS / alone[0].median();
    for (step, times) in STEPS.iter().zip(&alone) {
        row(*step, 1, MICROS / times.median(), baseline);
    }
    let cells: Vec<(Step, u32)> =
        [64, 256].into_iter().flat_map(|tasks| STEPS.map(|step| (step, tasks))).collect();
    let series = in_turns(effort.rounds, &cells, |cell| {
        let (url, (step, tasks), window) = (postgres.url(), *cell, effort.window);
        Ok([on_one_thread(move || rate(url, step, tasks, window))?])
    })?;
    for ((step, tasks), [rate]) in cells.iter().zip(&series) {
        row(*step, *tasks, rate.median(), baseline);
    }
    report.add(&table);
    Ok(())
}

/// Measures each step alone, in microseconds; the steps take turns one by one.
async fn one_by_one(url: String, samples: usize) -> Measured<[Series; STEPS.len()]> {
    let subject = Subject::new(&url).await?;
    let mut series: [Series; STEPS.len()] = Default::default();
    for _ in 0..samples {
        for (step, series) in STEPS.iter().zip(&mut series) {
            let began = Instant::now();
            subject.take(*step).await?;
            series.push(began.elapsed().as_secs_f64() * MICROS);
        }
    }
    Ok(series)
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
    let subject = Arc::new(Subject::new(&url).await?);
    // Sessions are opened when they are first needed, which is not what is measured.
    run(&subject, Step::Claim, tasks, Duration::ZERO).await?;
    let began = Instant::now();
    let done = run(&subject, step, tasks, window).await?;
    Ok(done as f64 / began.elapsed().as_secs_f64())
}

/// Takes a step again and again in so many tasks, at least once in each.
async fn run(subject: &Arc<Subject>, step: Step, tasks: u32, window: Duration) -> Measured<u64> {
    let began = Instant::now();
    let running: Vec<_> = (0..tasks)
        .map(|_| {
            let subject = subject.clone();
            tokio::spawn(async move {
                let mut done = 0;
                while done == 0 || began.elapsed() < window {
                    subject.take(step).await.map_err(|error| error.to_string())?;
                    done += 1;
                }
                Ok::<u64, String>(done)
            })
        })
        .collect();
    let mut done = 0;
    for task in running {
        done += task.await??;
    }
    Ok(done)
}

/// The store under measurement, and a client for the bare statement.
struct Subject {
    store: PostgresStore,
    client: Client,
    bare: Statement,
}

impl Subject {
    async fn new(url: &str) -> Measured<Self> {
        let store = PostgresStore::connect(url).await?;
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        client.batch_execute(BARE_TABLE).await?;
        let bare = client.prepare(BARE).await?;
        Ok(Self { store, client, bare })
    }

    async fn take(&self, step: Step) -> Measured<()> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        if matches!(step, Step::Bare) {
            let (token, record) = (number.to_be_bytes().repeat(2), [b'c'; CLAIM_BYTES]);
            let id = id(number);
            self.client.execute(&self.bare, &[&&id.as_bytes()[..], &token, &&record[..]]).await?;
            return Ok(());
        }
        let Claim::Granted(lease) = self.store.claim(&id(number), &claim_request(number)).await?
        else {
            return Err("a claim was not granted".into());
        };
        if matches!(step, Step::ClaimSettle) {
            let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
            self.store
                .settle(&lease, &Settlement::new(State::Completed, payload, DAY, DAY))
                .await?;
        }
        Ok(())
    }
}

const STEPS: [Step; 3] = [Step::Bare, Step::Claim, Step::ClaimSettle];
const MICROS: f64 = 1e6;
/// Counts on from one measurement to the next: no key is claimed twice.
static NUMBER: AtomicU64 = AtomicU64::new(0);
/// The size of a record without its payload.
const CLAIM_BYTES: usize = 143;
const BARE_TABLE: &str = "CREATE TABLE IF NOT EXISTS bare (LIKE idemptx.records INCLUDING ALL)";
const BARE: &str = "INSERT INTO bare (id, token, record, state, fence, attempt, lease_until, \
    expires_at, due_at) VALUES ($1, $2, $3, 'R', 1, 1, clock_timestamp() + interval '15 s', \
    clock_timestamp() + interval '1 day', clock_timestamp() + interval '1 day') \
    ON CONFLICT (id) DO NOTHING";
