//! The program `idemptx serve` in a process, as users run it.

use std::fs::{self, File};
use std::io::{BufReader, Lines};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use idemptx_testkit::{ChildProcess, Signal};
use tempfile::TempDir;

/// A gateway in a process, killed when dropped.
#[derive(Debug)]
pub(crate) struct GatewayProcess {
    process: ChildProcess,
    output: Lines<BufReader<ChildStdout>>,
    /// `None` for a Unix socket.
    address: Option<SocketAddr>,
    directory: TempDir,
}

impl GatewayProcess {
    /// Starts it in front of an upstream, with records in memory and these further tables.
    pub(crate) fn start(upstream: SocketAddr, tables: &str) -> Self {
        Self::configured(&configuration(upstream, tables))
    }

    /// Starts it with a configuration file, in which `@dir` stands for its directory.
    pub(crate) fn configured(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = text.replace("@dir", directory.path().to_str().unwrap());
        fs::write(directory.path().join(CONFIGURATION), text).unwrap();
        let file = directory.path().join(CONFIGURATION);
        Self::serve_in(directory, &["--config", file.to_str().unwrap()], &[])
    }

    /// Starts it as the processor of an Envoy, with the configuration file in a directory.
    pub(crate) fn ext_proc(directory: TempDir, text: &str) -> Self {
        let file = directory.path().join(CONFIGURATION);
        fs::write(&file, text.replace("@dir", directory.path().to_str().unwrap())).unwrap();
        Self::run(Stdio::null(), directory, "ext-proc", &["--config", file.to_str().unwrap()], &[])
    }

    /// Kills it, and returns its directory for the next one.
    pub(crate) fn killed(mut self) -> TempDir {
        self.kill();
        self.directory
    }

    /// Starts it with these arguments.
    pub(crate) fn serve(arguments: &[&str]) -> Self {
        Self::serve_with(arguments, &[])
    }

    /// Starts it with these arguments and environment variables.
    pub(crate) fn serve_with(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::serve_in(tempfile::tempdir().unwrap(), arguments, variables)
    }

    /// Does the same, with its log in a directory that exists already.
    pub(crate) fn serve_in(
        directory: TempDir,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        Self::serve_on(Stdio::null(), directory, arguments, variables)
    }

    /// Starts one with this configuration, on a socket that it gets as its standard input.
    pub(crate) fn inheriting(socket: OwnedFd, text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(CONFIGURATION);
        fs::write(&file, text).unwrap();
        Self::serve_on(Stdio::from(socket), directory, &["--config", file.to_str().unwrap()], &[])
    }

    fn serve_on(
        input: Stdio,
        directory: TempDir,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        Self::run(input, directory, "serve", arguments, variables)
    }

    fn run(
        input: Stdio,
        directory: TempDir,
        command: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let mut process = ChildProcess::spawn(
            Command::new(env!("CARGO_BIN_EXE_idemptx"))
                .arg(command)
                .args(arguments)
                .env("NO_COLOR", "1")
                .envs(variables.iter().copied())
                .stdin(input)
                .stdout(Stdio::piped())
                .stderr(File::create(directory.path().join(LOG)).unwrap()),
            "Cargo builds it",
        );
        let mut output = process.output_lines();
        let line = output.next().map(Result::unwrap).unwrap_or_default();
        let Some(url) = line.strip_prefix("listening on ") else {
            let log = fs::read_to_string(directory.path().join(LOG)).unwrap();
            panic!("it does not listen: {line:?} {log}");
        };
        let address = url.split_once("://").map(|(_, address)| address.parse().unwrap());
        Self { process, output, address, directory }
    }

    /// Returns the address of its first listener.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address.expect("it listens on TCP")
    }

    /// Returns the address of its admin listener, which it prints second.
    pub(crate) fn admin_address(&mut self) -> SocketAddr {
        let line = self.output.next().map(Result::unwrap).unwrap_or_default();
        line.strip_prefix("operators on http://").unwrap().parse().unwrap()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    /// Returns the directory of its log, and of its configuration if it was written here.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns its log up to now.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory().join(LOG)).unwrap()
    }

    /// Waits until a text was logged this many times.
    pub(crate) fn logged(&self, text: &str, times: usize) {
        let started = Instant::now();
        while self.log().matches(text).count() < times {
            assert!(started.elapsed() < WAIT_MAX, "{text:?} was not logged: {}", self.log());
            // A file announces no changes.
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits, without blocking the runtime, until a text was logged, and returns the log.
    pub(crate) async fn logs(&self, text: &str) -> String {
        let started = Instant::now();
        loop {
            let log = self.log();
            if log.contains(text) {
                return log;
            }
            assert!(started.elapsed() < WAIT_MAX, "{text:?} was not logged: {log}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Writes another configuration file and makes it reload.
    pub(crate) fn reload(&self, text: &str) {
        fs::write(self.directory().join(CONFIGURATION), text).unwrap();
        self.signal(Signal::HUP);
    }

    /// Returns the id of its process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Waits until it exits.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Waits, without blocking the runtime, until it exits.
    pub(crate) async fn exited(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.process.exit_status() {
                return status;
            }
            assert!(started.elapsed() < WAIT_MAX, "it does not exit: {}", self.log());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.exit_status().is_none()
    }
}

/// Returns a configuration file with one listener, one upstream and these further tables.
pub(crate) fn configuration(upstream: SocketAddr, tables: &str) -> String {
    format!(
        "[[listener]]\naddress = '127.0.0.1:0'\n\
         [[upstream]]\nname = 'app'\nurls = ['http://{upstream}']\n{tables}\n"
    )
}

/// Limits of a policy with which a request waits for a store on a slow machine.
pub(crate) const PATIENT: &str = "store_timeout_ms = { claim = 20000, settle = 20000 }";
/// The same in JSON.
pub(crate) const PATIENT_JSON: &str = "\"store_timeout_ms\":{\"claim\":20000,\"settle\":20000}";
const CONFIGURATION: &str = "gateway.toml";
const LOG: &str = "log";
const WAIT_MAX: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(2);
