//! Payloads of hostile clients, and the required reaction to each.
//!
//! Read a line as: *this*, sent as it stands, is *answered so*, and the upstream sees *that*.
//! `⏎` stands for CRLF at the end of a line.
//! All of them are one table, in one file, to be read and compared side by side.

use super::expect::{Expect, answered, closed, forwarded, refused};

/// A named payload.
pub(super) type Case = (&'static str, &'static str, Expect);

/// A body's length can be read in one way only.
pub(super) fn lengths() -> Vec<Case> {
    vec![
        (
            "both lengths, as CL.TE",
            "POST /a HTTP/1.1⏎Host: shop⏎Content-Length: 33⏎Transfer-Encoding: chunked⏎⏎\
             0⏎⏎GET /smuggled HTTP/1.1⏎X: y",
            refused(400),
        ),
        (
            "both lengths, as TE.CL",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: chunked⏎Content-Length: 4⏎⏎\
             1e⏎GET /smuggled HTTP/1.1⏎Host: b⏎⏎⏎0⏎⏎",
            refused(400),
        ),
        (
            "both lengths, and they agree",
            "POST /a HTTP/1.1⏎Host: shop⏎Content-Length: 12⏎Transfer-Encoding: chunked⏎⏎\
             2⏎hi⏎0⏎⏎",
            refused(400),
        ),
        (
            "two lengths that differ",
            "POST /a HTTP/1.1⏎Host: shop⏎Content-Length: 2⏎Content-Length: 35⏎⏎\
             hiGET /smuggled HTTP/1.1⏎Host: b⏎⏎",
            refused(400),
        ),
        (
            "two lengths that agree",
            "POST /a HTTP/1.1⏎Host: shop⏎Content-Length: 2⏎Content-Length: 2⏎⏎hi",
            refused(400),
        ),
        ("a list of lengths", "POST /a HTTP/1.1⏎Host: shop⏎Content-Length: 2, 2⏎⏎hi", refused(400)),
        ("a signed length", "POST /a HTTP/1.1⏎Host: shop⏎Content-Length: +2⏎⏎hi", refused(400)),
        ("a negative length", "POST /a HTTP/1.1⏎Host: shop⏎Content-Length: -2⏎⏎hi", refused(400)),
        (
            "a length with a space",
            "POST /a HTTP/1.1⏎Host: shop⏎Content-Length: 1 2⏎⏎hi",
            refused(400),
        ),
        (
            "a hexadecimal length",
            "POST /a HTTP/1.1⏎Host: shop⏎Content-Length: 0x2⏎⏎hi",
            refused(400),
        ),
        (
            "a length with a point",
            "POST /a HTTP/1.1⏎Host: shop⏎Content-Length: 2.0⏎⏎hi",
            refused(400),
        ),
        ("an empty length", "POST /a HTTP/1.1⏎Host: shop⏎Content-Length:⏎⏎", refused(400)),
        (
            "a length beyond 64 bits",
            "POST /a HTTP/1.1⏎Host: shop⏎Content-Length: 18446744073709551618⏎⏎hi",
            refused(400),
        ),
        (
            "a space before the colon of the length",
            "POST /a HTTP/1.1⏎Host: shop⏎Content-Length : 2⏎⏎hi",
            refused(400),
        ),
        (
            "a tab before the colon of the coding",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding\t: chunked⏎⏎0⏎⏎",
            refused(400),
        ),
        (
            "a length with spaces around it, which are none of it",
            "POST /a HTTP/1.1⏎Host: shop⏎Content-Length: \t 2 ⏎⏎hi",
            forwarded(&["POST /a hi"]),
        ),
        (
            "a length, and what follows is the next request",
            "POST /a HTTP/1.1⏎Host: shop⏎Content-Length: 2⏎⏎hiPOST /b HTTP/1.1⏎Host: shop⏎\
             Content-Length: 2⏎⏎ho",
            forwarded(&["POST /a hi", "POST /b ho"]),
        ),
        (
            "no length, and what follows is no request",
            "POST /a HTTP/1.1⏎Host: shop⏎⏎0⏎⏎GET /smuggled HTTP/1.1⏎Host: b⏎⏎",
            forwarded(&["POST /a"]).then_refused(400),
        ),
    ]
}

