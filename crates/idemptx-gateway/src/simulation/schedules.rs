//! Random schedules, each from a seed: the partitions, the requests and the backend's behavior.
//!
//! `SIMULATION_SEEDS=17 cargo test -p idemptx-gateway simulation` runs one seed and prints its
//! history; `SIMULATION_SEEDS=0..10000` runs more seeds than there is time for in CI.
//!
//! A seed determines everything but the order in which `tokio::select!` polls branches that are
//! ready at the same time: of 400 histories run twice, one differed, by a few milliseconds.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::Duration;
use std::{env, iter, thread};

use http::StatusCode;
use tokio::time::sleep;
use turmoil::sim_elapsed;

use super::backend::{self, Backend, Behavior};
use super::caller::{self, Reply};
use super::cluster::{Cluster, GATEWAYS, SERVICE, settings};
use super::random::Random;

#[test]
fn whatever_is_cut_no_two_successes_differ_and_every_client_gets_an_answer() {
    let seeds = seeds();
    if seeds.end - seeds.start == 1 {
        println!("{}", History::of(seeds.start).describe());
    }
    let (threads, next) =
        (thread::available_parallelism().map_or(1, Into::into), Mutex::new(seeds));
    let observed = thread::scope(|scope| {
        let play = || {
            let histories = iter::from_fn(|| next.lock().unwrap().next()).map(History::of);
            histories.flat_map(|history| history.check()).collect::<BTreeSet<_>>()
        };
        let playing: Vec<_> = (0..threads).map(|_| scope.spawn(play)).collect();
        playing.into_iter().flat_map(|it| it.join().unwrap()).collect::<BTreeSet<_>>()
    });
    if env::var_os(CHOSEN).is_none() {
        let missing: Vec<_> = WORDS.iter().filter(|word| !observed.contains(**word)).collect();
        assert!(missing.is_empty(), "never observed: {missing:?}; the schedules are too easy");
    }
}

/// The setup of one run, the observations of its callers, and the executions.
struct History {
    seed: u64,
    /// A lost response releases the key.
    releases: bool,
    observed: Vec<Observed>,
    /// The final response of each gateway for each key, on a reliable network.
    last: Vec<Observed>,
    executions: [u32; KEYS.len()],
    drained_within: Duration,
}

/// The result of one request, as its caller observed it.
#[derive(Clone, Debug)]
struct Observed {
    after: Duration,
    client: usize,
    key: &'static str,
    answer: Result<Reply, String>,
}

impl History {
    fn of(seed: u64) -> Self {
        let _named = SeedReport(seed);
        let mut random = Random::new(seed);
        let releases = random.one_in(2);
        let on_ambiguous = if releases { "release" } else { "unknown" };
        let wait_ms = random.pick(&[0, 3000]);
        let settings = settings(
            &format!("http2 = {}", random.one_in(3)),
            &format!("on_ambiguous = \"{on_ambiguous}\"\npolicy = {{ wait_ms = {wait_ms} }}"),
        );
        let latency_max = random.millis(1..60);
        let mut behavior = random.fork();
        let backend = Backend::new(move || random_behavior(&mut behavior));
        let mut cluster = Cluster::new(seed, latency_max, &settings, backend);

        let observed = Rc::<RefCell<Vec<Observed>>>::default();
        let asking = Rc::new(Cell::new(CLIENTS));
        for number in 0..CLIENTS {
            let (observed, asking, random) =
                (Rc::clone(&observed), Rc::clone(&asking), random.fork());
            cluster.network.client(name(number), async move {
                ask(number, random, |it| observed.borrow_mut().push(it)).await;
                asking.set(asking.get() - 1);
                Ok(())
            });
        }
        disturb(&mut cluster, &mut random);
        cluster.until(|_| asking.get() == 0);

        let observed = observed.take();
        let last = audit(&mut cluster);
        let began = cluster.network.elapsed();
        cluster.drain();
        let drained_within = cluster.network.elapsed() - began;
        let executions = KEYS.map(|key| cluster.backend.executions(key));
        Self { seed, releases, observed, last, executions, drained_within }
    }

