//! The latency of requests at half of the rate that the gateway on Redis can take.
//!
//! A machine that shares its cores with others loses them for milliseconds, again and again.
//! A long window has such moments in it, and its p99 is theirs; of many short ones most have none.

use std::time::Duration;

use super::{Backends, Kind};
use crate::load::{self, Keys};
use crate::report::{Report, Table, count, ratio};
use crate::series::in_turns;
use crate::{Effort, Measured};

/// Adds the table.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let backends = Backends::start()?;
    let proxy = backends.proxy(Kind::Redis)?;
    load::run(proxy.address, load::ORDER, Keys::Fresh, effort.window / 3)?;
    let most = load::run(proxy.address, load::ORDER, Keys::Fresh, effort.window)?;
    drop(proxy);
    let rate = most.requests / most.seconds / 2.0;
    let kinds = [Kind::Nginx, Kind::Haproxy, Kind::Memory, Kind::Redis];
    let series = in_turns(effort.rounds * ROUNDS_EACH, &kinds, |kind| {
        let proxy = backends.proxy(*kind)?;
        load::paced(proxy.address, load::ORDER, Keys::Fresh, WINDOW / 3, rate)?;
        let done = load::paced(proxy.address, load::ORDER, Keys::Fresh, WINDOW, rate)?;
        let millis = |share| done.latencies.quantile(share) / 1000.0;
        Ok([millis(0.50), millis(0.99), done.requests / done.seconds])
    })?;
    let mut table = Table::new(
        "The gateway at half load",
        format!(
            "Every request has a new key; {} a second are sent, half of what the gateway on Redis \
             can take, over 32 connections.\n\
             Goal: the gateway's p99 on Redis is no more than 2 ms above nginx' in the same round.",
            count(rate)
        ),
        &["", "requests/s", "p50 ms", "p99 ms", "p99 above nginx', ms", "goal"],
    );
    let [_, base, _] = &series[0];
    for (kind, [p50, p99, rate]) in kinds.iter().zip(&series) {
        table.row([
            kind.name().to_owned(),
            count(rate.median()),
            ratio(p50.median()),
            ratio(p99.median()),
            ratio(p99.minus(base).median()),
            if *kind == Kind::Redis { "2.00" } else { "-" }.to_owned(),
        ]);
    }
    report.add(&table);
    Ok(())
}

/// Short windows for each round of the other tables.
const ROUNDS_EACH: usize = 3;
const WINDOW: Duration = Duration::from_millis(500);
