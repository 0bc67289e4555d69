//! Redis servers behind sentinels.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{CertificateAuthority, ChildProcess, RedisServer, ReservedPort, server_directory};

/// A primary with replicas, and the sentinels that watch them, all killed when dropped.
#[derive(Debug)]
pub struct RedisSentinels {
    servers: Vec<RedisServer>,
    sentinels: Vec<Sentinel>,
    password: Option<String>,
    /// Encrypted ports of the servers, if there are any.
    encrypted: Vec<ReservedPort>,
}

#[derive(Debug)]
struct Sentinel {
    process: ChildProcess,
    port: ReservedPort,
    encrypted: Option<ReservedPort>,
    password: Option<String>,
    directory: TempDir,
}

impl RedisSentinels {
    /// The name of the service.
    pub const SERVICE: &str = "records";

    /// Starts a primary, its replicas and three sentinels, and waits until they know each other.
    ///
    /// The sentinels alone may demand a password.
    pub fn start(replicas: usize, password: Option<&str>) -> Self {
        Self::start_encrypted(replicas, password, None)
    }

    /// Does the same, with the certificates in a directory: everything but the requests of this
    /// type is encrypted.
    pub fn start_encrypted(
        replicas: usize,
        password: Option<&str>,
        certificates: Option<&Path>,
    ) -> Self {
        let count = if certificates.is_some() { 1 + replicas } else { 0 };
        let encrypted: Vec<_> = (0..count).map(|_| ReservedPort::reserve()).collect();
        let start = |index: usize, line: &str| {
            let tls = certificates.map(|certificates| {
                CertificateAuthority::redis_lines(certificates, encrypted[index].number())
            });
            let tls = tls.unwrap_or_default();
            RedisServer::start(&["repl-diskless-sync-delay 0", &tls, line])
        };
        let primary = start(0, "");
        let port = encrypted.first().map_or(primary.port(), ReservedPort::number);
        let replica_of = format!("replicaof 127.0.0.1 {port}");
        let others = (1..=replicas).map(|index| start(index, &replica_of));
        let servers: Vec<_> = [primary].into_iter().chain(others).collect();
        let sentinel = |_| Sentinel::start(port, password, certificates);
        let sentinels = (0..SENTINELS).map(sentinel).collect();
        let password = password.map(str::to_owned);
        let started = Self { servers, sentinels, password, encrypted };
        started.wait_until_followed();
        started
    }

    /// Returns the URL of a store.
    pub fn url(&self) -> String {
        let place = |sentinel: &Sentinel| {
            sentinel.encrypted.as_ref().unwrap_or(&sentinel.port).address().to_string()
        };
        let places = self.sentinels.iter().map(place).collect::<Vec<_>>().join(",");
        let scheme = if self.encrypted.is_empty() { "redis" } else { "rediss" };
        let password = self.password.as_ref();
        let password = password.map(|password| format!("?sentinel_password={password}"));
        format!("{scheme}+sentinel://{places}/{}{}", Self::SERVICE, password.unwrap_or_default())
    }

    /// Returns a server; the primary at first is 0.
    pub fn server(&self, index: usize) -> &RedisServer {
        &self.servers[index]
    }

    /// Returns a server, to kill it or to start it again.
    pub fn server_mut(&mut self, index: usize) -> &mut RedisServer {
        &mut self.servers[index]
    }

    /// Returns the index of the primary, as the first sentinel knows it.
    pub fn primary(&self) -> usize {
        let (_, port): (String, u16) = redis::cmd("SENTINEL")
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(Self::SERVICE)
            .query(&mut self.sentinels[0].connection())
            .unwrap();
        let encrypted = self.encrypted.iter().position(|encrypted| encrypted.number() == port);
        let plain = || self.servers.iter().position(|server| server.port() == port);
        encrypted.or_else(plain).unwrap()
    }

    /// Has the sentinels promote a replica, and waits until it is the primary.
    pub fn failover(&self) -> usize {
        let before = self.primary();
        let mut promotion = redis::cmd("SENTINEL");
        promotion.arg("FAILOVER").arg(Self::SERVICE);
        promotion.exec(&mut self.sentinels[0].connection()).unwrap();
        self.wait_until_promoted(before)
    }

    /// Waits until another server than this is the primary.
    pub fn wait_until_promoted(&self, before: usize) -> usize {
        self.wait_until("a replica is promoted", |it| {
            let now = it.primary();
            now != before && is_primary(&it.servers[now])
        });
        self.primary()
    }

