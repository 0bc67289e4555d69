//! Instructions that a request costs a server, which a busy machine does not blur.
//!
//! The server runs under callgrind, once for few and once for many requests on one connection: the
//! difference is theirs, without start and end.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::gateway::{Backends, Kind};
use crate::load::{self, Keys};
use crate::report::{Report, Table, count, ratio};
use crate::server::Server;
use crate::{Effort, Measured};

/// Adds the table.
pub(crate) fn measure(_: Effort, report: &mut Report) -> Measured<()> {
    let mut table = Table::new(
        "Instructions a request",
        "Baseline: axum without the layer, and hyper alone as a proxy; nginx does not end under \
         callgrind.\n\
         Counted by callgrind: what the server executes outside of the kernel.",
        &["", "instructions", "ratio"],
    );
    let axum = [
        ("axum alone", None, Keys::Fresh),
        ("layer, request without a key", Some("memory:"), Keys::None),
        ("layer, memory, new", Some("memory:"), Keys::Fresh),
        ("layer, memory, hit", Some("memory:"), Keys::Used),
    ];
    let mut base = None;
    for (name, store, keys) in axum {
        let each = each(keys, |counter| {
            Server::counted(store, counter).map(|server| (server.address, server))
        })?;
        let base = *base.get_or_insert(each);
        table.row([name.to_owned(), count(each), ratio(each / base)]);
    }
    let backends = Backends::start()?;
    let proxies = [
        (Kind::Bare, Keys::None, ""),
        (Kind::Plain, Keys::None, ""),
        (Kind::Memory, Keys::Fresh, ", new"),
        (Kind::Memory, Keys::Used, ", hit"),
        (Kind::Redis, Keys::Fresh, ", new"),
        (Kind::Redis, Keys::Used, ", hit"),
    ];
    let mut base = None;
    for (kind, keys, which) in proxies {
        let each = each(keys, |counter| {
            backends.counted(kind, counter).map(|proxy| (proxy.address, proxy))
        })?;
        let base = *base.get_or_insert(each);
        table.row([format!("{}{which}", kind.name()), count(each), ratio(each / base)]);
    }
    report.add(&table);
    Ok(())
}

/// Returns the instructions of one request.
fn each<S>(keys: Keys, start: impl Fn(&Counter) -> Measured<(SocketAddr, S)>) -> Measured<f64> {
    let mut totals = Vec::new();
    for requests in [FEW, MANY] {
        let counter = Counter::new()?;
        let (address, server) = start(&counter)?;
        if keys == Keys::Used {
            load::prepare(address, load::ORDER)?;
        }
        load::one_by_one(address, load::ORDER, keys, requests)?;
        drop(server);
        totals.push(counter.instructions()?);
    }
    Ok((totals[1] - totals[0]) / (MANY - FEW) as f64)
}

/// Counts the instructions of a process.
pub(crate) struct Counter {
    _directory: TempDir,
    log: PathBuf,
}

impl Counter {
    fn new() -> Measured<Self> {
        let directory = TempDir::new()?;
        let log = directory.path().join("log");
        Ok(Self { _directory: directory, log })
    }

    /// Returns the same command under callgrind.
    pub(crate) fn wrap(&self, command: &Command) -> Command {
        let mut wrapped = Command::new("valgrind");
        wrapped
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(argument("--log-file=", &self.log))
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                wrapped.env(name, value);
            }
        }
        wrapped
    }

    /// Returns the count of a process that has ended.
    fn instructions(&self) -> Measured<f64> {
        let log = fs::read_to_string(&self.log)?;
        let counted = log.lines().find_map(|line| line.split_once("Collected : "));
        let (_, counted) =
            counted.ok_or("callgrind has counted nothing: `make bench` installs it")?;
        Ok(counted.trim().parse()?)
    }
}

fn argument(name: &str, path: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(name);
    argument.push(path);
    argument
}

const FEW: u64 = 100;
const MANY: u64 = 600;
