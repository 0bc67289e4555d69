//! The program, as a user runs it.

use std::net::SocketAddr;
use std::process::{ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::PATIENCE;

/// A gateway in a process of its own; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pid: Pid,
    pub(crate) address: SocketAddr,
    said: Arc<Mutex<String>>,
}

impl Process {
    /// Starts it and waits until it listens.
    pub(crate) async fn serve(arguments: &[&str]) -> Self {
        Self::serve_with(arguments, &[]).await
    }

    /// The same, with variables in its environment.
    pub(crate) async fn serve_with(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = program(&[&["serve"], arguments].concat());
        command.envs(variables.iter().copied());
        let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let (saying, stderr) = (Arc::clone(&said), child.stderr.take().unwrap());
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                *saying.lock().unwrap() += &(line + "\n");
            }
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
        let line = line.unwrap_or_else(|| panic!("no start: {}", said.lock().unwrap()));
        // It may have more to say, which must not fail.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let address = line.split_once("://").unwrap().1.parse().unwrap();
        Self { child, pid, address, said }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap()
    }

    /// Waits until it has said something on stderr; all that it has said.
    pub(crate) async fn says(&self, word: &str) -> String {
        let said = async {
            while !self.said.lock().unwrap().contains(word) {
                tokio::task::yield_now().await;
            }
        };
        let in_time = timeout(PATIENCE, said).await;
        let said = self.said.lock().unwrap().clone();
        assert!(in_time.is_ok(), "not {word:?}: {said}");
        said
    }
}

/// Runs it to its end.
pub(crate) async fn run(arguments: &[&str]) -> Output {
    timeout(PATIENCE, program(arguments).kill_on_drop(true).output()).await.unwrap().unwrap()
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idemptx"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).env("NO_COLOR", "1");
    command
}
