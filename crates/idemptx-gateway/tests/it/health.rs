//! Addresses that are asked whether they are well.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use idemptx_testkit::{ReservedPort, Signal};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::support::gateway_process::GatewayProcess;
use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{PATIENCE, Running, Secured, config, send, started};

#[tokio::test]
async fn a_sick_address_is_tried_last_until_it_is_well_again() {
    for mood in [Mood::Sick, Mood::Hanging, Mood::Resetting] {
        let (one, two) = (Moody::start("one").await, Moody::start("two").await);
        let running = checked(&[&one, &two], "").await;
        assert_eq!(reached(&running).await, set(&["one", "two"]));
        one.becomes(mood);
        until(&running, &one, false).await;
        assert_eq!(reached(&running).await, set(&["two"]), "{mood:?}");
        one.becomes(Mood::Well);
        until(&running, &one, true).await;
        assert_eq!(reached(&running).await, set(&["one", "two"]));
    }
}

#[tokio::test]
async fn an_address_that_is_away_is_sick_and_comes_back() {
    let reserved = ReservedPort::reserve();
    let address = reserved.address();
    let one = Moody::on(TcpListener::bind(address).await.unwrap(), "one");
    let two = Moody::start("two").await;
    let running = checked(&[&one, &two], "down_ms = 0").await;
    one.leaves().await;
    until_at(&running, address, false).await;
    assert_eq!(reached(&running).await, set(&["two"]));
    let one = Moody::on(TcpListener::bind(address).await.unwrap(), "one");
    until(&running, &one, true).await;
    assert_eq!(reached(&running).await, set(&["one", "two"]));
}

#[tokio::test]
async fn where_all_are_sick_all_are_tried() {
    let (one, two) = (Moody::start("one").await, Moody::start("two").await);
    let running = checked(&[&one, &two], "").await;
    one.becomes(Mood::Sick);
    two.becomes(Mood::Sick);
    until(&running, &one, false).await;
    until(&running, &two, false).await;
    assert_eq!(reached(&running).await, set(&["one", "two"]));
}

#[tokio::test]
async fn each_check_has_a_connection_of_its_own_and_leaves_none() {
    let one = Moody::start("one").await;
    let running = checked(&[&one], "").await;
    one.becomes(Mood::Hanging);
    until(&running, &one, false).await;
    one.becomes(Mood::Well);
    until(&running, &one, true).await;
    running.gateway.drain().await;
    let closed = async {
        while Arc::strong_count(&one.open) > 1 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, closed).await.expect("every connection is closed");
}

#[tokio::test]
async fn a_change_is_one_line_of_the_log() {
    let one = Moody::start("one").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("idemptx.toml");
    std::fs::write(&file, text(&[&one], "", "/healthz")).unwrap();
    let mut process = GatewayProcess::serve(&["--config", file.to_str().unwrap()]);
    one.becomes(Mood::Sick);
    let place = format!("upstream=up address=http://{}", one.address);
    process.logs(&format!("unhealthy; used as last resort: status 503 {place}")).await;
    one.becomes(Mood::Well);
    process.logs(&format!("healthy again {place}")).await;
    process.signal(Signal::TERM);
    assert!(process.exited().await.success());
}

#[tokio::test]
async fn a_reload_ends_the_checks_that_it_replaces_and_keeps_the_others() {
    let (one, two) = (Moody::start("one").await, Moody::start("two").await);
    let running = checked(&[&one, &two], "").await;
    one.becomes(Mood::Sick);
    until(&running, &one, false).await;
    running.gateway.reload(&running.config).await.unwrap();
    assert!(!is_up(&running, one.address).await, "that is still known");
    one.becomes(Mood::Well);
    until(&running, &one, true).await;
    let mut other = config(&text(&[&one, &two], "", "/other"));
    other.admin.clone_from(&running.config.admin);
    running.gateway.reload(&other).await.unwrap();
    // One may be under way.
    two.asked("/other", 1).await;
    let before = two.count("/healthz");
    two.asked("/other", 4).await;
    assert!(two.count("/healthz") <= before + 1);
}

#[tokio::test]
async fn checks_end_when_the_gateway_drains() {
    let one = Moody::start("one").await;
    let running = checked(&[&one], "").await;
    one.asked("/healthz", 1).await;
    running.gateway.drain().await;
    let before = one.count("/healthz");
    // Another gateway is the clock.
    let _other = started(&text(&[&one], "", "/clock")).await;
    one.asked("/clock", 4).await;
    assert!(one.count("/healthz") <= before + 1);
}

