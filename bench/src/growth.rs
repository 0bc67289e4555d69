//! Growth of the cost with the size of bodies, and with the number of waiters.

use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use bytes::Bytes;
use tokio::task::yield_now;

use crate::app::{self, Gate};
use crate::in_process::{call, created, on_one_thread, request};
use crate::report::{Report, Table, ratio, small};
use crate::series::in_turns;
use crate::{Effort, Measured};

/// Adds the tables.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    bodies(effort, report)?;
    waiters(effort, report)
}

fn bodies(effort: Effort, report: &mut Report) -> Measured<()> {
    let mut table = Table::new(
        "Growth with the body",
        "Baseline: the same axum router without the layer, in the same round; request and answer \
         are of the same size.\n\
         New requests, memory store, no sockets: what is added is reading, hashing and keeping.",
        &["body", "alone µs", "layer µs", "more than alone, µs", "ns/KiB of it"],
    );
    for bytes in [200, 2 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] {
        let series = in_turns(effort.rounds, &[false, true], |layer| {
            let layer = *layer;
            Ok([on_one_thread(move || echoes(layer, bytes))?])
        })?;
        let (alone, layered) = (series[0][0].median(), series[1][0].median());
        let more = layered - alone;
        let size =
            if bytes < 1 << 10 { format!("{bytes} B") } else { format!("{} KiB", bytes >> 10) };
        table.row([
            size,
            small(alone),
            small(layered),
            small(more),
            small(more * 1e3 / (bytes as f64 / 1024.0)),
        ]);
    }
    report.add(&table);
    Ok(())
}

/// Microseconds for a request with a body of such a size, and the same answer.
async fn echoes(layer: bool, bytes: usize) -> Measured<f64> {
    let router = if layer {
        app::protected(&app::engine("memory:", Duration::ZERO)?, Gate::default())
    } else {
        app::routes(Gate::default())
    };
    let count = (ECHO_BYTES / bytes).clamp(20, 1000);
    let body = Bytes::from(vec![b'x'; bytes]);
    let mut began = Instant::now();
    for number in 0..count + WARM_UP {
        if number == WARM_UP {
            began = Instant::now();
        }
        let request = request("/echo", Some(&number.to_string()), body.clone())?;
        created(call(&router, request).await?)?;
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / count as f64)
}

fn waiters(effort: Effort, report: &mut Report) -> Measured<()> {
    let mut table = Table::new(
        "Growth with those who wait for one key",
        "Baseline: one waiter.\n\
         Memory store, one thread, no sockets: from the moment at which the handler may end until \
         every duplicate has its answer.",
        &["waiters", "coming in, µs each", "answered, µs in all", "µs each", "ratio each"],
    );
    let crowds = [1, 10, 100, 1000];
    let series = in_turns(effort.rounds, &crowds, |count| {
        let count = *count;
        on_one_thread(move || crowd(count))
    })?;
    let each = |position: usize| series[position][1].median() / crowds[position] as f64;
    for (position, count) in crowds.iter().enumerate() {
        let [coming, answered] = &series[position];
        table.row([
            count.to_string(),
            small(coming.median() / *count as f64),
            small(answered.median()),
            small(each(position)),
            ratio(each(position) / each(0)),
        ]);
    }
    report.add(&table);
    Ok(())
}

/// Microseconds for so many to come in, and for all of them to be answered.
async fn crowd(count: usize) -> Measured<[f64; 2]> {
    let gate = Gate::default();
    let router = app::protected(&app::engine("memory:", WAIT)?, gate.clone());
    let first = tokio::spawn(held(router.clone()));
    gate.entered().await;
    let began = Instant::now();
    let duplicates: Vec<_> = (0..count).map(|_| tokio::spawn(held(router.clone()))).collect();
    // On one thread all of them have come to where they wait after a few turns.
    for _ in 0..TURNS {
        yield_now().await;
    }
    let coming = began.elapsed().as_secs_f64() * 1e6;
    let began = Instant::now();
    gate.open();
    for duplicate in duplicates {
        created(duplicate.await??)?;
    }
    let answered = began.elapsed().as_secs_f64() * 1e6;
    created(first.await??)?;
    Ok([coming, answered])
}

async fn held(router: Router) -> Result<StatusCode, String> {
    let body = Bytes::from_static(app::WISH.as_bytes());
    let request = request("/held", Some("one"), body).map_err(|error| error.to_string())?;
    call(&router, request).await.map_err(|error| error.to_string())
}

const ECHO_BYTES: usize = 32 << 20;
const WARM_UP: usize = 10;
const TURNS: usize = 20;
const WAIT: Duration = Duration::from_secs(60);