/// There is one coding, and it is written in one way.
pub(super) fn codings() -> Vec<Case> {
    vec![
        (
            "chunked",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: chunked⏎⏎2⏎hi⏎0⏎⏎",
            forwarded(&["POST /a hi"]),
        ),
        (
            "chunked in capitals",
            "POST /a HTTP/1.1⏎Host: shop⏎TRANSFER-ENCODING:\tCHUNKED⏎⏎2⏎hi⏎0⏎⏎",
            forwarded(&["POST /a hi"]),
        ),
        (
            "xchunked",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: xchunked⏎⏎2⏎hi⏎0⏎⏎",
            refused(400),
        ),
        ("identity", "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: identity⏎⏎hi", refused(400)),
        ("nothing", "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding:⏎⏎hi", refused(400)),
        (
            "chunked, identity",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: chunked, identity⏎⏎2⏎hi⏎0⏎⏎",
            refused(400),
        ),
        (
            "identity, chunked",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: identity, chunked⏎⏎2⏎hi⏎0⏎⏎",
            refused(400),
        ),
        (
            "gzip, chunked: nobody would undo the first",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: gzip, chunked⏎⏎2⏎hi⏎0⏎⏎",
            refused(400),
        ),
        (
            "chunked twice in a line",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: chunked, chunked⏎⏎2⏎hi⏎0⏎⏎",
            refused(400),
        ),
        (
            "chunked twice, as TE.TE",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: chunked⏎Transfer-Encoding: chunked⏎⏎\
             2⏎hi⏎0⏎⏎",
            refused(400),
        ),
        (
            "chunked, then another, as TE.TE",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: chunked⏎Transfer-Encoding: cow⏎⏎\
             2⏎hi⏎0⏎⏎",
            refused(400),
        ),
        (
            "another, then chunked, as TE.TE",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: cow⏎Transfer-Encoding: chunked⏎⏎\
             2⏎hi⏎0⏎⏎",
            refused(400),
        ),
        (
            "chunked with a parameter",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: chunked;q=1⏎⏎2⏎hi⏎0⏎⏎",
            refused(400),
        ),
        (
            "chunked in quotes",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: \"chunked\"⏎⏎2⏎hi⏎0⏎⏎",
            refused(400),
        ),
        (
            "chunked behind a vertical tab",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: \x0bchunked⏎⏎2⏎hi⏎0⏎⏎",
            refused(400),
        ),
        (
            "a name that only looks like it is another field",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer_Encoding: chunked⏎Content-Length: 2⏎⏎hi",
            forwarded(&["POST /a hi"]),
        ),
        (
            "a chunk's size with a sign",
            "POST /a HTTP/1.1⏎Host: shop⏎X-Tenant: 1⏎Idempotency-Key: k⏎Transfer-Encoding: chunked⏎⏎\
             +2⏎hi⏎0⏎⏎GET /smuggled HTTP/1.1⏎Host: b⏎⏎",
            refused(400),
        ),
        (
            "a chunk's size with a prefix",
            "POST /a HTTP/1.1⏎Host: shop⏎X-Tenant: 1⏎Idempotency-Key: k⏎Transfer-Encoding: chunked⏎⏎\
             0x2⏎hi⏎0⏎⏎GET /smuggled HTTP/1.1⏎Host: b⏎⏎",
            refused(400),
        ),
        (
            "a chunk's size beyond 64 bits",
            "POST /a HTTP/1.1⏎Host: shop⏎X-Tenant: 1⏎Idempotency-Key: k⏎Transfer-Encoding: chunked⏎⏎\
             10000000000000002⏎hi⏎0⏎⏎GET /smuggled HTTP/1.1⏎Host: b⏎⏎",
            refused(400),
        ),
        (
            "a chunk without a size",
            "POST /a HTTP/1.1⏎Host: shop⏎X-Tenant: 1⏎Idempotency-Key: k⏎Transfer-Encoding: chunked⏎⏎\
             ⏎hi⏎0⏎⏎GET /smuggled HTTP/1.1⏎Host: b⏎⏎",
            refused(400),
        ),
        (
            "a chunk that is longer than its size",
            "POST /a HTTP/1.1⏎Host: shop⏎X-Tenant: 1⏎Idempotency-Key: k⏎Transfer-Encoding: chunked⏎⏎\
             2⏎hiho⏎0⏎⏎GET /smuggled HTTP/1.1⏎Host: b⏎⏎",
            refused(400),
        ),
        (
            "a chunk's size that ends with a bare line feed",
            "POST /a HTTP/1.1⏎Host: shop⏎X-Tenant: 1⏎Idempotency-Key: k⏎Transfer-Encoding: chunked⏎⏎\
             2\nhi⏎0⏎⏎GET /smuggled HTTP/1.1⏎Host: b⏎⏎",
            refused(400),
        ),
        (
            "a line feed in a chunk's extension",
            "POST /a HTTP/1.1⏎Host: shop⏎X-Tenant: 1⏎Idempotency-Key: k⏎Transfer-Encoding: chunked⏎⏎\
             2;\nxx⏎hi⏎0⏎⏎GET /smuggled HTTP/1.1⏎Host: b⏎⏎",
            refused(400),
        ),
        (
            "a chunk's extension, which ends with the connection it is for",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: chunked⏎⏎2;a=b⏎hi⏎0⏎⏎",
            forwarded(&["POST /a hi"]),
        ),
        (
            "chunks without a key that turn bad on their way",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: chunked⏎⏎2⏎hi⏎-1⏎\
             GET /smuggled HTTP/1.1⏎Host: b⏎⏎",
            refused(400).having_begun(),
        ),
        (
            "a trailer that is a length",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: chunked⏎⏎2⏎hi⏎0⏎Content-Length: 99⏎⏎",
            forwarded(&["POST /a hi"]).without(&["trailer content-length"]),
        ),
    ]
}

