//! The process under test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::Method;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::default_store::DefaultStore;
use crate::request::Connections;
use crate::{Journal, PATIENCE, Request, front_door, until};

/// A target application that listens; killed when dropped.
#[derive(Debug)]
pub struct Target {
    child: Child,
    pid: Pid,
    address: SocketAddr,
    connections: Connections,
    stderr: Arc<Mutex<String>>,
    /// If it has one that no other target uses.
    _store: Option<DefaultStore>,
    /// The journal of its executions.
    pub journal: Journal,
}

impl Target {
    /// Starts a target with a private store and the draft's profile.
    pub async fn start() -> Self {
        Self::with_policy(serde_json::json!({})).await
    }

    /// Starts a target with a private store and with a policy.
    pub async fn with_policy(policy: Value) -> Self {
        Builder::new().policy(policy).start().await
    }

    /// Returns a builder for a target.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Builds a POST to the target.
    #[must_use]
    pub fn post(&self, path: &str) -> Request {
        self.request(Method::POST, path)
    }

    /// Builds a request to the target.
    #[must_use]
    pub fn request(&self, method: Method, path: &str) -> Request {
        Request::new(self.connections.clone(), &self.origin(), method, path)
    }

    /// Returns the address that the target listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its resident memory.
    ///
    /// # Panics
    ///
    /// If it is gone.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid.as_raw_nonzero());
        let status = std::fs::read_to_string(path).expect("a live process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kib = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB");
        kib * 1024
    }

    /// Kills it where it stands.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.exited().await;
    }

    /// Freezes it.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub async fn exited(&mut self) -> ExitStatus {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        ended.expect("the target ends in time").expect("the target can be waited for")
    }

    /// Returns its standard error up to now.
    ///
    /// # Panics
    ///
    /// Never: no reader panics while it holds the lock.
    #[must_use]
    pub fn said(&self) -> String {
        self.stderr.lock().expect("no reader panics").clone()
    }

    /// Waits until its stderr contains all of `words`, in upper or lower case.
    pub async fn says(&self, words: &[&str]) {
        until(&format!("the target says {words:?}"), || async {
            let said = self.said().to_lowercase();
            words.iter().all(|word| said.contains(&word.to_lowercase()))
        })
        .await;
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).expect("the target is alive");
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Its group, for the gateway has an upstream of its own; gone already is as well.
        let _ = kill_process_group(self.pid, Signal::KILL);
    }
}

/// The settings of a target to start.
#[derive(Debug)]
pub struct Builder {
    front_door: String,
    has_store: bool,
    arguments: Vec<String>,
    journal: Journal,
}

impl Builder {
    fn new() -> Self {
        let (front_door, journal) = (front_door(), Journal::new());
        Self { front_door, has_store: false, arguments: Vec::new(), journal }
    }

    /// With another front door than the one under test.
    #[must_use]
    pub fn front_door(mut self, name: &str) -> Self {
        name.clone_into(&mut self.front_door);
        self
    }

    /// Over this store.
    #[must_use]
    pub fn store(mut self, url: impl Into<String>) -> Self {
        self.has_store = true;
        self.flag("--store", url)
    }

    /// With this profile.
    #[must_use]
    pub fn profile(self, name: &str) -> Self {
        self.flag("--profile", name)
    }

    /// With this policy laid over the profile.
    #[must_use]
    pub fn policy(self, policy: Value) -> Self {
        self.flag("--policy", policy.to_string())
    }

    /// Without protection, which needs no store.
    #[must_use]
    pub fn unprotected(mut self) -> Self {
        self.has_store = true;
        self.arguments.push("--unprotected".into());
        self
    }

    /// With the journal of another target.
    #[must_use]
    pub fn journal(mut self, journal: &Journal) -> Self {
        self.journal = journal.clone();
        self
    }

    /// Starts it and waits until it listens.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub async fn start(mut self) -> Target {
        let store = if self.has_store { None } else { DefaultStore::new().await };
        if let Some(store) = &store {
            self = self.store(store.url());
        }
        let journal = self.journal.path().display().to_string();
        let executable = executable(&self.front_door);
        let mut child =
            command(&executable, &self.flag_list(&journal)).spawn().unwrap_or_else(|error| {
                panic!("{}: {error}; build the targets first", executable.display())
            });
        let pid = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).expect("a child");
        let stderr = collect(child.stderr.take().expect("piped"));
        let mut stdout = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = timeout(PATIENCE, stdout.next_line()).await.expect("a line in time");
        let said = || stderr.lock().map(|text| text.clone()).unwrap_or_default();
        let line = line.expect("stdout is text").unwrap_or_else(|| panic!("no start: {}", said()));
        let address = line.strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line}"));
        let address = address.parse().expect("an address");
        let (connections, journal) = (connections(), self.journal);
        Target { child, pid, address, connections, stderr, _store: store, journal }
    }

    fn flag(mut self, name: &str, value: impl Into<String>) -> Self {
        self.arguments.extend([name.to_owned(), value.into()]);
        self
    }

    fn flag_list<'a>(&'a self, journal: &'a str) -> Vec<&'a str> {
        let mut flags = vec!["--listen", "127.0.0.1:0", "--journal", journal];
        flags.extend(self.arguments.iter().map(String::as_str));
        flags
    }
}

/// Starts a target with flags that it must refuse, and returns what it said.
///
/// # Panics
///
/// If it does not end.
pub async fn refused_start(flags: &[&str]) -> Output {
    let ended = command(&executable(&front_door()), flags).kill_on_drop(true).output();
    timeout(PATIENCE, ended).await.expect("it ends").expect("it can be started")
}

fn command(executable: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(executable);
    command.args(flags).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn executable(front_door: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/targets").join(front_door)
}

fn connections() -> Connections {
    let mut connections = Client::builder(TokioExecutor::new());
    // Nothing but the test itself may send a request twice.
    connections.retry_canceled_requests(false);
    // Long before a server closes it, which a request could meet. A server counts from when it has
    // written an answer, which may be seconds before a busy client has read it: the targets whose
    // servers would close after five seconds keep connections for 75.
    connections.pool_idle_timeout(Duration::from_secs(1));
    connections.build_http()
}

fn collect(stderr: impl AsyncRead + Unpin + Send + 'static) -> Arc<Mutex<String>> {
    let said = Arc::new(Mutex::new(String::new()));
    let saying = said.clone();
    tokio::spawn(async move {
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut said = saying.lock().expect("no reader panics");
            said.push_str(&line);
            said.push('\n');
        }
    });
    said
}
