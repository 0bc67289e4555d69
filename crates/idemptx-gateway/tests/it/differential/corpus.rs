//! The requests, and the differences that are meant.

/// A difference that is meant, and why.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) case: &'static str,
    /// Those that refuse the request, or understand another one.
    pub(crate) proxies: &'static [&'static str],
    #[expect(dead_code, reason = "it is for readers")]
    pub(crate) why: &'static str,
}

pub(crate) const DIFFERENCES: &[Difference] = &[
    Difference { case: "a coding behind a tab", proxies: &["nginx"], why: TAB },
    Difference {
        case: "smuggling: a length with spaces around it, which are none of it",
        proxies: &["nginx"],
        why: TAB,
    },
    Difference { case: "smuggling: chunked in capitals", proxies: &["nginx"], why: TAB },
    Difference {
        case: "an absolute target with a query only",
        proxies: &["haproxy"],
        why: "it is well-formed (RFC 9110 §4.2.1), and goes on as `/?x`",
    },
    Difference {
        case: "smuggling: frames behind a WebSocket's request, which the upstream does not agree to",
        proxies: &["haproxy"],
        why: "a POST is no WebSocket: the offer is removed, and the request is whole without it",
    },
];

const TAB: &str = "a tab is white space around a value (RFC 9110 §5.6.3)";

/// Returns a request of another corpus with a key, if it has a first line to put one behind.
pub(crate) fn keyed(request: &str) -> Option<String> {
    let (line, rest) = request.split_once('⏎')?;
    let rest = rest.replace("Idempotency-Key: k⏎", "");
    let line = line.strip_prefix("GET ").map_or_else(|| line.to_owned(), |it| format!("POST {it}"));
    line.starts_with("POST ").then(|| format!("{line}⏎Idempotency-Key: {{key}}⏎{rest}"))
}

/// Returns the named requests: `⏎` is CRLF, `{key}` a new key, any other character one byte.
pub(crate) fn requests() -> Vec<(&'static str, String)> {
    let mut all: Vec<_> = WHOLE.iter().map(|(name, it)| (*name, (*it).to_owned())).collect();
    all.extend(TARGETS.iter().map(|(name, it)| (*name, request(it, "shop", LENGTH, "hi"))));
    all.extend(HOSTS.iter().map(|(name, it)| (*name, request("/a", it, LENGTH, "hi"))));
    all.extend(
        FIELDS
            .iter()
            .map(|(name, it)| (*name, request("/a", "shop", &format!("{it}⏎{LENGTH}"), "hi"))),
    );
    all.extend(FRAMING.iter().map(|(name, it, body)| (*name, request("/a", "shop", it, body))));
    all.extend(CHUNKS.iter().map(|(name, it)| (*name, request("/a", "shop", CHUNKED, it))));
    all
}

fn request(target: &str, host: &str, fields: &str, body: &str) -> String {
    format!("POST {target} HTTP/1.1⏎Host: {host}⏎Idempotency-Key: {{key}}⏎{fields}⏎⏎{body}")
}

const LENGTH: &str = "Content-Length: 2";
const CHUNKED: &str = "Transfer-Encoding: chunked";