/// Lines end with CRLF and with nothing else, and are not continued.
pub(super) fn lines() -> Vec<Case> {
    vec![
        (
            "a folded line",
            "POST /a HTTP/1.1⏎Host: shop⏎X: y⏎ Content-Length: 9⏎Content-Length: 2⏎⏎hi",
            refused(400),
        ),
        (
            "a folded coding",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding:⏎ chunked⏎⏎0⏎⏎",
            refused(400),
        ),
        ("a folded first line", "POST /a HTTP/1.1⏎ X: y⏎Host: shop⏎⏎", refused(400)),
        (
            "a bare line feed behind a field",
            "GET /a HTTP/1.1⏎Host: shop⏎X: y\nZ: z⏎⏎",
            refused(400),
        ),
        ("a bare line feed behind the first line", "GET /a HTTP/1.1\nHost: shop⏎⏎", refused(400)),
        ("bare line feeds only", "GET /a HTTP/1.1\nHost: shop\n\n", refused(400)),
        (
            "a bare line feed that hides a coding",
            "POST /a HTTP/1.1⏎Host: shop⏎X: y\nTransfer-Encoding: chunked⏎⏎0⏎⏎\
             GET /smuggled HTTP/1.1⏎Host: b⏎⏎",
            refused(400),
        ),
        (
            "a bare carriage return in a field",
            "GET /a HTTP/1.1⏎Host: shop⏎X: y\rZ: z⏎⏎",
            refused(400),
        ),
        ("two carriage returns", "GET /a HTTP/1.1⏎Host: shop\r⏎⏎", refused(400)),
        ("NUL in a value", "GET /a HTTP/1.1⏎Host: shop⏎X: y\0z⏎⏎", refused(400)),
        ("NUL in a name", "GET /a HTTP/1.1⏎Host: shop⏎X\0: y⏎⏎", refused(400)),
        ("NUL in the target", "GET /a\0 HTTP/1.1⏎Host: shop⏎⏎", refused(400)),
        ("another control character", "GET /a HTTP/1.1⏎Host: shop⏎X: y\x01z⏎⏎", refused(400)),
        ("a line without a colon", "GET /a HTTP/1.1⏎Host: shop⏎X⏎⏎", refused(400)),
        ("a line without a name", "GET /a HTTP/1.1⏎Host: shop⏎: y⏎⏎", refused(400)),
        ("a name with a space", "GET /a HTTP/1.1⏎Host: shop⏎X Y: z⏎⏎", refused(400)),
        ("a name with a bracket", "GET /a HTTP/1.1⏎Host: shop⏎X(Y): z⏎⏎", refused(400)),
        ("a name beyond ASCII", "GET /a HTTP/1.1⏎Host: shop⏎Größe: 3⏎⏎", refused(400)),
        ("two spaces in the first line", "GET  /a HTTP/1.1⏎Host: shop⏎⏎", refused(400)),
        ("a tab in the first line", "GET\t/a HTTP/1.1⏎Host: shop⏎⏎", refused(400)),
        ("a space in front", " GET /a HTTP/1.1⏎Host: shop⏎⏎", refused(400)),
        ("a space in the target", "GET /a b HTTP/1.1⏎Host: shop⏎⏎", refused(400)),
        ("a fourth word", "GET /a HTTP/1.1 HTTP/1.1⏎Host: shop⏎⏎", refused(400)),
        ("no version", "GET /a⏎Host: shop⏎⏎", refused(400)),
        ("another protocol", "GET /a HTTQ/1.1⏎Host: shop⏎⏎", refused(400)),
        ("a version in small letters", "GET /a http/1.1⏎Host: shop⏎⏎", refused(400)),
        ("version 0.9", "GET /a HTTP/0.9⏎Host: shop⏎⏎", refused(400)),
        ("version 1.2", "GET /a HTTP/1.2⏎Host: shop⏎⏎", refused(400)),
        ("version 3", "GET /a HTTP/3.0⏎Host: shop⏎⏎", refused(400)),
        ("a method that is none", "G(ET) /a HTTP/1.1⏎Host: shop⏎⏎", refused(400)),
        ("TLS", "\x16\x03\x01\0\x05\x01\0\0\x01\0", refused(400)),
        (
            "an empty line in front, as old clients send it",
            "⏎GET /a HTTP/1.1⏎Host: shop⏎⏎",
            forwarded(&["GET /a"]),
        ),
        ("a head that breaks off", "GET /a HTTP/1.1⏎Host: shop⏎X: y", closed()),
        (
            "a body that breaks off",
            "POST /a HTTP/1.1⏎Host: shop⏎X-Tenant: 1⏎Idempotency-Key: k⏎\
             Content-Length: 9⏎⏎hi",
            refused(400).saying("body-unreadable"),
        ),
        (
            "a body without a key that breaks off",
            "POST /a HTTP/1.1⏎Host: shop⏎Content-Length: 9⏎⏎hi",
            refused(408).saying("body-too-slow").having_begun(),
        ),
    ]
}

