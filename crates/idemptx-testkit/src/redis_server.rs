//! A Redis server of one's own, for one test.
#![allow(dead_code, reason = "no file of tests uses all of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

#[allow(clippy::duplicate_mod, reason = "the file of each server stands for itself")]
#[path = "reserved_port.rs"]
mod reserved_port;

pub(crate) use reserved_port::ReservedPort;

/// A `redis-server` with its own port, socket and directory; it ends with this value.
#[derive(Debug)]
pub(crate) struct RedisServer {
    directory: PathBuf,
    port: ReservedPort,
    process: Child,
}

impl RedisServer {
    /// Starts a server with these lines of configuration and waits until it answers.
    ///
    /// It listens on a free port of the loopback address and on a socket, and keeps an append-only
    /// file that is written at every command.
    pub(crate) fn start(configuration: &[&str]) -> Self {
        let directory = fresh_directory();
        Self::start_in(directory, configuration)
    }

    /// The same in a directory that exists already, for configurations that name files in it.
    pub(crate) fn start_in(directory: PathBuf, configuration: &[&str]) -> Self {
        let port = ReservedPort::new();
        let mut file = File::create(directory.join("redis.conf")).unwrap();
        writeln!(file, "bind 127.0.0.1\nport {}\ndaemonize no", port.number()).unwrap();
        writeln!(file, "dir {0}\nunixsocket {0}/redis.sock", directory.display()).unwrap();
        writeln!(file, "appendonly yes\nappendfsync always\nsave \"\"\nloglevel warning").unwrap();
        configuration.iter().for_each(|line| writeln!(file, "{line}").unwrap());
        let process = spawn(&directory);
        let mut server = Self { directory, port, process };
        server.wait_until_ready();
        server
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.port.address())
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("redis.sock")
    }

    /// A plain connection, to look at it from outside the store.
    pub(crate) fn connection(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    /// Changes its configuration.
    pub(crate) fn configure(&self, name: &str, value: &str) {
        redis::cmd("CONFIG").arg("SET").arg(name).arg(value).exec(&mut self.connection()).unwrap();
    }

    /// How many connections it has accepted.
    pub(crate) fn connections(&self) -> u64 {
        let stats: redis::InfoDict =
            redis::cmd("INFO").arg("stats").query(&mut self.connection()).unwrap();
        stats.get("total_connections_received").unwrap()
    }

    /// How often it has read from a client.
    pub(crate) fn reads(&self) -> u64 {
        let stats: redis::InfoDict =
            redis::cmd("INFO").arg("stats").query(&mut self.connection()).unwrap();
        stats.get("total_reads_processed").unwrap()
    }

    /// How many commands of this name were called by clients and scripts.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let stats: String =
            redis::cmd("INFO").arg("commandstats").query(&mut self.connection()).unwrap();
        let prefix = format!("cmdstat_{command}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(prefix.as_str()));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }

    /// Ends it without warning, as a crash does.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        let status = self.process.wait().unwrap();
        assert_eq!(status.signal(), Some(9));
    }

    /// Starts it again with what it has on disk.
    pub(crate) fn restart(&mut self) {
        self.process = spawn(&self.directory);
        self.wait_until_ready();
    }

    /// Stops its process in the middle of whatever it does.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().unwrap();
        assert!(status.success());
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
                // A user without a password is refused, which is an answer too.
                Err(error) if error.code() == Some("NOAUTH") => return,
                Err(error) => assert!(Instant::now() < deadline, "redis-server: {error}"),
            }
            let end = self.process.try_wait().unwrap();
            assert!(end.is_none(), "redis-server ended with {end:?}");
            // Nothing tells of a foreign process's readiness but its answer.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A directory that nobody else has.
pub(crate) fn fresh_directory() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("idemptx-redis-{}-{count}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn spawn(directory: &Path) -> Child {
    Command::new("redis-server")
        .arg(directory.join("redis.conf"))
        .stdout(Stdio::null())
        .spawn()
        .expect("these tests need redis-server on the PATH; `make test` installs it")
}

const START_MAX: Duration = Duration::from_secs(20);
