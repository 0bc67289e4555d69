//! The proxies, each in front of an upstream that records what it receives.

use std::fmt;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use idemptx_testkit::{ChildProcess, ReservedPort};
use tempfile::TempDir;

use crate::smuggling::recorder::Recorder;
use crate::support::gateway_process::GatewayProcess;
use crate::support::raw_client::{RawClient, answers};

/// A proxy with its upstream.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    upstream: Recorder,
    _running: Running,
}

#[derive(Debug)]
#[expect(dead_code, reason = "they run until they are dropped")]
enum Running {
    Gateway(GatewayProcess),
    Other(ChildProcess, ReservedPort, TempDir),
}

/// The reaction to a request.
#[derive(Clone)]
pub(crate) struct Fate {
    /// The status of each answer but that to the last request.
    statuses: Vec<u16>,
    /// The requests that the upstream received: `METHOD target body`, or why it is none.
    pub(crate) seen: Vec<String>,
    under_a_key: bool,
}

impl fmt::Debug for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "answers {:?} and forwards {:?}", self.statuses, self.seen)
    }
}

impl Fate {
    /// Returns whether everything that another one has forwarded was read likewise here, as far as
    /// anything was forwarded that our strict upstream can read.
    pub(crate) fn has_read(&self, other: &Self) -> bool {
        let is_readable = !self.seen.iter().any(|it| it.starts_with("nonsense: "));
        let mut pairs = other.seen.iter().zip(&self.seen);
        self.seen.is_empty()
            || !is_readable
            || other.seen.len() <= self.seen.len()
                && pairs.all(|(it, here)| *it == in_origin_form(here))
    }

    pub(crate) const fn is_forwarded_under_a_key(&self) -> bool {
        self.under_a_key
    }

    /// Returns whether nothing was forwarded, with an error or without a word.
    pub(crate) fn is_refused(&self) -> bool {
        self.seen.is_empty() && self.statuses.first().is_none_or(|status| *status >= 400)
    }
}

impl Proxy {
    pub(crate) fn gateway() -> Self {
        let upstream = Recorder::start();
        let gateway = GatewayProcess::start(
            upstream.address(),
            "[[route]]\nupstream = 'app'\n[limits]\nhead_ms = 1000\npause_ms = 1000\n",
        );
        Self { address: gateway.address(), upstream, _running: Running::Gateway(gateway) }
    }

    pub(crate) fn nginx() -> Self {
        Self::start("nginx", |port, upstream, directory| {
            let file = directory.join("nginx.conf");
            let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
            let paths =
                paths.map(|it| format!("{it}_temp_path {};\n", directory.join(it).display()));
            let text = format!(
                "daemon off;\nmaster_process off;\npid {pid};\nerror_log stderr;\nevents {{}}\n\
                 http {{\naccess_log off;\n{paths}\
                 server {{\nlisten {port};\nclient_header_timeout 1s;\n\
                 client_body_timeout 1s;\nlingering_close off;\n\
                 location / {{\nproxy_pass http://{upstream};\nproxy_http_version 1.1;\n\
                 proxy_set_header Connection '';\nproxy_set_header Host $http_host;\n}}\n}}\n}}\n",
                pid = directory.join("pid").display(),
                paths = paths.concat(),
            );
            fs::write(&file, text).unwrap();
            let mut command = Command::new("nginx");
            command.arg("-e").arg("stderr").arg("-c").arg(file);
            command
        })
    }

    pub(crate) fn haproxy() -> Self {
        Self::start("haproxy", |port, upstream, directory| {
            let file = directory.join("haproxy.cfg");
            let text = format!(
                "defaults\n mode http\n timeout client 1s\n timeout http-request 1s\n \
                 timeout http-keep-alive 1s\n timeout connect 5s\n timeout server 5s\n\
                 frontend clients\n bind {port}\n default_backend services\n\
                 backend services\n server service {upstream}\n"
            );
            fs::write(&file, text).unwrap();
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(file);
            command
        })
    }

    fn start(name: &str, command: impl FnOnce(SocketAddr, SocketAddr, &Path) -> Command) -> Self {
        let (port, directory) = (ReservedPort::reserve(), tempfile::tempdir().unwrap());
        let (address, upstream) = (port.address(), Recorder::start());
        let log = File::create(directory.path().join("log")).unwrap();
        let mut command = command(address, upstream.address(), directory.path());
        // Debian keeps some servers where only root looks for programs.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        command.env("PATH", path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let missing = format!("install Debian's package {name}, as `make test` does");
        let process = ChildProcess::spawn(&mut command, &missing);
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            let log = || fs::read_to_string(directory.path().join("log")).unwrap();
            assert!(began.elapsed() < Duration::from_secs(60), "{name} does not listen: {}", log());
            // Nothing else tells of another program's readiness.
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { address, upstream, _running: Running::Other(process, port, directory) }
    }

    /// Sends a request, and another one that ends the connection, and reads what comes back.
    pub(crate) fn ask(&self, request: &str) -> Fate {
        let mut client = RawClient::connect(self.address);
        // A character stands for the byte of its number, so that a case can have any byte.
        let bytes: Vec<u8> = request.chars().map(|it| it as u8).collect();
        client.send(bytes);
        client.send(END);
        let read = client.rest().unwrap_or_else(|it| panic!("{request:?} hangs: {it:?}"));
        let (answers, _) = answers(&read);
        let received = self.upstream.take();
        let is_end = |what: &str| what.starts_with("GET /end");
        let ended = received.iter().any(|it| is_end(&it.what));
        let mut statuses: Vec<_> =
            answers.iter().map(|it| it.status).filter(|status| *status >= 200).collect();
        if ended {
            statuses.pop();
        }
        let received: Vec<_> = received.into_iter().filter(|it| !is_end(&it.what)).collect();
        Fate {
            statuses,
            under_a_key: received
                .iter()
                .any(|it| it.what.starts_with("POST ") && it.header("idempotency-key").is_some()),
            seen: received.into_iter().map(|it| it.what).collect(),
        }
    }
}

/// Some proxies pass absolute targets on.
fn in_origin_form(what: &str) -> String {
    let Some((method, rest)) = what.split_once(" http://") else { return what.to_owned() };
    let path = rest.find(['/', ' ']).map_or("", |at| &rest[at..]);
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{method} {slash}{path}")
}

const END: &str = "GET /end HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";