/// T29: what is older than HTTP/1.1 has a length or no body.
pub(super) fn old_version() -> Vec<Case> {
    vec![
        (
            "HTTP/1.0 with a coding",
            "POST /a HTTP/1.0⏎Host: shop⏎Transfer-Encoding: chunked⏎⏎2⏎hi⏎0⏎⏎",
            refused(400),
        ),
        (
            "HTTP/1.0 with a coding and a length",
            "POST /a HTTP/1.0⏎Host: shop⏎Content-Length: 12⏎Transfer-Encoding: chunked⏎⏎2⏎hi⏎0⏎⏎",
            refused(400),
        ),
        (
            "HTTP/1.0 with a length",
            "POST /a HTTP/1.0⏎Host: shop⏎Content-Length: 2⏎⏎hi",
            forwarded(&["POST /a hi"]).then_closed(),
        ),
        (
            "HTTP/1.0 without a length has no body, and is not kept alive",
            "POST /a HTTP/1.0⏎Host: shop⏎⏎GET /smuggled HTTP/1.1⏎Host: b⏎⏎",
            forwarded(&["POST /a"]).then_closed(),
        ),
        (
            "HTTP/1.0 that asks to be kept alive",
            "GET /a HTTP/1.0⏎Host: shop⏎Connection: keep-alive⏎⏎",
            forwarded(&["GET /a"]),
        ),
        ("HTTP/1.0 without a host", "GET /a HTTP/1.0⏎⏎", refused(400)),
    ]
}

