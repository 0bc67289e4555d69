//! The gateway as users run it: the program, in a process of its own.
#![allow(dead_code, reason = "no file of tests uses all of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// `idemptx serve`, killed when dropped.
#[derive(Debug)]
pub(crate) struct Gateway {
    process: Child,
    address: SocketAddr,
    directory: TempDir,
}

impl Gateway {
    /// Starts it in front of an upstream, with records in memory.
    ///
    /// `extra` is put into the configuration: whole tables.
    pub(crate) fn start(upstream: SocketAddr, extra: &str) -> Self {
        Self::configured(&configuration(upstream, extra))
    }

    /// Starts it with a configuration file; `@dir` in it is a directory of its own.
    pub(crate) fn configured(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = text.replace("@dir", directory.path().to_str().unwrap());
        std::fs::write(directory.path().join("gateway.toml"), text).unwrap();
        Self::spawn(directory)
    }

    fn spawn(directory: TempDir) -> Self {
        let log = File::options().create(true).append(true).open(directory.path().join("log"));
        let mut process = Command::new(env!("CARGO_BIN_EXE_idemptx"))
            .args(["serve", "--config"])
            .arg(directory.path().join("gateway.toml"))
            .stdout(Stdio::piped())
            .stderr(log.unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://");
        let address = address.unwrap_or_else(|| {
            let log = std::fs::read_to_string(directory.path().join("log"));
            unreachable!("it does not listen: {line:?} {log:?}")
        });
        Self { process, address: address.parse().unwrap(), directory }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap()
    }

    /// Waits until it has logged this so often.
    pub(crate) fn logged(&self, text: &str, times: usize) {
        let began = Instant::now();
        while self.log().matches(text).count() < times {
            assert!(began.elapsed() < PATIENCE, "{text:?} was not logged: {}", self.log());
            // Nothing else tells of a line in another process's file.
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Writes another configuration and has it read.
    pub(crate) fn reload(&self, text: &str) {
        std::fs::write(self.directory.path().join("gateway.toml"), text).unwrap();
        self.signal("HUP");
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Ends it without warning.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.process.wait().unwrap()
    }

    /// Whether it runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A file with one upstream behind one listener.
pub(crate) fn configuration(upstream: SocketAddr, extra: &str) -> String {
    format!(
        "[[listener]]\naddress = '127.0.0.1:0'\n\
         [[upstream]]\nname = 'app'\nurls = ['http://{upstream}']\n{extra}\n"
    )
}

const PATIENCE: Duration = Duration::from_secs(60);
