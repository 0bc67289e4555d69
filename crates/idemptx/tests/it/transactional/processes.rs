//! Processes that take orders until they are killed.
//!
//! They are this test executable, started again to play a part in one of its tests.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use super::shop::App;

/// Keys that are to be answered, and what the answers were.
#[derive(Debug)]
pub(crate) struct Orders {
    open: Mutex<VecDeque<String>>,
    answers: Mutex<BTreeMap<String, String>>,
    /// The numbers of kills left, and done.
    kills: Mutex<(u32, u32)>,
}

impl Orders {
    /// Each key twice, so that two processes may have it at the same time.
    pub(crate) fn of(keys: usize, kills: u32) -> Self {
        let open = (0..keys).flat_map(|key| [format!("key-{key}"), format!("key-{key}")]);
        Self {
            open: Mutex::new(open.collect()),
            answers: Mutex::default(),
            kills: Mutex::new((kills, 0)),
        }
    }

    pub(crate) fn answers(&self) -> BTreeMap<String, String> {
        self.answers.lock().unwrap().clone()
    }

    pub(crate) fn kills(&self) -> u32 {
        self.kills.lock().unwrap().1
    }

    /// Has processes work at them until each has its answers, and kills them all the time.
    pub(crate) fn take(&self, part: Part<'_>) {
        std::thread::scope(|scope| {
            for seed in 1..=WORKERS {
                scope.spawn(move || {
                    let mut chance = Chance(seed * 0x9E37_79B9);
                    while self.live(part.start(), &mut chance) {}
                });
            }
        });
    }

    /// A process's life; whether there may be something left to do.
    fn live(&self, mut process: Process, chance: &mut Chance) -> bool {
        let mut given = Vec::new();
        let mut lives_for = chance.below(4);
        for _ in 0..AT_ONCE {
            self.give(&mut process, &mut given);
        }
        while !given.is_empty() {
            if lives_for == 0 && self.may_freeze() && chance.below(FREEZES_ONE_IN) == 0 {
                process.freeze();
                lives_for = 1;
            } else if lives_for == 0 && self.may_kill() {
                std::thread::sleep(Duration::from_micros(chance.below(MICROS_MAX)));
                for line in process.kill() {
                    self.hear(&line, &mut given);
                }
                // Whoever comes next takes over what nobody has answered.
                given.drain(..).for_each(|key| self.open.lock().unwrap().push_front(key));
                return true;
            }
            let line = process.next_line().expect("it ended by itself");
            self.hear(&line, &mut given);
            lives_for = lives_for.saturating_sub(1);
            self.give(&mut process, &mut given);
        }
        process.finish();
        !self.open.lock().unwrap().is_empty()
    }

    fn give(&self, process: &mut Process, given: &mut Vec<String>) {
        if let Some(key) = self.open.lock().unwrap().pop_front() {
            process.tell(&key);
            given.push(key);
        }
    }

    /// Notes an answer, which must be the one that the key has always had.
    fn hear(&self, line: &str, given: &mut Vec<String>) {
        let Some((key, answer)) = line.split_once(' ') else { panic!("{line}") };
        let position = given.iter().position(|it| it == key).expect(line);
        given.swap_remove(position);
        let mut answers = self.answers.lock().unwrap();
        let first = answers.entry(key.to_owned()).or_insert_with(|| answer.to_owned());
        assert_eq!(first, answer, "{key} has two answers");
    }

    fn may_freeze(&self) -> bool {
        self.kills.lock().unwrap().0 > 0
    }

    fn may_kill(&self) -> bool {
        let mut kills = self.kills.lock().unwrap();
        let (left, done) = *kills;
        *kills = (left.saturating_sub(1), done + u32::from(left > 0));
        left > 0
    }
}

/// Numbers that are spread out; the moments they lead to are never the same again.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// The role of a child process, and its target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) role: &'a str,
    pub(crate) target: &'a str,
}

impl Part<'_> {
    pub(crate) fn start(self) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", ENTRY])
            .env(ROLE, self.role)
            .env(TARGET, self.target)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let input = child.stdin.take().unwrap();
        Process { child, lines, input }
    }

    /// The part that this process is to play; none in a test run.
    pub(crate) fn of_this_process() -> Option<(String, String)> {
        Some((std::env::var(ROLE).ok()?, std::env::var(TARGET).unwrap()))
    }
}

/// A process that was started.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    input: ChildStdin,
}

impl Process {
    pub(crate) fn tell(&mut self, line: &str) {
        // One that has been killed does not listen.
        let _ = writeln!(self.input, "{line}");
    }

    /// The next thing it says, and not the test runner in it.
    pub(crate) fn next_line(&mut self) -> Option<String> {
        self.lines.by_ref().map(Result::unwrap).find_map(|line| said(&line))
    }

    /// Lets it stand still for longer than its leases last.
    fn freeze(&self) {
        let signal = |name: &str| {
            let id = self.child.id().to_string();
            assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
        };
        signal("STOP");
        std::thread::sleep(LEASE + LEASE / 2);
        signal("CONT");
    }

    /// Ends it without warning; what it has said before.
    pub(crate) fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.lines.map_while(Result::ok).filter_map(|line| said(&line)).collect()
    }

    pub(crate) fn finish(self) {
        let Self { mut child, lines, input } = self;
        drop(input);
        lines.for_each(drop);
        assert!(child.wait().unwrap().success());
    }
}

/// Returns the text after the mark, if the line is complete.
fn said(line: &str) -> Option<String> {
    let said = line.split_once(MARK)?.1.strip_suffix(END)?;
    Some(said.to_owned())
}

pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever listens may have what it wanted.
    let _ = out.write_all(format!("{MARK}{text}{END}\n").as_bytes()).and_then(|()| out.flush());
}

/// Answers every key that it reads, as clients do: again and again, until there is an answer.
pub(crate) async fn answer_all(app: App) {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        std::io::stdin().lines().map_while(Result::ok).for_each(|key| tell.send(key).unwrap());
    });
    let mut clients = tokio::task::JoinSet::new();
    while let Some(key) = told.recv().await {
        clients.spawn(answer(app.clone(), key));
    }
    clients.join_all().await;
}

async fn answer(app: App, key: String) {
    loop {
        let reply = app.post(&key, "201").await;
        match reply.status.as_u16() {
            201 => return say(&format!("{key} {}", reply.text())),
            409 | 500 | 503 => tokio::time::sleep(Duration::from_millis(20)).await,
            _ => return say(&format!("{key} refused {reply:?}")),
        }
    }
}

/// The test that plays the parts.
const ENTRY: &str = "transactional::killed::a_process_plays_its_part";
const ROLE: &str = "IDEMPTX_TRANSACTIONAL_ROLE";
const TARGET: &str = "IDEMPTX_TRANSACTIONAL_TARGET";
const MARK: &str = "> ";
const END: &str = ".";
pub(crate) const WORKERS: u64 = 8;
/// The number of keys in progress in a process.
const AT_ONCE: usize = 3;
/// The longest time from a reply to the kill: about the duration of an order.
const MICROS_MAX: u64 = 8_000;
const FREEZES_ONE_IN: u64 = 16;
/// The lease, after which a killed process' operations are taken over.
pub(crate) const LEASE: Duration = Duration::from_secs(1);
