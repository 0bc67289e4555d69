//! The cost of the memory store: time per step, and bytes per record.

use std::collections::HashMap;
use std::hint::black_box;
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use bytes::Bytes;
use clap::Args;
use idemptx::store::MemoryStore;
use idemptx_core::key::RecordId;
use idemptx_core::record::State;
use idemptx_core::store::{Claim, RecordSnapshot, Settlement, Store};

use crate::redis_rates::{DAY, PAYLOAD_BYTES, claim_request, id};
use crate::report::{Report, Table, count, ratio};
use crate::series::in_turns;
use crate::{Effort, Measured, machine};

/// The flags of a child process, which fills one store so that its memory holds nothing else.
#[derive(Args, Clone, Debug)]
pub(crate) struct Flags {
    #[arg(long)]
    records: usize,
    /// A bare map instead of the store.
    #[arg(long)]
    bare: bool,
}

/// Adds the table.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let mut table = Table::new(
        "Records in memory",
        "Baseline: a bare `Mutex<HashMap>` of the same ids and payloads, filled in the same round \
         by a process of its own.\n\
         Time is for claim, settlement and replay of one key on one thread; memory is the growth \
         of the resident set.\n\
         Goal: 1.5 times the payload and 150 bytes, that is 600 for a payload of 300 bytes.",
        &["records", "ns", "ratio", "bytes a record", "goal", "bare map", "`bytes()` says"],
    );
    let populations = [1_000, 10_000, 100_000, 1_000_000];
    for records in populations.into_iter().filter(|it| *it <= effort.records_max) {
        let series = in_turns(effort.rounds.div_ceil(3), &[true, false], |bare| {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["fill", "--records", &records.to_string()]);
            if *bare {
                command.arg("--bare");
            }
            let output = String::from_utf8(command.output()?.stdout)?;
            let mut numbers = output.split_whitespace().map(str::parse::<f64>);
            let mut next = || numbers.next().ok_or("the process that fills has failed");
            Ok([next()??, next()??, next()??])
        })?;
        let ([bare_nanos, bare_bytes, _], [nanos, bytes, said]) = (&series[0], &series[1]);
        // Of few records the rest of the process would be measured.
        let seen = |bytes: f64| if records < 100_000 { String::new() } else { count(bytes) };
        table.row([
            count(records as f64),
            count(nanos.median()),
            ratio(nanos.relative_to(bare_nanos).median()),
            seen(bytes.median()),
            "600".to_owned(),
            seen(bare_bytes.median()),
            count(said.median()),
        ]);
    }
    report.add(&table);
    Ok(())
}

/// Fills, and prints nanoseconds, resident bytes and accounted bytes a record.
pub(crate) fn run(flags: &Flags) -> Measured<()> {
    machine::stay_on(machine::MEASURED);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let before = machine::resident_bytes()?;
    let records = flags.records as u64;
    let (bytes, nanos, said) = if flags.bare {
        let map = Mutex::default();
        (0..records).for_each(|number| bare_step(&map, number));
        let bytes = machine::resident_bytes()? - before;
        (bytes, timed(records, |number| bare_step(&map, number)), 0.0)
    } else {
        let store = MemoryStore::builder().bytes_max(16 << 30).build();
        runtime.block_on(async {
            for number in 0..records {
                step(&store, number).await?;
            }
            let (bytes, said) = (machine::resident_bytes()? - before, store.bytes() as f64);
            let began = Instant::now();
            for number in records..records + STEPS {
                step(&store, number).await?;
            }
            let nanos = began.elapsed().as_nanos() as f64 / STEPS as f64;
            Measured::Ok((bytes, nanos, said))
        })?
    };
    println!("{nanos} {} {}", bytes / records as f64, said / records as f64);
    Ok(())
}

async fn step(store: &MemoryStore, number: u64) -> Measured<()> {
    let (id, claim_request) = (id(number), claim_request(number));
    let Claim::Granted(lease) = store.claim(&id, &claim_request).await? else {
        return Err("a claim was not granted".into());
    };
    store.settle(&lease, &Settlement::new(State::Completed, payload(), DAY, DAY)).await?;
    match store.claim(&id, &claim_request).await? {
        Claim::Found(RecordSnapshot::Settled(record)) => {
            black_box(record);
            Ok(())
        }
        _ => Err("what was settled is not replayed".into()),
    }
}

/// Takes the equivalent steps on a plain map: insert, replace, read.
fn bare_step(map: &Mutex<HashMap<RecordId, Bytes>>, number: u64) {
    let locked = || map.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let id = id(number);
    locked().insert(id, Bytes::new());
    locked().insert(id, payload());
    black_box(locked().get(&id).cloned());
}

fn timed(from: u64, mut step: impl FnMut(u64)) -> f64 {
    let began = Instant::now();
    (from..from + STEPS).for_each(&mut step);
    began.elapsed().as_nanos() as f64 / STEPS as f64
}

fn payload() -> Bytes {
    Bytes::from(vec![b'x'; PAYLOAD_BYTES])
}

/// The number of timed steps.
const STEPS: u64 = 20_000;