/// A connection changes its protocol for a WebSocket, once the upstream agrees.
pub(super) fn upgrades() -> Vec<Case> {
    vec![
        (
            "frames behind a WebSocket's request, which the upstream does not agree to",
            "GET /a HTTP/1.1⏎Host: shop⏎Connection: upgrade⏎Upgrade: websocket⏎⏎\
             GET /smuggled\r\n\r\n",
            forwarded(&["GET /a"]).then_refused(400),
        ),
        (
            "an upgrade under a key goes on as a plain request",
            "POST /a HTTP/1.1⏎Host: shop⏎Connection: upgrade⏎Upgrade: websocket⏎\
             X-Tenant: 1⏎Idempotency-Key: k⏎Content-Length: 2⏎⏎hi",
            forwarded(&["POST /a hi"]).without(&["upgrade", "connection"]),
        ),
        (
            "an upgrade with a body goes on as a plain request",
            "GET /a HTTP/1.1⏎Host: shop⏎Connection: upgrade⏎Upgrade: websocket⏎\
             Content-Length: 2⏎⏎hi",
            forwarded(&["GET /a hi"]).without(&["upgrade", "connection"]),
        ),
        (
            "an upgrade to HTTP/2 in clear text",
            "GET /a HTTP/1.1⏎Host: shop⏎Connection: Upgrade, HTTP2-Settings⏎Upgrade: h2c⏎\
             HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA⏎⏎",
            forwarded(&["GET /a"]).without(&["upgrade", "connection", "http2-settings"]),
        ),
        (
            "an upgrade to what nobody knows",
            "GET /a HTTP/1.1⏎Host: shop⏎Connection: upgrade⏎Upgrade: TLS/1.0⏎⏎",
            forwarded(&["GET /a"]).without(&["upgrade", "connection"]),
        ),
        (
            "an upgrade that Connection does not name",
            "GET /a HTTP/1.1⏎Host: shop⏎Upgrade: websocket⏎⏎",
            forwarded(&["GET /a"]).without(&["upgrade"]),
        ),
        (
            "a tunnel",
            "CONNECT 10.0.0.1:22 HTTP/1.1⏎Host: 10.0.0.1:22⏎⏎SSH-2.0-x⏎⏎",
            answered(405).then_refused(400),
        ),
        (
            "the preface of HTTP/2 in the middle of a connection",
            "GET /a HTTP/1.1⏎Host: shop⏎⏎PRI * HTTP/2.0⏎⏎SM⏎⏎",
            forwarded(&["GET /a"]).then_closed(),
        ),
    ]
}

