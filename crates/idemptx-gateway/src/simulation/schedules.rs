//! Many simulations, each made of a number: who cuts what and when, who asks what and where, and
//! what the service does.
//!
//! `SIMULATION_SEEDS=17 cargo test -p idemptx-gateway simulation` plays a single one and tells what
//! its clients heard; `SIMULATION_SEEDS=0..10000` plays more of them than there is time for always.
//!
//! A seed decides everything but the order in which `tokio::select!` looks at what is ready at the
//! same time: of 400 stories told twice, one differed, in a few milliseconds.

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

use super::client::{self, Reply};
use super::random::Random;
use super::service::{self, Conduct, Service};
use super::world::{GATEWAYS, SERVICE, World, settings};

#[test]
fn whatever_is_cut_no_two_successes_differ_and_every_client_gets_an_answer() {
    let seeds = seeds();
    if seeds.end - seeds.start == 1 {
        println!("{}", Story::of(seeds.start).told());
    }
    let (threads, next) =
        (thread::available_parallelism().map_or(1, Into::into), Mutex::new(seeds));
    let heard = thread::scope(|scope| {
        let play = || {
            let stories = iter::from_fn(|| next.lock().unwrap().next()).map(Story::of);
            stories.flat_map(|story| story.check()).collect::<BTreeSet<_>>()
        };
        let playing: Vec<_> = (0..threads).map(|_| scope.spawn(play)).collect();
        playing.into_iter().flat_map(|it| it.join().unwrap()).collect::<BTreeSet<_>>()
    });
    if env::var_os(CHOSEN).is_none() {
        let missing: Vec<_> = WORDS.iter().filter(|word| !heard.contains(**word)).collect();
        assert!(missing.is_empty(), "nobody has heard {missing:?}, which makes the rest easy");
    }
}

/// What was set up, what the clients heard, and what was executed.
struct Story {
    seed: u64,
    /// What an operation whose answer was lost leaves behind.
    releases: bool,
    heard: Vec<Heard>,
    /// What each gateway says in the end of each key, on a calm network.
    last: Vec<Heard>,
    executions: [u32; KEYS.len()],
    drained_within: Duration,
}

/// What somebody was told, or not, of a key.
#[derive(Clone, Debug)]
struct Heard {
    after: Duration,
    client: usize,
    key: &'static str,
    answer: Result<Reply, String>,
}

impl Story {
    fn of(seed: u64) -> Self {
        let _named = Named(seed);
        let mut random = Random::new(seed);
        let releases = random.one_in(2);
        let on_ambiguous = if releases { "release" } else { "unknown" };
        let wait_ms = random.pick(&[0, 3000]);
        let settings = settings(
            &format!("http2 = {}", random.one_in(3)),
            &format!("on_ambiguous = \"{on_ambiguous}\"\npolicy = {{ wait_ms = {wait_ms} }}"),
        );
        let latency_max = random.millis(1..60);
        let mut conduct = random.fork();
        let service = Service::new(move || conduct_of(&mut conduct));
        let mut world = World::new(seed, latency_max, &settings, service);

        let heard = Rc::<RefCell<Vec<Heard>>>::default();
        let asking = Rc::new(Cell::new(CLIENTS));
        for number in 0..CLIENTS {
            let (heard, asking, random) = (Rc::clone(&heard), Rc::clone(&asking), random.fork());
            world.network.client(name(number), async move {
                ask(number, random, |it| heard.borrow_mut().push(it)).await;
                asking.set(asking.get() - 1);
                Ok(())
            });
        }
        disturb(&mut world, &mut random);
        world.until(|_| asking.get() == 0);

        let heard = heard.take();
        let last = audit(&mut world);
        let began = world.network.elapsed();
        world.drain();
        let drained_within = world.network.elapsed() - began;
        let executions = KEYS.map(|key| world.service.executions(key));
        Self { seed, releases, heard, last, executions, drained_within }
    }

    /// Whether the promises were kept; and what the clients have heard, in a word each.
    fn check(&self) -> BTreeSet<String> {
        let _named = Named(self.seed);
        let mut broken = Vec::new();
        for (key, executions) in KEYS.iter().zip(self.executions) {
            let of_key = || self.heard.iter().chain(&self.last).filter(|it| it.key == *key);
            let ends: BTreeSet<_> = of_key().filter_map(Heard::end).collect();
            if ends.len() != 1 {
                broken.push(format!("{key} has ended as {ends:?}"));
            }
            if ends.iter().any(|end| end != UNKNOWN && !end.ends_with(service::END)) {
                broken.push(format!("half an answer to {key} counts as whole: {ends:?}"));
            }
            if executions > 1 && !self.releases {
                broken.push(format!("{key} was executed {executions} times"));
            }
            if self.releases && ends.contains(UNKNOWN) {
                broken.push(format!("{key} is unknown where it should be free"));
            }
        }
        for heard in self.heard.iter().filter(|it| !it.is_expected()) {
            broken.push(format!("an answer that means nothing here: {heard:?}"));
        }
        for last in self.last.iter().filter(|it| !it.is_kept()) {
            broken.push(format!("no answer was kept: {last:?}"));
        }
        if self.drained_within > DRAIN_MAX {
            broken.push(format!("ending took {:?}", self.drained_within));
        }
        let broken = broken.join("\n");
        assert!(broken.is_empty(), "{broken}\n{}", self.told());
        self.heard.iter().map(Heard::word).collect()
    }

