//! nginx, HAProxy and the gateway, each with one thread on the measured core or one on each core, and
//! with connections to the upstream that are kept.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::instructions::Counter;
use crate::{Measured, machine};

/// The kind of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Nginx,
    /// nginx, which answers itself: no upstream, no body to be read.
    NginxAnswer,
    Haproxy,
    /// hyper, and nothing else.
    Bare,
    /// With a route that is not protected.
    Plain,
    /// With records in memory.
    Memory,
    /// With records in Redis.
    Redis,
    /// With records in Redis, and a near cache of results.
    Near,
    /// The former release, with a route that is not protected.
    FormerPlain,
    /// The former release, with records in memory.
    FormerMemory,
}

/// A running proxy; killed when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    child: Child,
    pub(crate) address: SocketAddr,
    _directory: TempDir,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::NginxAnswer => "nginx, `return 201`",
            Self::Haproxy => "HAProxy",
            Self::Bare => "hyper alone",
            Self::Plain => "gateway, route not protected",
            Self::Memory => "gateway, memory",
            Self::Redis => "gateway, Redis",
            Self::Near => "gateway, Redis, near",
            Self::FormerPlain => "former gateway, route not protected",
            Self::FormerMemory => "former gateway, memory",
        }
    }

    /// Returns whether there is a program: that of the former release has to be named.
    pub(super) fn is_there(self) -> bool {
        !matches!(self, Self::FormerPlain | Self::FormerMemory) || former().is_some()
    }

    fn command(
        self,
        directory: &Path,
        [listen, upstream]: [SocketAddr; 2],
        redis: &str,
    ) -> Measured<Command> {
        let file = directory.join("configuration");
        let gateway = |route: &str| gateway(listen, upstream, route);
        let (program, flags, text) = match self {
            Self::Nginx => {
                ("nginx".to_owned(), vec!["-c"], nginx_proxy(directory, listen, upstream))
            }
            Self::NginxAnswer => ("nginx".to_owned(), vec!["-c"], nginx_answer(directory, listen)),
            Self::Haproxy => {
                ("haproxy".to_owned(), vec!["-db", "-q", "-f"], haproxy(listen, upstream))
            }
            Self::Bare => return bare(listen, upstream),
            Self::Plain | Self::FormerPlain => {
                (idemptx(), SERVE.to_vec(), gateway("protect = false"))
            }
            Self::Memory | Self::FormerMemory => (idemptx(), SERVE.to_vec(), gateway("")),
            Self::Redis => (idemptx(), SERVE.to_vec(), gateway("") + &store(redis)),
            Self::Near => {
                let near = format!("near_bytes = {NEAR_BYTES}\n");
                (idemptx(), SERVE.to_vec(), gateway("") + &store(redis) + &near)
            }
        };
        let program = match self {
            Self::FormerPlain | Self::FormerMemory => former().unwrap_or(program),
            _ => program,
        };
        fs::write(&file, text)?;
        let mut command = Command::new(program);
        let threads = machine::threads().to_string();
        command.args(flags).arg(file).env("TOKIO_WORKER_THREADS", threads);
        Ok(command)
    }
}

impl Proxy {
    pub(super) fn start(
        kind: Kind,
        upstream: SocketAddr,
        redis: &str,
        counter: Option<&Counter>,
    ) -> Measured<Self> {
        let directory = TempDir::new()?;
        let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut command = kind.command(directory.path(), [listen, upstream], redis)?;
        if let Some(counter) = counter {
            command = counter.wrap(&command);
        }
        Self::launch(command, kind.name(), listen, directory)
    }

