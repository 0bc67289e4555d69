//! A blocking client that sends given bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A client's connection, with a time limit on every read and write.
#[derive(Debug)]
pub(crate) struct RawClient {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// A complete response.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The head in lower case.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

/// The reason for a missing response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// The connection was closed before a complete response.
    Closed,
    /// The connection is open, and no more bytes arrive.
    Silence,
}

impl RawClient {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, unread: Vec::new() }
    }

    /// Sends bytes; a failed write shows in the next read.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Sends a request and returns its response.
    pub(crate) fn exchange(&mut self, bytes: impl AsRef<[u8]>) -> Answer {
        self.send(bytes);
        self.answer().expect("no response")
    }

    /// Reads the next response.
    pub(crate) fn answer(&mut self) -> Result<Answer, NoAnswer> {
        loop {
            if let Some((answer, taken)) = whole(&self.unread) {
                self.unread.drain(..taken);
                return Ok(answer);
            }
            self.read()?;
        }
    }

    /// Reads everything up to the end of the connection.
    pub(crate) fn rest(&mut self) -> Result<Vec<u8>, NoAnswer> {
        loop {
            match self.read() {
                Ok(()) => {}
                Err(NoAnswer::Closed) => return Ok(std::mem::take(&mut self.unread)),
                Err(silence) => return Err(silence),
            }
        }
    }

    fn read(&mut self) -> Result<(), NoAnswer> {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(NoAnswer::Closed),
            Ok(count) => {
                self.unread.extend_from_slice(bytes.get(..count).unwrap());
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(NoAnswer::Silence),
            Err(_) => Err(NoAnswer::Closed),
        }
    }
}

impl Answer {
    /// Returns the value of the first line of this name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }
}

/// Returns a request with this key and body.
pub(crate) fn post(path: &str, key: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: shop\r\nIdempotency-Key: {key}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Splits bytes into complete responses and a rest.
pub(crate) fn answers(mut bytes: &[u8]) -> (Vec<Answer>, &[u8]) {
    let mut answers = Vec::new();
    while let Some((answer, taken)) = whole(bytes) {
        answers.push(answer);
        bytes = bytes.get(taken..).unwrap();
    }
    (answers, bytes)
}

fn whole(bytes: &[u8]) -> Option<(Answer, usize)> {
    let head_bytes = bytes.windows(4).position(|it| it == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(bytes.get(..head_bytes)?).to_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body_at = head_bytes + 4;
    let mut answer = Answer { status, head, body: Vec::new() };
    if answer.header("transfer-encoding") == Some("chunked") {
        let (body, taken) = chunks(bytes.get(body_at..)?)?;
        answer.body = body;
        return Some((answer, body_at + taken));
    }
    let length = answer.header("content-length").map_or(Some(0), |it| it.parse().ok())?;
    answer.body = bytes.get(body_at..body_at + length)?.to_owned();
    Some((answer, body_at + length))
}

fn chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let rest = bytes.get(at..)?;
        let line = rest.windows(2).position(|it| it == b"\r\n")?;
        let size = std::str::from_utf8(rest.get(..line)?).ok()?;
        let size = usize::from_str_radix(size, 16).ok()?;
        at += line + 2;
        body.extend_from_slice(bytes.get(at..at + size)?);
        at += size + 2;
        if bytes.len() < at {
            return None;
        }
        if size == 0 {
            return Some((body, at));
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
