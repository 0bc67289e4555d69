//! Misbehaviors of upstreams, and the required reaction to each.

use super::scripted_upstream::{End, Script};

/// A misbehaviour, and what comes of it.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) script: Script,
    pub(super) expect: Expect,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Expect {
    /// The client is answered with this status, nothing is stored, and a retry does what
    /// `on_ambiguous` says.
    Lost(u16),
    /// The client sees an answer that breaks off; nothing is stored.
    Truncated,
    /// The client gets this answer, which is stored.
    Answered(u16, &'static str),
    /// The client gets this answer, which may be half of one: a retry is refused.
    AnsweredOnce(u16, &'static str),
}

use End::{Closed, Hung, Open, Reset};
use Expect::{Answered, AnsweredOnce, Lost, Truncated};

const fn case(name: &'static str, said: &'static [&'static str], end: End, expect: Expect) -> Case {
    Case { name, script: Script { said, repeated: 1, end }, expect }
}

impl Case {
    /// Makes the upstream repeat the last part of its script.
    const fn repeated(self, repeated: usize) -> Self {
        Self { script: Script { repeated, ..self.script }, ..self }
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\n";

pub(super) const CASES: &[Case] = &[
    // Nothing, or not all of it.
    case("closes", &[], Closed, Lost(502)),
    case("resets", &[], Reset, Lost(502)),
    case("never answers", &[], Hung, Lost(504)),
    case("closes in the first line", &["HTTP/1.1 20"], Closed, Lost(502)),
    case("closes in the head", &[OK, "Content-Length: 2\r\nX-"], Closed, Lost(502)),
    case("resets in the head", &[OK, "Content-Length: 2\r\nX-"], Reset, Lost(502)),
    case("hangs in the head", &[OK, "Content-Length: 2\r\n"], Hung, Lost(504)),
    case(
        "closes in a body with a length",
        &[OK, "Content-Length: 5\r\n\r\ntru"],
        Closed,
        Lost(502),
    ),
    case("resets in a body with a length", &[OK, "Content-Length: 5\r\n\r\ntru"], Reset, Lost(502)),
    case("hangs in a body with a length", &[OK, "Content-Length: 5\r\n\r\ntru"], Hung, Lost(502)),
    case("closes before any of the body", &[OK, "Content-Length: 5\r\n\r\n"], Closed, Lost(502)),
    case("closes in a chunk", &[OK, CHUNKED, "5\r\ntru"], Closed, Lost(502)),
    case("closes behind a chunk", &[OK, CHUNKED, "3\r\ntru\r\n"], Closed, Lost(502)),
    case("closes in the last chunk", &[OK, CHUNKED, "3\r\ntru\r\n0\r\n"], Closed, Lost(502)),
    case("resets behind a chunk", &[OK, CHUNKED, "3\r\ntru\r\n"], Reset, Lost(502)),
    case("hangs behind a chunk", &[OK, CHUNKED, "3\r\ntru\r\n"], Hung, Lost(502)),
    case("resets a body without a length", &[OK, "\r\ntru"], Reset, Lost(502)),
    case("closes in a body too large to be kept", &[OK, LARGE, KIB], Closed, Truncated)
        .repeated(2048),
    case("hangs in a body too large to be kept", &[OK, LARGE, KIB], Hung, Truncated).repeated(2048),
    // Something else than HTTP.
    case("sends garbage", &["\0\x01\x02\x03\r\n\r\n"], Closed, Lost(502)),
    case("speaks SSH", &["SSH-2.0-OpenSSH_9.2\r\n"], Hung, Lost(502)),
    case("speaks HTTP/0.9", &["<h1>fine</h1>\r\n"], Closed, Lost(502)),
    case("speaks HTTP/2", &["\0\0\0\x04\0\0\0\0\0"], Hung, Lost(502)),
    case("answers with a status that is none", &["HTTP/1.1 abc OK\r\n\r\n"], Closed, Lost(502)),
    case(
        "answers with status 99",
        &["HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n"],
        Closed,
        Lost(502),
    ),
    case(
        "answers with four digits",
        &["HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"],
        Closed,
        Lost(502),
    ),
    // A body whose end can be told in two ways, or in none.
    case(
        "sends two lengths",
        &[OK, "Content-Length: 2\r\nContent-Length: 4\r\n\r\nokok"],
        Open,
        Lost(502),
    ),
    case("sends a list of lengths", &[OK, "Content-Length: 2, 4\r\n\r\nokok"], Open, Lost(502)),
    case(
        "sends one length twice",
        &[OK, "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok"],
        Open,
        Lost(502),
    ),
    case("sends a list of one length", &[OK, "Content-Length: 2, 2\r\n\r\nok"], Open, Lost(502)),
    case(
        "sends a coding that is not undone",
        &[OK, "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"],
        Open,
        Lost(502),
    ),
    case(
        "sends chunked twice",
        &[OK, "Transfer-Encoding: chunked\r\n", CHUNKED, "2\r\nok\r\n0\r\n\r\n"],
        Open,
        Lost(502),
    ),
    case(
        "sends a coding that is none",
        &[OK, "Transfer-Encoding: identity\r\n\r\nok"],
        Closed,
        Lost(502),
    ),
    case("sends a signed length", &[OK, "Content-Length: +2\r\n\r\nok"], Open, Lost(502)),
    case("sends a length that is none", &[OK, "Content-Length: two\r\n\r\nok"], Open, Lost(502)),
    case("sends a negative length", &[OK, "Content-Length: -2\r\n\r\nok"], Open, Lost(502)),
    case("sends a chunk without a size", &[OK, CHUNKED, "\r\nok\r\n0\r\n\r\n"], Open, Lost(502)),
    case("sends a chunk with a sign", &[OK, CHUNKED, "-2\r\nok\r\n0\r\n\r\n"], Open, Lost(502)),
    case(
        "sends a chunk beyond 64 bits",
        &[OK, CHUNKED, "10000000000000002\r\nok"],
        Open,
        Lost(502),
    ),
    case(
        "sends a chunk longer than its size",
        &[OK, CHUNKED, "2\r\nokok\r\n0\r\n\r\n"],
        Open,
        Lost(502),
    ),
    case(
        "sends a length and chunks",
        &[OK, "Content-Length: 2\r\n", CHUNKED, "2\r\nok\r\n0\r\n\r\n"],
        Open,
        Lost(502),
    ),
    // Heads.
    case("folds a line", &[OK, "X: y\r\n z\r\nContent-Length: 2\r\n\r\nok"], Open, Lost(502)),
    case("sends NUL in a field", &[OK, "X: y\0z\r\nContent-Length: 2\r\n\r\nok"], Open, Lost(502)),
    case("puts a space before a colon", &[OK, "Content-Length : 2\r\n\r\nok"], Open, Lost(502)),
    case(
        "splits its answer by a carriage return",
        &[OK, "X: y\rSet-Cookie: z\r\nContent-Length: 2\r\n\r\nok"],
        Open,
        Lost(502),
    ),
    case(
        "sends a head without an end",
        &[OK, "X-A: 0123456789012345678901234567890123456789\r\n"],
        Hung,
        Lost(502),
    )
    .repeated(4000),
    case("sends a line without an end", &[OK, "X: ", KIB], Hung, Lost(502)).repeated(200),
    // Too many answers, or at the wrong time.
    case(
        "agrees to an upgrade that nobody wants",
        &["HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"],
        Hung,
        Lost(502),
    ),
    case(
        "says 100 and nothing else, for ever",
        &["", "HTTP/1.1 100 Continue\r\n\r\n"],
        Hung,
        Lost(504),
    )
    .repeated(5000),
    case(
        "says 103 first",
        &["HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", OK, "Content-Length: 2\r\n\r\nok"],
        Closed,
        Answered(200, "ok"),
    ),
    case(
        "sends a body behind 204",
        &["HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil"],
        Open,
        Answered(204, ""),
    ),
    case(
        "sends chunks behind 204",
        &["HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n"],
        Open,
        Answered(204, ""),
    ),
    case(
        "sends more than its length",
        &[OK, "Content-Length: 2\r\n\r\nokevil"],
        Open,
        Answered(200, "ok"),
    ),
    case(
        "sends two answers",
        &[
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        ],
        Open,
        Answered(200, "ok"),
    ),
    case(
        "ends its body with the connection",
        &["HTTP/1.1 200 OK\r\n\r\nok"],
        Closed,
        AnsweredOnce(200, "ok"),
    ),
    case(
        "closes though it does not say so",
        &[OK, "Content-Length: 2\r\n\r\nok"],
        Closed,
        Answered(200, "ok"),
    ),
];

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n\r\n";
/// More than a policy keeps.
const LARGE: &str = "Content-Length: 9000000\r\n\r\n";
const KIB: &str = "\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
