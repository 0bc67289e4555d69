//! Attacks on what the gateway can hold: each limit holds, others are served meanwhile, and what was
//! taken is given back. `docs/operations/limits.md` has the table.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use rustix::process::{Resource, getrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::gateway_process::{GatewayProcess, configuration};
use crate::support::hyper_service::HyperService;
use crate::support::in_process::{PATIENCE, send, simple, started};
use crate::support::raw_upstream::RawUpstream;

#[tokio::test]
async fn a_flood_of_streams_that_are_reset_at_once_ends_the_connection() {
    let upstream = HyperService::mirror().await;
    let gateway = started(&simple(upstream.address, "protect = false")).await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    for number in 0..FLOOD {
        let request = Request::get("http://shop/").body(()).unwrap();
        let Ok((answer, mut stream)) = client.send_request(request, false) else { break };
        stream.send_reset(h2::Reason::CANCEL);
        drop(answer);
        if number % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert!(timeout(PATIENCE, connection).await.is_ok(), "the connection is held");
    assert!(upstream.requests() < FLOOD / 10, "{} were passed on", upstream.requests());
    is_served(gateway.address).await;
}

#[tokio::test]
async fn a_head_without_end_ends_the_connection() {
    let upstream = HyperService::mirror().await;
    let gateway = started(&simple(upstream.address, "protect = false")).await;
    let frame = |kind: u8, stream: u8, payload: &[u8]| {
        let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[a, b, c, kind, 0, 0, 0, 0, stream], payload].concat()
    };
    // Literal fields that no table keeps, in frames of the greatest size that is allowed.
    let field = [&[0, 3][..], b"x-a", &[100], &[b'y'; 100]].concat();
    let block = field.repeat(150);
    let mut http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    http2.extend(frame(4, 0, &[]));
    http2.extend(frame(1, 1, &block));
    let beginnings = [
        (http2, frame(9, 1, &block)),
        (b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec(), b"X-A: y\r\n".repeat(2000)),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-A: ".to_vec(), vec![b'y'; 16_000]),
    ];
    for (beginning, more) in beginnings {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(&beginning).await.unwrap();
        let (mut reading, mut writing) = stream.into_split();
        let mut sent = 0;
        let flood = async {
            while sent < ENDLESS && writing.write_all(&more).await.is_ok() {
                sent += more.len();
            }
        };
        let mut answer = Vec::new();
        let ended = async { drop(reading.read_to_end(&mut answer).await) };
        timeout(PATIENCE, async { tokio::join!(flood, ended) }).await.expect("it goes on reading");
        assert!(sent < ENDLESS, "{sent} bytes of one head were taken");
    }
    assert_eq!(upstream.requests(), 0);
    is_served(gateway.address).await;
}

#[tokio::test]
async fn an_upstream_that_takes_nothing_does_not_keep_a_request_for_ever() {
    let upstream = RawUpstream::start(async |_, connection| {
        // Open, and never read from.
        std::future::pending::<()>().await;
        drop(connection);
    })
    .await;
    let text = simple(upstream.address, "protect = false")
        .replace("response_timeout_ms", "pause_timeout_ms = 300\nresponse_timeout_ms");
    let gateway = started(&text).await;
    let upload = Request::put("/").body(Full::from(vec![b'x'; 32 << 20])).unwrap();
    send(gateway.address, upload).await.refused(502, "upstream-failed");
}