/// T32: what concerns one connection stays there, and nothing else may be declared to.
pub(super) fn hops() -> Vec<Case> {
    vec![
        (
            "the usual ones",
            "GET /a HTTP/1.1⏎Host: shop⏎Keep-Alive: timeout=5⏎Proxy-Connection: keep-alive⏎\
             Proxy-Authorization: Basic eDp5⏎TE: gzip⏎⏎",
            forwarded(&["GET /a"]).without(&[
                "keep-alive",
                "proxy-connection",
                "proxy-authorization",
                "te",
                "connection",
            ]),
        ),
        (
            "those that Connection names",
            "GET /a HTTP/1.1⏎Host: shop⏎Connection: keep-alive, X-Hop⏎Connection: X-Skip⏎\
             X-Hop: 1⏎X-Skip: 2⏎⏎",
            forwarded(&["GET /a"]).without(&["x-hop", "x-skip", "connection"]),
        ),
        (
            "the key",
            "POST /a HTTP/1.1⏎Host: shop⏎Connection: Idempotency-Key⏎Idempotency-Key: k⏎Content-Length: 0⏎⏎",
            answered(400).saying("nominated-field"),
        ),
        (
            "the key, behind others",
            "POST /a HTTP/1.1⏎Host: shop⏎Connection: close, x, idempotency-key⏎Content-Length: 0⏎⏎",
            refused(400).saying("nominated-field"),
        ),
        (
            "the scope",
            "POST /a HTTP/1.1⏎Host: shop⏎Connection: X-Tenant⏎X-Tenant: 1⏎Content-Length: 0⏎⏎",
            answered(400).saying("nominated-field"),
        ),
        (
            "the credential",
            "POST /a HTTP/1.1⏎Host: shop⏎Connection: Authorization⏎Authorization: Bearer x⏎\
             Content-Length: 0⏎⏎",
            answered(400).saying("nominated-field"),
        ),
        (
            "the fingerprint",
            "POST /a HTTP/1.1⏎Host: shop⏎Connection: X-Version⏎X-Version: 1⏎Content-Length: 0⏎⏎",
            answered(400).saying("nominated-field"),
        ),
        (
            "the host",
            "GET /a HTTP/1.1⏎Host: shop⏎Connection: Host⏎⏎",
            answered(400).saying("nominated-field"),
        ),
        (
            "the length",
            "POST /a HTTP/1.1⏎Host: shop⏎Connection: Content-Length⏎Content-Length: 2⏎⏎hi",
            answered(400).saying("nominated-field"),
        ),
        (
            "the cookie",
            "GET /a HTTP/1.1⏎Host: shop⏎Connection: Cookie⏎Cookie: session=1⏎⏎",
            answered(400).saying("nominated-field"),
        ),
        (
            "what is no name",
            "GET /a HTTP/1.1⏎Host: shop⏎Connection: a b⏎⏎",
            answered(400).saying("nominated-field"),
        ),
        (
            "what only we and the upstream may say",
            "GET /a HTTP/1.1⏎Host: shop⏎Idempotency-Outcome: store⏎Idempotency-Attempt: 7⏎\
             Idempotency-Fence: 9⏎Idempotency-Derived: x⏎⏎",
            forwarded(&["GET /a"]).without(&[
                "idempotency-outcome",
                "idempotency-attempt",
                "idempotency-fence",
                "idempotency-derived",
            ]),
        ),
        (
            "a body that waits for a 100 that does not come, for the request is refused without it",
            "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: k, l⏎Expect: 100-continue⏎\
             Content-Length: 26⏎⏎GET /smuggled HTTP/1.1⏎⏎⏎",
            refused(400).saying("invalid-key"),
        ),
        (
            "an expectation that nobody knows",
            "POST /a HTTP/1.1⏎Host: shop⏎Expect: miracles⏎Content-Length: 0⏎⏎",
            answered(417),
        ),
    ]
}

/// T33: there is one key, or the request is refused.
pub(super) fn keys() -> Vec<Case> {
    vec![
        (
            "two lines",
            "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: k⏎Idempotency-Key: l⏎Content-Length: 0⏎⏎",
            answered(400).saying("invalid-key"),
        ),
        (
            "two lines that agree",
            "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: k⏎Idempotency-Key: k⏎Content-Length: 0⏎⏎",
            answered(400).saying("invalid-key"),
        ),
        (
            "two lines in different cases",
            "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: k⏎IDEMPOTENCY-KEY: l⏎Content-Length: 0⏎⏎",
            answered(400).saying("invalid-key"),
        ),
        (
            "a list",
            "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: k, l⏎Content-Length: 0⏎⏎",
            answered(400).saying("invalid-key"),
        ),
        (
            "a list of strings",
            "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: \"k\", \"l\"⏎Content-Length: 0⏎⏎",
            answered(400).saying("invalid-key"),
        ),
        (
            "an empty one",
            "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key:⏎Content-Length: 0⏎⏎",
            answered(400).saying("invalid-key"),
        ),
        (
            "a string that does not end",
            "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: \"k⏎Content-Length: 0⏎⏎",
            answered(400).saying("invalid-key"),
        ),
        (
            "beyond ASCII",
            "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: ké⏎Content-Length: 0⏎⏎",
            answered(400).saying("invalid-key"),
        ),
        (
            "a folded one",
            "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: k⏎ l⏎Content-Length: 0⏎⏎",
            refused(400),
        ),
        (
            "in a trailer it is none",
            "POST /a HTTP/1.1⏎Host: shop⏎Transfer-Encoding: chunked⏎Trailer: Idempotency-Key⏎⏎\
             2⏎hi⏎0⏎Idempotency-Key: k⏎⏎",
            forwarded(&["POST /a hi"]),
        ),
    ]
}

