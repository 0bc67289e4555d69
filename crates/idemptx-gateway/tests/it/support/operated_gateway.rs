//! A gateway with an admin listener, in front of an [`OrderService`].

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use idemptx_testkit::Signal;
use tempfile::TempDir;

use super::gateway_process::{GatewayProcess, PATIENT};
use super::http_client::{Request, get};
use super::order_service::OrderService;

/// A gateway in front of an upstream, with an admin listener.
#[derive(Debug)]
pub(crate) struct OperatedGateway {
    process: GatewayProcess,
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) upstream: OrderService,
}

impl OperatedGateway {
    /// Starts one on SQLite, with these policy lines in its only route, `orders`.
    pub(crate) fn start(policy: &str) -> Self {
        Self::configured(policy, "", "[log]\nlevel = \"info\"\naccess = true\n")
    }

    pub(crate) fn configured(policy: &str, admin: &str, log: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = format!("url = \"sqlite:{}\"", folder.path().join("keys.db").display());
        Self::on(folder, &store, "", policy, admin, log)
    }

    /// Starts one with another line for its public listener.
    pub(crate) fn listening(line: &str) -> Self {
        Self::on(tempfile::tempdir().unwrap(), "url = \"memory:\"", line, "", "", "")
    }

    /// Starts one on SQLite with a near cache.
    pub(crate) fn near() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let store = format!("url = \"sqlite:{}\"\nnear_bytes = 1_000_000", path.display());
        Self::on(folder, &store, "", "", "", "")
    }

    /// Starts one on a shared store; keys are not bound to the host, which has another port at each.
    pub(crate) fn sharing(store: &str) -> Self {
        let store = format!("url = \"{store}\"");
        let policy = format!("policy = {{ scope = \"shared\", {PATIENT} }}");
        Self::on(tempfile::tempdir().unwrap(), &store, "", &policy, "", "")
    }

    /// Starts one on a shared store, with these policy lines in its route and these tables.
    pub(crate) fn at(store: &str, policy: &str, tables: &str) -> Self {
        let store = format!("url = \"{store}\"");
        Self::on(tempfile::tempdir().unwrap(), &store, "", policy, "", tables)
    }

    /// Starts one on SQLite with this line in its limits.
    pub(crate) fn limited(line: &str) -> Self {
        Self::configured("", "", &format!("[limits]\n{line}"))
    }

    /// Starts one on a store that cannot be reached, with this line in its store.
    pub(crate) fn without_store(line: &str) -> Self {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self::on(
            tempfile::tempdir().unwrap(),
            &format!("url = \"redis://{nobody}/\"\n{line}"),
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
        let upstream = OrderService::start();
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n{listener}\n\
             [[upstream]]\nname = \"shop\"\nurls = [\"http://{}\"]\n\
             [store]\n{store}\n\
             [admin]\naddress = \"127.0.0.1:0\"\n{admin}\n{log}\n\
             [[route]]\nname = \"orders\"\nupstream = \"shop\"\n{policy}\n",
            upstream.address
        );
        let file = folder.path().join("idemptx.toml");
        std::fs::write(&file, text).unwrap();
        Self::run(folder, upstream, &["--config", file.to_str().unwrap()])
    }

    /// Starts one from flags alone.
    pub(crate) fn by_flags(flags: &[&str]) -> Self {
        let (folder, upstream) = (tempfile::tempdir().unwrap(), OrderService::start());
        let url = format!("http://{}", upstream.address);
        let common = ["--upstream", &url, "--listen", "127.0.0.1:0", "--store", "memory:"];
        Self::run(folder, upstream, &[&common, flags].concat())
    }

    fn run(folder: TempDir, upstream: OrderService, arguments: &[&str]) -> Self {
        let mut process = GatewayProcess::serve_in(folder, arguments, &[]);
        let (public, admin) = (process.address(), process.admin_address());
        Self { process, public, admin, upstream }
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.process.directory().join("idemptx.toml")
    }

    pub(crate) fn store(&self) -> String {
        format!("sqlite:{}", self.process.directory().join("keys.db").display())
    }

    /// Returns its log up to now.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    pub(crate) fn ask(&self, path: &str) -> Request {
        get(self.admin, path)
    }

    pub(crate) fn metrics(&self) -> String {
        self.ask("/metrics").reply().body
    }

    /// Returns the id of the only record in the store.
    pub(crate) fn only_record(&self) -> String {
        let page = self.ask("/api/records?view=all").json();
        let records = page["records"].as_array().unwrap();
        assert_eq!(records.len(), 1, "{page}");
        records[0]["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until it exits, and returns whether it succeeded.
    pub(crate) fn exits_successfully(&mut self) -> bool {
        self.process.wait().success()
    }
}

/// Polls until a condition holds.
pub(crate) fn eventually(mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    let (_sender, pause) = mpsc::channel::<()>();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(20), "the condition never held");
        let _ = pause.recv_timeout(Duration::from_millis(20));
    }
}
