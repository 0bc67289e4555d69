use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[test]
fn json_that_parsers_disagree_about_is_not_understood() {
    let nested = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat().into_bytes();
    assert!(parse(&nested(JSON_DEPTH_MAX)).is_some());
    assert!(parse(&nested(JSON_DEPTH_MAX + 1)).is_none());
    assert!(parse(&nested(1_000_000)).is_none());
    assert!(parse(&vec![b'['; 1_000_000]).is_none());
    for text in ["0", "-0", "-1.5e+10", "1E5", "10", "\"\u{7F}é\"", " \t\r\n[ ]", "{\"\":0}"] {
        assert!(parse(text.as_bytes()).is_some(), "{text}");
    }
    for text in [
        "",
        " ",
        "01",
        "-",
        "+1",
        ".5",
        "1.",
        "1e",
        "1e+",
        "NaN",
        "tru",
        "truee",
        "nul",
        "'a'",
        "\"",
        "\"\\\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\udc00\"",
        "\"\\ud800\\u0041\"",
        "\"\\ud800x\"",
        "\"\u{1F}\"",
        "[",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "]",
        "{",
        "{}}",
        "{a:1}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\":1",
        "{\"a\" 1}",
        "{1:2}",
        "1 2",
        "\u{FEFF}1",
        "\u{A0}1",
        "// c\n1",
        "{\"a\":1,\"a\":2}",
        "[{\"a\":1,\"b\":2,\"a\":3}]",
    ] {
        assert!(parse(text.as_bytes()).is_none(), "{text}");
    }
    assert!(parse(b"\"\xFF\"").is_none());
    assert!(parse(b"\"\xED\xA0\x80\"").is_none());
}

/// A value to be written in many ways.
#[derive(Clone, Debug, PartialEq)]
enum Json {
    Atom(String),
    Text(String),
    Array(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

fn values() -> impl Strategy<Value = Json> {
    let text = prop_oneof!["[ab\"\\\\/\u{1}\n]{0,3}", any::<String>()];
    let leaf = prop_oneof![
        // Every number in the one form that has no needless zeros.
        "true|false|null|0|-?(0\\.[0-9]{0,2}[1-9]|[1-9][0-9]{0,17}(\\.[0-9]{0,2}[1-9])?)"
            .prop_map(Json::Atom),
        text.clone().prop_map(Json::Text),
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::Array),
            prop::collection::btree_map(text.clone(), inner, 0..4).prop_map(Json::Object),
        ]
    })
}

/// Writes a value in a way that `choices` choose.
fn write(value: &Json, choices: &mut impl Iterator<Item = u8>, out: &mut String) {
    let mut choice = || choices.next().unwrap_or_default();
    out.push_str(["", " ", "\t\r\n"][usize::from(choice() % 3)]);
    match value {
        Json::Atom(text) => {
            out.push_str(text);
            let is_number = text.ends_with(|last: char| last.is_ascii_digit());
            out.push_str(match (is_number, text.contains('.'), choice() % 4) {
                (true, _, 0) => "e0",
                (true, false, 1) => ".00",
                (true, false, 2) if text != "0" => "0E-1",
                (true, true, 1) => "0",
                _ => "",
            });
        }
        Json::Text(text) => write_text(text, choices, out),
        Json::Array(values) => {
            out.push('[');
            for (position, value) in values.iter().enumerate() {
                out.push_str(if position == 0 { "" } else { "," });
                write(value, choices, out);
            }
            out.push(']');
        }
        Json::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            if !members.is_empty() {
                let shift = usize::from(choice()) % members.len();
                members.rotate_left(shift);
            }
            out.push('{');
            for (position, (name, value)) in members.into_iter().enumerate() {
                out.push_str(if position == 0 { "" } else { " ," });
                write_text(name, choices, out);
                out.push(':');
                write(value, choices, out);
            }
            out.push('}');
        }
    }
    out.push_str(["", " "][usize::from(choices.next().unwrap_or_default() % 2)]);
}

fn write_text(text: &str, choices: &mut impl Iterator<Item = u8>, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match (character, choices.next().unwrap_or_default() % 4) {
            ('"' | '\\' | '/', 0) => out.extend(['\\', character]),
            ('\n', 0) => out.push_str("\\n"),
            ('\0'..='\u{1F}' | '"' | '\\', _) | (_, 0) => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

fn digest(document: &str) -> Option<[u8; 32]> {
    let mut hasher = crate::digest::Purpose::new("test", None).begin();
    parse(document.as_bytes())?.hash(&mut hasher);
    Some(hasher.finalize())
}

fn written(value: &Json, choices: &[u8]) -> String {
    let mut out = String::new();
    write(value, &mut choices.iter().copied().cycle(), &mut out);
    out
}

proptest! {
    #[test]
    fn however_it_is_written_a_value_is_one(
        value in values(),
        choices in prop::collection::vec(any::<u8>(), 1..64),
        others in prop::collection::vec(any::<u8>(), 1..64),
    ) {
        let digest_of = |choices| digest(&written(&value, choices));
        prop_assert!(digest_of(&choices).is_some());
        prop_assert_eq!(digest_of(&choices), digest_of(&others));
    }

    #[test]
    fn no_two_values_are_one(one in values(), other in values()) {
        let same = digest(&written(&one, &[1])) == digest(&written(&other, &[1]));
        prop_assert_eq!(same, one == other);
    }

    #[test]
    fn what_is_understood_another_parser_understands_the_same(
        tokens in prop::collection::vec(
            prop::sample::select(&[
                "[", "]", "{", "}", ",", ":", "\"", "\"a\":", "\"b\"", "\\", "\\u", "d83d", "de00",
                "0", "1", "-", ".", " ", "true", "null", "é", "\u{1}",
            ][..]),
            0..8,
        ),
    ) {
        let document = tokens.concat();
        let theirs = serde_json::from_str::<serde_json::Value>(&document);
        let duplicates = document.matches("\"a\"").count() > 1;
        match parse(document.as_bytes()) {
            Some(_) => prop_assert!(theirs.is_ok(), "{}", document),
            None => prop_assert!(theirs.is_err() || duplicates, "{}", document),
        }
    }

    #[test]
    fn any_bytes_are_a_document_or_not(bytes: Vec<u8>) {
        if parse(&bytes).is_some() {
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&bytes).is_ok());
        }
    }
}
