//! The rate at which proxies pass requests on, and their latency.

use std::time::Duration;

use super::{Backends, Kind, Proxy};
use crate::load::{self, Keys};
use crate::report::{Report, Table, count, ratio, small};
use crate::series::Series;
use crate::{Effort, Measured, machine};

/// Adds the table of proxies on one core.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let doors = rounds(effort, &DOORS)?;
    let table = Table::new(
        "The gateway among proxies",
        format!(
            "Baseline: nginx as a plain proxy to the same upstream, in the same round, {ROUNDS_MAX} \
             rounds at most; for requests with a key, whether new or not, nginx with a new key \
             each.\n\
             Each proxy has one thread on core 0, and keeps its connections to the upstream; the \
             upstream, the client (32 keep-alive connections) and Redis share core 1, so that a \
             rate can be theirs: then the processor time tells.\n\
             Requests have 200 bytes, answers 300."
        ),
        &COLUMNS,
    );
    report.add(&filled(table, &doors));
    Ok(())
}

/// Adds the table of proxies on all cores.
pub(crate) fn on_all_cores(effort: Effort, report: &mut Report) -> Measured<()> {
    let _shared = machine::share_cores();
    let threads = machine::threads();
    let doors = rounds(effort, &DOORS_ON_ALL_CORES)?;
    let table = Table::new(
        "The gateway among proxies, on all cores",
        format!(
            "As the table before, but with {threads} threads of each proxy, which share all cores \
             with the upstream, the client and Redis, so that a rate is that of all of them.\n\
             No core is anybody's, so the noise is greater."
        ),
        &COLUMNS,
    );
    report.add(&filled(table, &doors));
    Ok(())
}

/// Measures each of these proxies once a round.
fn rounds(effort: Effort, doors: &[Door]) -> Measured<Vec<(Door, Vec<Row>)>> {
    let backends = Backends::start()?;
    let doors: Vec<Door> = doors.iter().filter(|(kind, _)| kind.is_there()).copied().collect();
    let mut rows: Vec<Vec<Row>> =
        doors.iter().map(|(_, it)| vec![Row::default(); it.len()]).collect();
    for _ in 0..effort.rounds.min(ROUNDS_MAX) {
        for ((kind, cases), rows) in doors.iter().zip(&mut rows) {
            let proxy = backends.proxy(*kind)?;
            for ((_, keys, _), row) in cases.iter().zip(rows) {
                row.measure(&proxy, *keys, effort.window)?;
            }
        }
    }
    Ok(doors.into_iter().zip(rows).collect())
}

/// The measurements of one case, one value a round.
#[derive(Clone, Debug, Default)]
struct Row {
    rate: Series,
    cpu: Series,
    p50: Series,
    p99: Series,
}

impl Row {
    fn measure(&mut self, proxy: &Proxy, keys: Keys, window: Duration) -> Measured<()> {
        if keys == Keys::Used {
            load::prepare(proxy.address, load::ORDER)?;
        }
        load::run(proxy.address, load::ORDER, keys, window / 3)?;
        let before = proxy.cpu_seconds()?;
        let done = load::run(proxy.address, load::ORDER, keys, window)?;
        self.rate.push(done.requests / done.seconds);
        self.cpu.push((proxy.cpu_seconds()? - before) * 1e6 / done.requests);
        self.p50.push(done.latencies.quantile(0.50) / 1000.0);
        self.p99.push(done.latencies.quantile(0.99) / 1000.0);
        Ok(())
    }
}

fn filled(mut table: Table, doors: &[(Door, Vec<Row>)]) -> Table {
    let cases = doors.iter().flat_map(|((kind, cases), rows)| {
        cases.iter().zip(rows).map(move |(case, row)| (kind, case, row))
    });
    for (kind, (name, keys, goal), row) in cases {
        let baseline =
            doors.first().and_then(|(_, rows)| rows.get(usize::from(*keys != Keys::None)));
        let baseline = baseline.unwrap_or(row);
        table.row([
            kind.name().to_owned(),
            (*name).to_owned(),
            count(row.rate.median()),
            ratio(row.rate.relative_to(&baseline.rate).median()),
            (*goal).to_owned(),
            small(row.cpu.median()),
            ratio(baseline.cpu.relative_to(&row.cpu).median()),
            ratio(row.p50.median()),
            ratio(row.p99.median()),
        ]);
    }
    table
}

type Case = (&'static str, Keys, &'static str);
type Door = (Kind, &'static [Case]);

/// The first are what the others are compared with: without a key, and with one.
const DOORS: [Door; 10] = [
    (Kind::Nginx, &[("no key", Keys::None, "1.00"), ("key", Keys::Fresh, "1.00")]),
    (Kind::NginxAnswer, &[("no key", Keys::None, "-")]),
    (Kind::Haproxy, &[("no key", Keys::None, "-"), ("key", Keys::Fresh, "-")]),
    (Kind::Bare, &[("no key", Keys::None, "-")]),
    (Kind::Plain, &[("no key", Keys::None, "1.05")]),
    (
        Kind::Memory,
        &[
            ("no key", Keys::None, "1.00"),
            ("new", Keys::Fresh, "0.85"),
            ("hit", Keys::Used, "2.30"),
        ],
    ),
    (Kind::Redis, &[("new", Keys::Fresh, "0.65"), ("hit", Keys::Used, "1.90")]),
    (Kind::Near, &[("hit", Keys::Used, "2.20")]),
    (Kind::FormerPlain, &[("no key", Keys::None, "-")]),
    (Kind::FormerMemory, &[("new", Keys::Fresh, "-"), ("hit", Keys::Used, "-")]),
];
const DOORS_ON_ALL_CORES: [Door; 7] = [
    (Kind::Nginx, &[("no key", Keys::None, "-"), ("key", Keys::Fresh, "-")]),
    (Kind::Haproxy, &[("no key", Keys::None, "-")]),
    (Kind::Plain, &[("no key", Keys::None, "-")]),
    (Kind::Memory, &[("new", Keys::Fresh, "-"), ("hit", Keys::Used, "-")]),
    (Kind::Redis, &[("new", Keys::Fresh, "-"), ("hit", Keys::Used, "-")]),
    (Kind::FormerPlain, &[("no key", Keys::None, "-")]),
    (Kind::FormerMemory, &[("new", Keys::Fresh, "-"), ("hit", Keys::Used, "-")]),
];
const COLUMNS: [&str; 9] =
    ["", "", "requests/s", "ratio", "goal", "proxy µs", "ratio of 1/µs", "p50 ms", "p99 ms"];
const ROUNDS_MAX: usize = 5;
