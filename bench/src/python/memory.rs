//! The memory that expired keys leave in use.

use std::process::Command;

use crate::report::{Report, Table, count, small};
use crate::{Effort, Measured};

use super::{Front, Python};

/// Adds the table.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let python = Python::find()?;
    let mut table = Table::new(
        "Memory of expired keys, in Python",
        "Baseline: plain FastAPI.\n\
         Each key is used once and kept for a second; then all have expired, and a few more \
         requests come.\n\
         No sockets; the growth of the resident set. The original is given fewer keys.\n\
         Goal: what expired is given back.",
        &["", "keys", "MiB more", "bytes a key"],
    );
    for (name, front, keys) in [
        ("plain", Front::Plain, effort.expired_max),
        ("original", Front::Original, effort.expired_max / 4),
        ("decorator", Front::Decorator, effort.expired_max),
    ] {
        let grown = grown(python.command(front).args(["--fill", &keys.to_string()]))?;
        table.row([
            name.to_owned(),
            count(keys as f64),
            small(grown / f64::from(1 << 20)),
            count(grown / keys as f64),
        ]);
    }
    report.add(&table);
    Ok(())
}

/// Bytes by which a process says to have grown.
fn grown(command: &mut Command) -> Measured<f64> {
    let output = command.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}
