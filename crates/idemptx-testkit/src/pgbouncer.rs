//! Connection poolers in front of PostgreSQL.

use std::fs::{self, File};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Instant;

use tempfile::TempDir;

use crate::postgres_server::{POLL_INTERVAL, PostgresServer, START_MAX};
use crate::unprivileged::{command, hand_over};
use crate::{ChildProcess, ReservedPort, server_directory};

/// A `pgbouncer` in transaction mode, killed when dropped.
#[derive(Debug)]
pub struct PgBouncer {
    process: ChildProcess,
    port: ReservedPort,
    directory: TempDir,
}

impl PgBouncer {
    /// Starts one with fewer server sessions than its clients use, so that they share them.
    pub fn start(server: &PostgresServer) -> Self {
        let (directory, port) = (server_directory(), ReservedPort::reserve());
        let file = directory.path().join("pgbouncer.ini");
        let configuration = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = {SERVER_SESSIONS}\n",
            server.port(),
            port.number(),
        );
        fs::write(&file, configuration).unwrap();
        hand_over(directory.path());
        let log = File::create(directory.path().join(LOG)).unwrap();
        let process = ChildProcess::spawn(
            command("pgbouncer")
                .arg(&file)
                .current_dir(&directory)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log),
            "`make test` installs it",
        );
        let mut pooler = Self { process, port, directory };
        pooler.wait_until_ready();
        pooler
    }

    /// Returns the URL of the server's database through the pooler.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.port.address())
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + START_MAX;
        while TcpStream::connect(self.port.address()).is_err() {
            let exited = self.process.exit_status();
            let log = fs::read_to_string(self.directory.path().join(LOG)).unwrap();
            assert!(exited.is_none() && Instant::now() < deadline, "pgbouncer, {exited:?}: {log}");
            // A foreign process announces its readiness only by accepting connections.
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

const SERVER_SESSIONS: usize = 3;
const LOG: &str = "pooler.log";
