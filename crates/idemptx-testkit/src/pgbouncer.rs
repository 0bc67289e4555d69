//! A pgbouncer of one's own, in transaction mode, for one test.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Instant;

use crate::postgres_server::{
    LOOK_AGAIN, PostgresServer, ReservedPort, START_MAX, command, fresh_directory, give_away,
};

/// A pooler in front of a server; it ends with this value.
#[derive(Debug)]
pub(crate) struct Pooler {
    directory: PathBuf,
    port: ReservedPort,
    process: Child,
}

impl Pooler {
    /// Starts one with less sessions of the server than its clients have, so that they share them.
    pub(crate) fn start(server: &PostgresServer) -> Self {
        let (directory, port) = (fresh_directory(), ReservedPort::new());
        let file = directory.join("pgbouncer.ini");
        let configuration = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = {SESSIONS}\n",
            server.port(),
            port.number(),
        );
        fs::write(&file, configuration).unwrap();
        give_away(&directory);
        let log = File::create(directory.join("pooler.log")).unwrap();
        let process = command("pgbouncer")
            .arg(&file)
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("these tests need pgbouncer; `make test` installs it");
        let mut pooler = Self { directory, port, process };
        pooler.wait_until_ready();
        pooler
    }

    /// The URL of the server's database, through it.
    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port.number())
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + START_MAX;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port.number())).is_err() {
            let end = self.process.try_wait().unwrap();
            let log = fs::read_to_string(self.directory.join("pooler.log")).unwrap();
            assert!(end.is_none() && Instant::now() < deadline, "pgbouncer, {end:?}: {log}");
            // Nothing tells of a foreign process's readiness but its answer.
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

const SESSIONS: usize = 3;
