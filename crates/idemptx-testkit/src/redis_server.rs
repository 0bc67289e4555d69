//! Redis servers.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{ChildProcess, PATIENCE, ReservedPort, Signal, released_program, server_directory};

/// A `redis-server` with its own port, socket and directory, killed when dropped.
#[derive(Debug)]
pub struct RedisServer {
    program: PathBuf,
    process: ChildProcess,
    port: ReservedPort,
    directory: TempDir,
    is_running: bool,
}

impl RedisServer {
    /// Starts a server with these lines of configuration and waits until it answers.
    ///
    /// It listens on a free port of the loopback address and on a socket, and keeps an append-only
    /// file that is written at every command.
    pub fn start(configuration: &[&str]) -> Self {
        Self::start_in(server_directory(), configuration)
    }

    /// Does the same with a `valkey-server`, which knows commands that Redis got later or never.
    pub fn start_valkey(configuration: &[&str]) -> Self {
        let program = released_program("valkey-server");
        Self::start_program(program, server_directory(), configuration)
    }

    /// Does the same in a directory that exists already, for configurations that name files in it.
    pub fn start_in(directory: TempDir, configuration: &[&str]) -> Self {
        Self::start_program("redis-server".into(), directory, configuration)
    }

    fn start_program(program: PathBuf, directory: TempDir, configuration: &[&str]) -> Self {
        let port = ReservedPort::reserve();
        let mut file = File::create(directory.path().join("redis.conf")).unwrap();
        writeln!(file, "bind 127.0.0.1\nport {}\ndaemonize no", port.number()).unwrap();
        writeln!(file, "dir {0}\nunixsocket {0}/redis.sock", directory.path().display()).unwrap();
        writeln!(file, "appendonly yes\nappendfsync always\nsave \"\"\nloglevel warning").unwrap();
        configuration.iter().for_each(|line| writeln!(file, "{line}").unwrap());
        let process = spawn(&program, directory.path());
        let mut server = Self { program, process, port, directory, is_running: true };
        server.wait_until_ready();
        server
    }

    /// Returns its URL.
    pub fn url(&self) -> String {
        format!("redis://{}", self.port.address())
    }

    /// Returns its URL for a store that a busy machine does not lead to give up.
    pub fn patient_url(&self) -> String {
        format!("{}?{PATIENCE}", self.url())
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Returns the path of its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    /// Opens a plain connection, independent of any store.
    pub fn connection(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    /// Changes a setting.
    pub fn configure(&self, name: &str, value: &str) {
        redis::cmd("CONFIG").arg("SET").arg(name).arg(value).exec(&mut self.connection()).unwrap();
    }

    /// Returns the number of connections it has accepted.
    pub fn connections(&self) -> u64 {
        let stats: redis::InfoDict =
            redis::cmd("INFO").arg("stats").query(&mut self.connection()).unwrap();
        stats.get("total_connections_received").unwrap()
    }

    /// Returns the number of reads from its clients.
    pub fn reads(&self) -> u64 {
        let stats: redis::InfoDict =
            redis::cmd("INFO").arg("stats").query(&mut self.connection()).unwrap();
        stats.get("total_reads_processed").unwrap()
    }

    /// Returns the number of calls of a command, by clients and scripts.
    pub fn calls(&self, command: &str) -> u64 {
        let stats: String =
            redis::cmd("INFO").arg("commandstats").query(&mut self.connection()).unwrap();
        let prefix = format!("cmdstat_{command}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(prefix.as_str()));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }

    /// Returns true unless it was killed.
    pub fn is_running(&self) -> bool {
        self.is_running
    }

    /// Kills it, as a crash does.
    pub fn kill(&mut self) {
        self.is_running = false;
        assert_eq!(self.process.kill().signal(), Some(9));
    }

    /// Starts it again on the same files.
    pub fn restart(&mut self) {
        self.process = spawn(&self.program, self.directory.path());
        self.is_running = true;
        self.wait_until_ready();
    }

    /// Returns true if it follows a primary.
    pub fn is_replica(&self) -> bool {
        let info: redis::InfoDict =
            redis::cmd("INFO").arg("replication").query(&mut self.connection()).unwrap();
        info.get::<String>("role").as_deref() == Some("slave")
    }

    /// Closes the connections of its replicas.
    pub fn cut_replicas(&self) {
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("TYPE").arg("REPLICA").exec(&mut self.connection()).unwrap();
    }

    /// Breaks the connections of all clients.
    pub fn cut_clients(&self) {
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("TYPE").arg("NORMAL").exec(&mut self.connection()).unwrap();
    }

    /// Freezes its process.
    pub fn pause(&self) {
        self.process.signal(Signal::STOP);
    }

    /// Continues its process after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.process.signal(Signal::CONT);
    }

    fn wait_until_ready(&mut self) {
        let socket = format!("redis+unix://{}", self.socket().display());
        let client = redis::Client::open(socket).unwrap();
        let deadline = Instant::now() + START_MAX;
        loop {
            let pong = client
                .get_connection()
                .and_then(|mut connection| redis::cmd("PING").query::<String>(&mut connection));
            match pong {
                Ok(_) => return,
                // A server that demands a password is ready as well.
                Err(error) if error.code() == Some("NOAUTH") => return,
                Err(error) => assert!(Instant::now() < deadline, "redis-server: {error}"),
            }
            let exited = self.process.exit_status();
            assert!(exited.is_none(), "redis-server exited with {exited:?}");
            // A foreign process announces its readiness only by accepting connections.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn spawn(program: &Path, directory: &Path) -> ChildProcess {
    ChildProcess::spawn(
        Command::new(program).arg(directory.join("redis.conf")).stdout(Stdio::null()),
        "`make test` installs it",
    )
}

const START_MAX: Duration = Duration::from_secs(20);
