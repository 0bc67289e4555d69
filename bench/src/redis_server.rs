//! A Redis of the benchmark's own.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Measured, machine};

/// Redis without persistence, on the core of the measuring side; killed when dropped.
#[derive(Debug)]
pub(crate) struct RedisServer {
    child: Child,
    port: u16,
    _directory: TempDir,
}

impl RedisServer {
    pub(crate) fn start() -> Measured<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let directory = TempDir::new()?;
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => "there is no redis-server: `make bench` installs it".into(),
                _ => Box::<dyn std::error::Error>::from(error),
            })?;
        machine::keep_on(child.id(), machine::MEASURING);
        let server = Self { child, port, _directory: directory };
        let began = Instant::now();
        while server.command("PING").is_err() {
            if began.elapsed() > Duration::from_secs(10) {
                return Err("redis-server does not answer".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Processor time that it has had, in seconds.
    pub(crate) fn cpu_seconds(&self) -> Measured<f64> {
        Ok(machine::cpu_seconds(self.child.id())?)
    }

    /// Forgets every record.
    pub(crate) fn flush(&self) -> Measured<()> {
        self.command("FLUSHALL")
    }

    /// Begins to note what clients send.
    pub(crate) fn monitor(&self) -> Measured<Monitor<'_>> {
        let mut lines = BufReader::new(self.connect()?);
        lines.get_mut().write_all(b"MONITOR\r\n")?;
        lines.read_line(&mut String::new())?;
        Ok(Monitor { server: self, lines })
    }

    fn command(&self, command: &str) -> Measured<()> {
        let mut stream = BufReader::new(self.connect()?);
        stream.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_line(&mut answer)?;
        if answer.starts_with(['+', '$']) { Ok(()) } else { Err(answer.into()) }
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The commands that a server is sent.
#[derive(Debug)]
pub(crate) struct Monitor<'a> {
    server: &'a RedisServer,
    lines: BufReader<TcpStream>,
}

/// The commands that clients sent, and the number of those that scripts called.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    pub(crate) sent: Vec<String>,
    pub(crate) nested: usize,
}

impl Monitor<'_> {
    /// Everything since the last call.
    pub(crate) fn commands(&mut self) -> Measured<Commands> {
        self.server.command(&format!("ECHO {MARK}"))?;
        let mut commands = Commands::default();
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line)? == 0 {
                return Err("redis-server went away".into());
            }
            if line.contains(MARK) {
                return Ok(commands);
            }
            let Some((source, command)) = line.split_once("] ") else { continue };
            if source.ends_with("lua") {
                commands.nested += 1;
            } else {
                let name = command.split('"').nth(1).unwrap_or_default();
                commands.sent.push(name.to_uppercase());
            }
        }
    }
}

const MARK: &str = "read-up-to-here";
