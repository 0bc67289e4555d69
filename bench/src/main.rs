//! Measures the engine against the same work without it, in one run, and prints what it costs as
//! ratios.
//!
//! Variants that are compared take turns within a run, so that a machine that grows slow or busy
//! does so to all of them; of each series the median counts.
#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark prints, and ends at the first surprise"
)]

mod actix;
mod app;
mod dead_rows;
mod decorated;
mod durable;
mod durable_growth;
mod gateway;
mod growth;
mod in_process;
mod instructions;
mod load;
mod machine;
mod memory;
mod over_http;
mod postgres_rates;
mod python;
mod redis_commands;
mod redis_nodes;
mod redis_rates;
mod redis_server;
mod report;
mod series;
mod server;
mod training;
mod waking;

use std::error::Error;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

use crate::report::Report;

/// Measures what the engine costs; takes a few minutes.
#[derive(Debug, Parser)]
struct Flags {
    /// A tenth of the time, and more noise.
    #[arg(long)]
    quick: bool,
    /// Only the table of this name; may be given several times.
    #[arg(long)]
    only: Vec<String>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// A role in which this program starts itself as another process.
#[derive(Debug, Subcommand)]
enum Role {
    #[command(hide = true)]
    Serve(server::Flags),
    #[command(hide = true)]
    Fill(memory::Flags),
    #[command(hide = true)]
    Upstream(gateway::upstream::Flags),
    #[command(hide = true)]
    Pass(gateway::bare::Flags),
    /// Sends an instrumented gateway the requests that a profile is made of.
    Train,
}

/// The amount of work for each measurement.
#[derive(Clone, Copy, Debug)]
struct Effort {
    rounds: usize,
    /// The duration of one measurement that runs for a fixed time.
    window: Duration,
    /// The number of repetitions where each is measured by itself.
    samples: usize,
    records_max: usize,
    /// Keys that expire in a Python process.
    expired_max: usize,
}

type Measured<T> = Result<T, Box<dyn Error>>;
type TableMaker = fn(Effort, &mut Report) -> Measured<()>;

fn main() -> Measured<()> {
    let flags = Flags::parse();
    match flags.role {
        Some(Role::Serve(serve)) => return server::run(&serve),
        Some(Role::Fill(fill)) => return memory::run(&fill),
        Some(Role::Pass(pass)) => return gateway::bare::run(&pass),
        Some(Role::Upstream(upstream)) => return gateway::upstream::run(&upstream),
        Some(Role::Train) => return training::run(),
        None => {}
    }
    let effort = if flags.quick { QUICK } else { FULL };
    let began = Instant::now();
    let mut report = Report::new(&machine::describe());
    for (name, table) in TABLES {
        if flags.only.is_empty() || flags.only.iter().any(|only| only == name) {
            eprintln!("measuring {name} ...");
            table(effort, &mut report)?;
        }
    }
    report.close(&format!("Took {} s.", began.elapsed().as_secs()));
    println!("{report}");
    let path = report.write()?;
    eprintln!("written to {}", path.display());
    Ok(())
}

const TABLES: [(&str, TableMaker); 26] = [
    ("instructions", instructions::measure),
    ("http", over_http::measure),
    ("actix", actix::over_http),
    ("near", decorated::near),
    ("calls", in_process::measure),
    ("actix-calls", actix::in_process),
    ("sealed", decorated::sealed),
    ("commands", redis_commands::measure),
    ("nodes", redis_nodes::measure),
    ("rates", redis_rates::measure),
    ("postgres", postgres_rates::measure),
    ("memory", memory::measure),
    ("durable", durable::measure),
    ("durable-growth", durable_growth::sqlite),
    ("postgres-growth", durable_growth::postgres),
    ("postgres-dead-rows", dead_rows::measure),
    ("waking", waking::measure),
    ("growth", growth::measure),
    ("gateway", gateway::rates::measure),
    ("gateway-cores", gateway::rates::on_all_cores),
    ("gateway-half-load", gateway::half_load::measure),
    ("gateway-connections", gateway::connections::measure),
    ("python", python::rates::measure),
    ("python-waking", python::waking::measure),
    ("python-duplicates", python::duplicates::measure),
    ("python-memory", python::memory::measure),
];

const FULL: Effort = Effort {
    rounds: 9,
    window: Duration::from_millis(1000),
    samples: 200,
    records_max: 1_000_000,
    expired_max: 200_000,
};

const QUICK: Effort = Effort {
    rounds: 3,
    window: Duration::from_millis(300),
    samples: 40,
    records_max: 100_000,
    expired_max: 20_000,
};
