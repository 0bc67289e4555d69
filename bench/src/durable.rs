//! The claim rate of the SQLite store, compared with the disk and with plain SQLite.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use idemptx::store::sqlite::SqliteStore;
use idemptx_core::record::State;
use idemptx_core::store::{Claim, RecordSnapshot, Settlement, Store};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::in_process::on_one_thread;
use crate::redis_rates::{DAY, PAYLOAD_BYTES, claim_request, id};
use crate::report::{Report, Table, count, ratio, small};
use crate::series::in_turns;
use crate::{Effort, Measured};

/// Adds the table.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let mut table = Table::new(
        "Claims through the SQLite store",
        "Baselines, in the same round and folder: a record appended to a file with `fdatasync`, \
         and one `INSERT` of a record by itself into a table with a primary key, in the same mode \
         (write-ahead log, `synchronous=FULL`), both one by one.\n\
         The client has one thread on core 0; what is acknowledged is on disk, in a log that has \
         had its full size once.\n\
         Goals: 256 at once at 10 times the rate of one by one; one by one at 0.91 of the bare \
         statement, that is 1.1 times its time.",
        &["", "tasks", "a second", "over fdatasync", "over INSERT", "over one by one", "µs each"],
    );
    let steps = [
        Step::Append,
        Step::Insert,
        Step::InsertIndexed,
        Step::Claims(1),
        Step::Claims(64),
        Step::Claims(256),
        Step::ClaimsSettled(1),
        Step::ClaimsSettled(64),
        Step::ClaimsSettled(256),
        Step::Replays(1),
        Step::Replays(256),
    ];
    let series = in_turns(effort.rounds.div_ceil(2), &steps, |step| {
        let folder = folder()?;
        let path = folder.path().join("records.db");
        Ok([match step {
            Step::Append => appended(&path, effort.window)?,
            Step::Insert => inserted(&path, "", effort.window)?,
            Step::InsertIndexed => inserted(&path, BY_TIME, effort.window)?,
            Step::Claims(_) | Step::ClaimsSettled(_) | Step::Replays(_) => {
                // Its threads stay where the system puts them.
                let store = Arc::new(SqliteStore::open(path)?);
                let (step, window) = (*step, effort.window);
                on_one_thread(move || rate(store, step, window))?
            }
        }])
    })?;
    for (position, (step, [rate])) in steps.iter().zip(&series).enumerate() {
        let relative = |base: usize| ratio(rate.relative_to(&series[base][0]).median());
        let alone = match step {
            Step::Claims(_) => relative(3),
            Step::ClaimsSettled(_) => relative(6),
            Step::Replays(_) => relative(9),
            _ => String::new(),
        };
        table.row([
            step.name().to_owned(),
            step.tasks().to_string(),
            count(rate.median()),
            relative(0),
            if position > 0 { relative(1) } else { String::new() },
            alone,
            small(step.tasks() as f64 * 1e6 / rate.median()),
        ]);
    }
    report.add(&table);
    Ok(())
}

/// Creates a temporary directory on the repository's disk, since `/tmp` may be in memory.
pub(crate) fn folder() -> Measured<TempDir> {
    std::fs::create_dir_all("target/bench")?;
    Ok(tempfile::tempdir_in("target/bench")?)
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Append,
    Insert,
    /// With an index by time beside it, as a record that expires needs it.
    InsertIndexed,
    Claims(usize),
    ClaimsSettled(usize),
    Replays(usize),
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Append => "append + fdatasync",
            Self::Insert => "bare INSERT",
            Self::InsertIndexed => "bare INSERT with an index by time",
            Self::Claims(_) => "claim",
            Self::ClaimsSettled(_) => "claim + settle",
            Self::Replays(_) => "claim of a settled record",
        }
    }

    fn tasks(self) -> usize {
        match self {
            Self::Append | Self::Insert | Self::InsertIndexed => 1,
            Self::Claims(tasks) | Self::ClaimsSettled(tasks) | Self::Replays(tasks) => tasks,
        }
    }
}

/// Returns how many records per second the disk stores, each appended to a file and synced.
pub(crate) fn appended(path: &Path, window: Duration) -> Measured<f64> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    per_second(window, |_| {
        file.write_all(&[b'r'; RECORD_BYTES])?;
        Ok(file.sync_data()?)
    })
}

fn inserted(path: &Path, index: &str, window: Duration) -> Measured<f64> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection
        .execute_batch("CREATE TABLE bare (id BLOB PRIMARY KEY, record BLOB, due INTEGER)")?;
    connection.execute_batch(index)?;
    let mut insert = connection.prepare("INSERT INTO bare VALUES (?1, ?2, ?3)")?;
    per_second(window, |number| {
        insert.execute((id(number).as_bytes(), [b'r'; RECORD_BYTES], number as i64))?;
        Ok(())
    })
}

fn per_second(window: Duration, mut step: impl FnMut(u64) -> Measured<()>) -> Measured<f64> {
    let began = Instant::now();
    let mut done = 0;
    while began.elapsed() < window {
        step(done)?;
        done += 1;
    }
    Ok(done as f64 / began.elapsed().as_secs_f64())
}

async fn rate(store: Arc<SqliteStore>, step: Step, window: Duration) -> Measured<f64> {
    warm_up(&store).await?;
    let done = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let running: Vec<_> = (0..step.tasks())
        .map(|_| {
            let (store, done) = (store.clone(), done.clone());
            tokio::spawn(async move {
                while began.elapsed() < window {
                    let number = done.fetch_add(1, Ordering::Relaxed);
                    let taken = match step {
                        Step::Replays(_) => replayed(&store, number).await,
                        _ => claimed(&*store, number, matches!(step, Step::ClaimsSettled(_))).await,
                    };
                    taken.map_err(|error| error.to_string())?;
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

/// Lets the log grow to its full size once, as it does in the first seconds of a service.
async fn warm_up(store: &SqliteStore) -> Measured<()> {
    claimed(store, u64::MAX, true).await?;
    for number in 0..CLAIMS_OF_WARM_UP {
        claimed(store, u64::MAX - 1 - number, false).await?;
    }
    Ok(())
}

/// Claims the record of this number, and settles it if `settle` is set.
pub(crate) async fn claimed(store: &impl Store, number: u64, settle: bool) -> Measured<()> {
    let Claim::Granted(lease) = store.claim(&id(number), &claim_request(number)).await? else {
        return Err("a claim was not granted".into());
    };
    if settle {
        let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
        store.settle(&lease, &Settlement::new(State::Completed, payload, DAY, DAY)).await?;
    }
    Ok(())
}

async fn replayed(store: &SqliteStore, number: u64) -> Measured<()> {
    match store.claim(&id(u64::MAX), &claim_request(number)).await? {
        Claim::Found(RecordSnapshot::Settled(_)) => Ok(()),
        _ => Err("a claim was granted that was settled".into()),
    }
}

const CLAIMS_OF_WARM_UP: u64 = 1500;
const BY_TIME: &str = "CREATE INDEX bare_due ON bare (due)";
/// The size of a record without its payload.
const RECORD_BYTES: usize = 143;