#[tokio::test]
async fn thousands_of_idle_connections_cost_little_and_give_it_back() {
    let upstream = HyperService::mirror().await;
    let tables = "[limits]\nconnections_per_ip_max = 20000\n[admin]\naddress = '127.0.0.1:0'\n\
        [[route]]\nupstream = 'app'\nprotect = false\n";
    let mut gateway = GatewayProcess::configured(&configuration(upstream.address, tables));
    let (address, admin) = (gateway.address(), gateway.admin_address());
    is_served(address).await;
    let before = Usage::of(admin).await;
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let count = IDLE_MAX.min(usize::try_from(files).unwrap_or(IDLE_MAX).saturating_sub(500));
    assert!(count >= 400, "the limit of open files is {files}");
    let mut idle = Vec::new();
    for number in 0..count {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // Half of them have said something.
        if number % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
        }
        idle.push(stream);
    }
    is_served(address).await;
    let held = Usage::when(admin, |usage| usage.connections >= count).await;
    let each = held.memory.saturating_sub(before.memory) / count;
    assert!(each < 40_000, "{each} bytes for each of {count} connections");
    drop(idle);
    let after = Usage::when(admin, |usage| usage.connections <= 2).await;
    assert!(after.files <= before.files + 5, "{after:?}, and {before:?} before");
}

#[tokio::test]
async fn a_refusal_of_a_large_upload_is_read_by_the_clients_that_there_are() {
    let upstream = HyperService::mirror().await;
    let tables = "[[route]]\nupstream = 'app'\npolicy = { required = true }\n";
    let gateway = GatewayProcess::start(upstream.address, tables);
    let file = gateway.directory().join("upload");
    File::create(&file).unwrap().set_len(64 << 20).unwrap();
    let url = gateway.url("/orders");
    for client in [curl(&file, &url), python(&file, &url), node(&file, &url)] {
        let ended = tokio::task::spawn_blocking(move || { client }.output().unwrap());
        let ended = timeout(PATIENCE * 2, ended).await.unwrap().unwrap();
        let printed = String::from_utf8(ended.stdout).unwrap();
        let error = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(printed.trim(), "400", "{error}");
    }
    assert_eq!(upstream.requests(), 0);
}

fn curl(file: &Path, url: &str) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]);
    // Without waiting for permission, as most clients send.
    curl.args(["--header", "Expect:", "--request", "POST", "--upload-file"]).arg(file).arg(url);
    curl
}

fn python(file: &Path, url: &str) -> Command {
    let script = "import sys, urllib.error, urllib.request\n\
        body = open(sys.argv[1], 'rb').read()\n\
        try:\n    print(urllib.request.urlopen(sys.argv[2], data=body).status)\n\
        except urllib.error.HTTPError as refused:\n    print(refused.code)\n";
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(file).arg(url);
    python
}

fn node(file: &Path, url: &str) -> Command {
    let script = "const body = require('fs').readFileSync(process.argv[1]);\n\
        const request = require('http').request(process.argv[2], { method: 'POST' });\n\
        request.on('response', (it) => { console.log(it.statusCode); process.exit(); });\n\
        request.on('error', (error) => { console.error(error); process.exit(1); });\n\
        request.end(body);\n";
    let mut node = Command::new("node");
    node.args(["-e", script]).arg(file).arg(url);
    node
}

/// A client that behaves is served.
async fn is_served(address: SocketAddr) {
    let request = Request::get("/").body(Full::<Bytes>::default()).unwrap();
    assert_eq!(send(address, request).await.status, 201);
}

/// The resources of a gateway, by its own metrics.
#[derive(Debug)]
struct Usage {
    connections: usize,
    files: usize,
    memory: usize,
}

impl Usage {
    async fn of(admin: SocketAddr) -> Self {
        let request = Request::get("/metrics").body(Full::default()).unwrap();
        let text = send(admin, request).await.text().to_owned();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap().parse::<f64>().unwrap() as usize
        };
        Self {
            connections: value("idemptx_connections"),
            files: value("process_open_fds"),
            memory: value("process_resident_memory_bytes"),
        }
    }

    /// Waits until it holds what is wanted.
    async fn when(admin: SocketAddr, is_so: impl Fn(&Self) -> bool) -> Self {
        let wait = async {
            loop {
                let usage = Self::of(admin).await;
                if is_so(&usage) {
                    return usage;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, wait).await.expect("it never held that")
    }
}

const FLOOD: usize = 5000;
/// More than any head may have.
const ENDLESS: usize = 16 << 20;
const IDLE_MAX: usize = 10_000;
