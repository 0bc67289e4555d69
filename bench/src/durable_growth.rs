//! Growth of the durable stores with their number of records: disk space, and time per step.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use idemptx::store::postgres::PostgresStore;
use idemptx::store::sqlite::SqliteStore;
use idemptx_core::record::State;
use idemptx_core::store::{Claim, Settlement, Store};
use idemptx_testkit::PostgresServer;
use rusqlite::Connection;
use tokio_postgres::NoTls;

use crate::durable::{claimed, folder};
use crate::in_process::on_one_thread;
use crate::redis_rates::{PAYLOAD_BYTES, claim_request, id};
use crate::report::{Report, Table, count, small};
use crate::series::Series;
use crate::{Effort, Measured};

/// Adds the table of SQLite.
pub(crate) fn sqlite(effort: Effort, report: &mut Report) -> Measured<()> {
    let mut table = Table::new("Growth of an SQLite file", ABOUT, &COLUMNS);
    for records in populations(effort) {
        let folder = folder()?;
        let path = folder.path().join("records.db");
        let store = Arc::new(SqliteStore::open(&path)?);
        add_to(&mut table, records, &on_one_thread(move || in_a_file(store, path, records))?);
    }
    report.add(&table);
    Ok(())
}

/// Adds the table of PostgreSQL.
pub(crate) fn postgres(effort: Effort, report: &mut Report) -> Measured<()> {
    let about = format!(
        "{ABOUT}\nThe bytes are those of the table with both its indexes, after a vacuum that \
         moves nothing; half of each page is left free, so that settling finds room on it."
    );
    let mut table = Table::new("Growth of a PostgreSQL table", about, &COLUMNS);
    for records in populations(effort) {
        let server = PostgresServer::start(&["shared_buffers = 256MB", "max_wal_size = 4GB"]);
        let url = server.url();
        add_to(&mut table, records, &on_one_thread(move || in_a_table(url, records))?);
    }
    report.add(&table);
    Ok(())
}

fn populations(effort: Effort) -> impl Iterator<Item = usize> {
    [10_000, 100_000, 1_000_000].into_iter().filter(move |it| *it <= effort.records_max)
}

fn add_to(table: &mut Table, records: usize, grown: &Grown) {
    table.row([
        count(records as f64),
        count(grown.filled_per_second),
        count(grown.bytes_per_record),
        small(grown.claims.median()),
        small(grown.claims.quantile(0.99)),
        count(grown.swept_per_second),
        small(grown.claims_during_sweep.median()),
        small(grown.claims_during_sweep.quantile(0.99)),
    ]);
}

#[derive(Default)]
struct Grown {
    filled_per_second: f64,
    bytes_per_record: f64,
    claims: Series,
    swept_per_second: f64,
    claims_during_sweep: Series,
}

async fn in_a_file(
    store: Arc<SqliteStore>,
    path: impl AsRef<Path>,
    records: usize,
) -> Measured<Grown> {
    let filled_per_second = fill(&store, records).await?;
    let mut grown = Grown { filled_per_second, ..Grown::default() };
    let file = Connection::open(path)?;
    let number = |sql: &str| file.query_row(sql, [], |row| row.get::<_, i64>(0));
    let used = number("PRAGMA page_count")? - number("PRAGMA freelist_count")?;
    grown.bytes_per_record = (used * number("PRAGMA page_size")?) as f64 / records as f64;
    let mut next = records as u64;
    for _ in 0..CLAIMS {
        grown.claims.push(claim(&*store, &mut next).await?);
    }
    file.execute_batch("UPDATE records SET expires = 1, due = 1")?;
    file.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
    let began = Instant::now();
    store.maintain();
    while number("SELECT min(due) FROM records")? == 1 {
        grown.claims_during_sweep.push(claim(&*store, &mut next).await?);
    }
    grown.swept_per_second = records as f64 / began.elapsed().as_secs_f64();
    Ok(grown)
}

async fn in_a_table(url: String, records: usize) -> Measured<Grown> {
    let store = Arc::new(PostgresStore::connect(&url).await?);
    let (session, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    let filled_per_second = fill(&store, records).await?;
    let mut grown = Grown { filled_per_second, ..Grown::default() };
    session.batch_execute("VACUUM ANALYZE idemptx.records").await?;
    let size = "SELECT pg_total_relation_size('idemptx.records')";
    let bytes = session.query_one(size, &[]).await?.get::<_, i64>(0);
    grown.bytes_per_record = bytes as f64 / records as f64;
    let mut next = records as u64;
    for _ in 0..CLAIMS {
        grown.claims.push(claim(&*store, &mut next).await?);
    }
    let expire = "UPDATE idemptx.records SET expires_at = '2000-01-01', due_at = '2000-01-01'";
    session.batch_execute(expire).await?;
    for settle_down in ["VACUUM idemptx.records", "CHECKPOINT"] {
        session.batch_execute(settle_down).await?;
    }
    let began = Instant::now();
    let sweeping = tokio::spawn({
        let store = store.clone();
        async move { while matches!(store.sweep().await, Ok(1..)) {} }
    });
    while !sweeping.is_finished() {
        grown.claims_during_sweep.push(claim(&*store, &mut next).await?);
    }
    grown.swept_per_second = records as f64 / began.elapsed().as_secs_f64();
    let left = "SELECT count(*) FROM idemptx.records WHERE expires_at < '2001-01-01'";
    if session.query_one(left, &[]).await?.get::<_, i64>(0) > 0 {
        return Err("the sweep broke off".into());
    }
    Ok(grown)
}

/// Fills a store, and returns the number of records per second.
async fn fill(store: &Arc<impl Store>, records: usize) -> Measured<f64> {
    let began = Instant::now();
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for number in (task..records).step_by(TASKS) {
                    let number = number as u64;
                    let claim = store.claim(&id(number), &claim_request(number)).await;
                    let Ok(Claim::Granted(lease)) = claim else {
                        return Err("a claim was not granted".to_owned());
                    };
                    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
                    let done = Settlement::new(State::Completed, payload, HOUR, HOUR);
                    store.settle(&lease, &done).await.map_err(|error| error.to_string())?;
                }
                Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(records as f64 / began.elapsed().as_secs_f64())
}

/// Microseconds of a claim.
async fn claim(store: &impl Store, next: &mut u64) -> Measured<f64> {
    *next += 1;
    let began = Instant::now();
    claimed(store, *next, false).await?;
    Ok(began.elapsed().as_secs_f64() * 1e6)
}

const ABOUT: &str = "Records with a payload of 300 bytes, claimed and settled 256 at a time.\n\
    Then a thousand claims one by one, and lastly everything expires and is swept while claims \
    go on one by one: what a sweep costs them.";
const COLUMNS: [&str; 8] = [
    "records",
    "filled, a second",
    "bytes a record",
    "claim, median µs",
    "p99 µs",
    "swept, a second",
    "claim during it, median µs",
    "p99 µs",
];
const CLAIMS: usize = 1000;
const TASKS: usize = 256;
const HOUR: Duration = Duration::from_secs(3600);
