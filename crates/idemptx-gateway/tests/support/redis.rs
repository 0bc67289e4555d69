//! A Redis server of the test's own, behind a socket file.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::gateway::eventually;

#[derive(Debug)]
pub(crate) struct Redis {
    process: Child,
    pub(crate) url: String,
    _folder: TempDir,
}

impl Redis {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("redis.sock");
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--dir"])
            .arg(folder.path())
            .arg("--unixsocket")
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually(|| socket.exists());
        Self { process, url: format!("redis+unix://{}", socket.display()), _folder: folder }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
