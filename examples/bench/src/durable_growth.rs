//! What the SQLite store takes as its records grow in number: disk, and time for each step.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use idemptx::store::sqlite::SqliteStore;
use idemptx_core::record::State;
use idemptx_core::store::{Claim, Settlement, Store};
use rusqlite::Connection;

use crate::durable::{claimed, folder};
use crate::in_process::on_one_thread;
use crate::redis_rates::{PAYLOAD_BYTES, bid, id};
use crate::report::{Report, Table, count, small};
use crate::series::Series;
use crate::{Effort, Measured};

/// Adds the table.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let mut table = Table::new(
        "Growth of an SQLite file",
        "Records with a payload of 300 bytes, claimed and settled 256 at a time.\n\
         Then a thousand claims one by one, and lastly everything expires and is swept while \
         claims go on one by one: what a sweep costs them.",
        &[
            "records",
            "filled, a second",
            "bytes a record",
            "claim, median µs",
            "p99 µs",
            "swept, a second",
            "claim during it, median µs",
            "p99 µs",
        ],
    );
    let populations = [10_000, 100_000, 1_000_000];
    for records in populations.into_iter().filter(|it| *it <= effort.records_max) {
        let folder = folder()?;
        let path = folder.path().join("records.db");
        let store = Arc::new(SqliteStore::open(&path)?);
        let grown = on_one_thread(move || grow(store, path, records))?;
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
    report.add(&table);
    Ok(())
}

struct Grown {
    filled_per_second: f64,
    bytes_per_record: f64,
    claims: Series,
    swept_per_second: f64,
    claims_during_sweep: Series,
}

async fn grow(store: Arc<SqliteStore>, path: impl AsRef<Path>, records: usize) -> Measured<Grown> {
    let began = Instant::now();
    fill(&store, records).await?;
    let filled_per_second = records as f64 / began.elapsed().as_secs_f64();
    let file = Connection::open(path)?;
    let number = |sql: &str| file.query_row(sql, [], |row| row.get::<_, i64>(0));
    let used = number("PRAGMA page_count")? - number("PRAGMA freelist_count")?;
    let bytes_per_record = (used * number("PRAGMA page_size")?) as f64 / records as f64;
    let mut claims = Series::default();
    let mut next = records as u64;
    for _ in 0..CLAIMS {
        claims.push(claim(&store, &mut next).await?);
    }
    file.execute_batch("UPDATE records SET expires = 1, due = 1")?;
    file.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
    let mut claims_during_sweep = Series::default();
    let began = Instant::now();
    store.tend();
    while number("SELECT min(due) FROM records")? == 1 {
        claims_during_sweep.push(claim(&store, &mut next).await?);
    }
    let swept_per_second = records as f64 / began.elapsed().as_secs_f64();
    Ok(Grown { filled_per_second, bytes_per_record, claims, swept_per_second, claims_during_sweep })
}

async fn fill(store: &Arc<SqliteStore>, records: usize) -> Measured<()> {
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for number in (task..records).step_by(TASKS) {
                    let number = number as u64;
                    let claim = store.claim(&id(number), &bid(number)).await;
                    let Ok(Claim::Granted(lease)) = claim else {
                        return Err("a claim was not granted".to_owned());
                    };
                    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
                    let done = Settlement::new(State::Done, payload, HOUR, HOUR);
                    store.settle(&lease, &done).await.map_err(|error| error.to_string())?;
                }
                Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// Microseconds of a claim.
async fn claim(store: &SqliteStore, next: &mut u64) -> Measured<f64> {
    *next += 1;
    let began = Instant::now();
    claimed(store, *next, false).await?;
    Ok(began.elapsed().as_secs_f64() * 1e6)
}

const CLAIMS: usize = 1000;
const TASKS: usize = 256;
const HOUR: Duration = Duration::from_secs(3600);
