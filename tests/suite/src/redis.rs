//! A Redis of the test's own, to be killed, frozen and starved.

use std::process::{Child, Command, Stdio};

use idemptx_testkit::ReservedPort;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{PATIENCE, until};

/// A Redis server on a reserved port and in a temporary folder; killed when dropped.
#[derive(Debug)]
pub struct RedisServer {
    child: Child,
    port: ReservedPort,
    flags: Vec<String>,
    directory: TempDir,
}

impl RedisServer {
    /// Starts one that keeps nothing when it ends.
    pub async fn start() -> Self {
        Self::launch(&["--appendonly", "no"]).await
    }

    /// Starts one that has every acknowledged write again after a kill.
    pub async fn durable() -> Self {
        Self::launch(&["--appendonly", "yes", "--appendfsync", "always"]).await
    }

    /// A place where a server will be, once [`restart`](Self::restart) is called.
    pub async fn absent() -> Self {
        let mut server = Self::start().await;
        server.kill();
        server
    }

    /// Returns the URL for targets.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.port.address())
    }

    /// Kills it where it stands.
    ///
    /// # Panics
    ///
    /// If it cannot be.
    pub fn kill(&mut self) {
        self.child.kill().expect("the server can be killed");
        self.child.wait().expect("the server can be waited for");
    }

    /// Starts it again, with what it has kept.
    pub async fn restart(&mut self) {
        self.child = spawn(&self.port, &self.flags, &self.directory);
        self.ready().await;
    }

    /// Freezes it.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Sets one of its parameters.
    ///
    /// # Panics
    ///
    /// If it does not take it.
    pub async fn configure(&self, name: &str, value: &str) {
        let reply = self.command(&format!("CONFIG SET {name} {value}")).await;
        assert_eq!(reply.as_deref(), Some("+OK"), "CONFIG SET {name} {value}");
    }

    /// Makes it forget every script it has been sent.
    ///
    /// # Panics
    ///
    /// If it is away.
    pub async fn forget_scripts(&self) {
        assert_eq!(self.command("SCRIPT FLUSH").await.as_deref(), Some("+OK"));
    }

    /// Closes the connections of all its clients.
    ///
    /// # Panics
    ///
    /// If it is away.
    pub async fn disconnect_all(&self) {
        for kind in ["normal", "pubsub"] {
            let reply = self.command(&format!("CLIENT KILL TYPE {kind} SKIPME yes")).await;
            assert!(reply.is_some_and(|reply| reply.starts_with(':')), "CLIENT KILL {kind}");
        }
    }

    /// Everything it holds, names and values, as text.
    ///
    /// # Panics
    ///
    /// If it is away.
    pub async fn contents(&self) -> String {
        let script = "local all = '' \
            for _, name in ipairs(redis.call('KEYS', '*')) do \
                all = all .. name .. ' ' .. redis.call('GET', name) .. ' ' \
            end \
            return {err = string.gsub(all, '[^ -~]', '?')}";
        self.command(&format!("EVAL \"{script}\" 0")).await.expect("the server is there")
    }

    /// Begins to note the commands that it is sent.
    ///
    /// # Panics
    ///
    /// If it is away.
    pub async fn monitor(&self) -> Monitor {
        let mut stream = BufReader::new(self.connect().await.expect("the server is there"));
        stream.write_all(b"MONITOR\r\n").await.expect("the server listens");
        let mut monitor = Monitor { stream, port: self.port.number() };
        assert_eq!(monitor.line().await, "+OK");
        monitor
    }

    async fn launch(flags: &[&str]) -> Self {
        let flags: Vec<_> = flags.iter().map(ToString::to_string).collect();
        let directory = TempDir::new().expect("a temporary directory");
        let port = ReservedPort::reserve();
        let mut server = Self { child: spawn(&port, &flags, &directory), port, flags, directory };
        server.ready().await;
        server
    }

    async fn ready(&mut self) {
        let gone = self.child.try_wait().expect("the server can be asked");
        assert!(gone.is_none(), "the server ended at once: {gone:?}");
        until("Redis answers", || async { self.command("PING").await.as_deref() == Some("+PONG") })
            .await;
    }

    /// The first line of the reply, or nothing if the server is away.
    async fn command(&self, command: &str) -> Option<String> {
        command_at(self.port.number(), command).await
    }

    async fn connect(&self) -> Option<TcpStream> {
        TcpStream::connect(self.port.address()).await.ok()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a child");
        kill_process(pid, signal).expect("the server is alive");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The commands that clients send to a server.
#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<TcpStream>,
    port: u16,
}

impl Monitor {
    /// The names of the commands that clients have sent since the last call.
    ///
    /// What a script does inside the server is not a command of a client.
    ///
    /// # Panics
    ///
    /// If the server goes away.
    pub async fn commands(&mut self) -> Vec<String> {
        assert!(command_at(self.port, &format!("ECHO {MARK}")).await.is_some());
        let mut commands = Vec::new();
        loop {
            let line = self.line().await;
            if line.contains(MARK) {
                return commands;
            }
            let (source, command) = line.split_once("] ").expect("a line of MONITOR");
            if !source.ends_with("lua") {
                let name = command.split('"').nth(1).expect("a quoted command");
                commands.push(name.to_uppercase());
            }
        }
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.stream.read_line(&mut line)).await;
        read.expect("a line in time").expect("the server goes on");
        line.trim_end().to_owned()
    }
}

async fn command_at(port: u16, command: &str) -> Option<String> {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await.ok()?);
    stream.write_all(format!("{command}\r\n").as_bytes()).await.ok()?;
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    Some(line.trim_end().to_owned())
}

fn spawn(port: &ReservedPort, flags: &[String], directory: &TempDir) -> Child {
    let mut command = Command::new("redis-server");
    command
        .args(["--port", &port.number().to_string(), "--bind", "127.0.0.1", "--save", ""])
        .args(flags);
    command.arg("--dir").arg(directory.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server is installed")
}

const MARK: &str = "the-test-has-read-up-to-here";
