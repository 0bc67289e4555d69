//! Messages, and the offset of the first ambiguous byte.

use super::{Ambiguous, Framing, Position};

#[test]
fn messages_that_can_be_read_in_one_way_are_followed_to_their_end() {
    for bytes in [
        "GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\n\r\nGET /a HTTP/1.1\r\n\r\n",
        "POST /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        "POST /a HTTP/1.1\r\nCONTENT-LENGTH:\t 3 \r\n\r\na\nb",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\na\n\r\n0\r\n\r\n",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nA;b=c\r\n0123456789\r\n0\r\nX: y\r\n\r\n",
        "POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nhiPOST /b HTTP/1.1\r\nContent-Length: 1\r\n\r\na",
    ] {
        assert_eq!(read(bytes), (Ok(()), Position::FirstLine), "{bytes:?}");
    }
}

#[test]
fn what_can_be_read_in_two_ways_is_found_where_it_begins() {
    for (good, bad) in [
        ("", "GET /a HTTP/1.1\nHost: a\r\n\r\n"),
        ("", "GET /a#b HTTP/1.1\r\n"),
        ("GET /a HTTP/1.1\r\n", "X: y\nZ: z\r\n\r\n"),
        ("GET /a HTTP/1.1\r\n", "X: y\rZ: z\r\n\r\n"),
        ("GET /a HTTP/1.1\r\nX: y\r\n", "\n"),
        ("POST /a HTTP/1.1\r\n", "Content-Length: +2\r\n"),
        ("POST /a HTTP/1.1\r\n", "Content-Length: 2,2\r\n"),
        ("POST /a HTTP/1.1\r\nContent-Length: 2\r\n", "Content-Length: 2\r\n"),
        ("POST /a HTTP/1.1\r\n", "Transfer-Encoding: gzip, chunked\r\n"),
        ("POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\n"),
        ("POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n", "\r\n"),
        ("POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "+2\r\nhi\r\n"),
        ("POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "\r\nhi\r\n"),
        ("POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi", "ho\r\n0\r\n\r\n"),
        ("POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "\n"),
        ("POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", "PRI * HTTP/2.0\n"),
    ] {
        let (end, _) = read(&format!("{good}{bad}"));
        assert_eq!(end, Err(Ambiguous { at: good.len() }), "{good:?} {bad:?}");
    }
}

#[test]
fn bytes_that_come_one_by_one_are_read_the_same() {
    let bytes = "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\nb\r\n0\r\n\r\n\
                 POST /b HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi";
    let mut framing = Framing::new(100);
    for byte in bytes.as_bytes().chunks(1) {
        assert_eq!(framing.read(byte), Ok(()));
    }
    assert_eq!(framing.position, Position::FirstLine);
    assert_eq!(framing.read(b"\n"), Err(Ambiguous { at: 0 }));
}

#[test]
fn the_preface_of_http2_ends_the_reading() {
    let (end, position) = read("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\n");
    assert_eq!((end, position), (Ok(()), Position::Elsewhere));
}

#[test]
fn a_line_without_an_end_is_not_kept() {
    let mut framing = Framing::new(100);
    assert_eq!(framing.read(&[b'x'; 100]), Ok(()));
    assert_eq!(framing.read(b"x"), Err(Ambiguous { at: 0 }));
}

fn read(bytes: &str) -> (Result<(), Ambiguous>, Position) {
    let mut framing = Framing::new(1000);
    let end = framing.read(bytes.as_bytes());
    (end, framing.position)
}
