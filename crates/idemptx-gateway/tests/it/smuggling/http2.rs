//! T31: what is no HTTP/1.1 request is not made one, frame by frame (RFC 9113).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::recorder::Recorder;
use super::{GatewayProcess, ROUTE};

/// The fields and DATA of a stream.
type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str, Expect);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// The upstream sees it.
    Forwarded(&'static str),
    /// The gateway answers with this status.
    Answered(u16),
    /// The stream, or the connection, is ended.
    Reset,
}

#[test]
fn a_stream_that_is_no_request_of_http1_becomes_none() {
    let upstream = Recorder::start();
    let mut gateway = GatewayProcess::start(upstream.address(), ROUTE);
    let wrong: Vec<_> = CASES
        .iter()
        .filter_map(|case| {
            let told = check(gateway.address(), &upstream, case).err()?;
            Some(format!("{}: {told}", case.0))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
    assert!(gateway.is_running());
}

const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/a"), (":authority", "shop")];

macro_rules! post {
    ($($field:expr),* $(,)?) => { &[POST[0], POST[1], POST[2], POST[3], $($field),*] };
}

const CASES: &[Case] = &[
    ("a request", post![], "hi", Expect::Forwarded("POST /a hi")),
    (
        "a length that is right",
        post![("content-length", "2")],
        "hi",
        Expect::Forwarded("POST /a hi"),
    ),
    (
        "a length that is too short",
        post![("content-length", "1"), KEY, TENANT],
        "hi",
        Expect::Reset,
    ),
    ("a length that is too long", post![("content-length", "3"), KEY, TENANT], "hi", Expect::Reset),
    ("a length that is none", post![("content-length", "x")], "hi", Expect::Reset),
    ("a coding", post![("transfer-encoding", "chunked")], "0\r\n\r\n", Expect::Reset),
    ("a connection", post![("connection", "close")], "", Expect::Reset),
    ("an upgrade", post![("upgrade", "websocket")], "", Expect::Reset),
    ("te but for trailers", post![("te", "gzip")], "", Expect::Reset),
    ("a name in capitals", post![("X-A", "y")], "", Expect::Reset),
    ("a name with a colon", post![("x:a", "y")], "", Expect::Reset),
    ("a name with a space", post![("x a", "y")], "", Expect::Reset),
    ("a line in a value", post![("x-a", "y\r\nx-b: z")], "", Expect::Reset),
    ("a line feed in a value", post![("x-a", "y\nz")], "", Expect::Reset),
    ("NUL in a value", post![("x-a", "y\0z")], "", Expect::Reset),
    (
        "a line in the path",
        &[POST[0], POST[1], (":path", "/a\r\nx: y"), POST[3]],
        "",
        Expect::Reset,
    ),
    (
        "a space in the path",
        &[POST[0], POST[1], (":path", "/a HTTP/1.1"), POST[3]],
        "",
        Expect::Reset,
    ),
    ("an empty path", &[POST[0], POST[1], (":path", ""), POST[3]], "", Expect::Reset),
    ("two paths", post![(":path", "/b")], "", Expect::Reset),
    ("a pseudo-field behind others", post![("x-a", "y"), (":path", "/b")], "", Expect::Reset),
    ("an unknown pseudo-field", post![(":x", "y")], "", Expect::Reset),
    (
        "a method that is none",
        &[(":method", "PO ST"), POST[1], POST[2], POST[3]],
        "",
        Expect::Reset,
    ),
    ("no method", &[POST[1], POST[2], POST[3]], "", Expect::Reset),
    ("no host", &[POST[0], POST[1], POST[2]], "", Expect::Answered(400)),
    ("another host", post![("host", "internal")], "", Expect::Answered(400)),
    ("two hosts", post![("host", "shop"), ("host", "shop")], "", Expect::Answered(400)),
    (
        "credentials",
        &[POST[0], POST[1], POST[2], (":authority", "x@shop")],
        "",
        Expect::Answered(400),
    ),
    (
        "an ambiguous path",
        &[POST[0], POST[1], (":path", "/a/../b"), POST[3]],
        "",
        Expect::Answered(400),
    ),
    ("two keys", post![KEY, KEY, TENANT], "", Expect::Answered(400)),
];

const KEY: (&str, &str) = ("idempotency-key", "k");
const TENANT: (&str, &str) = ("x-tenant", "1");

fn check(gateway: SocketAddr, upstream: &Recorder, case: &Case) -> Result<(), String> {
    let (_, fields, data, expect) = case;
    upstream.take();
    let mut stream = TcpStream::connect(gateway).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let block: Vec<u8> = fields.iter().flat_map(|(name, value)| literal(name, value)).collect();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes.extend(frame(HEADERS, END_HEADERS, 1, &block));
    bytes.extend(frame(DATA, END_STREAM, 1, data.as_bytes()));
    // The gateway may have closed it meanwhile.
    let _ = stream.write_all(&bytes);
    let end = end_of_stream(&mut stream)?;
    let seen: Vec<_> = upstream.take().into_iter().map(|it| it.what).collect();
    let whole: Vec<_> = seen.iter().filter(|it| !it.contains("breaks off")).collect();
    match (expect, end) {
        (Expect::Forwarded(what), Some(200)) if seen == [*what] => Ok(()),
        (Expect::Answered(status), Some(answered)) if answered == *status && whole.is_empty() => {
            Ok(())
        }
        // hyper answers some of them 400 itself, and ends the stream.
        (Expect::Reset, None | Some(400)) if whole.is_empty() => Ok(()),
        _ => Err(format!("ended with {end:?}, and the upstream saw {seen:?}")),
    }
}

/// Returns the status of stream 1, if it gets a response.
fn end_of_stream(stream: &mut TcpStream) -> Result<Option<u16>, String> {
    let mut status = None;
    loop {
        let mut head = [0; 9];
        if let Err(error) = stream.read_exact(&mut head) {
            let silent = error.kind() == std::io::ErrorKind::WouldBlock;
            return if silent { Err("silence".to_owned()) } else { Ok(status) };
        }
        let [a, b, c, kind, flags, _, _, _, id] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).map_err(|error| error.to_string())?;
        match kind {
            HEADERS if id == 1 => status = Some(status_of(&payload)?),
            RST_STREAM if id == 1 => return Ok(None),
            GOAWAY => return Ok(None),
            _ => {}
        }
        if id == 1 && flags & END_STREAM != 0 {
            return Ok(status);
        }
    }
}

/// The status comes first, from the static table (RFC 7541, appendix A) or as a literal.
fn status_of(block: &[u8]) -> Result<u16, String> {
    const KNOWN: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    let block = block.iter().skip_while(|byte| **byte & 0xe0 == 0x20).copied().collect::<Vec<_>>();
    match *block {
        [index, ..] if index & 0x80 != 0 => {
            let place = usize::from(index & 0x7f).checked_sub(8).ok_or("no status")?;
            KNOWN.get(place).copied().ok_or("no status".to_owned())
        }
        _ => Err(format!("a status that this client cannot read: {block:x?}")),
    }
}

/// A field without an index and without Huffman's code.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0x10];
    for text in [name, value] {
        bytes.push(u8::try_from(text.len()).unwrap());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![a, b, c, kind, flags, 0, 0, 0, stream];
    bytes.extend_from_slice(payload);
    bytes
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
