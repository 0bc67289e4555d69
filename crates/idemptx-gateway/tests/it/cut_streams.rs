//! Streams of HTTP/2 that end without END_STREAM, or stand still.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::Reason;
use http::Request;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::support::hyper_service::HyperService;
use crate::support::in_process::{PATIENCE, Running, in_front_of, post, send, simple, started};

#[tokio::test]
async fn half_an_answer_whose_stream_is_reset_without_an_error_is_no_answer() {
    for declared in [None, Some("100")] {
        let upstream = Http2Upstream::start(When::Complete, half(declared)).await;
        let gateway = upstream.behind("").await;
        let ask = || send(gateway.address, post("k", "tea"));
        ask().await.refused(502, "upstream-failed");
        ask().await.refused(409, "outcome-unknown");
        assert_eq!(upstream.requests(), 1);
    }
}

#[tokio::test]
async fn an_early_answer_is_whole_although_its_stream_is_reset_without_an_error() {
    let answer = [
        frame(HEADERS, END_HEADERS, &[OK]),
        frame(DATA, END_STREAM, b"enough"),
        frame(RST_STREAM, 0, &[0; 4]),
    ];
    let upstream = Http2Upstream::start(When::Early, answer.concat()).await;
    let gateway = upstream.behind("protect = false").await;
    let request = Request::post("/orders").body(Full::new(Bytes::from(large()))).unwrap();
    let reply = send(gateway.address, request).await;
    assert_eq!((reply.status.as_u16(), reply.text()), (200, "enough"));
}

#[tokio::test]
async fn an_upload_that_an_http2_upstream_does_not_take_ends() {
    // It grants no more than the window of the beginning.
    let upstream = Http2Upstream::start(When::Complete, Vec::new()).await;
    let text = upstream.text("").replace("_ms = 15000", "_ms = 15000\npause_timeout_ms = 200");
    let gateway = started(&text).await;
    let upload = || send(gateway.address, post("k", &large()));
    upload().await.refused(504, "upstream-timeout");
    upload().await.refused(409, "outcome-unknown");
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn half_a_request_whose_stream_is_reset_without_an_error_is_not_executed() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "").await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let order = || Request::post("http://shop/orders").header("idempotency-key", "k").body(());
    let (_, mut half) = client.send_request(order().unwrap(), false).unwrap();
    half.send_data("half of".into(), false).unwrap();
    // Once this one is answered, the gateway reads the body of the other.
    let other = Request::get("http://shop/").body(()).unwrap();
    let (answer, _) = client.send_request(other, true).unwrap();
    assert_eq!(timeout(PATIENCE, answer).await.unwrap().unwrap().status(), 201);
    half.send_reset(Reason::NO_ERROR);
    let (answer, mut whole) = client.send_request(order().unwrap(), false).unwrap();
    whole.send_data("half of it, and the rest".into(), true).unwrap();
    let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
    assert_eq!(answer.status(), 201, "the key was free");
    assert_eq!(upstream.requests(), 2);
}

/// An upstream that answers each request with the same frames, and grants no further room.
struct Http2Upstream {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// After the whole request.
    Complete,
    /// After its head.
    Early,
}

impl Http2Upstream {
    /// Starts one; the frames name no stream.
    async fn start(when: When, answer: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, when, answer.clone(), Arc::clone(&counted)));
            }
        });
        Self { address, requests }
    }

    fn text(&self, route: &str) -> String {
        simple(self.address, route).replace("name = \"up\"", "name = \"up\"\nhttp2 = true")
    }

    async fn behind(&self, route: &str) -> Running {
        started(&self.text(route)).await
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Serves one connection until it closes.
async fn serve(mut stream: TcpStream, when: When, answer: Vec<u8>, requests: Arc<AtomicUsize>) {
    let mut preface = [0; 24];
    if stream.read_exact(&mut preface).await.is_err() {
        return;
    }
    let _ = stream.write_all(&frame(SETTINGS, 0, &[])).await;
    let mut head = [0; 9];
    while stream.read_exact(&mut head).await.is_ok() {
        let [a, b, c, kind, flags, _, _, _, id] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        if stream.read_exact(&mut payload).await.is_err() {
            return;
        }
        requests.fetch_add(usize::from(kind == HEADERS), Ordering::SeqCst);
        let is_due = match when {
            When::Complete => matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0,
            When::Early => kind == HEADERS,
        };
        if is_due {
            let _ = stream.write_all(&of_stream(&answer, id)).await;
        }
    }
}

/// A head, a part of a body, and a reset with NO_ERROR.
fn half(declared: Option<&str>) -> Vec<u8> {
    let mut head = vec![OK];
    if let Some(length) = declared {
        // A literal field without an index, whose name is in the static table (RFC 7541 §6.2.2).
        head.extend([0x0f, 13, u8::try_from(length.len()).unwrap()]);
        head.extend(length.bytes());
    }
    let frames = [
        frame(HEADERS, END_HEADERS, &head),
        frame(DATA, 0, b"half of "),
        frame(RST_STREAM, 0, &[0; 4]),
    ];
    frames.concat()
}

/// A body that does not fit into the window of a stream.
fn large() -> String {
    "x".repeat(200_000)
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[a, b, c, kind, flags, 0, 0, 0, 0], payload].concat()
}

/// Names the stream in each frame.
fn of_stream(frames: &[u8], id: u8) -> Vec<u8> {
    let (mut named, mut at) = (frames.to_vec(), 0);
    while let Some([a, b, c]) = named.get(at..at + 3).map(|it| [it[0], it[1], it[2]]) {
        named[at + 8] = id;
        at += 9 + u32::from_be_bytes([0, a, b, c]) as usize;
    }
    named
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200`, by its index in the static table (RFC 7541, appendix A).
const OK: u8 = 0x88;