#[tokio::test]
async fn addresses_are_checked_over_their_own_tls_in_either_version() {
    let service = HyperService::start(|_, _| async { http::Response::new(full("fine")) }).await;
    let secured = Secured::in_front_of(service.address).await;
    let url = secured.url();
    for version in ["", "http2 = true\n"] {
        let ca = format!("{version}ca = {:?}\n", secured.authority());
        for (more, is_well) in [(&*ca, true), (version, false)] {
            let before = service.requests();
            let running = started(&at(std::slice::from_ref(&url), more, "/healthz")).await;
            let label = format!("address=\"{url}\"}} {}\n", u8::from(is_well));
            let found = async {
                while is_well && service.requests() < before + 3 {
                    tokio::task::yield_now().await;
                }
                while !metrics(&running).await.contains(&label) {}
            };
            timeout(PATIENCE, found).await.expect("checked");
        }
    }
}

/// A gateway that checks these.
async fn checked(upstreams: &[&Moody], more: &str) -> Running {
    started(&text(upstreams, more, "/healthz")).await
}

fn text(upstreams: &[&Moody], more: &str, path: &str) -> String {
    let urls: Vec<_> = upstreams.iter().map(|it| format!("http://{}", it.address)).collect();
    at(&urls, more, path)
}

fn at(urls: &[String], more: &str, path: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"up\"\nurls = {urls:?}\n{more}\n\
         health = {{ path = \"{path}\", interval_ms = 20, timeout_ms = 1000, unhealthy_after = 2 }}\n\
         [[route]]\nupstream = \"up\"\nprotect = false\n"
    )
}

/// Returns the names of the upstreams that respond.
async fn reached(running: &Running) -> HashSet<String> {
    let mut names = HashSet::new();
    for _ in 0..6 {
        let request = Request::get("/").body(Full::<Bytes>::default()).unwrap();
        names.insert(send(running.address, request).await.text().to_owned());
    }
    names
}

fn set(names: &[&str]) -> HashSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

async fn until(running: &Running, upstream: &Moody, up: bool) {
    until_at(running, upstream.address, up).await;
}

async fn until_at(running: &Running, address: SocketAddr, up: bool) {
    let found = async { while is_up(running, address).await != up {} };
    timeout(PATIENCE, found).await.expect("checks find it");
}

async fn is_up(running: &Running, address: SocketAddr) -> bool {
    let text = metrics(running).await;
    let label = format!("idemptx_upstream_up{{upstream=\"up\",address=\"http://{address}\"}} ");
    let mut values = text.lines().filter_map(|line| line.strip_prefix(&label));
    values.next().unwrap_or_else(|| panic!("{label} in {text}")) == "1"
}

async fn metrics(running: &Running) -> String {
    let admin = running.admin();
    let request = Request::get("/metrics").body(Full::<Bytes>::default()).unwrap();
    send(admin, request).await.text().to_owned()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    /// Answers checks with 503.
    Sick,
    /// Answers no check.
    Hanging,
    /// Resets the connections of checks.
    Resetting,
}

/// An upstream that answers `/` with its name, and every other path as its mood is.
#[derive(Debug)]
struct Moody {
    address: SocketAddr,
    shared: Arc<Mutex<(Mood, HashMap<String, usize>)>>,
    /// Held by each connection.
    open: Arc<()>,
    serving: tokio::task::JoinHandle<()>,
}

impl Moody {
    async fn start(name: &'static str) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), name)
    }

    fn on(listener: TcpListener, name: &'static str) -> Self {
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new((Mood::Well, HashMap::new())));
        let open = Arc::new(());
        let (all, held) = (Arc::clone(&shared), Arc::downgrade(&open));
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, held) = (Arc::clone(&all), held.upgrade());
                connections.spawn(async move {
                    answer(stream, name, &shared).await;
                    drop(held);
                });
            }
        });
        Self { address, shared, open, serving }
    }

    fn becomes(&self, mood: Mood) {
        self.shared.lock().unwrap().0 = mood;
    }

    /// Stops the service, so that nothing listens at its address.
    async fn leaves(self) {
        self.serving.abort();
        let _ = self.serving.await;
    }

    /// Returns the number of requests for a path.
    fn count(&self, path: &str) -> usize {
        self.shared.lock().unwrap().1.get(path).copied().unwrap_or_default()
    }

    /// Waits until a path was asked for so often.
    async fn asked(&self, path: &str, times: usize) {
        let asked = async {
            while self.count(path) < times {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, asked).await.expect("it is asked");
    }
}

async fn answer(stream: TcpStream, name: &str, shared: &Mutex<(Mood, HashMap<String, usize>)>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if !matches!(stream.read_line(&mut head).await, Ok(1..)) {
                return;
            }
        }
        let path = head.split(' ').nth(1).unwrap().to_owned();
        let mood = {
            let mut shared = shared.lock().unwrap();
            *shared.1.entry(path.clone()).or_default() += 1;
            shared.0
        };
        let (status, body) = match mood {
            _ if path == "/" => (200, name),
            Mood::Well => (200, ""),
            Mood::Sick => (503, ""),
            Mood::Hanging => {
                // Until it is closed over there.
                let _ = stream.read_u8().await;
                return;
            }
            Mood::Resetting => {
                let _ = stream.into_inner().set_zero_linger();
                return;
            }
        };
        let length = body.len();
        let text = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{body}");
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}