/// T34: where a request goes is for the configuration to say.
pub(super) fn hosts() -> Vec<Case> {
    vec![
        (
            "an absolute target",
            "GET http://shop/a?b HTTP/1.1⏎Host: shop⏎⏎",
            forwarded(&["GET /a?b"]),
        ),
        (
            "an absolute target elsewhere goes where all go",
            "GET http://169.254.169.254/latest HTTP/1.1⏎Host: 169.254.169.254⏎⏎",
            forwarded(&["GET /latest"]),
        ),
        (
            "an absolute target and another host",
            "GET http://internal/a HTTP/1.1⏎Host: shop⏎⏎",
            answered(400).saying("bad-target"),
        ),
        (
            "credentials in the target",
            "GET http://x:y@shop/a HTTP/1.1⏎Host: x:y@shop⏎⏎",
            answered(400).saying("bad-target"),
        ),
        (
            "credentials in the host",
            "GET /a HTTP/1.1⏎Host: x@shop⏎⏎",
            answered(400).saying("bad-target"),
        ),
        (
            "two hosts",
            "GET /a HTTP/1.1⏎Host: shop⏎Host: internal⏎⏎",
            answered(400).saying("bad-target"),
        ),
        (
            "two hosts that agree",
            "GET /a HTTP/1.1⏎Host: shop⏎Host: shop⏎⏎",
            answered(400).saying("bad-target"),
        ),
        ("no host", "GET /a HTTP/1.1⏎⏎", answered(400).saying("bad-target")),
        ("an empty host", "GET /a HTTP/1.1⏎Host:⏎⏎", answered(400).saying("bad-target")),
        (
            "a host in the target alone",
            "GET http://shop/a HTTP/1.1⏎⏎",
            answered(400).saying("bad-target"),
        ),
        (
            "a host with an empty label",
            "GET /a HTTP/1.1⏎Host: shop..example⏎⏎",
            answered(400).saying("bad-target"),
        ),
        (
            "a host with two dots at its end",
            "GET /a HTTP/1.1⏎Host: shop..⏎⏎",
            answered(400).saying("bad-target"),
        ),
        (
            "a host with a path",
            "GET /a HTTP/1.1⏎Host: shop/../internal⏎⏎",
            answered(400).saying("bad-target"),
        ),
        (
            "a host with a space",
            "GET /a HTTP/1.1⏎Host: shop internal⏎⏎",
            answered(400).saying("bad-target"),
        ),
        (
            "a host with a port that is none",
            "GET /a HTTP/1.1⏎Host: shop:http⏎⏎",
            answered(400).saying("bad-target"),
        ),
        (
            "a forwarded host is replaced",
            "GET /a HTTP/1.1⏎Host: shop⏎X-Forwarded-Host: internal⏎X-Forwarded-For: 10.0.0.1⏎\
             Forwarded: host=internal⏎⏎",
            forwarded(&["GET /a"])
                .with(&[("x-forwarded-host", "shop"), ("x-forwarded-for", "127.0.0.1")]),
        ),
        (
            "a target without a slash",
            "GET a HTTP/1.1⏎Host: shop⏎⏎",
            answered(400).saying("bad-target"),
        ),
        (
            "a target that is a host",
            "GET shop:80 HTTP/1.1⏎Host: shop:80⏎⏎",
            answered(400).saying("bad-target"),
        ),
        (
            "a target of another scheme",
            "GET ftp://shop/a HTTP/1.1⏎Host: shop⏎⏎",
            answered(400).saying("bad-target"),
        ),
        ("all of the server", "OPTIONS * HTTP/1.1⏎Host: shop⏎⏎", forwarded(&["OPTIONS *"])),
        (
            "all of the server, for another method",
            "GET * HTTP/1.1⏎Host: shop⏎⏎",
            answered(400).saying("bad-target"),
        ),
        (
            "a redirect is the client's to follow",
            "GET /redirect HTTP/1.1⏎Host: shop⏎⏎",
            forwarded(&["GET /redirect"]).with_status(302),
        ),
    ]
}

