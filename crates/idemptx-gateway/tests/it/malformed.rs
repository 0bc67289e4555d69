//! Requests that are meant to be read in two ways, byte by byte.

/// The required reaction to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Refused with 4xx or 5xx, or without a word; the connection ends.
    Refused,
    /// Refused likewise, and the connection may be used again.
    Declined(u16),
    /// The upstream sees exactly one request, and nothing of what was to be smuggled.
    Once,
}

use Fate::{Declined, Once, Refused};

use crate::support::in_process::{Running, simple, started};
use crate::support::raw_upstream::{RawUpstream, send_raw};

/// Past the request's end, for a reader that takes another end.
const EVIL: &str = "GET /evil HTTP/1.1\r\nHost: a\r\n\r\n";

/// Responds to every head with 200 and ignores the bytes between them.
async fn upstream() -> RawUpstream {
    RawUpstream::start(|_, mut wire| async move {
        let mut answered = 0;
        while wire.read().await > 0 {
            let heads = String::from_utf8_lossy(&wire.all()).matches(" HTTP/1.1\r\n").count();
            while answered < heads {
                answered += 1;
                wire.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
        }
    })
    .await
}

async fn gateway(upstream: &RawUpstream) -> Running {
    started(&simple(upstream.address, "[route.policy.scope]\nheader = \"X-Tenant\"")).await
}

/// Sends one request to a new gateway, and checks what the upstream receives.
async fn judge(name: &str, bytes: Vec<u8>, fate: Fate) {
    let upstream = upstream().await;
    let gateway = gateway(&upstream).await;
    let said = send_raw(gateway.address, &bytes).await;
    let lines = upstream.request_lines();
    let context = format!("{name}: {fate:?}\n{said:?}\nupstream: {lines:?}");
    assert!(!lines.iter().any(|line| line.contains("evil")), "{context}");
    let received = String::from_utf8_lossy(&upstream.received()).to_lowercase();
    let both = received.contains("content-length:") && received.contains("transfer-encoding:");
    assert!(!both, "{context}");
    let statuses = said.statuses();
    match fate {
        Refused => {
            assert!(said.closed, "{context}");
            assert!(statuses.iter().all(|status| *status >= 400), "{context}");
            assert!(lines.is_empty(), "{context}");
        }
        Declined(status) => {
            assert_eq!(statuses.first(), Some(&status), "{context}");
            assert!(lines.is_empty(), "{context}");
        }
        Once => {
            assert_eq!(statuses.first(), Some(&200), "{context}");
            assert_eq!(lines.len(), 1, "{context}");
        }
    }
}

async fn judge_all(cases: Vec<(String, Vec<u8>, Fate)>) {
    let judged = cases.into_iter().map(|(name, bytes, fate)| async move {
        tokio::spawn(async move { judge(&name, bytes, fate).await }).await
    });
    for one in futures_util::future::join_all(judged).await {
        one.unwrap();
    }
}

#[tokio::test]
async fn no_request_is_smuggled_past_the_gateway() {
    let post = |fields: &str, body: &str| {
        format!("POST /c HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}").into_bytes()
    };
    let cl = |value: &str| post(&format!("Content-Length: {value}"), &format!("abcde{EVIL}"));
    let te = |value: &str| {
        post(&format!("Transfer-Encoding: {value}"), &format!("5\r\nabcde\r\n0\r\n\r\n{EVIL}"))
    };
    let mut cases: Vec<(String, Vec<u8>, Fate)> = Vec::new();
    let mut case = |name: &str, bytes: Vec<u8>, fate| cases.push((name.to_owned(), bytes, fate));
    // Two lengths. RFC 9112 §6.3 lets a server take the coding; others may take the length.
    for (name, fields) in [
        ("CL.TE", "Content-Length: 6\r\nTransfer-Encoding: chunked"),
        ("TE.CL", "Transfer-Encoding: chunked\r\nContent-Length: 4"),
        ("CL.TE.CL", "Content-Length: 6\r\nTransfer-Encoding: chunked\r\nContent-Length: 4"),
        ("CL.TE, no number", "Transfer-Encoding: chunked\r\nContent-Length: x"),
    ] {
        case(name, post(fields, &format!("0\r\n\r\n{EVIL}")), Refused);
    }
    // Codings that are not, or that somebody may not see.
    for value in [
        "identity",
        "xchunked",
        "chunkedx",
        "chunked, identity",
        "chunked, gzip",
        "gzip",
        "\"chunked\"",
        "chunked;q=1",
        "\x0bchunked",
        "ch\0unked",
        "chunked\0",
        "cow",
        "",
        ",",
        "chunked chunked",
        "chunked\r\nTransfer-Encoding: identity",
        "chunked\r\nTransfer-Encoding: gzip",
    ] {
        case(&format!("TE {value:?}"), te(value), Refused);
    }
    case("TE spaced colon", post("Transfer-Encoding : chunked", EVIL), Refused);
    case("TE tab colon", post("Transfer-Encoding\t: chunked", EVIL), Refused);
    case("TE folded", post("Transfer-Encoding:\r\n chunked", EVIL), Refused);
    case("TE leading space", post(" Transfer-Encoding: chunked", EVIL), Refused);
    case(
        "TE in HTTP/1.0",
        {
            let text = format!(
                "POST /c HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{EVIL}"
            );
            text.into_bytes()
        },
        Refused,
    );
    // Lengths that are not, or differ.
    for value in [
        "5\r\nContent-Length: 6",
        "6\r\nContent-Length: 5",
        "5, 6",
        "5,5",
        "+5",
        "-5",
        "0x5",
        "5 5",
        "5.0",
        "5e0",
        "5;a",
        "\"5\"",
        "",
        " ",
        "five",
        "18446744073709551616",
        "99999999999999999999999999",
        "5\0",
        "\x0b5",
        "5\t5",
    ] {
        case(&format!("CL {value:?}"), cl(value), Refused);
    }
    case("CL spaced colon", post("Content-Length : 5", &format!("abcde{EVIL}")), Refused);
    case("CL folded", post("Content-Length:\r\n 5", &format!("abcde{EVIL}")), Refused);
    // Chunks that are not.
    for (name, body) in [
        ("bad size", "g\r\nabcde\r\n0\r\n\r\n"),
        ("negative size", "-5\r\nabcde\r\n0\r\n\r\n"),
        ("signed size", "+5\r\nabcde\r\n0\r\n\r\n"),
        ("prefixed size", "0x5\r\nabcde\r\n0\r\n\r\n"),
        ("size too large", "fffffffffffffffff\r\nabcde\r\n0\r\n\r\n"),
        ("no CR behind data", "5\r\nabcde\n0\r\n\r\n"),
        ("longer than said", "3\r\nabcde\r\n0\r\n\r\n"),
        ("bare LF behind size", "5\nabcde\r\n0\r\n\r\n"),
        ("NUL in size", "5\0\r\nabcde\r\n0\r\n\r\n"),
        ("LF in extension", "5;a\nb\r\nabcde\r\n0\r\n\r\n"),
    ] {
        let fields = "Transfer-Encoding: chunked\r\nIdempotency-Key: k\r\nX-Tenant: t";
        case(name, post(fields, &format!("{body}{EVIL}")), Refused);
    }
    // Heads that are not.
    for (name, head) in [
        ("space in name", "X Y: 1"),
        ("no colon", "X-Nothing"),
        ("empty name", ": 1"),
        ("NUL in value", "X: a\0b"),
        ("CR in value", "X: a\rb"),
        ("NUL in name", "X\0: 1"),
        ("obsolete fold", "X: a\r\n b"),
        ("DEL in value", "X: a\x7fb"),
    ] {
        case(name, post(&format!("{head}\r\nContent-Length: 0"), EVIL), Refused);
    }
    for (name, line) in [
        ("no version", "POST /c"),
        ("version 2", "POST /c HTTP/2.0"),
        ("version 1.2", "POST /c HTTP/1.2"),
        ("lower-case version", "POST /c http/1.1"),
        ("space in target", "POST /c d HTTP/1.1"),
        ("tab in line", "POST\t/c\tHTTP/1.1"),
        ("control in target", "POST /c\x01 HTTP/1.1"),
        ("method with colon", "PO:ST /c HTTP/1.1"),
        ("no method", " /c HTTP/1.1"),
        ("preface", "PRI * HTTP/2.0"),
    ] {
        let text = format!("{line}\r\nHost: a\r\nContent-Length: 0\r\n\r\n{EVIL}");
        case(name, text.into_bytes(), Refused);
    }
    // RFC 9112 §2.2 lets a server take LF alone for the end of a line; others may not.
    let bare =
        format!("POST /c HTTP/1.1\nHost: a\nContent-Length: 5\nConnection: close\n\nabcde{EVIL}");
    case("bare LF in head", bare.into_bytes(), Refused);
    assert!(cases.len() >= 60, "{}", cases.len());
    judge_all(cases).await;
}

#[tokio::test]
async fn a_target_names_one_host_and_one_path() {
    let ask = |line: &str, fields: &str| format!("{line}\r\n{fields}\r\n\r\n").into_bytes();
    let mut cases: Vec<(String, Vec<u8>, Fate)> = Vec::new();
    for (line, fields, fate) in [
        ("GET /c HTTP/1.1", "X: 1", Declined(400)),
        ("GET /c HTTP/1.1", "Host:", Declined(400)),
        ("GET /c HTTP/1.1", "Host: a\r\nHost: a", Declined(400)),
        ("GET /c HTTP/1.1", "Host: a\r\nHost: b", Declined(400)),
        ("GET /c HTTP/1.1", "Host: a, b", Declined(400)),
        ("GET /c HTTP/1.1", "Host: u@a", Declined(400)),
        ("GET /c HTTP/1.1", "Host: a/b", Declined(400)),
        ("GET http://a/c HTTP/1.1", "Host: a", Once),
        ("GET http://a/c HTTP/1.1", "X: 1", Declined(400)),
        ("GET http://b/c HTTP/1.1", "Host: a", Declined(400)),
        ("GET http://u:p@a/c HTTP/1.1", "Host: a", Declined(400)),
        ("GET http://a:99999/c HTTP/1.1", "Host: a", Declined(400)),
        ("CONNECT a:80 HTTP/1.1", "Host: a:80", Declined(405)),
        ("GET //evil.example/c HTTP/1.1", "Host: a", Declined(400)),
        ("GET /a/../c HTTP/1.1", "Host: a", Declined(400)),
        ("GET /a/./c HTTP/1.1", "Host: a", Declined(400)),
        ("GET /a/%2e%2E/c HTTP/1.1", "Host: a", Declined(400)),
        ("GET /a/.%2e/c HTTP/1.1", "Host: a", Declined(400)),
        ("GET /a/..;x=1/c HTTP/1.1", "Host: a", Declined(400)),
        ("GET /a%2Fc HTTP/1.1", "Host: a", Declined(400)),
        ("GET /a%5cc HTTP/1.1", "Host: a", Declined(400)),
        ("GET /a\\c HTTP/1.1", "Host: a", Declined(400)),
        ("GET /a//c HTTP/1.1", "Host: a", Declined(400)),
        ("GET /a%00 HTTP/1.1", "Host: a", Declined(400)),
        ("GET /a%zz HTTP/1.1", "Host: a", Declined(400)),
        ("GET /a%2 HTTP/1.1", "Host: a", Declined(400)),
        ("GET /a/b;c=1/d.e/~f/%C3%A9/?q=%2F..//\\ HTTP/1.1", "Host: a", Once),
        ("OPTIONS * HTTP/1.1", "Host: a", Once),
    ] {
        cases.push((format!("{line} {fields}"), ask(line, fields), fate));
    }
    judge_all(cases).await;
}

#[tokio::test]
async fn a_key_is_one_line_and_what_it_depends_on_reaches_its_end() {
    let post = |fields: &str, rest: &str| {
        let text = format!("POST /c HTTP/1.1\r\nHost: a\r\nX-Tenant: t\r\n{fields}\r\n\r\n{rest}");
        text.into_bytes()
    };
    let mut cases: Vec<(String, Vec<u8>, Fate)> = Vec::new();
    for (fields, fate) in [
        ("Idempotency-Key: k\r\nContent-Length: 0", Once),
        ("IDEMPOTENCY-KEY: \"k\"\r\nContent-Length: 0", Once),
        ("Idempotency-Key: k\r\nIdempotency-Key: k\r\nContent-Length: 0", Declined(400)),
        ("Idempotency-Key: k\r\nidempotency-key: l\r\nContent-Length: 0", Declined(400)),
        ("Idempotency-Key: k, l\r\nContent-Length: 0", Declined(400)),
        ("Idempotency-Key:\r\nContent-Length: 0", Declined(400)),
        ("Idempotency-Key: k\r\n l\r\nContent-Length: 0", Refused),
        ("X-Tenant: u\r\nIdempotency-Key: k\r\nContent-Length: 0", Declined(400)),
        ("Connection: Idempotency-Key\r\nIdempotency-Key: k\r\nContent-Length: 0", Declined(400)),
        ("Connection: close, x-tenant\r\nIdempotency-Key: k\r\nContent-Length: 0", Declined(400)),
        ("Connection: X-TENANT\r\nContent-Length: 0", Declined(400)),
        ("Connection: Authorization\r\nContent-Length: 0", Declined(400)),
        ("Connection: cookie\r\nContent-Length: 0", Declined(400)),
        ("Connection: content-type\r\nContent-Length: 0", Declined(400)),
        ("Connection: content-length\r\nContent-Length: 0", Declined(400)),
        ("Connection: host\r\nContent-Length: 0", Declined(400)),
        ("Connection: \"x\"\r\nContent-Length: 0", Declined(400)),
        ("Connection: close\r\nContent-Length: 0", Once),
    ] {
        cases.push((fields.to_owned(), post(fields, ""), fate));
    }
    // A key in a trailer is none.
    let fields = "Transfer-Encoding: chunked\r\nTrailer: idempotency-key";
    let rest = "5\r\nabcde\r\n0\r\nIdempotency-Key: k\r\n\r\n";
    cases.push(("trailer".to_owned(), post(fields, rest), Once));
    judge_all(cases).await;
}