    fn told(&self) -> String {
        let lines = self.heard.iter().chain(&self.last).map(|it| {
            let answer = it.end().unwrap_or_else(|| it.word());
            format!("{:>6} ms  {} {}  {answer}\n", it.after.as_millis(), it.client, it.key)
        });
        let lines: String = lines.collect();
        format!("seed {}, executions {:?}\n{lines}", self.seed, self.executions)
    }
}

impl Heard {
    /// What became of the operation, if that is what was told.
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

    /// No answer, an end, or that there is none yet.
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

    /// Whether it came out of a record.
    fn is_kept(&self) -> bool {
        let replay = self.answer.as_ref().is_ok_and(Reply::is_replay);
        replay || self.end().is_some_and(|end| end == UNKNOWN)
    }
}

/// Asks for one key after the other until its end is known, and sometimes leaves before.
async fn ask(client: usize, mut random: Random, heard: impl Fn(Heard)) {
    for key in KEYS {
        sleep(random.millis(0..1500)).await;
        loop {
            let patience =
                if random.one_in(4) { random.millis(20..600) } else { Duration::from_secs(6) };
            let answer = client::post(random.pick(&GATEWAYS), key, patience).await;
            let after = sim_elapsed().unwrap_or_default();
            let answer = answer.map_err(|error| error.kind().to_string());
            let it = Heard { after, client, key, answer };
            let is_over = it.end().is_some();
            heard(it);
            if is_over {
                break;
            }
            sleep(random.millis(20..500)).await;
        }
    }
}

/// Cuts links and mends them again, for a while; in the end all are as they were.
fn disturb(world: &mut World, random: &mut Random) {
    let until = world.network.elapsed() + DISTURBED;
    while world.network.elapsed() < until {
        world.pass(random.millis(20..400));
        let links: Vec<_> = (0..=random.below(3)).map(|_| disturb_link(world, random)).collect();
        if random.one_in(4) {
            world.network.bounce(SERVICE);
        }
        world.pass(random.millis(20..3500));
        for (from, to) in &links {
            // Delivers what was held, too.
            world.network.release(from.as_str(), to.as_str());
        }
    }
}

fn disturb_link(world: &World, random: &mut Random) -> (String, String) {
    let gateway = random.pick(&GATEWAYS).to_owned();
    let (from, to) = match random.below(4) {
        0 => (name(random.below(CLIENTS)), gateway),
        1 => (gateway, name(random.below(CLIENTS))),
        2 => (SERVICE.to_owned(), gateway),
        _ => (gateway, SERVICE.to_owned()),
    };
    match random.below(3) {
        0 => world.network.partition(from.as_str(), to.as_str()),
        1 => world.network.partition_oneway(from.as_str(), to.as_str()),
        _ => world.network.hold(from.as_str(), to.as_str()),
    }
    (from, to)
}

/// Asks both gateways about all keys, when all that ran has ended.
fn audit(world: &mut World) -> Vec<Heard> {
    world.pass(SETTLED);
    let mut last = Vec::new();
    for key in KEYS {
        for gateway in GATEWAYS {
            let call = world.post(gateway, key);
            let answer = world.answer(&call).map_err(|error| error.to_string());
            last.push(Heard { after: world.network.elapsed(), client: CLIENTS, key, answer });
        }
    }
    last
}

fn conduct_of(random: &mut Random) -> Conduct {
    let pause = random.millis(1..1200);
    match random.below(10) {
        0 => Conduct::Decline,
        1 => Conduct::Vanish(pause),
        2 => Conduct::BreakOff(pause),
        _ => Conduct::Answer(pause),
    }
}

/// Which seeds to play: those of the environment, if it has any.
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

/// Tells which seed it was, should anything panic.
struct Named(u64);

impl Drop for Named {
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
/// Longer than anything can run.
const SETTLED: Duration = Duration::from_secs(5);
const DRAIN_MAX: Duration = Duration::from_secs(5);
const UNKNOWN: &str = "outcome-unknown";
/// What is heard if enough goes wrong, and enough right.
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
/// What says that an end is not known yet.
const PASSING: [&str; 5] =
    ["in-progress", "upstream-unreachable", "upstream-busy", "upstream-failed", "upstream-timeout"];
