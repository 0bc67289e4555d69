//! Properties over arbitrary bytes.
//!
//! The targets under `fuzz/` run them guided by coverage, the tests below over random input.
//! Each function panics if its property does not hold.

pub use crate::proxy::messages;
pub use crate::strict_http1::cuts::framing;

use crate::config::Config;

/// A configuration is accepted or refused with a reason, and is the same whenever it is read.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read = || match Config::parse("idemptx.toml", text, |_| None) {
        Ok(config) => format!("{config:?}"),
        Err(error) => error.to_string(),
    };
    let first = read();
    assert!(!first.is_empty());
    assert_eq!(read(), first);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(words: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        let word = prop::sample::select(words).prop_map(|it| it.as_bytes().to_vec());
        let any_bytes = prop::collection::vec(any::<u8>(), 0..8);
        let piece = prop_oneof![8 => word, 1 => any_bytes];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn framing_is_the_same_however_bytes_arrive(data in pieces(MESSAGES)) {
            framing(&data);
        }

        #[test]
        fn messages_of_envoy_are_read_or_refused(data in pieces(CALLS)) {
            messages(&data);
        }

        #[test]
        fn a_configuration_is_accepted_or_refused_with_a_reason(data in pieces(CONFIGURATIONS)) {
            config(&data);
        }
    }

    const MESSAGES: &[&str] = &[
        "POST / HTTP/1.1\r\n",
        "GET /a#b HTTP/1.1\r\n",
        "PRI * HTTP/2.0\r\n",
        "Content-Length: 3\r\n",
        "Content-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Host: a\r\n",
        ": x\r\n",
        "\r\n",
        "\n",
        "\r",
        "3\r\nabc\r\n",
        "0\r\n",
        "abc",
    ];
    /// Frames, and parts of messages: fields by their tags and lengths.
    const CALLS: &[&str] = &[
        "\0\0\0\0\0",
        "\0\0\0\0\x04\x22\x02\x10\x01",
        "\0\0\0\0\x1b\x12\x19\x0a\x15\x0a\x13\x0a\x0c:path\x00\x1a\x02/a\x18\x01",
        "\0\0\0\0\x10\x12\x0e\x0a\x0c\x0a\x0a\x0a\x05:path\x12\x01/",
        "\0\0\0\0\x15\x1a\x13\x0a\x11\x0a\x0f\x0a\x07:status\x1a\x03201x",
        "\x12\x05\x0a\x03",
        "\x0a\x03abc",
        "\x1a\x01\x01",
        "\x4a\x02\x0a\0",
        "\0",
        "\x01",
    ];
    const CONFIGURATIONS: &[&str] = &[
        "[[listener]]\n",
        "listen = \"127.0.0.1:8080\"\n",
        "[[upstream]]\n",
        "name = \"orders\"\n",
        "url = \"http://127.0.0.1:9000\"\n",
        "urls = [",
        "]\n",
        "[[route]]\n",
        "path = \"/orders/**\"\n",
        "upstream = \"orders\"\n",
        "profile = \"payments\"\n",
        "policy = { retain_ms = 1",
        " }\n",
        "[store]\n",
        "url = \"memory:\"\n",
        "url = \"sqlite:${HOME}/a\"\n",
        "[admin]\n",
        "[log]\n",
        "level = \"debug\"\n",
        "$$",
        "${",
        "}",
    ];
}