    /// Starts a program that listens there, with its configuration in this directory.
    pub(crate) fn launch(
        mut command: Command,
        name: &str,
        address: SocketAddr,
        directory: TempDir,
    ) -> Measured<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // A process is started on the core of the thread that starts it, with all of its threads.
        let started = std::thread::spawn(move || {
            machine::stay_on(machine::MEASURED);
            command.spawn()
        });
        let started = started.join().map_err(|_| "a proxy could not be started")?;
        let child = started.map_err(|error| match error.kind() {
            ErrorKind::NotFound => format!("{name} is missing: `make bench` installs it"),
            _ => error.to_string(),
        })?;
        let mut proxy = Self { child, address, _directory: directory };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            if proxy.child.try_wait()?.is_some() || began.elapsed() > START_MAX {
                return Err(format!("{name} does not start").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(proxy)
    }

    /// Processor time that it has had, in seconds.
    pub(super) fn cpu_seconds(&self) -> Measured<f64> {
        Ok(machine::cpu_seconds(self.child.id())?)
    }

    /// Memory that it has in use, in bytes.
    pub(super) fn resident_bytes(&self) -> Measured<f64> {
        Ok(machine::resident_bytes_of(self.child.id())?)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        machine::end(&mut self.child);
    }
}

fn nginx(directory: &Path, listen: SocketAddr, servers: &str, location: &str) -> String {
    let (directory, threads) = (directory.display(), machine::threads());
    let master = if threads > 1 { "on" } else { "off" };
    format!(
        "daemon off; master_process {master}; worker_processes {threads}; user root;\n\
         pid {directory}/pid; error_log {directory}/log crit;\n\
         events {{ worker_connections 19000; }}\n\
         http {{\n\
           access_log off;\n\
           client_body_temp_path {directory}/1; proxy_temp_path {directory}/2;\n\
           fastcgi_temp_path {directory}/3; uwsgi_temp_path {directory}/4;\n\
           scgi_temp_path {directory}/5;\n\
           keepalive_requests 1000000000; keepalive_timeout 600s;\n\
           {servers}\n\
           server {{ listen {listen}; location / {{ {location} }} }}\n\
         }}\n"
    )
}

/// Passes on, over connections that are kept.
fn nginx_proxy(directory: &Path, listen: SocketAddr, upstream: SocketAddr) -> String {
    let servers = format!(
        "upstream app {{ server {upstream}; keepalive 64; keepalive_requests 1000000000; }}"
    );
    let location = "proxy_pass http://app; proxy_http_version 1.1;\n\
         proxy_set_header Connection ''; proxy_set_header Host $host;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;";
    nginx(directory, listen, &servers, location)
}

/// Answers with as many bytes as the upstream does.
fn nginx_answer(directory: &Path, listen: SocketAddr) -> String {
    let answer = "x".repeat(ANSWER_BYTES);
    let location = format!("default_type application/json; return 201 '{answer}';");
    nginx(directory, listen, "", &location)
}

fn haproxy(listen: SocketAddr, upstream: SocketAddr) -> String {
    let threads = machine::threads();
    format!(
        "global\n  nbthread {threads}\n  maxconn 9500\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 600s\n\
         \x20 timeout server 60s\n  http-reuse always\n\
         frontend front\n  bind {listen}\n  default_backend back\n\
         backend back\n  option forwardfor\n  server app {upstream}\n"
    )
}

fn gateway(listen: SocketAddr, upstream: SocketAddr, route: &str) -> String {
    format!(
        "[[listener]]\naddress = '{listen}'\n\
         [[upstream]]\nname = 'app'\nurls = ['http://{upstream}']\n\
         [limits]\nhead_ms = 600000\nconnections_per_ip_max = 10000\n[log]\nlevel = 'error'\n\
         [[route]]\nupstream = 'app'\n{route}\n"
    )
}

/// Returns the store's section; by default, results stay in the near cache for a second.
fn store(redis: &str) -> String {
    format!("[store]\nurl = '{redis}'\n")
}

fn bare(listen: SocketAddr, upstream: SocketAddr) -> Measured<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["pass", &listen.to_string(), &upstream.to_string()]);
    Ok(command)
}

/// The program that users run, as `make bench` builds it.
pub(crate) fn idemptx() -> String {
    std::env::var("BENCH_IDEMPTX").unwrap_or_else(|_| "target/release/idemptx".to_owned())
}

/// The program of the former release, where one is named to be compared with.
fn former() -> Option<String> {
    std::env::var("BENCH_FORMER").ok().filter(|program| !program.is_empty())
}

/// The size of the upstream's answers.
const ANSWER_BYTES: usize = 300;
const SERVE: [&str; 2] = ["serve", "--config"];
const NEAR_BYTES: usize = 64 << 20;
const START_MAX: Duration = Duration::from_secs(60);
