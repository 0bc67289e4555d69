//! The number of Redis commands per request.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use bytes::Bytes;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::sleep;

use crate::app::{self, Gate};
use crate::in_process::{call, on_one_thread, request};
use crate::redis_server::{Commands, Monitor, RedisServer};
use crate::report::{Report, Table, ratio};
use crate::{Effort, Measured};

/// Adds the table.
pub(crate) fn measure(_: Effort, report: &mut Report) -> Measured<()> {
    let mut table = Table::new(
        "Commands that Redis is sent",
        "Baseline: the fewest that can do it.\n\
         Counted with `MONITOR`, after connections and scripts are there.\n\
         A request sends one command after the other, so that each is a round trip; what a script \
         calls on the server's side is none.\n\
         The last four rows tell what duplicates add, where there are 200 all of them together.",
        &["", "commands", "fewest", "which", "called by scripts"],
    );
    let rows = on_one_thread(|| async {
        let redis = RedisServer::start()?;
        let mut rows = repeated(&redis).await?;
        for (name, fewest, count, elsewhere, wait) in CROWDS {
            rows.push((name, fewest, 1.0, crowd(&redis, count, elsewhere, wait).await?));
        }
        Ok(rows)
    })?;
    for (name, fewest, requests, commands) in rows {
        table.row([
            name.to_owned(),
            ratio(commands.sent.len() as f64 / requests),
            fewest.to_owned(),
            counted(&commands.sent, requests),
            ratio(commands.nested as f64 / requests),
        ]);
    }
    report.add(&table);
    Ok(())
}

type Row = (&'static str, &'static str, f64, Commands);

/// New requests and hits, one after the other.
async fn repeated(redis: &RedisServer) -> Measured<Vec<Row>> {
    let router = app::protected(&app::engine(&redis.url(), Duration::ZERO)?, Gate::default());
    order(&router, "/orders", "warm-up").await?;
    let mut monitor = redis.monitor()?;
    let mut rows = Vec::new();
    for name in ["new", "hit"] {
        for number in 0..REPEATS {
            order(&router, "/orders", &format!("key-{number}")).await?;
        }
        let fewest = if name == "new" { "2" } else { "1" };
        rows.push((name, fewest, f64::from(REPEATS), monitor.commands()?));
    }
    Ok(rows)
}

/// Each name with how often it comes for one request.
fn counted(names: &[String], requests: f64) -> String {
    let mut counts = BTreeMap::<&str, f64>::new();
    for name in names {
        *counts.entry(name).or_default() += 1.0;
    }
    let texts: Vec<_> =
        counts.iter().map(|(name, count)| format!("{:.0} {name}", count / requests)).collect();
    texts.join(", ")
}

/// Counts the commands that duplicates add while the first request is handled, here or in another
/// process.
async fn crowd(
    redis: &RedisServer,
    count: usize,
    elsewhere: bool,
    wait: Duration,
) -> Measured<Commands> {
    redis.flush()?;
    let gate = Gate::default();
    let here = app::protected(&app::engine(&redis.url(), wait)?, gate.clone());
    // To Redis, and to each other, two engines are two processes.
    let there = app::protected(&app::engine(&redis.url(), wait)?, Gate::default());
    let other = if elsewhere { &there } else { &here };
    warm_up(&here, &there, wait).await?;
    let first = tokio::spawn(in_background(here.clone(), "/held", "crowd"));
    gate.entered().await;
    let mut monitor = redis.monitor()?;
    let duplicates: Vec<JoinHandle<_>> =
        (0..count).map(|_| tokio::spawn(in_background(other.clone(), "/held", "crowd"))).collect();
    if wait.is_zero() {
        for duplicate in duplicates {
            expect(duplicate.await??, StatusCode::CONFLICT)?;
        }
        let commands = monitor.commands()?;
        gate.open();
        expect(first.await??, StatusCode::CREATED)?;
        return Ok(commands);
    }
    settled().await;
    gate.open();
    for request in duplicates.into_iter().chain([first]) {
        expect(request.await??, StatusCode::CREATED)?;
    }
    let mut commands = monitor.commands()?;
    without_the_first(&mut commands, &mut monitor, &here).await?;
    Ok(commands)
}

/// Takes what any execution sends at its end out of the count: it was there without duplicates.
async fn without_the_first(
    commands: &mut Commands,
    monitor: &mut Monitor<'_>,
    router: &Router,
) -> Measured<()> {
    order(router, "/orders", "another").await?;
    let alone = monitor.commands()?;
    for name in alone.sent.iter().filter(|name| *name != "SET") {
        if let Some(position) = commands.sent.iter().position(|it| it == name) {
            commands.sent.remove(position);
        }
    }
    commands.nested = commands.nested.saturating_sub(alone.nested);
    Ok(())
}

/// Opens connections, subscribes, and makes the scripts known, as a pair of another key does.
async fn warm_up(here: &Router, there: &Router, wait: Duration) -> Measured<()> {
    let slow = tokio::spawn(in_background(here.clone(), "/slow", "warm-up"));
    settled().await;
    let expected = if wait.is_zero() { StatusCode::CONFLICT } else { StatusCode::CREATED };
    expect(in_background(there.clone(), "/slow", "warm-up").await?, expected)?;
    expect(slow.await??, StatusCode::CREATED)
}

async fn order(router: &Router, path: &'static str, key: &str) -> Measured<()> {
    let body = Bytes::from_static(app::WISH.as_bytes());
    expect(call(router, request(path, Some(key), body)?).await?, StatusCode::CREATED)
}

async fn in_background(
    router: Router,
    path: &'static str,
    key: &'static str,
) -> Result<StatusCode, String> {
    let body = Bytes::from_static(app::WISH.as_bytes());
    let request = request(path, Some(key), body).map_err(|error| error.to_string())?;
    call(&router, request).await.map_err(|error| error.to_string())
}

fn expect(status: StatusCode, expected: StatusCode) -> Measured<()> {
    if status == expected { Ok(()) } else { Err(format!("{status} and not {expected}").into()) }
}

/// Waits until every task has reached its wait, which only time can show.
async fn settled() {
    for _ in 0..10 {
        yield_now().await;
    }
    sleep(Duration::from_millis(50)).await;
}

const REPEATS: u32 = 100;
const REFUSE: Duration = Duration::ZERO;
const WAIT: Duration = Duration::from_secs(10);
const CROWDS: [(&str, &str, usize, bool, Duration); 4] = [
    ("duplicate in flight, same process", "0", 1, false, REFUSE),
    ("duplicate in flight, other process", "1", 1, true, REFUSE),
    ("200 waiters, same process", "0", 200, false, WAIT),
    ("200 waiters, other process", "1 + 2 of a watch", 200, true, WAIT),
];