/// Requests that differ in more than one place.
const WHOLE: &[(&str, &str)] = &[
    (
        "bare LF everywhere",
        "POST /a HTTP/1.1\nHost: shop\nIdempotency-Key: {key}\nContent-Length: 2\n\nhi",
    ),
    (
        "bare LF after the line",
        "POST /a HTTP/1.1\nHost: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "bare LF after a field",
        "POST /a HTTP/1.1⏎Host: shop\nIdempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "bare LF at the end of the head",
        "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎\nhi",
    ),
    (
        "bare CR as an end",
        "POST /a HTTP/1.1\rHost: shop\rIdempotency-Key: {key}\rContent-Length: 2\r\rhi",
    ),
    ("CR CR LF", "POST /a HTTP/1.1⏎Host: shop\r⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi"),
    (
        "an empty line in front",
        "⏎POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "two empty lines in front",
        "⏎⏎POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "bare LF in front",
        "\nPOST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "a space in front",
        " POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "two spaces behind the method",
        "POST  /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "a tab behind the method",
        "POST\t/a HTTP/1.1⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "two spaces before the version",
        "POST /a  HTTP/1.1⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "a space behind the version",
        "POST /a HTTP/1.1 ⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "a method in lower case",
        "post /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "a method with a separator",
        "PO(ST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "folding of the key",
        "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key:⏎ {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "folding of the first field",
        "POST /a HTTP/1.1⏎ Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "a space before the key's colon",
        "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key : {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "no space behind the colon",
        "POST /a HTTP/1.1⏎Host:shop⏎Idempotency-Key:{key}⏎Content-Length:2⏎⏎hi",
    ),
    (
        "spaces around a value",
        "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: \t {key} \t⏎Content-Length:  2 ⏎⏎hi",
    ),
    (
        "NUL in the key",
        "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: {key}\0⏎Content-Length: 2⏎⏎hi",
    ),
    ("neither length nor coding", "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: {key}⏎⏎"),
    (
        "an absolute target without a host",
        "POST http://shop/a HTTP/1.1⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "a host and a port as the target",
        "POST shop:80 HTTP/1.1⏎Host: shop:80⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    ("no target", "POST HTTP/1.1⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi"),
    ("no host", "POST /a HTTP/1.1⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi"),
    ("an empty host", "POST /a HTTP/1.1⏎Host:⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi"),
    (
        "two hosts",
        "POST /a HTTP/1.1⏎Host: shop⏎Host: other⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "two hosts that agree",
        "POST /a HTTP/1.1⏎Host: shop⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    ("HTTP/1.0", "POST /a HTTP/1.0⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi"),
    ("HTTP/1.0 without a host", "POST /a HTTP/1.0⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi"),
    (
        "HTTP/1.0 with chunks",
        "POST /a HTTP/1.0⏎Host: shop⏎Idempotency-Key: {key}⏎Transfer-Encoding: chunked⏎⏎2⏎hi⏎0⏎⏎",
    ),
    ("HTTP/1.0 without a length", "POST /a HTTP/1.0⏎Host: shop⏎Idempotency-Key: {key}⏎⏎"),
    ("HTTP/0.9", "POST /a⏎Idempotency-Key: {key}⏎⏎"),
    ("HTTP/0.9 with GET", "GET /a⏎"),
    ("HTTP/1.2", "POST /a HTTP/1.2⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi"),
    ("HTTP/2.0", "POST /a HTTP/2.0⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi"),
    ("HTTP/1.10", "POST /a HTTP/1.10⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi"),
    ("HTTP/01.1", "POST /a HTTP/01.1⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi"),
    (
        "the protocol in lower case",
        "POST /a http/1.1⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "another protocol",
        "POST /a RTSP/1.0⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "Connection names the host",
        "POST /a HTTP/1.1⏎Host: shop⏎Connection: Host⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "Connection names the length",
        "POST /a HTTP/1.1⏎Host: shop⏎Connection: Content-Length⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "Connection names the key",
        "POST /a HTTP/1.1⏎Host: shop⏎Connection: Idempotency-Key⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "Connection names the coding",
        "POST /a HTTP/1.1⏎Host: shop⏎Connection: Transfer-Encoding⏎Idempotency-Key: {key}⏎Transfer-Encoding: chunked⏎⏎2⏎hi⏎0⏎⏎",
    ),
    (
        "an expectation that is met",
        "POST /a HTTP/1.1⏎Host: shop⏎Expect: 100-continue⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "an expectation in capitals",
        "POST /a HTTP/1.1⏎Host: shop⏎Expect: 100-CONTINUE⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "an expectation that is unknown",
        "POST /a HTTP/1.1⏎Host: shop⏎Expect: 200-ok⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "an upgrade to HTTP/2",
        "POST /a HTTP/1.1⏎Host: shop⏎Connection: Upgrade, HTTP2-Settings⏎Upgrade: h2c⏎HTTP2-Settings: AAMAAABkAAQAAP__⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "an upgrade to WebSocket",
        "POST /a HTTP/1.1⏎Host: shop⏎Connection: Upgrade⏎Upgrade: websocket⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "an upgrade to two protocols",
        "POST /a HTTP/1.1⏎Host: shop⏎Connection: Upgrade⏎Upgrade: websocket, h2c⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "TE for trailers",
        "POST /a HTTP/1.1⏎Host: shop⏎TE: trailers⏎Idempotency-Key: {key}⏎Content-Length: 2⏎⏎hi",
    ),
    (
        "a request within a body that ends early",
        "POST /a HTTP/1.1⏎Host: shop⏎Idempotency-Key: {key}⏎Content-Length: 0⏎⏎GET /evil HTTP/1.1⏎Host: shop⏎⏎",
    ),
];

/// Targets.
const TARGETS: &[(&str, &str)] = &[
    ("an absolute target with its host", "http://shop/a"),
    ("an absolute target with another host", "http://other/a"),
    ("an absolute target without a path", "http://shop"),
    ("an absolute target with credentials", "http://u:p@shop/a"),
    ("an absolute target with the port of its scheme", "http://shop:80/a"),
    ("an absolute target of another scheme", "ftp://shop/a"),
    ("an absolute target with a query only", "http://shop?x"),
    ("an asterisk", "*"),
    ("a target without a slash", "a"),
    ("a space in the target", "/a b"),
    ("a tab in the target", "/a\tb"),
    ("NUL in the target", "/a\0b"),
    ("DEL in the target", "/a\u{7f}b"),
    ("a high byte in the target", "/caf\u{e9}"),
    ("UTF-8 in the target", "/caf\u{c3}\u{a9}"),
    ("UTF-8 in the query", "/a?caf\u{c3}\u{a9}"),
    ("quotes in the target", "/\"a\""),
    ("angle brackets in the target", "/<a>"),
    ("braces in the target", "/{a}"),
    ("a bar and a caret in the target", "/a|b^c`d"),
    ("a fragment", "/a#b"),
    ("an encoded letter", "/%61"),
    ("an encoded NUL", "/a%00"),
    ("an encoded line end", "/a%0d%0ax"),
    ("an escape that is none", "/a%zz"),
    ("an escape that is none in the query", "/a?%zz"),
    ("an escape of Unicode", "/a%u0061"),
    ("dot segments", "/a/../b"),
    ("dot segments above the root", "/../../b"),
    ("encoded dot segments above the root", "/%2e%2e/b"),
    ("a parameter", "/a;x=1"),
    ("a backslash", "/a\\b"),
    ("two slashes", "//a"),
];

/// Hosts.
const HOSTS: &[(&str, &str)] = &[
    ("a list of hosts", "shop, other"),
    ("a dot at the end", "shop."),
    ("two dots at the end", "shop.."),
    ("a dot in front", ".shop"),
    ("two dots within", "shop..example"),
    ("a dot alone", "."),
    ("an underscore in the host", "my_shop"),
    ("a host with credentials", "u@shop"),
    ("a host with a slash", "shop/a"),
    ("a host with a backslash", "shop\\a"),
    ("a host with a query", "shop?a"),
    ("a host with a space", "shop other"),
    ("a host with NUL", "shop\0"),
    ("a host with a high byte", "sh\u{f6}p"),
    ("a host with an escape", "sh%6fp"),
    ("a port that is none", "shop:http"),
    ("an empty port", "shop:"),
    ("a port that is too large", "shop:65536"),
    ("two ports", "shop:1:2"),
    ("an address in brackets", "[::1]:80"),
    ("an address in one bracket", "[::1"),
    ("brackets around a name", "[shop]"),
];

/// Lines between the key and the length.
const FIELDS: &[(&str, &str)] = &[
    ("bare CR in a value", "X: a\rb"),
    ("folding of another field", "X: a⏎ b"),
    ("folding with a tab", "X: a⏎\tb"),
    ("folding of nothing", "X: a⏎ "),
    ("a space in a name", "X Y: 1"),
    ("no colon", "nonsense"),
    ("no name", ": x"),
    ("NUL in a value", "X: a\0b"),
    ("NUL in a name", "X\0: a"),
    ("DEL in a value", "X: a\u{7f}b"),
    ("a control character in a value", "X: a\u{1}b"),
    ("a vertical tab in a value", "X: a\u{b}b"),
    ("a high byte in a value", "X: caf\u{e9}"),
    ("a high byte in a name", "X\u{e9}: 1"),
    ("a separator in a name", "X(Y): 1"),
    ("an underscore in a name", "X_Y: 1"),
    ("the key with underscores too", "Idempotency_Key: other"),
    ("the length with an underscore too", "Content_Length: 9"),
    ("an empty value", "X:"),
    ("two content types", "Content-Type: a/b⏎Content-Type: c/d"),
    ("two lengths that agree", "Content-Length: 2"),
    ("the coding identity", "Transfer-Encoding: identity"),
    ("an empty coding", "Transfer-Encoding:"),
    ("a coding with a space before the colon", "Transfer-Encoding : chunked"),
    ("a coding with an underscore", "Transfer_Encoding: chunked"),
];

/// Lengths and codings, with their bodies.
const FRAMING: &[(&str, &str, &str)] = &[
    ("a usual request", "Content-Length: 2", "hi"),
    ("a space before the colon", "Content-Length : 2", "hi"),
    ("a tab before the colon", "Content-Length\t: 2", "hi"),
    ("two lengths that differ", "Content-Length: 2⏎Content-Length: 0", "hi"),
    ("a list of lengths that agree", "Content-Length: 2, 2", "hi"),
    ("a list of lengths that differ", "Content-Length: 2, 0", "hi"),
    ("a length with a plus", "Content-Length: +2", "hi"),
    ("a negative length", "Content-Length: -2", "hi"),
    ("a hexadecimal length", "Content-Length: 0x2", "hi"),
    ("a length with zeros in front", "Content-Length: 0002", "hi"),
    ("a length with a fraction", "Content-Length: 2.0", "hi"),
    ("a length in two words", "Content-Length: 2 2", "hi"),
    ("an empty length", "Content-Length:", "hi"),
    ("a length beyond 64 bits", "Content-Length: 18446744073709551618", "hi"),
    ("a length of digits of another script", "Content-Length: \u{b2}", "hi"),
    ("a length and a coding", "Content-Length: 2⏎Transfer-Encoding: chunked", "2⏎hi⏎0⏎⏎"),
    ("a coding and a length", "Transfer-Encoding: chunked⏎Content-Length: 2", "2⏎hi⏎0⏎⏎"),
    ("a coding in capitals", "Transfer-Encoding: CHUNKED", "2⏎hi⏎0⏎⏎"),
    ("a coding of another name", "Transfer-Encoding: xchunked", "2⏎hi⏎0⏎⏎"),
    ("gzip and chunks", "Transfer-Encoding: gzip, chunked", "2⏎hi⏎0⏎⏎"),
    ("chunks and gzip", "Transfer-Encoding: chunked, gzip", "2⏎hi⏎0⏎⏎"),
    ("chunks twice in a list", "Transfer-Encoding: chunked, chunked", "2⏎hi⏎0⏎⏎"),
    ("chunks twice in lines", "Transfer-Encoding: chunked⏎Transfer-Encoding: chunked", "2⏎hi⏎0⏎⏎"),
    (
        "chunks and identity in lines",
        "Transfer-Encoding: chunked⏎Transfer-Encoding: identity",
        "2⏎hi⏎0⏎⏎",
    ),
    ("a coding in quotes", "Transfer-Encoding: \"chunked\"", "2⏎hi⏎0⏎⏎"),
    ("a coding with a parameter", "Transfer-Encoding: chunked;x=1", "2⏎hi⏎0⏎⏎"),
    ("a coding behind a comma", "Transfer-Encoding: ,chunked", "2⏎hi⏎0⏎⏎"),
    ("a coding before a comma", "Transfer-Encoding: chunked,", "2⏎hi⏎0⏎⏎"),
    ("a coding behind a vertical tab", "Transfer-Encoding: \u{b}chunked", "2⏎hi⏎0⏎⏎"),
    ("a coding behind a tab", "Transfer-Encoding:\tchunked", "2⏎hi⏎0⏎⏎"),
    ("a folded coding", "Transfer-Encoding:⏎ chunked", "2⏎hi⏎0⏎⏎"),
];

/// Chunks and trailers.
const CHUNKS: &[(&str, &str)] = &[
    ("usual chunks", "2⏎hi⏎0⏎⏎"),
    ("a size in capitals", "A⏎0123456789⏎0⏎⏎"),
    ("a size with zeros in front", "0002⏎hi⏎0⏎⏎"),
    ("a size with very many zeros", "00000000000000000000002⏎hi⏎0⏎⏎"),
    ("a size with 0x", "0x2⏎hi⏎0⏎⏎"),
    ("a size with a plus", "+2⏎hi⏎0⏎⏎"),
    ("a negative size", "-2⏎hi⏎0⏎⏎"),
    ("a size beyond 64 bits", "10000000000000002⏎hi⏎0⏎⏎"),
    ("a size just within 64 bits", "ffffffffffffffff⏎hi⏎0⏎⏎"),
    ("an empty size", "⏎hi⏎0⏎⏎"),
    ("a space before a size", " 2⏎hi⏎0⏎⏎"),
    ("a space behind a size", "2 ⏎hi⏎0⏎⏎"),
    ("a chunk without an end", "2⏎hi0⏎⏎"),
    ("a chunk that is longer than its size", "2⏎hix⏎0⏎⏎"),
    ("bare LF behind a size", "2\nhi⏎0⏎⏎"),
    ("bare LF behind a chunk", "2⏎hi\n0⏎⏎"),
    ("bare LF at the end of chunks", "2⏎hi⏎0\n\n"),
    ("bare CR behind a size", "2\rhi⏎0⏎⏎"),
    ("an extension", "2;x=1⏎hi⏎0⏎⏎"),
    ("an extension in quotes", "2;x=\"1;2\"⏎hi⏎0⏎⏎"),
    ("an extension with bare LF", "2;x\n1⏎hi⏎0⏎⏎"),
    ("an extension with bare CR", "2;x\r1⏎hi⏎0⏎⏎"),
    ("an extension with NUL", "2;x\0⏎hi⏎0⏎⏎"),
    ("an extension without a name", "2;⏎hi⏎0⏎⏎"),
    ("an extension of the last chunk", "2⏎hi⏎0;x⏎⏎"),
    ("a trailer", "2⏎hi⏎0⏎X: 1⏎⏎"),
    ("a length in a trailer", "2⏎hi⏎0⏎Content-Length: 9⏎⏎"),
    ("a key in a trailer", "2⏎hi⏎0⏎Idempotency-Key: x⏎⏎"),
    ("a trailer without a colon", "2⏎hi⏎0⏎X⏎⏎"),
    ("a trailer with a space before the colon", "2⏎hi⏎0⏎X : 1⏎⏎"),
    ("a folded trailer", "2⏎hi⏎0⏎X: 1⏎ 2⏎⏎"),
    ("a trailer with NUL", "2⏎hi⏎0⏎X: \0⏎⏎"),
    ("a trailer with bare LF", "2⏎hi⏎0⏎X: 1\n⏎"),
];
