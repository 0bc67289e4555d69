//! Attacks of a hostile client over real sockets, on a gateway whose upstream records every byte:
//! nothing is smuggled, and nothing hangs.

mod attacks;
mod expect;
mod http2;
pub(crate) mod recorder;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use attacks::Case;
use recorder::Recorder;

use crate::support::gateway_process::GatewayProcess;
use crate::support::raw_client::{RawClient, post};

/// Returns the payloads, for other tests.
pub(crate) fn payloads() -> impl Iterator<Item = (&'static str, &'static str)> {
    attacks::all().into_iter().map(|(name, request, _)| (name, request))
}

#[test]
fn a_body_has_one_length() {
    check_all(&attacks::lengths());
}

#[test]
fn a_body_has_one_coding() {
    check_all(&attacks::codings());
}

#[test]
fn a_line_ends_in_one_way() {
    check_all(&attacks::lines());
}

#[test]
fn the_old_version_has_no_chunks() {
    check_all(&attacks::old_version());
}

#[test]
fn a_connection_stays_with_its_protocol_until_the_upstream_agrees() {
    check_all(&attacks::upgrades());
}

#[test]
fn what_concerns_a_connection_stays_there() {
    check_all(&attacks::hops());
}

#[test]
fn there_is_one_key() {
    check_all(&attacks::keys());
}

#[test]
fn a_request_goes_where_the_configuration_says() {
    check_all(&attacks::hosts());
}

#[test]
fn a_path_is_read_in_one_way() {
    check_all(&attacks::paths());
}

/// The gateway forwards only whole requests that can be read in one way, for any client input.
#[test]
fn nothing_goes_on_that_is_not_well_formed() {
    let upstream = Recorder::start();
    let route = ROUTE.replace("3000", "50");
    let mut gateway = GatewayProcess::start(upstream.address(), &route);
    let address = gateway.address();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let mut changes = Changes(client);
                for _ in 0..CHANGED {
                    let request = changes.made();
                    let mut client = RawClient::connect(address);
                    client.send(&request);
                    client.send("GET /end HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n");
                    let told = String::from_utf8_lossy(&request);
                    assert!(client.rest().is_ok(), "it hangs: {told:?}");
                }
            });
        }
    });
    assert!(gateway.is_running());
    let seen: Vec<_> = upstream.take().into_iter().filter(|it| !it.breaks_off()).collect();
    let nonsense: Vec<_> = seen.iter().filter(|it| it.what.starts_with("nonsense: ")).collect();
    assert!(nonsense.is_empty(), "{nonsense:?}");
    assert!(seen.len() > CHANGED, "only {} got through at all", seen.len());
}

/// T35, for those who must let everything through: one record is never for two targets.
#[test]
fn two_targets_never_share_a_record() {
    let upstream = Recorder::start();
    let gateway =
        GatewayProcess::start(upstream.address(), &format!("{ROUTE}strict_paths = false\n"));
    for (number, [one, other]) in PAIRS.iter().enumerate() {
        let mut client = RawClient::connect(gateway.address());
        let post = |path: &str| post(path, &format!("pair-{number}\r\nX-Tenant: 1"), "");
        assert_eq!(client.exchange(post(one)).status, 200, "{one}");
        let answer = client.exchange(post(other));
        assert_eq!((answer.status, answer.is_replay()), (422, false), "{one} {other}");
        let seen: Vec<_> = upstream.take().into_iter().map(|it| it.what).collect();
        assert_eq!(seen, [format!("POST {one}")]);
    }
}

/// Bytes that follow the upstream's agreement to an upgrade are not HTTP.
#[test]
fn behind_a_101_bytes_are_free() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = GatewayProcess::start(upstream.local_addr().unwrap(), ROUTE);
    let mut client = RawClient::connect(gateway.address());
    client
        .send("GET /a HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    let (mut upstream, _) = upstream.accept().unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        upstream.read_exact(&mut byte).unwrap();
        head.extend_from_slice(&byte);
    }
    let agreed =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    upstream.write_all(agreed.as_bytes()).unwrap();
    assert_eq!(client.answer().unwrap().status, 101);
    client.send("a\nb\0c\n\n");
    let mut bytes = [0; 7];
    upstream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"a\nb\0c\n\n");
    upstream.write_all(b"\n\0").unwrap();
    drop(upstream);
    assert_eq!(client.rest().unwrap(), b"\n\0");
}

/// Requests of the corpus, changed here and there; the same every time.
struct Changes(u64);

impl Changes {
    fn made(&mut self) -> Vec<u8> {
        let mut bytes = self.request();
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len() + 1);
            let byte = SPECIAL[self.below(SPECIAL.len())];
            match self.below(4) {
                0 => bytes.insert(at, byte),
                1 => bytes.truncate(at.max(1)),
                2 => _ = bytes.splice(at..bytes.len().min(at + 1), [byte]),
                _ => {
                    let other = self.request();
                    bytes.splice(at..at, other[self.below(other.len())..].iter().copied());
                }
            }
        }
        bytes
    }

    fn request(&mut self) -> Vec<u8> {
        let cases = attacks::all();
        cases[self.below(cases.len())].1.replace('⏎', "\r\n").into_bytes()
    }

    /// SplitMix64.
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % limit.max(1) as u64).unwrap()
    }
}

/// Checks every case, and reports all failures at once.
fn check_all(cases: &[Case]) {
    let upstream = Recorder::start();
    let mut gateway = GatewayProcess::start(upstream.address(), ROUTE);
    let wrong: Vec<_> = cases
        .iter()
        .filter_map(|case| {
            let told = expect::check(gateway.address(), &upstream, case).err()?;
            Some(format!("{}: {told}", case.0))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(gateway.is_running());
    // NoAnswer came later, either.
    let late: Vec<_> = upstream.take().into_iter().map(|it| it.what).collect();
    assert!(late.is_empty(), "{late:?}");
}

const ROUTE: &str = "
[[route]]
upstream = 'app'
[route.policy]
scope = { header = 'X-Tenant' }
fingerprint = { headers = ['X-Version'] }
[limits]
head_ms = 3000
pause_ms = 3000
";

/// Pairs of paths that some servers treat as the same.
const PAIRS: &[[&str; 2]] = &[
    ["/a/b", "/a//b"],
    ["/a/b", "//a/b"],
    ["/a/b", "/a/./b"],
    ["/a/b", "/a/c/../b"],
    ["/a/b", "/a%2fb"],
    ["/a%2fb", "/a%2Fb"],
    ["/a/b", "/a\\b"],
    ["/a/b", "/a%5cb"],
    ["/a/b", "/a/b/"],
    ["/a/b", "/a/b;x=1"],
    ["/a/b", "/a;/b"],
    ["/a/b", "/a/b?"],
    ["/a/b?c=1", "/a/b?c=%31"],
    ["/a/b?c=1&d=2", "/a/b?d=2&c=1"],
    ["/a/b", "/A/b"],
    ["/a/b", "/%61/b"],
    ["/a%20b", "/a+b"],
    ["/a/b", "/a/b%00"],
    ["/a/b", "/a/b%"],
    ["/a/%2e%2e/b", "/a/../b"],
    ["/caf%C3%A9", "/caf%c3%a9"],
];

/// The number of changed requests from each client.
const CHANGED: usize = 500;
const CLIENTS: u64 = 8;
const SPECIAL: &[u8] = b"\r\n\0\t :;,+-0123fF\x0b\x7f\x80";
