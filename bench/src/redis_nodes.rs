//! Commands, round trips and rates over the number of a cluster's nodes, and of processes.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use idemptx::store::redis::RedisStore;
use idemptx_core::record::State;
use idemptx_core::store::{Claim, Settlement, Store};
use idemptx_testkit::RedisCluster;

use crate::in_process::on_one_thread;
use crate::redis_rates::{DAY, PAYLOAD_BYTES, claim_request, id};
use crate::report::{Report, Table, count, ratio};
use crate::{Effort, Measured};

/// Adds the table.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let mut table = Table::new("Nodes of a Redis cluster", ABOUT, &COLUMNS);
    for nodes in 1..=NODES_MAX {
        let cluster = RedisCluster::start(nodes, 0, &["appendonly no"]);
        let ports: Vec<_> = (0..nodes).map(|node| cluster.node(node).port()).collect();
        for processes in PROCESSES {
            let (url, ports, window) = (cluster.url(), ports.clone(), effort.window);
            let measured = on_one_thread(move || of_processes(url, ports, processes, window))?;
            table.row([
                nodes.to_string(),
                processes.to_string(),
                ratio(measured.of_new),
                ratio(measured.of_hit),
                count(measured.rate),
            ]);
        }
    }
    report.add(&table);
    Ok(())
}

struct OfProcesses {
    /// Commands of a new request, each of which is a round trip.
    of_new: f64,
    of_hit: f64,
    /// New requests a second.
    rate: f64,
}

/// To Redis, and to each other, stores that share nothing are processes.
async fn of_processes(
    url: String,
    ports: Vec<u16>,
    processes: usize,
    window: Duration,
) -> Measured<OfProcesses> {
    let mut stores = Vec::new();
    for _ in 0..processes {
        stores.push(Arc::new(RedisStore::connect(&*url).await?));
    }
    let mut next = (processes as u64) << 32;
    // Opens every connection, and makes the scripts known.
    for store in &stores {
        for _ in 0..WARM_UP {
            next += 1;
            request(store, next).await?;
        }
    }
    let first = next + 1;
    let mut sent = [0.0; 2];
    for sent in &mut sent {
        let monitors = ports.iter().map(|port| Monitor::start(*port));
        let monitors = monitors.collect::<Measured<Vec<_>>>()?;
        for (number, store) in (0..REQUESTS).zip(stores.iter().cycle()) {
            request(store, first + number).await?;
        }
        for monitor in monitors {
            *sent += monitor.commands()? as f64 / REQUESTS as f64;
        }
    }
    let done = Arc::new(AtomicU64::new(first + REQUESTS));
    let (began, before) = (Instant::now(), first + REQUESTS);
    let tasks: Vec<_> = (0..TASKS)
        .zip(stores.iter().cycle())
        .map(|(_, store)| {
            let (store, done) = (store.clone(), done.clone());
            tokio::spawn(async move {
                while began.elapsed() < window {
                    let number = done.fetch_add(1, Ordering::Relaxed);
                    request(&store, number).await.map_err(|error| error.to_string())?;
                }
                Ok::<_, String>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let rate = (done.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    Ok(OfProcesses { of_new: sent[0], of_hit: sent[1], rate })
}

/// Claims and settles, or finds what is settled.
async fn request(store: &RedisStore, number: u64) -> Measured<()> {
    if let Claim::Granted(lease) = store.claim(&id(number), &claim_request(number)).await? {
        let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
        store.settle(&lease, &Settlement::new(State::Completed, payload, DAY, DAY)).await?;
    }
    Ok(())
}

/// Counter of the commands that clients send to a node; those of scripts are left out.
struct Monitor {
    port: u16,
    lines: BufReader<TcpStream>,
}

impl Monitor {
    fn start(port: u16) -> Measured<Self> {
        let mut lines = BufReader::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port))?);
        lines.get_mut().write_all(b"MONITOR\r\n")?;
        lines.read_line(&mut String::new())?;
        Ok(Self { port, lines })
    }

    fn commands(mut self) -> Measured<usize> {
        let mut marking = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        marking.write_all(format!("ECHO {END}\r\n").as_bytes())?;
        let mut commands = 0;
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line)?;
            if line.contains(END) {
                return Ok(commands);
            }
            // The map of the slots is read again once in a while, whatever is asked for.
            let is_counted =
                !line.contains(" lua]") && !line.to_lowercase().contains("\"cluster\"");
            commands += usize::from(is_counted);
        }
    }
}

const ABOUT: &str = "Each request claims and settles a record of 300 bytes; the same requests again \
    are hits.\n\
    The commands are counted with `MONITOR` on every node, after connections and scripts are there; \
    a request sends one after the other, so that each is a round trip.\n\
    All nodes and the clients share the cores of this machine: the rates say what more nodes cost \
    here, and not what they are for.";
const COLUMNS: [&str; 5] =
    ["nodes", "processes", "commands, new", "commands, hit", "new requests a second"];
const NODES_MAX: usize = 6;
const PROCESSES: [usize; 4] = [1, 2, 4, 8];
const WARM_UP: u64 = 200;
const REQUESTS: u64 = 400;
const TASKS: usize = 64;
const END: &str = "the-end-of-a-count";
