//! Claims on PostgreSQL while expired rows are swept that another transaction keeps from being
//! vacuumed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use idemptx::store::postgres::PostgresStore;
use idemptx_core::store::Store;
use idemptx_testkit::PostgresServer;
use tokio::time::sleep;
use tokio_postgres::{Client, NoTls};

use crate::durable::claimed;
use crate::in_process::on_one_thread;
use crate::report::{Report, Table, count, small};
use crate::series::Series;
use crate::{Effort, Measured};

/// Adds the table.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let mut table = Table::new("Dead rows of PostgreSQL", ABOUT, &COLUMNS);
    for rows in [10_000, 100_000, 1_000_000, 10_000_000] {
        if rows > 10 * effort.records_max {
            break;
        }
        let server = PostgresServer::start(&["shared_buffers = 256MB", "max_wal_size = 8GB"]);
        let url = server.url();
        let swept = on_one_thread(move || sweep(url, rows))?;
        let mut cells = vec![count(rows as f64), count(rows as f64 / swept.took.as_secs_f64())];
        for claims in [&swept.before, &swept.during, &swept.after] {
            cells.extend([small(claims.median()), small(claims.quantile(0.99))]);
        }
        table.row::<8>(cells.try_into().map_err(|_| "a row has eight cells")?);
    }
    report.add(&table);
    Ok(())
}

#[derive(Default)]
struct Swept {
    before: Series,
    during: Series,
    after: Series,
    took: Duration,
}

async fn sweep(url: String, rows: usize) -> Measured<Swept> {
    let store = Arc::new(PostgresStore::connect(&url).await?);
    let (session, reader) = (connected(&url).await?, connected(&url).await?);
    session.batch_execute(&EXPIRED.replace("$1", &rows.to_string())).await?;
    for settle_down in ["VACUUM ANALYZE idemptx.records", "CHECKPOINT"] {
        session.batch_execute(settle_down).await?;
    }
    // As long as it can see the rows, they stay where they are.
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    reader.query("SELECT 1 FROM idemptx.records LIMIT 1", &[]).await?;
    let (mut swept, mut next) = (Swept::default(), 0);
    for _ in 0..CLAIMS {
        swept.before.push(claim(&store, &mut next).await?);
    }
    let began = Instant::now();
    let sweeping = tokio::spawn({
        let store = store.clone();
        async move {
            // A look at the table would pass all dead rows.
            let removed = "SELECT n_tup_del FROM pg_stat_user_tables WHERE relname = 'records'";
            while session.query_one(removed, &[]).await?.get::<_, i64>(0) < rows as i64 {
                // Each looks at 50,000 rows and goes on where the one before it ended.
                store.maintain();
                sleep(Duration::from_millis(10)).await;
            }
            Ok::<_, tokio_postgres::Error>(())
        }
    });
    while !sweeping.is_finished() {
        swept.during.push(claim(&store, &mut next).await?);
    }
    sweeping.await??;
    swept.took = began.elapsed();
    for _ in 0..CLAIMS {
        swept.after.push(claim(&store, &mut next).await?);
    }
    drop(reader);
    Ok(swept)
}

async fn connected(url: &str) -> Measured<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Microseconds of a claim.
async fn claim(store: &Arc<PostgresStore>, next: &mut u64) -> Measured<f64> {
    *next += 1;
    let began = Instant::now();
    claimed(&**store, *next, false).await?;
    Ok(began.elapsed().as_secs_f64() * 1e6)
}

const ABOUT: &str = "Expired rows that are swept while a transaction is open which could still see \
    them, so that no vacuum removes them: what a claim takes, one by one, before, while the sweep \
    runs, and with all of these dead rows in the table.";
const COLUMNS: [&str; 8] = [
    "rows",
    "swept, a second",
    "claim before, median µs",
    "p99 µs",
    "during the sweep, median µs",
    "p99 µs",
    "with the dead rows, median µs",
    "p99 µs",
];
const EXPIRED: &str = "INSERT INTO idemptx.records (fence, lease_until, expires_at, due_at, \
    attempt, state, id, token, record) \
    SELECT number, due, due, due, 1, 'D', \
        decode(md5(number::text) || md5('b' || number), 'hex'), decode(md5('t' || number), 'hex'), \
        decode(md5('r' || number), 'hex') \
    FROM (SELECT number, '2000-01-01'::timestamptz + number * interval '1 millisecond' AS due \
        FROM generate_series(1, $1) AS number) AS expired";
const CLAIMS: usize = 1000;
