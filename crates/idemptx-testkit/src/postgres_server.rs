//! A PostgreSQL server of one's own, for one test.
#![allow(dead_code, reason = "no file of tests uses all of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

#[allow(clippy::duplicate_mod, reason = "the file of each server stands for itself")]
#[path = "reserved_port.rs"]
mod reserved_port;

pub(crate) use reserved_port::ReservedPort;

/// A `postgres` with its own port, socket and directory; it ends with this value.
#[derive(Debug)]
pub(crate) struct PostgresServer {
    directory: PathBuf,
    port: ReservedPort,
    process: Child,
}

impl PostgresServer {
    /// Starts a server with these lines of configuration and waits until it answers.
    ///
    /// It listens on a free port of the loopback address and on a socket; the superuser
    /// `postgres` needs no password. It flushes what it commits, as servers do by default.
    pub(crate) fn start(configuration: &[&str]) -> Self {
        Self::start_in(fresh_directory(), configuration)
    }

    /// The same in a directory that exists already, for configurations that name files in it.
    pub(crate) fn start_in(directory: PathBuf, configuration: &[&str]) -> Self {
        initialize(&directory);
        let port = ReservedPort::new();
        let mut lines = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\n\
             shared_buffers = 16MB\nmax_wal_size = 256MB\nautovacuum_naptime = 1s\n\
             logging_collector = off\nlog_min_messages = fatal\n",
            port.number(),
            directory.display()
        );
        configuration.iter().for_each(|line| lines.extend([*line, "\n"]));
        let file = directory.join("data/postgresql.conf");
        let defaults = fs::read_to_string(&file).unwrap();
        fs::write(&file, defaults + &lines).unwrap();
        give_away(&directory);
        let process = spawn(&directory);
        let mut server = Self { directory, port, process };
        server.wait_until_ready();
        server
    }

    /// A standby that follows it, made from a copy, and that it waits for with every commit.
    pub(crate) async fn standby(&self) -> Self {
        let (directory, port) = (fresh_directory(), ReservedPort::new());
        give_away(&directory);
        let copied = command("pg_basebackup")
            .args([
                "--no-sync",
                "--checkpoint=fast",
                "--write-recovery-conf",
                "--username=postgres",
            ])
            .args(["--host=127.0.0.1", "--port", &self.port().to_string(), "--pgdata"])
            .arg(directory.join("data"))
            .current_dir(&directory)
            .output()
            .expect(MISSING);
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let file = directory.join("data/postgresql.conf");
        let copied = fs::read_to_string(&file).unwrap();
        let own = format!(
            "port = {}\nunix_socket_directories = '{}'\nsynchronous_standby_names = ''\n",
            port.number(),
            directory.display()
        );
        fs::write(&file, copied + &own).unwrap();
        let process = spawn(&directory);
        let mut standby = Self { directory, port, process };
        standby.wait_until_ready();
        self.configure("synchronous_standby_names", "*").await;
        standby
    }

    /// Makes a standby a primary.
    pub(crate) async fn promote(&self) {
        self.session().await.query("SELECT pg_promote()", &[]).await.unwrap();
    }

    /// Its URL, for the superuser.
    pub(crate) fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Its URL, for another role.
    pub(crate) fn url_of(&self, role: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/postgres", self.port())
    }

    /// Its URL through the socket.
    pub(crate) fn socket_url(&self) -> String {
        let directory = self.directory.display();
        format!("postgres://postgres@/postgres?host={directory}&port={}", self.port())
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    /// Where it keeps everything.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes a database beside the one it comes with, and tells its URL.
    pub(crate) async fn create_database(&self, name: &str) -> String {
        self.session().await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port())
    }

    /// A session, to look at it from outside the store.
    pub(crate) async fn session(&self) -> tokio_postgres::Client {
        self.try_session().await.unwrap()
    }

    /// Changes its configuration.
    pub(crate) async fn configure(&self, name: &str, value: &str) {
        let session = self.session().await;
        session.batch_execute(&format!("ALTER SYSTEM SET {name} = '{value}'")).await.unwrap();
        session.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        // It is told of the change before it answers the next session, but not before this answer.
        let deadline = Instant::now() + START_MAX;
        loop {
            let row = self.session().await.query_one(&format!("SHOW {name}"), &[]).await.unwrap();
            if row.get::<_, String>(0) == value {
                return;
            }
            assert!(Instant::now() < deadline, "{name} is not {value}");
        }
    }

    /// Ends every session but the one that asks.
    pub(crate) async fn cut_sessions(&self) {
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        self.session().await.query(cut, &[]).await.unwrap();
    }

    /// Ends all of its processes without warning, as a crash of the host does.
    pub(crate) fn kill(&mut self) {
        // It makes no others while it is told who there is.
        signal("STOP", self.process.id());
        let children = children_of(self.process.id());
        self.process.kill().unwrap();
        for child in &children {
            signal("KILL", *child);
        }
        self.process.wait().unwrap();
        let deadline = Instant::now() + START_MAX;
        while children.iter().any(|child| is_alive(*child)) {
            assert!(Instant::now() < deadline, "a process of the server did not end");
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Ends it as `pg_ctl stop -m fast` does: its sessions are told.
    pub(crate) fn stop(&mut self) {
        signal("INT", self.process.id());
        self.process.wait().unwrap();
    }

    /// Ends it as `pg_ctl stop -m immediate` does: it has to recover when it starts again.
    pub(crate) fn stop_at_once(&mut self) {
        signal("QUIT", self.process.id());
        self.process.wait().unwrap();
    }

    /// Freezes all of its processes.
    pub(crate) fn pause(&self) {
        // The one that makes others comes first.
        self.signal_all("STOP");
    }

    /// Lets them go on.
    pub(crate) fn resume(&self) {
        self.signal_all("CONT");
    }

    /// Starts it again with what it has on disk.
    pub(crate) fn restart(&mut self) {
        self.process = spawn(&self.directory);
        self.wait_until_ready();
    }

    fn signal_all(&self, name: &str) {
        signal(name, self.process.id());
        children_of(self.process.id()).iter().for_each(|child| signal(name, *child));
    }

    fn wait_until_ready(&mut self) {
        let url = self.socket_url();
        let deadline = Instant::now() + START_MAX;
        loop {
            let url = url.clone();
            // A thread, because the caller may be a test within a runtime.
            let asked = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(async { connect(&url).await.map(drop) })
            });
            let Err(error) = asked.join().unwrap() else { return };
            assert!(Instant::now() < deadline, "postgres: {error:?}");
            let end = self.process.try_wait().unwrap();
            let log = fs::read_to_string(self.directory.join("server.log")).unwrap();
            assert!(end.is_none(), "postgres ended with {end:?}: {log}");
            // Nothing tells of a foreign process's readiness but its answer.
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    async fn try_session(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        connect(&self.socket_url()).await
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            // A test may have ended while it was frozen.
            self.resume();
            // At once, and without leaving processes or shared memory behind.
            signal("QUIT", self.process.id());
            let _ = self.process.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A directory that nobody else has.
pub(crate) fn fresh_directory() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("idemptx-postgres-{}-{count}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

async fn connect(url: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn initialize(directory: &Path) {
    give_away(directory);
    let made = command("initdb")
        .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"])
        .args(["--no-sync", "--no-instructions", "--pgdata"])
        .arg(directory.join("data"))
        .current_dir(directory)
        .output()
        .expect(MISSING);
    assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
}

fn spawn(directory: &Path) -> Child {
    command("postgres")
        .arg("-D")
        .arg(directory.join("data"))
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(directory.join("server.log")).unwrap())
        .spawn()
        .expect(MISSING)
}

/// A program of the server, which refuses to be run by root.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(path_of(program));
    if let Some((user, group)) = stand_in() {
        command.uid(user).gid(group);
    }
    command
}

/// Debian keeps the programs of each version in a directory of its own, and those for servers off
/// the path of users.
fn path_of(program: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut programs: Vec<_> = versions
        .filter_map(|version| {
            let number: u32 = version.file_name().to_str()?.parse().ok()?;
            let path = version.path().join("bin").join(program);
            path.exists().then_some((number, path))
        })
        .collect();
    programs.sort();
    let of_root = Path::new("/usr/sbin").join(program);
    let of_users = || if of_root.exists() { of_root } else { program.into() };
    programs.pop().map_or_else(of_users, |(_, path)| path)
}

/// Whom root lets the server run as.
fn stand_in() -> Option<(u32, u32)> {
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| {
        use std::os::unix::fs::MetadataExt;
        own.uid() == 0
    });
    is_root.then(|| {
        let users = fs::read_to_string("/etc/passwd").unwrap();
        let entry = |name: &str| {
            users.lines().find_map(|line| {
                let fields: Vec<_> = line.split(':').collect();
                let [found, _, user, group, ..] = fields[..] else { return None };
                (found == name).then(|| Some((user.parse().ok()?, group.parse().ok()?)))?
            })
        };
        entry("postgres").or_else(|| entry("nobody")).expect("somebody who is not root")
    })
}

/// Lets the stand-in have a directory with what is in it.
pub(crate) fn give_away(directory: &Path) {
    let Some((user, group)) = stand_in() else { return };
    chown(directory, Some(user), Some(group)).unwrap();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        chown(&path, Some(user), Some(group)).unwrap();
    }
}

fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| parent_of(*id) == Some(parent)).collect()
}

fn parent_of(process: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, rest) = status.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
}

fn is_alive(process: u32) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|status| !status.contains(") Z "))
}

fn signal(name: &str, process: u32) {
    let id = process.to_string();
    // It may have ended by itself meanwhile.
    let _ = Command::new("kill").args(["-s", name, &id]).stderr(Stdio::null()).status();
}

const MISSING: &str =
    "these tests need PostgreSQL's initdb and postgres; `make test` installs them";
pub(crate) const START_MAX: Duration = Duration::from_secs(60);
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(10);