    /// Asserts the invariants, and returns a word for each kind of observation.
    fn check(&self) -> BTreeSet<String> {
        let _named = SeedReport(self.seed);
        let mut broken = Vec::new();
        for (key, executions) in KEYS.iter().zip(self.executions) {
            let of_key = || self.observed.iter().chain(&self.last).filter(|it| it.key == *key);
            let ends: BTreeSet<_> = of_key().filter_map(Observed::end).collect();
            if ends.len() != 1 {
                broken.push(format!("{key} has the results {ends:?}"));
            }
            if ends.iter().any(|end| end != UNKNOWN && !end.ends_with(backend::END)) {
                broken.push(format!("half an answer to {key} counts as whole: {ends:?}"));
            }
            if executions > 1 && !self.releases {
                broken.push(format!("{key} was executed {executions} times"));
            }
            if self.releases && ends.contains(UNKNOWN) {
                broken.push(format!("{key} is unknown where it should be free"));
            }
        }
        for observed in self.observed.iter().filter(|it| !it.is_expected()) {
            broken.push(format!("an answer that means nothing here: {observed:?}"));
        }
        for last in self.last.iter().filter(|it| !it.is_kept()) {
            broken.push(format!("no answer was kept: {last:?}"));
        }
        if self.drained_within > DRAIN_MAX {
            broken.push(format!("ending took {:?}", self.drained_within));
        }
        let broken = broken.join("\n");
        assert!(broken.is_empty(), "{broken}\n{}", self.describe());
        self.observed.iter().map(Observed::word).collect()
    }

    fn describe(&self) -> String {
        let lines = self.observed.iter().chain(&self.last).map(|it| {
            let answer = it.end().unwrap_or_else(|| it.word());
            format!("{:>6} ms  {} {}  {answer}\n", it.after.as_millis(), it.client, it.key)
        });
        let lines: String = lines.collect();
        format!("seed {}, executions {:?}\n{lines}", self.seed, self.executions)
    }
}

impl Observed {
    /// Returns the final result of the operation, if this observation is final.
    fn end(&self) -> Option<String> {
        let reply = self.answer.as_ref().ok()?;
        if reply.status == StatusCode::CREATED {
            return Some(String::from_utf8_lossy(&reply.body).into_owned());
        }
        reply.code().filter(|code| code == UNKNOWN)
    }

    fn word(&self) -> String {
        match &self.answer {
            Err(error) => error.clone(),
            Ok(reply) if reply.is_replay() => "replayed".to_owned(),
            Ok(reply) => reply.code().unwrap_or_else(|| reply.status.as_u16().to_string()),
        }
    }

    /// Returns whether it is no response, a final one, or a temporary refusal.
    fn is_expected(&self) -> bool {
        let Ok(reply) = &self.answer else { return true };
        let code = reply.code();
        let is_open = match code.as_deref() {
            Some(code) => PASSING.contains(&code),
            // The service's own.
            None => reply.status == StatusCode::SERVICE_UNAVAILABLE,
        };
        is_open || self.end().is_some()
    }

    /// Returns whether it came from a record.
    fn is_kept(&self) -> bool {
        let replay = self.answer.as_ref().is_ok_and(Reply::is_replay);
        replay || self.end().is_some_and(|end| end == UNKNOWN)
    }
}

/// Requests one key after the other until its result is final, and sometimes disconnects.
async fn ask(client: usize, mut random: Random, observed: impl Fn(Observed)) {
    for key in KEYS {
        sleep(random.millis(0..1500)).await;
        loop {
            let patience =
                if random.one_in(4) { random.millis(20..600) } else { Duration::from_secs(6) };
            let answer = caller::post(random.pick(&GATEWAYS), key, patience).await;
            let after = sim_elapsed().unwrap_or_default();
            let answer = answer.map_err(|error| error.kind().to_string());
            let it = Observed { after, client, key, answer };
            let is_over = it.end().is_some();
            observed(it);
            if is_over {
                break;
            }
            sleep(random.millis(20..500)).await;
        }
    }
}