/// T35: a path can be read in one way, and goes on as it came.
pub(super) fn paths() -> Vec<Case> {
    let ambiguous = [
        ("a dot segment", "GET /a/./b HTTP/1.1⏎Host: shop⏎⏎"),
        ("two dots", "GET /a/../b HTTP/1.1⏎Host: shop⏎⏎"),
        ("two dots at the end", "GET /a/.. HTTP/1.1⏎Host: shop⏎⏎"),
        ("encoded dots", "GET /a/%2e%2E/b HTTP/1.1⏎Host: shop⏎⏎"),
        ("one encoded dot", "GET /a/.%2e/b HTTP/1.1⏎Host: shop⏎⏎"),
        ("dots behind a parameter", "GET /a/..;x=1/b HTTP/1.1⏎Host: shop⏎⏎"),
        ("an encoded slash", "GET /a%2fb HTTP/1.1⏎Host: shop⏎⏎"),
        ("an encoded slash in capitals", "GET /a%2Fb HTTP/1.1⏎Host: shop⏎⏎"),
        ("an encoded backslash", "GET /a%5cb HTTP/1.1⏎Host: shop⏎⏎"),
        ("an empty segment", "GET /a//b HTTP/1.1⏎Host: shop⏎⏎"),
        ("an empty segment in front", "GET //internal/a HTTP/1.1⏎Host: shop⏎⏎"),
        ("an encoded NUL", "GET /a%00b HTTP/1.1⏎Host: shop⏎⏎"),
        ("half an escape", "GET /a%2 HTTP/1.1⏎Host: shop⏎⏎"),
        ("an escape that is none", "GET /a%zz HTTP/1.1⏎Host: shop⏎⏎"),
    ];
    let mut cases: Vec<Case> = ambiguous
        .into_iter()
        .map(|(name, request)| (name, request, answered(400).saying("ambiguous-path")))
        .collect();
    cases.extend([
        ("a backslash", "GET /a\\b HTTP/1.1⏎Host: shop⏎⏎", answered(400).saying("ambiguous-path")),
        (
            "a path beyond ASCII",
            "GET /café HTTP/1.1⏎Host: shop⏎⏎",
            answered(400).saying("ambiguous-path"),
        ),
        (
            "a query beyond ASCII",
            "GET /a?café HTTP/1.1⏎Host: shop⏎⏎",
            answered(400).saying("ambiguous-path"),
        ),
        ("a fragment", "GET /a#b HTTP/1.1⏎Host: shop⏎⏎", refused(400)),
        ("an escape", "GET /a%20b%C3%a9 HTTP/1.1⏎Host: shop⏎⏎", forwarded(&["GET /a%20b%C3%a9"])),
        ("a parameter", "GET /a;x=1/b HTTP/1.1⏎Host: shop⏎⏎", forwarded(&["GET /a;x=1/b"])),
        ("a dot in a name", "GET /a/b..c/.d HTTP/1.1⏎Host: shop⏎⏎", forwarded(&["GET /a/b..c/.d"])),
        ("a slash at the end", "GET /a/ HTTP/1.1⏎Host: shop⏎⏎", forwarded(&["GET /a/"])),
        (
            "dots in the query are nobody's path",
            "GET /a?b=/../c//d%2f HTTP/1.1⏎Host: shop⏎⏎",
            forwarded(&["GET /a?b=/../c//d%2f"]),
        ),
        ("an empty query", "GET /a? HTTP/1.1⏎Host: shop⏎⏎", forwarded(&["GET /a?"])),
    ]);
    cases
}

/// Returns the cases of every group.
pub(super) fn all() -> Vec<Case> {
    let groups = [
        lengths(),
        codings(),
        lines(),
        old_version(),
        upgrades(),
        hops(),
        keys(),
        hosts(),
        paths(),
    ];
    groups.into_iter().flatten().collect()
}
