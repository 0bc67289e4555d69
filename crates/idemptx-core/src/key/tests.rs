use proptest::prelude::*;

use super::record_id::DERIVED_BYTES;
use super::*;
use crate::policy::KeySyntax::{Lenient, StrictSf};
use crate::secret::Secret;

const MAX: usize = 16;

fn read(line: &[u8], syntax: KeySyntax) -> Result<Key, InvalidKey> {
    let line = HeaderValue::from_bytes(line).expect("a field value");
    Key::from_lines([&line], syntax, MAX).map(|key| key.expect("one line is a key or an error"))
}

#[test]
fn key_syntax_is_as_documented() {
    use InvalidKey::*;
    let too_long = Err(TooLong { bytes_max: MAX });
    let table = [
        // line, lenient, strict
        (r#""8e03978e""#, Ok("8e03978e"), Ok("8e03978e")),
        (r#"8e03978e"#, Ok("8e03978e"), Err(NotQuoted)),
        (r#"  "abc"  "#, Ok("abc"), Ok("abc")),
        (r#"  abc  "#, Ok("abc"), Err(NotQuoted)),
        (r#""a b""#, Ok("a b"), Ok("a b")),
        (r#"" ""#, Ok(" "), Ok(" ")),
        (r#""a\"b\\c""#, Ok(r#"a"b\c"#), Ok(r#"a"b\c"#)),
        (r#""a,b;c""#, Ok("a,b;c"), Ok("a,b;c")),
        (r#""a\b""#, Err(Malformed), Err(Malformed)),
        (r#""abc"#, Err(Malformed), Err(Malformed)),
        (r#""abc\"#, Err(Malformed), Err(Malformed)),
        (r#""abc"d"#, Err(Malformed), Err(Malformed)),
        (r#""abc" ;p"#, Err(Malformed), Err(Malformed)),
        (r#""abc";p=1"#, Ok("abc"), Err(Malformed)),
        (r#""abc";p=";,\"""#, Ok("abc"), Err(Malformed)),
        (r#""abc";p="x"#, Err(Malformed), Err(Malformed)),
        (r#""abc";p, "d""#, Err(SeveralLines), Err(Malformed)),
        (r#""abc", "d""#, Err(SeveralLines), Err(SeveralLines)),
        (r#"abc, d"#, Err(SeveralLines), Err(NotQuoted)),
        (r#"a b"#, Err(Character), Err(NotQuoted)),
        (r#"a;b"#, Err(Character), Err(NotQuoted)),
        (r#"a"b"#, Err(Character), Err(NotQuoted)),
        (r#"a\b"#, Err(Character), Err(NotQuoted)),
        ("", Err(Empty), Err(Empty)),
        ("   ", Err(Empty), Err(Empty)),
        (r#""""#, Err(Empty), Err(Empty)),
        ("a\tb", Err(Character), Err(NotQuoted)),
        ("\"a\tb\"", Err(Character), Err(Character)),
        ("\"abc\";p=\t", Err(Character), Err(Malformed)),
        ("schlüssel", Err(Character), Err(NotQuoted)),
        ("\"schlüssel\"", Err(Character), Err(Character)),
        ("0123456789abcdef", Ok("0123456789abcdef"), Err(NotQuoted)),
        ("0123456789abcdefg", too_long, Err(NotQuoted)),
        (r#""0123456789abcdef""#, Ok("0123456789abcdef"), Ok("0123456789abcdef")),
        (r#""0123456789abcdefg""#, too_long, too_long),
        (r#""\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\""#, Ok(r"\\\\\\\\\\\\\\\\"), Ok(r"\\\\\\\\\\\\\\\\")),
    ];
    for (line, lenient, strict) in &table {
        for (syntax, expected) in [(Lenient, lenient), (StrictSf, strict)] {
            let read = read(line.as_bytes(), syntax);
            let read = read.as_ref().map(Key::as_str).map_err(|error| *error);
            assert_eq!(read, *expected, "{line:?} as {syntax:?}");
        }
    }
}

#[test]
fn an_oversized_line_is_refused_unread() {
    let line = " ".repeat(4 * MAX + LINE_SLACK_BYTES + 1);
    assert_eq!(read(line.as_bytes(), Lenient), Err(InvalidKey::TooLong { bytes_max: MAX }));
    let line = " ".repeat(4 * MAX + LINE_SLACK_BYTES);
    assert_eq!(read(line.as_bytes(), Lenient), Err(InvalidKey::Empty));
}

#[test]
fn a_key_stands_on_one_line() {
    let line = HeaderValue::from_static("abc");
    assert_eq!(Key::from_lines([], Lenient, MAX), Ok(None));
    assert_eq!(Key::from_lines([&line, &line], Lenient, MAX), Err(InvalidKey::SeveralLines));
}

#[test]
fn a_key_from_elsewhere_has_the_same_characters() {
    assert_eq!(Key::new("a b\"c", MAX).as_ref().map(Key::as_str), Ok("a b\"c"));
    assert_eq!(Key::new("", MAX), Err(InvalidKey::Empty));
    assert_eq!(Key::new("a\n", MAX), Err(InvalidKey::Character));
    assert_eq!(Key::new("ä", MAX), Err(InvalidKey::Character));
    assert_eq!(Key::new(&"a".repeat(MAX), MAX).as_ref().map(Key::as_str), Ok(&*"a".repeat(MAX)));
    let longer = "a".repeat(MAX + 1);
    assert_eq!(Key::new(&longer, MAX), Err(InvalidKey::TooLong { bytes_max: MAX }));
}

#[test]
fn neither_keys_nor_scopes_are_shown() {
    let key = Key::new("opensesame", MAX).unwrap();
    assert_eq!(format!("{key:?}"), "Key(10 bytes)");
    assert_eq!(format!("{:?}", Scope::new("acme")), "Scope(4 bytes)");
}

#[test]
fn no_error_repeats_the_client() {
    for line in [&b"se\"cret"[..], b"\"secret", b"\"secret\", x", b"secret secret", b"secret\xFF"] {
        let error = read(line, Lenient).expect_err("no key");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}

#[test]
fn the_name_of_a_record_is_settled() {
    // Stored records are found by it: another value here is another format.
    let (scope, key) = (Scope::new("acme"), Key::new("8e03978e", MAX).unwrap());
    let secret = Secret::new(1, b"sixteen bytes or more").unwrap();
    let names = [
        RecordId::new(&scope, &key, None, &Names::new("", None)),
        RecordId::new(&scope, &key, Some(("POST", "/charges")), &Names::new("", None)),
        RecordId::new(&scope, &key, None, &Names::new("", Some(&secret))),
    ];
    assert_eq!(
        names.map(|name| name.to_string()),
        [
            "df521abcc6ea72750f1bbd73b9461c28:f9533427ba1c2fe4b21bbc2adca1ae07",
            "5bcc1fe8297b89fc2c6e5826a7c46f5f:06c7f287f4898997af3eba8af512f3c3",
            "f4ebf2e9388f6c29748ec0d547eb6d84:eb76324796bb1078f3f80a20b614a628",
        ]
    );
}

#[test]
fn records_of_a_scope_share_their_first_half() {
    let [a, b] = ["a", "b"].map(|key| Key::new(key, MAX).unwrap());
    let scope = Scope::new("acme");
    let [a, b] = [a, b].map(|key| RecordId::new(&scope, &key, None, &Names::new("", None)));
    assert_eq!(a.scope_bytes(), b.scope_bytes());
    assert_ne!(a, b);
    assert_eq!(a.to_string().split_once(':').map(|(scope, _)| scope.len()), Some(32));
}

#[test]
fn a_malformed_record_name_is_refused() {
    let good = RecordId::from_bytes([0xAB; 32]).to_string();
    assert!(good.parse::<RecordId>().is_ok());
    for bad in [
        String::new(),
        good.replace(':', ""),
        good.replace(':', "-"),
        good.to_uppercase(),
        good.replacen('a', "g", 1),
        format!("{good}0"),
        format!("0{good}"),
        format!("{good}:"),
        good.replacen("ab", "ä", 1),
    ] {
        assert_eq!(bad.parse::<RecordId>(), Err(InvalidRecordId), "{bad}");
    }
}

#[test]
fn a_derived_key_depends_on_scope_key_label_and_secret() {
    let secret = Secret::new(1, b"sixteen bytes or more").unwrap();
    let derived = |scope: &str, key: &str, label: &str, secret: Option<&Secret>| {
        Names::new("", secret).derive(&Scope::new(scope), b"", &Key::new(key, MAX).unwrap(), label)
    };
    let all = [
        derived("a", "bc", "d", None),
        derived("ab", "c", "d", None),
        derived("a", "b", "cd", None),
        derived("a", "bc", "e", None),
        derived("a", "bc", "d", Some(&secret)),
    ];
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len());
    assert!(all.iter().all(|key| key.len() == 2 * DERIVED_BYTES));
    assert_eq!(all[0], derived("a", "bc", "d", None));
}

#[test]
fn the_steps_of_an_operation_are_a_scope_of_their_own() {
    let id = |key: &str| {
        RecordId::new(&Scope::new("a"), &Key::new(key, MAX).unwrap(), None, &Names::new("", None))
    };
    let steps = [id("k").step("a"), id("k").step("b"), id("l").step("a"), id("k"), id("a")];
    let distinct: std::collections::BTreeSet<_> = steps.iter().collect();
    assert_eq!(distinct.len(), steps.len());
    for (step, of) in steps.iter().zip(["k", "k", "l"]) {
        assert_eq!(step.scope_bytes(), id(of).steps_scope());
    }
    let scopes = [id("k").steps_scope(), id("l").steps_scope(), id("k").scope_bytes()];
    assert_eq!(scopes.iter().collect::<std::collections::BTreeSet<_>>().len(), scopes.len());
    assert_eq!(id("k").step("a"), steps[0]);
}

fn lines() -> impl Strategy<Value = Vec<u8>> {
    let syntax = prop::sample::select(&b"\"\"\"\\ ,;=ab\t~!\x80\xFF"[..]);
    let plain = prop::collection::vec(any::<u8>(), 0..24);
    prop_oneof![
        prop::collection::vec(syntax.clone(), 0..24),
        prop::collection::vec(syntax, 0..24).prop_map(|inner| [b"\"", &inner[..], b"\""].concat()),
        plain,
    ]
}

/// Parses a line that must be one string with a strict parser of Structured Fields.
fn strict_reading(line: &[u8]) -> Option<String> {
    let item = sfv::Parser::new(line).parse::<sfv::Item>().ok()?;
    let text = item.bare_item.as_string()?.as_str().to_owned();
    (item.params.is_empty() && (1..=MAX).contains(&text.len())).then_some(text)
}

fn names() -> impl Strategy<Value = (String, Option<(String, String)>, String)> {
    ("[ab:/]{0,3}", prop::option::of(("[ab]{0,2}", "[ab:/]{0,3}")), "[ab:/]{1,3}")
}

proptest! {
    #[test]
    fn a_strict_parser_reads_the_same_keys(line in lines()) {
        if let Ok(value) = HeaderValue::from_bytes(&line) {
            let key = Key::from_lines([&value], StrictSf, MAX).ok().flatten();
            prop_assert_eq!(key.map(|key| key.as_str().to_owned()), strict_reading(&line));
        }
    }

    #[test]
    fn any_line_is_a_bounded_key_or_an_error(line in lines()) {
        if let Ok(value) = HeaderValue::from_bytes(&line)
            && let Ok(Some(key)) = Key::from_lines([&value], Lenient, MAX)
        {
            prop_assert!((1..=MAX).contains(&key.as_str().len()));
            prop_assert!(key.as_str().bytes().all(|byte| matches!(byte, 0x20..=0x7E)));
        }
    }

    #[test]
    fn what_strict_syntax_takes_lenient_syntax_takes_for_the_same(line in lines()) {
        if let Ok(value) = HeaderValue::from_bytes(&line)
            && let Ok(strict) = Key::from_lines([&value], StrictSf, MAX)
        {
            prop_assert_eq!(Key::from_lines([&value], Lenient, MAX), Ok(strict));
        }
    }

    #[test]
    fn quoted_and_bare_are_one_key(text in "[!#-+\\-./0-9:<-\\[\\]-~]{1,16}") {
        let quoted = read(format!("\"{text}\"").as_bytes(), Lenient);
        prop_assert_eq!(quoted.as_ref().map(Key::as_str), Ok(&*text));
        prop_assert_eq!(read(text.as_bytes(), Lenient), quoted);
    }

    #[test]
    fn the_text_of_a_record_name_reads_back(bytes: [u8; 32]) {
        let id = RecordId::from_bytes(bytes);
        prop_assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn any_text_is_a_record_name_or_an_error(text in "[0-9a-f:é]{0,80}") {
        if let Ok(id) = text.parse::<RecordId>() {
            prop_assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn only_one_scope_route_and_key_have_a_record_name(one in names(), other in names()) {
        let id = |(scope, route, key): &(String, Option<(String, String)>, String)| {
            let route = route.as_ref().map(|(method, path)| (&**method, &**path));
            let (scope, key) = (Scope::new(scope), Key::new(key, MAX).unwrap());
            RecordId::new(&scope, &key, route, &Names::new("", None))
        };
        prop_assert_eq!(id(&one) == id(&other), one == other);
    }
}
