//! Blocking requests, each on a new connection, and their complete replies.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A request to send.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    address: SocketAddr,
    line: String,
    headers: String,
    body: String,
}

/// A complete reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Request {
    ask(address, "GET", path)
}

pub(crate) fn post(address: SocketAddr, path: &str, body: &str) -> Request {
    Request { body: body.to_owned(), ..ask(address, "POST", path) }
}

pub(crate) fn ask(address: SocketAddr, method: &str, path: &str) -> Request {
    let line = format!("{method} {path} HTTP/1.1\r\n");
    let headers = format!("connection: close\r\nhost: {address}\r\n");
    Request { address, line, headers, body: String::new() }
}

impl Request {
    /// Sets a header line, replacing one of the same name.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        let start = format!("{name}:");
        let kept = self.headers.split_inclusive("\r\n").filter(|line| !line.starts_with(&start));
        self.headers = kept.collect();
        self.headers += &format!("{start} {value}\r\n");
        self
    }

    pub(crate) fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    /// Adds the headers that the admin API demands of changes.
    pub(crate) fn deliberate(self, name: &str) -> Self {
        self.header("content-type", "application/json").header("idempotency-admin", name)
    }

    pub(crate) fn reply(self) -> Reply {
        let Self { address, line, headers, body } = self;
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let length = body.len();
        let request = format!("{line}{headers}content-length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        let reply = String::from_utf8(reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply { status, head: head.to_ascii_lowercase(), body: dechunked(head, body) }
    }

    /// Returns the body of the reply, which must be 200 with JSON.
    pub(crate) fn json(self) -> serde_json::Value {
        let reply = self.reply();
        assert_eq!(reply.status, 200, "{reply:?}");
        serde_json::from_str(&reply.body).unwrap()
    }
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(of, _)| *of == name).map(|(_, value)| value)
    }
}

fn dechunked(head: &str, body: &str) -> String {
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return body.to_owned();
    }
    let (mut whole, mut rest) = (String::new(), body);
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole += &after[..size];
        rest = after.get(size + 2..).unwrap_or_default();
    }
    whole
}
