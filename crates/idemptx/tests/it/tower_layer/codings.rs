//! Compressed request bodies.

use axum::body::Body;
use http::Request;

use super::{app, engine};
use crate::support::http_client::{posted, send};

#[tokio::test]
async fn a_body_that_was_compressed_again_is_the_same_and_reaches_the_handler_as_it_was_sent() {
    let engine = engine(|policy| policy);
    let (app, count) = app(&engine, async |request: Request<Body>| {
        axum::body::to_bytes(request.into_body(), 100).await.unwrap()
    });
    let sent = |body: Vec<u8>| {
        let mut request = posted("k", body);
        request.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
        request
    };
    let first = send(&app, sent(gzip(1, ORDER_4711))).await;
    assert_eq!(first.body, gzip(1, ORDER_4711));
    let retry = send(&app, sent(gzip(2, ORDER_4711))).await;
    assert!(retry.is_replay(), "{retry:?}");
    send(&app, sent(gzip(1, ORDER_4712))).await.refused(422, "key-reused");
    assert_eq!(count.runs(), 1);
}

#[tokio::test]
async fn a_decompression_bomb_is_refused() {
    let engine = engine(|policy| policy);
    let (app, count) = app(&engine, async |_| "done");
    let mut request = posted("k", bomb());
    request.headers_mut().insert("content-encoding", "zstd".parse().unwrap());
    send(&app, request).await.refused(413, "body-too-large");
    assert_eq!(count.runs(), 0);
    // Without a key it is the handler's.
    let mut request = posted("k", bomb());
    request.headers_mut().remove("idempotency-key");
    send(&app, request).await.answered(200, "done");
}

/// A member (RFC 1952) with another time in its header.
fn gzip(time: u8, compressed: &[u8]) -> Vec<u8> {
    [&[0x1F, 0x8B, 8, 0, time, 0, 0, 0, 2, 0xFF], compressed].concat()
}

/// A frame (RFC 8878) of 80,000 blocks that each repeat a byte 128 KiB times: 10 GB in 320 kB.
fn bomb() -> Vec<u8> {
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x50];
    for block in 1..=80_000 {
        let header = (128_u32 << 10) << 3 | 1 << 1 | u32::from(block == 80_000);
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(b'a');
    }
    frame
}

/// `order 4711`, with its checksum and length.
const ORDER_4711: &[u8] =
    b"\xcb\x2f\x4a\x49\x2d\x52\x30\x31\x37\x34\x04\x00\x7e\x09\xd9\xde\x0a\0\0\0";
/// `order 4712`.
const ORDER_4712: &[u8] =
    b"\xcb\x2f\x4a\x49\x2d\x52\x30\x31\x37\x32\x04\x00\xc4\x58\xd0\x47\x0a\0\0\0";
