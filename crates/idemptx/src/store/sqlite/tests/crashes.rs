//! Processes that are killed, or find no room.
//!
//! They are this test executable, too, as in [`processes`](super::processes).

use std::process::Command;
use std::sync::Arc;

use super::super::failpoint;
use super::processes::{Part, Running, say};
use super::*;
use idemptx_testkit::SmallDisk;

#[tokio::test]
async fn no_acknowledged_step_is_lost_when_the_process_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let mut audit = Audit::default();
    for round in 0..25 {
        let mut part = Part::new("churn").on(&path).told(&round.to_string()).start();
        // It is killed in the middle of whatever it does after so many steps.
        for line in part.lines.by_ref().take(1 + 37 * round % 400) {
            audit.hear(&line.unwrap());
        }
        part.child.kill().unwrap();
        audit.hear_the_rest(part);
        audit.look_into(&path).await;
    }
    assert!(audit.steps() > 1000, "{}", audit.steps());
}

/// At every point of a transaction, of a sweep in it, and of copying the log into the database.
#[tokio::test]
async fn no_acknowledged_step_is_lost_when_the_process_is_killed_around_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let mut audit = Audit::default();
    let points = ["begun", "swept", "performed", "committed", "copying", "copied"];
    for (round, point) in points.repeat(4).into_iter().enumerate() {
        let copies = point.starts_with("cop");
        // In the last rounds it is killed in the middle of copying.
        let later = if point == "copying" { 150 * (round / points.len()) } else { 0 };
        let times = if copies { 1 } else { 1 + round * 3 };
        let part = Part::new("churn").on(&path).told(&(1000 + round).to_string());
        audit.hear_the_rest(part.killed_at(point, times, later));
        audit.look_into(&path).await;
    }
    assert!(audit.steps() > 100, "{}", audit.steps());
}

#[tokio::test]
async fn a_process_that_is_killed_while_it_gives_room_back_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    for times in [1, 3] {
        let mut audit = Audit::default();
        let part = Part::new("shrink").on(&path).told(&times.to_string());
        audit.hear_the_rest(part.killed_at("given back", times, 0));
        assert_eq!(audit.steps(), 100);
        audit.look_into(&path).await;
    }
}

#[tokio::test]
async fn a_process_that_is_killed_while_it_makes_the_file_leaves_one_that_can_be_used() {
    for point in ["created", "set up"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("it.db");
        let part = Part::new("churn").on(&path).told("1").killed_at(point, 1, 0);
        let (lines, status) = part.finish();
        assert!(!status && !lines.iter().any(|line| line.starts_with("claimed")), "{lines:?}");
        Audit::default().look_into(&path).await;
    }
}

#[tokio::test]
async fn a_file_that_cannot_grow_loses_nothing_and_serves_again_once_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    // Two mebibytes, in blocks of 512 bytes; the signal for it is ignored.
    let limit = "trap '' XFSZ; ulimit -S -f 4096; exec \"$0\" \"$@\"";
    let mut part = Part::new("fill").on(&path).through(&["sh", "-c", limit]).start();
    let mut audit = Audit::default();
    let refusal = audit.hear_until_refused(&mut part);
    assert!(refusal.contains("Unavailable") && refusal.contains("it.db"), "{refusal}");
    let process = part.child.id().to_string();
    let raised = Command::new("prlimit").args(["--fsize=unlimited:", "--pid", &process]).status();
    assert!(raised.unwrap().success());
    audit.hear_that_it_goes_on(part);
    audit.look_into(&path).await;
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_is_served_from_again_once_it_has_room() {
    let Some(disk) = SmallDisk::mount(3) else { return };
    let path = disk.path().join("it.db");
    let mut part = Part::new("fill").on(&path).start();
    let mut audit = Audit::default();
    let refusal = audit.hear_until_refused(&mut part);
    assert!(refusal.contains("no room left on the disk"), "{refusal}");
    // Whoever opens it now reads what is there, or is told why it cannot be opened.
    match SqliteStore::open(&path) {
        Ok(store) => assert_eq!(settled_payload(&store, id(0)).await.unwrap(), payload(0)),
        Err(error) => assert!(error.to_string().contains("no room left"), "{error}"),
    }
    disk.grow(16);
    audit.hear_that_it_goes_on(part);
    audit.look_into(&path).await;
}

