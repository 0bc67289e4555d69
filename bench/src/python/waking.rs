//! The delay until a waiting duplicate is answered.

use crate::redis_server::RedisServer;
use crate::report::{Report, Table};
use crate::waking::{WAIT_MS, delays, signed};
use crate::{Effort, Measured};

use super::{Front, Python};

/// Adds the table.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let python = Python::find()?;
    let redis = RedisServer::start()?;
    let samples = effort.samples.min(SAMPLES_MAX);
    let mut table = Table::new(
        "From the first answer to that of a waiting duplicate, in Python",
        format!(
            "Baseline: the moment at which the client of the first request has its answer; a \
             negative time is a duplicate that was answered before it.\n\
             {samples} pairs each, over sockets; the goal is for the median, and 5,000 µs for the \
             worst.",
        ),
        &["", "median µs", "p99 µs", "max µs", "goal, median µs"],
    );
    let url = redis.url();
    for (name, front, store, processes, goal) in [
        ("original, same process, memory", Front::Original, "memory:", 1, "-"),
        ("decorator, same process, memory", Front::Decorator, "memory:", 1, "1,000"),
        ("middleware, same process, memory", Front::Middleware, "memory:", 1, "1,000"),
        ("original, same process, Redis", Front::Original, &url, 1, "-"),
        ("decorator, same process, Redis", Front::Decorator, &url, 1, "1,000"),
        ("middleware, same process, Redis", Front::Middleware, &url, 1, "1,000"),
        ("original, two processes, Redis", Front::Original, &url, 2, "-"),
        ("decorator, two processes, Redis", Front::Decorator, &url, 2, "2,000"),
        ("middleware, two processes, Redis", Front::Middleware, &url, 2, "2,000"),
    ] {
        redis.flush()?;
        let one = python.serve(front, store, WAIT_MS, None)?;
        let two = python.serve(front, store, WAIT_MS, None)?;
        let other = if processes == 2 { &two } else { &one };
        let series = delays(samples, [&one, other])?;
        table.row([
            name.to_owned(),
            signed(series.median()),
            signed(series.quantile(0.99)),
            signed(series.quantile(1.0)),
            goal.to_owned(),
        ]);
    }
    report.add(&table);
    Ok(())
}

const SAMPLES_MAX: usize = 100;