/// Cuts and repairs links for a while, and leaves all of them repaired.
fn disturb(cluster: &mut Cluster, random: &mut Random) {
    let until = cluster.network.elapsed() + DISTURBED;
    while cluster.network.elapsed() < until {
        cluster.pass(random.millis(20..400));
        let links: Vec<_> = (0..=random.below(3)).map(|_| disturb_link(cluster, random)).collect();
        if random.one_in(4) {
            cluster.network.bounce(SERVICE);
        }
        cluster.pass(random.millis(20..3500));
        for (from, to) in &links {
            // Delivers what was held, too.
            cluster.network.release(from.as_str(), to.as_str());
        }
    }
}

fn disturb_link(cluster: &Cluster, random: &mut Random) -> (String, String) {
    let gateway = random.pick(&GATEWAYS).to_owned();
    let (from, to) = match random.below(4) {
        0 => (name(random.below(CLIENTS)), gateway),
        1 => (gateway, name(random.below(CLIENTS))),
        2 => (SERVICE.to_owned(), gateway),
        _ => (gateway, SERVICE.to_owned()),
    };
    match random.below(3) {
        0 => cluster.network.partition(from.as_str(), to.as_str()),
        1 => cluster.network.partition_oneway(from.as_str(), to.as_str()),
        _ => cluster.network.hold(from.as_str(), to.as_str()),
    }
    (from, to)
}

/// Requests all keys from both gateways once every execution has ended.
fn audit(cluster: &mut Cluster) -> Vec<Observed> {
    cluster.pass(SETTLED);
    let mut last = Vec::new();
    for key in KEYS {
        for gateway in GATEWAYS {
            let call = cluster.post(gateway, key);
            let answer = cluster.answer(&call).map_err(|error| error.to_string());
            last.push(Observed { after: cluster.network.elapsed(), client: CLIENTS, key, answer });
        }
    }
    last
}

fn random_behavior(random: &mut Random) -> Behavior {
    let pause = random.millis(1..1200);
    match random.below(10) {
        0 => Behavior::Decline,
        1 => Behavior::Disconnect(pause),
        2 => Behavior::Truncate(pause),
        _ => Behavior::Answer(pause),
    }
}

/// Returns the seeds from the environment, or the default ones.
fn seeds() -> Range<u64> {
    let Ok(chosen) = env::var(CHOSEN) else { return 0..SEEDS };
    match chosen.split_once("..") {
        Some((first, end)) => first.parse().unwrap()..end.parse().unwrap(),
        None => chosen.parse().map(|seed| seed..seed + 1).unwrap(),
    }
}

fn name(client: usize) -> String {
    format!("client-{client}")
}

/// Prints the seed if the run panics.
struct SeedReport(u64);

impl Drop for SeedReport {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("{CHOSEN}={} repeats it", self.0);
        }
    }
}

const CHOSEN: &str = "SIMULATION_SEEDS";
const SEEDS: u64 = 100;
const CLIENTS: usize = 4;
const KEYS: [&str; 3] = ["k1", "k2", "k3"];
const DISTURBED: Duration = Duration::from_secs(6);
/// Longer than any execution.
const SETTLED: Duration = Duration::from_secs(5);
const DRAIN_MAX: Duration = Duration::from_secs(5);
const UNKNOWN: &str = "outcome-unknown";
/// Every kind of observation; the seeds together must produce each.
const WORDS: [&str; 9] = [
    "201",
    "503",
    "connection refused",
    "in-progress",
    "replayed",
    "timed out",
    "upstream-failed",
    "upstream-timeout",
    "upstream-unreachable",
];
/// The codes of temporary refusals.
const PASSING: [&str; 5] =
    ["in-progress", "upstream-unreachable", "upstream-busy", "upstream-failed", "upstream-timeout"];
