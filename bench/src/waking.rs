//! The delay until a waiting duplicate is answered.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::redis_server::RedisServer;
use crate::report::{Report, Table, count};
use crate::series::Series;
use crate::server::Server;
use crate::{Effort, Measured, durable};

/// Adds the table.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let redis = RedisServer::start()?;
    let (memory, url) = ("memory:", redis.url());
    let mut table = Table::new(
        "From the first answer to that of a waiting duplicate",
        format!(
            "Baseline: the moment at which the client of the first request has its answer; a \
             negative time is a duplicate that was answered before it.\n\
             {} pairs each, over sockets; goals for the median and the worst of a hundred.",
            effort.samples,
        ),
        &["", "median µs", "p99 µs", "goal, median µs"],
    );
    let here = Server::protected(memory, WAIT_MS, None)?;
    row(&mut table, effort, "same process, memory", "1,000", [&here, &here])?;
    let (one, two) =
        (Server::protected(&url, WAIT_MS, None)?, Server::protected(&url, WAIT_MS, None)?);
    row(&mut table, effort, "same process, Redis", "1,000", [&one, &one])?;
    row(&mut table, effort, "two processes, Redis", "2,000", [&one, &two])?;
    let folder = durable::folder()?;
    let url = format!("sqlite:{}", folder.path().join("records.db").display());
    let (one, two) =
        (Server::protected(&url, WAIT_MS, None)?, Server::protected(&url, WAIT_MS, None)?);
    row(&mut table, effort, "same process, SQLite", "1,000", [&one, &one])?;
    row(&mut table, effort, "two processes, SQLite", "5,000", [&one, &two])?;
    report.add(&table);
    Ok(())
}

fn row(
    table: &mut Table,
    effort: Effort,
    name: &str,
    goal: &str,
    servers: [&Server; 2],
) -> Measured<()> {
    let series = delays(effort.samples, servers)?;
    table.row([
        name.to_owned(),
        signed(series.median()),
        signed(series.quantile(0.99)),
        goal.to_owned(),
    ]);
    Ok(())
}

/// Microseconds from the first's answer at one server to the duplicate's at the other.
pub(crate) fn delays(samples: usize, servers: [&Server; 2]) -> Measured<Series> {
    let addresses = servers.map(|server| server.address);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut clients =
            [TcpStream::connect(addresses[0]).await?, TcpStream::connect(addresses[1]).await?];
        clients.iter().try_for_each(|client| client.set_nodelay(true))?;
        let mut series = Series::default();
        for number in 0..2 * samples {
            let key = format!("waking-{}-{number}", addresses[1].port());
            match pair(&mut clients, &key).await? {
                Some(micros) if number >= WARM_UP => series.push(micros),
                _ => {}
            }
            if series.len() == samples {
                return Measured::Ok(series);
            }
        }
        Err("most duplicates came before the first: the machine is too busy to measure".into())
    })
}

/// A whole number that may be negative.
pub(crate) fn signed(value: f64) -> String {
    if value < 0.0 { format!("-{}", count(-value)) } else { count(value) }
}

/// Microseconds from the first's answer to the duplicate's, if they came in that order.
async fn pair([first, second]: &mut [TcpStream; 2], key: &str) -> Measured<Option<f64>> {
    let request = format!(
        "POST /slow HTTP/1.1\r\nhost: bench\r\nidempotency-key: {key}\r\n\
         x-millis: {SLOW_MS}\r\ncontent-length: 0\r\n\r\n"
    );
    first.write_all(request.as_bytes()).await?;
    // Long enough to be the first, short enough for the other to wait.
    sleep(Duration::from_millis(SLOW_MS / 3)).await;
    second.write_all(request.as_bytes()).await?;
    let (own, waited) = tokio::join!(answered(first), answered(second));
    let ((own, first_replayed), (waited, replayed)) = (own?, waited?);
    if first_replayed || !replayed {
        return Ok(None);
    }
    let late = waited.saturating_duration_since(own).as_secs_f64();
    let early = own.saturating_duration_since(waited).as_secs_f64();
    Ok(Some((late - early) * 1e6))
}

/// Returns when the answer came, and whether it is a replay.
async fn answered(stream: &mut TcpStream) -> Measured<(Instant, bool)> {
    let mut answer = Vec::new();
    while !answer.ends_with(b"}}") {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err("the server hung up".into());
        }
    }
    let now = Instant::now();
    if !answer.starts_with(b"HTTP/1.1 201") {
        return Err(String::from_utf8_lossy(&answer).into_owned().into());
    }
    let text = String::from_utf8_lossy(&answer);
    // The original Python package says it its own way.
    let replayed = MARKS.iter().any(|mark| text.contains(mark));
    Ok((now, replayed))
}

const MARKS: [&str; 2] = ["idempotent-replayed: true", "x-idempotency-status: hit"];
pub(crate) const WAIT_MS: u64 = 10_000;
const SLOW_MS: u64 = 40;
const WARM_UP: usize = 5;