    /// Waits until all running replicas follow the primary, and the sentinels know of all.
    pub fn wait_until_followed(&self) {
        let count = self.servers.len() - 1;
        self.wait_until("the replicas follow and the sentinels know it", |it| {
            let sentinels_know = it.sentinels.iter().all(|sentinel| {
                let state: std::collections::HashMap<String, String> = redis::cmd("SENTINEL")
                    .arg("MASTER")
                    .arg(Self::SERVICE)
                    .query(&mut sentinel.connection())
                    .unwrap();
                state["num-slaves"].parse() == Ok(count)
                    && state["num-other-sentinels"].parse() == Ok(SENTINELS - 1)
            });
            let followed = it.servers.iter().filter(|server| server.is_running()).all(|server| {
                replication(server).is_ok_and(|info| {
                    info.get::<String>("role").as_deref() == Some("master")
                        || info.get::<String>("master_link_status").as_deref() == Some("up")
                })
            });
            sentinels_know && followed
        });
    }

    fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
            // A foreign process announces such things only when it is asked.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Sentinel {
    fn start(primary: u16, password: Option<&str>, certificates: Option<&Path>) -> Self {
        let (directory, port) = (server_directory(), ReservedPort::reserve());
        let service = RedisSentinels::SERVICE;
        let path = directory.path().join("sentinel.conf");
        let mut file = File::create(&path).unwrap();
        writeln!(file, "bind 127.0.0.1\nport {}\ndaemonize no", port.number()).unwrap();
        writeln!(file, "dir {}\nloglevel warning", directory.path().display()).unwrap();
        writeln!(file, "sentinel monitor {service} 127.0.0.1 {primary} 2").unwrap();
        writeln!(file, "sentinel down-after-milliseconds {service} 500").unwrap();
        writeln!(file, "sentinel failover-timeout {service} 2000").unwrap();
        let encrypted = certificates.map(|certificates| {
            let encrypted = ReservedPort::reserve();
            let lines = CertificateAuthority::redis_lines(certificates, encrypted.number());
            writeln!(file, "{lines}").unwrap();
            encrypted
        });
        if let Some(password) = password {
            writeln!(file, "requirepass {password}\nsentinel sentinel-pass {password}").unwrap();
        }
        let process = spawn(&path);
        let password = password.map(str::to_owned);
        let mut sentinel = Self { process, port, encrypted, password, directory };
        sentinel.wait_until_ready();
        sentinel
    }

    fn connection(&self) -> redis::Connection {
        self.try_connection().unwrap()
    }

    fn try_connection(&self) -> redis::RedisResult<redis::Connection> {
        let password = self.password.as_ref().map(|password| format!(":{password}@"));
        let url = format!("redis://{}{}", password.unwrap_or_default(), self.port.address());
        redis::Client::open(url)?.get_connection()
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.try_connection() {
            assert!(Instant::now() < deadline, "sentinel: {error}");
            let exited = self.process.exit_status();
            assert!(exited.is_none(), "the sentinel exited with {exited:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A sentinel alone, which promotes nothing and says what it is told.
#[derive(Debug)]
pub struct LoneSentinel(Sentinel);

impl LoneSentinel {
    /// Starts one that names the server at a port as the primary, of a promotion with this number.
    pub fn naming(primary: u16, promotion: u64) -> Self {
        let mut started = Self(Sentinel::start(primary, None, None));
        started.name(primary, promotion);
        started
    }

    /// Has it name another server, or a later promotion, from now on.
    pub fn name(&mut self, primary: u16, promotion: u64) {
        let Sentinel { process, port, directory, .. } = &mut self.0;
        process.kill();
        let (path, service) = (directory.path().join("sentinel.conf"), RedisSentinels::SERVICE);
        let mut file = File::create(&path).unwrap();
        writeln!(file, "bind 127.0.0.1\nport {}\ndaemonize no", port.number()).unwrap();
        writeln!(file, "dir {}\nloglevel warning", directory.path().display()).unwrap();
        writeln!(file, "sentinel monitor {service} 127.0.0.1 {primary} 2").unwrap();
        writeln!(file, "sentinel config-epoch {service} {promotion}").unwrap();
        *process = spawn(&path);
        self.0.wait_until_ready();
    }

    /// Returns the URL of a store.
    pub fn url(&self) -> String {
        format!("redis+sentinel://{}/{}", self.0.port.address(), RedisSentinels::SERVICE)
    }
}

fn spawn(configuration: &Path) -> ChildProcess {
    ChildProcess::spawn(
        Command::new("redis-server").arg(configuration).arg("--sentinel").stdout(Stdio::null()),
        "`make test` installs it",
    )
}

fn is_primary(server: &RedisServer) -> bool {
    replication(server).is_ok_and(|info| info.get::<String>("role").as_deref() == Some("master"))
}

/// Returns what a server says, whose connections a sentinel closes as it gives it another role.
fn replication(server: &RedisServer) -> redis::RedisResult<redis::InfoDict> {
    let client = redis::Client::open(server.url())?;
    // A sentinel may name a server that is paused.
    let mut connection = client.get_connection_with_timeout(ANSWER_MAX)?;
    connection.set_read_timeout(Some(ANSWER_MAX))?;
    redis::cmd("INFO").arg("replication").query(&mut connection)
}

const SENTINELS: usize = 3;
const ANSWER_MAX: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);