/// Claims, settles some of the claims, and lets some expire, until it is killed.
pub(super) async fn churn(path: &Path, round: u64) {
    let store = Arc::new(store(path));
    let tasks = (0..16).map(|task| {
        let store = store.clone();
        async move {
            for n in 0.. {
                let n = (round << 40) | (task << 32) | n;
                let lease = granted(&store, id(n), &request(n, HOUR, HOUR)).await;
                say(&format!("claimed {n}"));
                match n % 4 {
                    0 => {
                        store.settle(&lease, &done(payload(n), HOUR)).await.unwrap();
                        say(&format!("settled {n}"));
                    }
                    1 => {
                        let mut brief = done(payload(n), MILLISECOND);
                        brief.key_retain = HOUR;
                        store.settle(&lease, &brief).await.unwrap();
                        say(&format!("spent {n}"));
                    }
                    2 => {
                        let expiring = request(!n, MILLISECOND, MILLISECOND);
                        granted(&store, id(!n), &expiring).await;
                    }
                    _ => store.maintain(),
                }
            }
        }
    });
    let tasks: Vec<_> = tasks.map(tokio::spawn).collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// Keeps a hundred records, lets many large ones expire, and tends until it is killed.
pub(super) async fn shrink(path: &Path, round: u64) {
    let store = Arc::new(store(path));
    let large = (0..16).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..200 {
                let n = (round << 40) | (task << 32) | n;
                let lease = granted(&store, id(n), &request(n, HOUR, HOUR)).await;
                store.settle(&lease, &done(vec![b'x'; 4000], 2 * SECOND)).await.unwrap();
            }
        })
    });
    for large in large.collect::<Vec<_>>() {
        large.await.unwrap();
    }
    for n in 0..100 {
        let n = (round << 48) | n;
        granted(&store, id(n), &request(n, HOUR, HOUR)).await;
        say(&format!("claimed {n}"));
    }
    loop {
        store.maintain();
        tokio::time::sleep(10 * MILLISECOND).await;
    }
}

/// Settles until there is no room.
pub(super) async fn fill(path: &Path) {
    let store = store(path);
    let step = async |n| {
        let Claim::Granted(lease) = store.claim(&id(n), &request(n, HOUR, HOUR)).await? else {
            panic!("somebody else is here");
        };
        say(&format!("claimed {n}"));
        store.settle(&lease, &done(payload(n), HOUR)).await?;
        say(&format!("settled {n}"));
        Ok::<_, StoreError>(())
    };
    for n in 0.. {
        if let Err(error) = step(n).await {
            say(&format!("refused {:?} {}", error.kind(), told(&error)));
            // Until somebody has made room.
            std::io::stdin().read_line(&mut String::new()).unwrap();
            step(n).await.unwrap();
            return say("served again");
        }
    }
}

impl Part {
    /// Starts it, to be killed when it comes to a point so often, or so many microseconds later.
    fn killed_at(self, point: &str, times: usize, later: usize) -> Running {
        self.with(failpoint::VARIABLE, &format!("{point},{times},{later}")).start()
    }
}

/// The steps that were acknowledged to a process, to be compared with the file.
#[derive(Default)]
struct Audit {
    claimed: Vec<u64>,
    settled: Vec<u64>,
    spent: Vec<u64>,
}

impl Audit {
    fn hear(&mut self, line: &str) {
        let number = |text: &str| text.parse().ok();
        if let Some(n) = line.strip_prefix("claimed ").and_then(number) {
            self.claimed.push(n);
        } else if let Some(n) = line.strip_prefix("settled ").and_then(number) {
            self.settled.push(n);
        } else if let Some(n) = line.strip_prefix("spent ").and_then(number) {
            self.spent.push(n);
        }
    }

    /// Records the steps that a process printed before it was killed.
    fn hear_the_rest(&mut self, part: Running) {
        let (lines, status) = part.finish();
        assert!(!status, "it was not killed");
        lines.iter().for_each(|line| self.hear(line));
    }

    /// Records the steps until there is no room for another, and returns the refusal.
    fn hear_until_refused(&mut self, part: &mut Running) -> String {
        loop {
            let line = part.next_line();
            self.hear(&line);
            if let Some(refusal) = line.strip_prefix("refused ") {
                return refusal.to_owned();
            }
        }
    }

    /// Reports that there is room, and records the steps that follow.
    fn hear_that_it_goes_on(&mut self, mut part: Running) {
        part.tell("there is room");
        let (lines, status) = part.finish();
        assert!(status && lines.iter().any(|line| line == "served again"), "{lines:?}");
        lines.iter().for_each(|line| self.hear(line));
        assert!(self.steps() > 50, "{}", self.steps());
    }

    fn steps(&self) -> usize {
        self.claimed.len() + self.settled.len() + self.spent.len()
    }

    async fn look_into(&self, path: &Path) {
        let store = store(path);
        for n in &self.claimed {
            // Somebody else is not granted what may have been executed.
            let rival = request(!*n, HOUR, HOUR);
            let token = match store.claim(&id(*n), &rival).await.unwrap() {
                Claim::Found(RecordSnapshot::Held(holder)) => holder.token,
                Claim::Found(RecordSnapshot::Settled(record)) => record.token,
                other => panic!("the claim {n} is lost: {other:?}"),
            };
            assert_eq!(token, request(*n, HOUR, HOUR).token);
        }
        for n in &self.settled {
            assert_eq!(settled_payload(&store, id(*n)).await.unwrap(), payload(*n), "{n}");
        }
        for n in &self.spent {
            match store.lookup(&id(*n)).await.unwrap() {
                Some(RecordSnapshot::Settled(record)) if record.state == State::ResponseExpired => {
                }
                other => panic!("the key {n} is forgotten with its response: {other:?}"),
            }
        }
        let report = store.check().await.unwrap();
        assert!(!report.is_fatal(), "{report:?}");
        // It serves on.
        let n = (0xA0D1 << 48) | self.steps() as u64;
        granted(&store, id(n), &request(n, HOUR, HOUR)).await;
    }
}

fn payload(n: u64) -> Vec<u8> {
    n.to_be_bytes().repeat(50)
}

const SECOND: Duration = Duration::from_secs(1);
