//! The memory that a proxy takes for an idle open connection.

use super::{Backends, Kind};
use crate::load;
use crate::report::{Report, Table, count, ratio, small};
use crate::series::in_turns;
use crate::{Effort, Measured};

/// Adds the table.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let backends = Backends::start()?;
    let kinds = [Kind::Nginx, Kind::Haproxy, Kind::Memory];
    let series = in_turns(effort.rounds.min(ROUNDS_MAX), &kinds, |kind| {
        let proxy = backends.proxy(*kind)?;
        let before = proxy.resident_bytes()?;
        let after = load::held(proxy.address, load::ORDER, CONNECTIONS, || {
            proxy.resident_bytes().map_err(|error| error.to_string())
        })??;
        Ok([(after - before) / CONNECTIONS as f64])
    })?;
    let mut table = Table::new(
        "Memory of idle connections to the gateway",
        format!(
            "{} clients' connections, each of which has had one request answered, and is kept \
             alive; the growth of the proxy's resident set.",
            count(CONNECTIONS as f64)
        ),
        &["", "bytes a connection", "MiB for 10,000", "ratio to nginx"],
    );
    let [base] = &series[0];
    for (kind, [bytes]) in kinds.iter().zip(&series) {
        table.row([
            kind.name().to_owned(),
            count(bytes.median()),
            small(bytes.median() * 10_000.0 / f64::from(1 << 20)),
            ratio(bytes.relative_to(base).median()),
        ]);
    }
    report.add(&table);
    Ok(())
}

/// The most connections that HAProxy accepts where a process may have 20,000 descriptors.
const CONNECTIONS: u64 = 9000;
const ROUNDS_MAX: usize = 3;
