//! The heap allocations of a request through the gateway, which a busy machine cannot blur.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use idemptx_gateway::serve::Gateway;
use tokio::sync::oneshot;

use crate::support::in_process::{config, simple};

/// The recorded figures: lower them with the code, and raise one only for a reason.
const RECORDED: [(Keys, &str, u64); 4] = [
    (Keys::None, "protect = false", 14),
    (Keys::None, "", 14),
    (Keys::One, "", 13),
    (Keys::Fresh, "", 35),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    /// No request has a key.
    None,
    /// All have the same: one is executed, the others are replays.
    One,
    /// Each has its own: all are executed.
    Fresh,
}

#[test]
fn a_request_through_the_gateway_allocates_no_more_than_recorded() {
    let upstream = upstream();
    for (keys, route, recorded) in RECORDED {
        let counted = allocations(upstream, keys, route);
        assert!(
            counted * 20 <= recorded * 21,
            "{keys:?}, {route:?}: {counted} allocations, where {recorded} are recorded"
        );
        assert!(
            counted * 21 >= recorded * 20,
            "{keys:?}, {route:?}: only {counted} allocations, where {recorded} are recorded: lower \
             that figure"
        );
    }
}

/// Returns the median number of allocations of a request, on a connection that is kept.
fn allocations(upstream: SocketAddr, keys: Keys, route: &str) -> u64 {
    let (windows, window) = mpsc::channel::<oneshot::Receiver<()>>();
    let (counts, counted) = mpsc::channel();
    let (addresses, address) = mpsc::channel();
    let config = config(&simple(upstream, route));
    // The gateway has a thread of its own, on which alone is counted.
    let gateway = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let gateway = runtime.block_on(Gateway::start(config)).unwrap();
        addresses.send(gateway.addresses()[0].tcp().unwrap()).unwrap();
        for answered in window {
            let counted = allocation_counter::measure(|| runtime.block_on(answered).unwrap());
            counts.send(counted.count_total).unwrap();
        }
    });
    let mut client = TcpStream::connect(address.recv().unwrap()).unwrap();
    let mut all: Vec<u64> = (0..CALLS)
        .map(|number| {
            let (answered, window) = oneshot::channel();
            windows.send(window).unwrap();
            client.write_all(request(keys, number).as_bytes()).unwrap();
            assert!(message(&mut client).starts_with("HTTP/1.1 201 "));
            answered.send(()).unwrap();
            counted.recv().unwrap()
        })
        .collect();
    drop(windows);
    gateway.join().unwrap();
    all.sort_unstable();
    all[all.len() / 2]
}

fn request(keys: Keys, number: u32) -> String {
    let key = match keys {
        Keys::None => String::new(),
        Keys::One => format!("Idempotency-Key: {CALLS:032x}\r\n"),
        Keys::Fresh => format!("Idempotency-Key: {number:032x}\r\n"),
    };
    format!(
        "POST /orders HTTP/1.1\r\nHost: shop.example\r\nContent-Type: application/json\r\n{key}\
         Content-Length: {}\r\n\r\n{WISH}",
        WISH.len()
    )
}

/// Starts a service that answers every request alike.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                while !message(&mut stream).is_empty() {
                    stream.write_all(ORDERED.as_bytes()).unwrap();
                }
            });
        }
    });
    address
}

/// Reads a message with its body; nothing at the end of the stream.
fn message(stream: &mut TcpStream) -> String {
    let (mut read, mut bytes) = (String::new(), [0; 4096]);
    loop {
        if let Some((head, body)) = read.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return read;
            }
        }
        match stream.read(&mut bytes).unwrap() {
            0 => return String::new(),
            count => read.push_str(std::str::from_utf8(&bytes[..count]).unwrap()),
        }
    }
}

const CALLS: u32 = 101;
const WISH: &str = r#"{"item":"tea"}"#;
const ORDERED: &str = "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\n\
                       Content-Length: 17\r\n\r\n{\"order\":\"a-tea\"}";
