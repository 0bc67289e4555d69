//! The gateway as it is started: the binary with a file, in front of an upstream.
#![allow(dead_code, reason = "no file of tests uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::client::{Asked, get};
use super::upstream::Upstream;

/// A gateway in front of an upstream, with an admin listener.
#[derive(Debug)]
pub(crate) struct Gateway {
    process: Child,
    folder: TempDir,
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) upstream: Upstream,
}

impl Gateway {
    /// On a file of SQLite, with one route, `orders`, under the given lines of a policy.
    pub(crate) fn start(policy: &str) -> Self {
        Self::configured(policy, "", "[log]\nlevel = \"info\"\naccess = true\n")
    }

    pub(crate) fn configured(policy: &str, admin: &str, log: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = format!("url = \"sqlite:{}\"", folder.path().join("keys.db").display());
        Self::on(folder, &store, "", policy, admin, log)
    }

    /// With another line for its public listener.
    pub(crate) fn listening(line: &str) -> Self {
        Self::on(tempfile::tempdir().unwrap(), "url = \"memory:\"", line, "", "", "")
    }

    /// On a file, with results at hand.
    pub(crate) fn near() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let store = format!("url = \"sqlite:{}\"\nnear_bytes = 1_000_000", path.display());
        Self::on(folder, &store, "", "", "", "")
    }

    /// On a store that others use, too.
    pub(crate) fn sharing(store: &str) -> Self {
        let store = format!("url = \"{store}\"");
        Self::on(tempfile::tempdir().unwrap(), &store, "", "", "", "")
    }

    /// On a store that cannot be reached.
    pub(crate) fn without_store() -> Self {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self::on(
            tempfile::tempdir().unwrap(),
            &format!("url = \"redis://{nobody}/\""),
            "",
            "",
            "",
            "",
        )
    }

    fn on(
        folder: TempDir,
        store: &str,
        listener: &str,
        policy: &str,
        admin: &str,
        log: &str,
    ) -> Self {
        let upstream = Upstream::start();
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n{listener}\n\
             [[upstream]]\nname = \"shop\"\nurls = [\"http://{}\"]\n\
             [store]\n{store}\n\
             [admin]\naddress = \"127.0.0.1:0\"\n{admin}\n{log}\n\
             [[route]]\nname = \"orders\"\nupstream = \"shop\"\n{policy}\n",
            upstream.address
        );
        let file = folder.path().join("idemptx.toml");
        fs::write(&file, text).unwrap();
        let arguments = ["--config".to_owned(), file.display().to_string()];
        Self::run(folder, upstream, &arguments)
    }

    /// Without a file.
    pub(crate) fn by_flags(flags: &[&str]) -> Self {
        let (folder, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
        let mut arguments = vec!["--upstream".to_owned(), format!("http://{}", upstream.address)];
        arguments.extend(["--listen", "127.0.0.1:0", "--store", "memory:"].map(str::to_owned));
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        Self::run(folder, upstream, &arguments)
    }

    fn run(folder: TempDir, upstream: Upstream, arguments: &[String]) -> Self {
        let log = File::create(folder.path().join("log")).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_idemptx"))
            .arg("serve")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut address = |before: &str| {
            let line = lines.next().map(Result::unwrap).unwrap_or_default();
            line.strip_prefix(before).unwrap_or_else(|| panic!("{line}")).parse().unwrap()
        };
        let (public, admin) = (address("listening on http://"), address("operators on http://"));
        Self { process, folder, public, admin, upstream }
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("idemptx.toml")
    }

    pub(crate) fn store(&self) -> String {
        format!("sqlite:{}", self.folder.path().join("keys.db").display())
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub(crate) fn ask(&self, path: &str) -> Asked {
        get(self.admin, path)
    }

    pub(crate) fn metrics(&self) -> String {
        self.ask("/metrics").reply().body
    }

    /// The id of the only record in the store.
    pub(crate) fn only_record(&self) -> String {
        let page = self.ask("/api/records?view=all").json();
        let records = page["records"].as_array().unwrap();
        assert_eq!(records.len(), 1, "{page}");
        records[0]["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.process.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Waits for its end, and says whether that was a good one.
    pub(crate) fn ended(&mut self) -> bool {
        self.process.wait().unwrap().success()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Asks again until it is so, for what nobody announces.
pub(crate) fn eventually(mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    let (_sender, pause) = mpsc::channel::<()>();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(20), "it never came to be so");
        let _ = pause.recv_timeout(Duration::from_millis(20));
    }
}
