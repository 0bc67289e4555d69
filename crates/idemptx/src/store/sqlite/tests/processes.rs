//! Processes that share a file.
//!
//! They are this test executable, started again to play a part in one of its tests.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::crashes;
use super::*;

#[tokio::test]
async fn of_eight_processes_one_is_granted_each_claim() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let parts: Vec<_> = (0..PROCESSES)
        .map(|n| Part::new("contend").on(&path).told(&n.to_string()).start())
        .collect();
    let mut owners: HashMap<String, usize> = HashMap::new();
    for part in parts {
        let (lines, status) = part.finish();
        assert!(status, "{lines:?}");
        let granted = lines.iter().filter_map(|line| line.strip_prefix("granted "));
        granted.for_each(|key| *owners.entry(key.to_owned()).or_default() += 1);
    }
    assert_eq!(owners.len() as u64, CONTENDED);
    assert!(owners.values().all(|owners| *owners == 1), "{owners:?}");
}

#[test]
fn processes_that_write_at_the_same_time_all_get_their_turns() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let mut parts: Vec<_> =
        (0..4).map(|n| Part::new("churn").on(&path).told(&n.to_string()).start()).collect();
    parts.iter_mut().for_each(|part| drop(part.next_line()));
    let steps = AtomicUsize::new(0);
    let shares: Vec<usize> = std::thread::scope(|scope| {
        let steps = &steps;
        let listen = move |part: Running| {
            let Running { mut child, lines, .. } = part;
            let is_running = |_: &_| steps.fetch_add(1, Ordering::Relaxed) < STEPS_SHARED;
            let share = lines.take_while(is_running).count();
            child.kill().unwrap();
            child.wait().unwrap();
            share
        };
        let listeners: Vec<_> =
            parts.into_iter().map(|part| scope.spawn(move || listen(part))).collect();
        listeners.into_iter().map(|listener| listener.join().unwrap()).collect()
    });
    let least = STEPS_SHARED / shares.len() / 10;
    assert!(shares.iter().all(|share| *share > least), "{shares:?}");
}

#[tokio::test]
async fn whoever_waits_is_woken_by_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let mut part = Part::new("hold").on(&path).start();
    assert_eq!(part.next_line(), "claimed");
    let store = store(&path);
    let settled = store.watch(&id(1)).await.unwrap();
    let released = store.watch(&id(2)).await.unwrap();
    part.tell("settle");
    settled.await;
    assert_eq!(settled_payload(&store, id(1)).await.unwrap(), "from another process");
    part.tell("release");
    released.await;
    assert_eq!(store.lookup(&id(2)).await.unwrap(), None);
    assert!(part.finish().1);
}

#[test]
fn a_file_that_may_not_be_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    drop(store(&path));
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(folder.path(), 0o755);
    mode(&folder.path().join("it.db-turn"), 0o666);
    mode(&path, 0o444);
    let (lines, _) = Part::new("open").on(&path).by_nobody(folder.path()).start().finish();
    let refusal = lines.iter().find_map(|line| line.strip_prefix("refused ")).unwrap();
    assert!(refusal.contains("may not write") && refusal.contains("it.db"), "{refusal}");
    // Not even the lock beside it.
    mode(&folder.path().join("it.db-turn"), 0o400);
    mode(&path, 0o400);
    let (lines, _) = Part::new("open").on(&path).by_nobody(folder.path()).start().finish();
    let refusal = lines.iter().find_map(|line| line.strip_prefix("refused ")).unwrap();
    assert!(refusal.contains("ermission denied") && refusal.contains("it.db"), "{refusal}");
}

/// Runs as a child of a test that started this executable; does nothing when run as a test.
#[tokio::test]
async fn a_process_plays_its_part() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let path = PathBuf::from(std::env::var(PATH).unwrap());
    let told = std::env::var(TOLD).unwrap_or_default();
    match role.as_str() {
        "churn" => crashes::churn(&path, told.parse().unwrap()).await,
        "shrink" => crashes::shrink(&path, told.parse().unwrap()).await,
        "contend" => contend(&path, told.parse().unwrap()).await,
        "hold" => hold(&path).await,
        "fill" => crashes::fill(&path).await,
        "open" => match SqliteStore::open(&path) {
            Ok(_) => say("opened"),
            Err(error) => say(&format!("refused {error}")),
        },
        other => panic!("no part {other}"),
    }
}

