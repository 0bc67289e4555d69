//! PostgreSQL servers.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::child_process::send_signal;
use crate::unprivileged::{command, hand_over};
use crate::{ChildProcess, PATIENCE, ReservedPort, Signal, server_directory};

/// A `postgres` with its own port, socket and directory, killed when dropped.
#[derive(Debug)]
pub struct PostgresServer {
    process: ChildProcess,
    port: ReservedPort,
    directory: TempDir,
}

impl PostgresServer {
    /// Starts a server with these lines of configuration and waits until it answers.
    ///
    /// It listens on a free port of the loopback address and on a socket; the superuser
    /// `postgres` needs no password. It flushes what it commits, as servers do by default.
    pub fn start(configuration: &[&str]) -> Self {
        Self::start_in(server_directory(), configuration)
    }

    /// Does the same in a directory that exists already, for configurations that name files in it.
    pub fn start_in(directory: TempDir, configuration: &[&str]) -> Self {
        initialize(directory.path());
        let port = ReservedPort::reserve();
        let mut lines = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\n\
             shared_buffers = 16MB\nmax_wal_size = 256MB\nautovacuum_naptime = 1s\n\
             logging_collector = off\nlog_min_messages = fatal\n",
            port.number(),
            directory.path().display()
        );
        configuration.iter().for_each(|line| lines.extend([*line, "\n"]));
        let file = directory.path().join("data/postgresql.conf");
        let defaults = fs::read_to_string(&file).unwrap();
        fs::write(&file, defaults + &lines).unwrap();
        hand_over(directory.path());
        let process = spawn(directory.path());
        let mut server = Self { process, port, directory };
        server.wait_until_ready();
        server
    }

    /// Starts a standby from a copy; from then on every commit waits for it.
    pub async fn standby(&self) -> Self {
        let standby = self.asynchronous_standby();
        self.configure("synchronous_standby_names", "*").await;
        standby
    }

    /// Starts a standby from a copy, for which no commit waits.
    pub fn asynchronous_standby(&self) -> Self {
        let (directory, port) = (server_directory(), ReservedPort::reserve());
        hand_over(directory.path());
        self.copy_to(directory.path(), port.number());
        let process = spawn(directory.path());
        let mut standby = Self { process, port, directory };
        standby.wait_until_ready();
        standby
    }

    /// Starts this server, which has ended, again as a standby of another, with its data and at its
    /// own port.
    pub fn follow(&mut self, primary: &Self) {
        fs::remove_dir_all(self.directory.path().join("data")).unwrap();
        primary.copy_to(self.directory.path(), self.port.number());
        self.restart();
    }

    /// Ends all streams to standbys, which then have to connect again.
    pub async fn cut_standbys(&self) {
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication";
        self.session().await.query(cut, &[]).await.unwrap();
    }

    /// Copies the data for a standby that has this directory and port.
    fn copy_to(&self, directory: &Path, port: u16) {
        let copied = command("pg_basebackup")
            .args([
                "--no-sync",
                "--checkpoint=fast",
                "--write-recovery-conf",
                "--username=postgres",
            ])
            .args(["--host=127.0.0.1", "--port", &self.port().to_string(), "--pgdata"])
            .arg(directory.join("data"))
            .current_dir(directory)
            .output()
            .expect("`make test` installs PostgreSQL");
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let file = directory.join("data/postgresql.conf");
        let copied = fs::read_to_string(&file).unwrap();
        let own = format!(
            "port = {}\nunix_socket_directories = '{}'\nsynchronous_standby_names = ''\n",
            port,
            directory.display()
        );
        fs::write(&file, copied + &own).unwrap();
    }

    /// Makes this standby the primary.
    pub async fn promote(&self) {
        self.session().await.query("SELECT pg_promote()", &[]).await.unwrap();
    }

    /// Returns its URL for the superuser.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Returns its URL for a store that a busy machine does not lead to give up.
    pub fn patient_url(&self) -> String {
        format!("{}?{PATIENCE}", self.url())
    }

    /// Returns its URL for another role.
    pub fn url_of(&self, role: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/postgres", self.port())
    }

    /// Returns its URL through the socket.
    pub fn socket_url(&self) -> String {
        let directory = self.directory.path().display();
        format!("postgres://postgres@/postgres?host={directory}&port={}", self.port())
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Returns the directory with its data, socket and log.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Creates another database and returns its URL.
    pub async fn create_database(&self, name: &str) -> String {
        self.session().await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port())
    }

    /// Opens a session as the superuser, independent of any store.
    pub async fn session(&self) -> tokio_postgres::Client {
        self.try_session().await.unwrap()
    }

    /// Changes a setting and waits until new sessions have it.
    pub async fn configure(&self, name: &str, value: &str) {
        let session = self.session().await;
        session.batch_execute(&format!("ALTER SYSTEM SET {name} = '{value}'")).await.unwrap();
        session.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        // The server reloads before the next session starts, but not before this reply.
        let deadline = Instant::now() + START_MAX;
        loop {
            let row = self.session().await.query_one(&format!("SHOW {name}"), &[]).await.unwrap();
            if row.get::<_, String>(0) == value {
                return;
            }
            assert!(Instant::now() < deadline, "{name} is not {value}");
        }
    }

    /// Terminates all other sessions.
    pub async fn cut_sessions(&self) {
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        self.session().await.query(cut, &[]).await.unwrap();
    }

    /// Terminates all sessions of a role.
    pub async fn cut_sessions_of(&self, role: &str) {
        let cut =
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = $1";
        self.session().await.query(cut, &[&role]).await.unwrap();
    }

    /// Kills all of its processes, as a crash of the host does.
    pub fn kill(&mut self) {
        // A stopped server starts no more children while they are listed.
        self.process.signal(Signal::STOP);
        let children = children_of(self.process.id());
        self.process.kill();
        for child in &children {
            send_signal(*child, Signal::KILL);
        }
        let deadline = Instant::now() + START_MAX;
        while children.iter().any(|child| is_alive(*child)) {
            assert!(Instant::now() < deadline, "a process of the server did not end");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Stops it as `pg_ctl stop -m fast` does: its sessions get an error.
    pub fn stop(&mut self) {
        self.process.signal(Signal::INT);
        self.process.wait();
    }

    /// Stops it as `pg_ctl stop -m immediate` does: it recovers at the next start.
    pub fn stop_immediately(&mut self) {
        self.process.signal(Signal::QUIT);
        self.process.wait();
    }

    /// Freezes all of its processes.
    pub fn pause(&self) {
        // The postmaster comes first, so that it starts no more children.
        self.signal_all(Signal::STOP);
    }

    /// Continues its processes after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.signal_all(Signal::CONT);
    }

    /// Starts it again on the same data.
    pub fn restart(&mut self) {
        self.process = spawn(self.directory.path());
        self.wait_until_ready();
    }

    fn signal_all(&self, signal: Signal) {
        self.process.signal(signal);
        children_of(self.process.id()).iter().for_each(|child| send_signal(*child, signal));
    }

    fn wait_until_ready(&mut self) {
        let url = self.socket_url();
        let deadline = Instant::now() + START_MAX;
        loop {
            let url = url.clone();
            // A thread, because the caller may be a test within a runtime.
            let connected = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(async { connect(&url).await.map(drop) })
            });
            let Err(error) = connected.join().unwrap() else { return };
            assert!(Instant::now() < deadline, "postgres: {error:?}");
            let exited = self.process.exit_status();
            let log = fs::read_to_string(self.directory.path().join(LOG)).unwrap();
            assert!(exited.is_none(), "postgres exited with {exited:?}: {log}");
            // A foreign process announces its readiness only by accepting connections.
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    async fn try_session(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        connect(&self.socket_url()).await
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if self.process.exit_status().is_none() {
            // The test may have ended while the server was paused.
            self.resume();
            // Unlike a kill, this leaves neither processes nor shared memory.
            self.process.signal(Signal::QUIT);
            self.process.wait();
        }
    }
}

async fn connect(url: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn initialize(directory: &Path) {
    hand_over(directory);
    let made = command("initdb")
        .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"])
        .args(["--no-sync", "--no-instructions", "--pgdata"])
        .arg(directory.join("data"))
        .current_dir(directory)
        .output()
        .expect("`make test` installs PostgreSQL");
    assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
}

fn spawn(directory: &Path) -> ChildProcess {
    ChildProcess::spawn(
        command("postgres")
            .arg("-D")
            .arg(directory.join("data"))
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(directory.join(LOG)).unwrap()),
        "`make test` installs PostgreSQL",
    )
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

const LOG: &str = "server.log";
pub(crate) const START_MAX: Duration = Duration::from_secs(60);
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(10);