/// Claims what the others claim, too.
async fn contend(path: &Path, process: u64) {
    let store = store(path);
    for key in 0..CONTENDED {
        let request = request((process << 32) | key, HOUR, HOUR);
        if let Claim::Granted(_) = store.claim(&id(key), &request).await.unwrap() {
            say(&format!("granted {key}"));
        }
    }
}

/// Claims, and ends the claims on command.
async fn hold(path: &Path) {
    let store = store(path);
    let leases = [
        granted(&store, id(1), &request(1, HOUR, HOUR)).await,
        granted(&store, id(2), &request(2, HOUR, HOUR)).await,
    ];
    say("claimed");
    for line in std::io::stdin().lines() {
        match line.unwrap().as_str() {
            "settle" => {
                store.settle(&leases[0], &done("from another process", HOUR)).await.unwrap();
            }
            _ => store.release(&leases[1]).await.unwrap(),
        }
    }
}

pub(super) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever listens may have what it wanted.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A process to be started.
pub(super) struct Part {
    role: &'static str,
    path: PathBuf,
    variables: Vec<(String, String)>,
    before: Vec<String>,
    nobody: Option<PathBuf>,
}

impl Part {
    pub(super) fn new(role: &'static str) -> Self {
        let (variables, before) = (Vec::new(), Vec::new());
        Self { role, path: PathBuf::new(), variables, before, nobody: None }
    }

    pub(super) fn on(mut self, path: &Path) -> Self {
        self.path = path.to_owned();
        self
    }

    pub(super) fn told(self, text: &str) -> Self {
        self.with(TOLD, text)
    }

    pub(super) fn with(mut self, variable: &str, value: &str) -> Self {
        self.variables.push((variable.to_owned(), value.to_owned()));
        self
    }

    /// Lets another program start it.
    pub(super) fn through(mut self, before: &[&str]) -> Self {
        self.before = before.iter().map(ToString::to_string).collect();
        self
    }

    /// Starts it without the rights of the superuser, from a copy that anybody can reach.
    pub(super) fn by_nobody(mut self, folder: &Path) -> Self {
        let copy = folder.join("executable");
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        self.nobody = Some(copy);
        self
    }

    pub(super) fn start(self) -> Running {
        let executable = self.nobody.clone().unwrap_or(std::env::current_exe().unwrap());
        let mut words = self.before;
        words.push(executable.to_str().unwrap().to_owned());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(["--exact", "--nocapture", ENTRY])
            .env(ROLE, self.role)
            .env(PATH, &self.path)
            .envs(self.variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let is_superuser = fs::metadata("/proc/self")
            .is_ok_and(|process| std::os::unix::fs::MetadataExt::uid(&process) == 0);
        if self.nobody.is_some() && is_superuser {
            command.uid(NOBODY);
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let input = child.stdin.take().unwrap();
        Running { child, lines, input }
    }
}

/// A process that was started.
pub(super) struct Running {
    pub(super) child: Child,
    pub(super) lines: Lines<BufReader<ChildStdout>>,
    input: ChildStdin,
}

impl Running {
    /// The next thing it says, and not the test runner in it.
    pub(super) fn next_line(&mut self) -> String {
        let is_said = |line: &String| !line.is_empty() && !line.starts_with("running ");
        self.lines.by_ref().map(Result::unwrap).find(is_said).unwrap()
    }

    pub(super) fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// Everything else it says until it ends, and whether it ended well.
    pub(super) fn finish(self) -> (Vec<String>, bool) {
        let Self { mut child, lines, input } = self;
        drop(input);
        let lines = lines.map(Result::unwrap).collect();
        (lines, child.wait().unwrap().success())
    }
}

const PROCESSES: u64 = 8;
const STEPS_SHARED: usize = 20_000;
const CONTENDED: u64 = 300;
const NOBODY: u32 = 65_534;
const ENTRY: &str = "store::sqlite::tests::processes::a_process_plays_its_part";
const ROLE: &str = "IDEMPTX_TEST_ROLE";
const PATH: &str = "IDEMPTX_TEST_FILE";
const TOLD: &str = "IDEMPTX_TEST_TOLD";
