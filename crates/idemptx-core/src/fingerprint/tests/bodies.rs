use super::*;
use crate::fingerprint::body::BODY_JSON;
use crate::fingerprint::content_coding::tests::gzip;

/// Checks which of two bodies of one type are the same to a rule.
fn check(rule: BodyRule, content_type: &str, same: &[(&str, &str)], different: &[(&str, &str)]) {
    let config = with_body(rule);
    let print = |body: &str| Request::post(content_type, body).fingerprint(&config).digest;
    for (one, other) in same {
        assert_eq!(print(one), print(other), "{one} and {other}");
    }
    for (one, other) in different {
        assert_ne!(print(one), print(other), "{one} and {other}");
    }
}

#[test]
fn a_compressed_body_counts_by_its_content() {
    let [one, other] = [br#"{"a":1,"b":2}"#, br#"{"a":1,"b":3}"#];
    let reordered: &[u8] = br#"{ "b": 2, "a": 1.0 }"#;
    let print = |rule: BodyRule, coding: Option<&'static str>, body: &[u8]| {
        let mut request = Request::post("application/json", body);
        if let Some(coding) = coding {
            request.headers.push(("content-encoding", coding.into()));
        }
        request.fingerprint(&with_body(rule)).digest
    };
    for rule in [BodyRule::Auto, BodyRule::Json, BodyRule::Form, fields(&["/b"])] {
        let zipped = |body: &[u8], time| print(rule.clone(), Some("gzip"), &gzip(body, time));
        assert_eq!(zipped(one, 1), zipped(one, 2), "{rule:?}");
        assert_eq!(zipped(one, 1), print(rule.clone(), None, one), "{rule:?}");
        assert_ne!(zipped(one, 1), zipped(other, 1), "{rule:?}");
        let parses = matches!(rule, BodyRule::Json | BodyRule::Fields(_));
        assert_eq!(zipped(one, 1) == zipped(reordered, 1), parses, "{rule:?}");
        // What is not in the coding counts by its bytes.
        assert_ne!(print(rule.clone(), Some("gzip"), one), print(rule, Some("gzip"), other));
    }
    let raw = |time| print(BodyRule::Raw, Some("gzip"), &gzip(one, time));
    assert_ne!(raw(1), raw(2));
}

#[test]
fn a_decompression_bomb_is_refused_or_counts_by_its_bytes() {
    let fingerprinter = |body: &[u8]| {
        let mut request = Request::post("application/json", body);
        request.headers.push(("content-encoding", "gzip".into()));
        let mut fingerprinter = request.start(&with_body(BodyRule::Auto));
        fingerprinter.update(&request.body);
        fingerprinter
    };
    let [one, other] = [0, 1].map(|time| gzip(&vec![0; 2 << 20], time));
    assert_eq!(fingerprinter(&one).try_finish(), Err(DecompressionBomb));
    assert_eq!(fingerprinter(&one).finish(), fingerprinter(&one).finish());
    assert_ne!(fingerprinter(&one).finish(), fingerprinter(&other).finish());
    let honest = fingerprinter(&gzip(b"[]", 0));
    assert!(honest.try_finish().is_ok());
}

#[test]
fn json_counts_by_its_value() {
    let same = [
        (r#"{"a":1,"b":[true,null]}"#, " { \"b\" : [ true ,\n null ],\t\"a\" : 1 }\r\n"),
        (r#"{"a":{"c":1,"d":2}}"#, r#"{"a":{"d":2,"c":1}}"#),
        (r#""\u0041\/\n\ud83d\ude00""#, "\"A/\\u000A\u{1F600}\""),
        (r#"{"\u0061":1}"#, r#"{"a":1}"#),
        (r#"{"a":1.0}"#, r#"{"a":1}"#),
        ("10e-1", "1.00"),
        ("1E+2", "100"),
        ("-0.0e7", "0"),
        ("12000", "1.2e4"),
        ("0.00120", "12e-4"),
        (r#""\"\\\b\f\r\t""#, r#""\u0022\u005c\u0008\u000C\u000d\u0009""#),
    ];
    let different = [
        ("9007199254740992", "9007199254740993"),
        ("1.0", "1.01"),
        ("1", "10"),
        ("1", "-1"),
        ("1e2", "1e3"),
        ("0.1", "0.01"),
        ("0", "1"),
        // Out of range, so by their bytes.
        ("1e99999999999999999999", "10e99999999999999999998"),
        ("1", r#""1""#),
        ("null", r#""null""#),
        ("[1,2]", "[2,1]"),
        ("[1,[2]]", "[[1],2]"),
        ("[]", "{}"),
        ("[]", "[[]]"),
        (r#"["ab","c"]"#, r#"["a","bc"]"#),
        (r#"{"a":"bc"}"#, r#"{"ab":"c"}"#),
        (r#"{"a":1}"#, r#"{"a":1,"b":null}"#),
        // Not understood, so by their bytes.
        (r#"{"a":1,"a":1}"#, r#"{"a":1, "a":1}"#),
        (r#"{"a":1,"\u0061":1}"#, r#"{"a":1, "\u0061":1}"#),
        (r#"{"a":1,"a":1}"#, r#"{"a":1}"#),
        (r#""\ud83d""#, r#" "\ud83d""#),
        ("[1,]", "[1, ]"),
    ];
    for content_type in ["application/json", "application/problem+JSON; charset=utf-8", "TEXT/JSON"]
    {
        check(BodyRule::Json, content_type, &same, &different);
    }
    let reordered = [(same[0].0, same[0].1)];
    for content_type in ["text/plain", "application/jsonl", "json", ""] {
        check(BodyRule::Json, content_type, &[], &reordered);
    }
    check(BodyRule::Raw, "application/json", &[], &reordered);
}

#[test]
fn a_body_is_never_taken_for_the_canonical_form_of_another() {
    // An invalid document that spells what the valid one is hashed as.
    let spelled = [&[BODY_JSON, b'a'][..], &1_u64.to_be_bytes(), b"1"].concat();
    let config = with_body(BodyRule::Json);
    let valid = Request::post("application/json", "1").fingerprint(&config);
    for forged in [&spelled[..], &spelled[1..]] {
        let forged = Request::post("application/json", forged).fingerprint(&config);
        assert_ne!(valid.digest, forged.digest);
    }
}

#[test]
fn fields_count_where_the_pointers_point() {
    let rule = || fields(&["/amount", "/items/1/id", "/a~1b", "/m~0n"]);
    let same = [
        (r#"{"amount":1,"note":"x"}"#, r#"{ "note":"y", "amount": 1 }"#),
        (r#"{"items":[0,{"id":1}]}"#, r#"{"items":[9,{"id":1,"x":2},3]}"#),
        (r#"{"x":1}"#, r#"{"y":2}"#),
    ];
    let different = [
        (r#"{"amount":1}"#, r#"{"amount":2}"#),
        (r#"{"amount":1}"#, r#"{"amount":1.5}"#),
        (r#"{"amount":null}"#, r#"{}"#),
        (r#"{"items":[0,{"id":1}]}"#, r#"{"items":[{"id":1},0]}"#),
        (r#"{"a/b":1}"#, r#"{"a/b":2}"#),
        (r#"{"m~n":1}"#, r#"{"m~n":2}"#),
        (r#"{"amount":1,"x":}"#, r#"{"amount":1,"y":}"#),
    ];
    check(rule(), "application/json", &same, &different);
    check(rule(), "text/plain", &[], &same);
    check(fields(&[""]), "application/json", &[("[1, 2]", "[1,2]")], &[("[1]", "[2]")]);
    check(fields(&["/01", "/+1", "/-"]), "application/json", &[("[1,2]", "[1,3]")], &[]);
    check(fields(&["/0"]), "application/json", &[("[1,2]", "[1,3]")], &[("[1]", "[2]")]);
}

#[test]
fn a_malformed_pointer_is_reported_and_never_ignores_the_body() {
    for bad in ["amount", "/a~", "/a~2", "a/b", "#/a", "/~0~/x"] {
        assert_eq!(fields(&["/ok", bad]).malformed_pointer(), Some(bad));
        check(fields(&[bad]), "application/json", &[], &[(r#"{"a":1}"#, r#"{"a":2}"#)]);
    }
    assert_eq!(fields(&["", "/", "/a//b", "/~01~10"]).malformed_pointer(), None);
    assert_eq!(BodyRule::Raw.malformed_pointer(), None);
}

#[test]
fn excluded_values_do_not_count() {
    let exclude =
        |pointers: &[&str]| BodyRule::Exclude(pointers.iter().map(|&text| text.into()).collect());
    let same = [
        (r#"{"amount":1,"sent_at":"9:00"}"#, r#"{"sent_at":"9:01","amount":1.0}"#),
        (r#"{"amount":1,"sent_at":"9:00"}"#, r#"{"amount":1}"#),
        (r#"{"items":[{"id":1,"n":2},3]}"#, r#"{"items":[{"id":9,"n":2},3]}"#),
        (r#"[1,2,3]"#, r#"[1,9,3]"#),
    ];
    let different = [
        (r#"{"amount":1}"#, r#"{"amount":2}"#),
        (r#"{"items":[{"id":1,"n":2}]}"#, r#"{"items":[{"id":1,"n":3}]}"#),
        (r#"[1,2,3]"#, r#"[1,2,4]"#),
        (r#"[1,2,3]"#, r#"[1,3]"#),
        (r#"{"amount":1,"sent_at":}"#, r#"{"amount":1,"sent_at":0,}"#),
    ];
    let rule = exclude(&["/sent_at", "/items/0/id", "/1"]);
    check(rule.clone(), "application/json", &same, &different);
    check(rule, "text/plain", &[], &same);
    check(exclude(&["sent_at"]), "application/json", &[], &same[..1]);
    check(exclude(&[""]), "application/json", &[("1", "2")], &[]);
    assert_eq!(exclude(&["/a", "b"]).malformed_pointer(), Some("b"));
}

#[test]
fn forms_count_by_their_fields() {
    let same = [("a=1&b=x+y", "%61=1&&b=x%20y&"), ("a", "a="), ("a=%C3%A4", "a=ä")];
    let different = [("a=1&b=2", "b=2&a=1"), ("a=1", "a=1&a=1"), ("a=bc", "ab=c"), ("", "=")];
    check(BodyRule::Form, "application/x-www-form-urlencoded; charset=utf-8", &same, &different);
    check(BodyRule::Form, "text/plain", &[], &same);
}

#[test]
fn multipart_bodies_count_by_their_parts() {
    let print = |boundary: &str, body: &str| {
        let content_type = format!("multipart/form-data; boundary={boundary}");
        let body = body.replace('|', "\r\n");
        Request::post(&content_type, body).fingerprint(&with_body(BodyRule::Multipart)).digest
    };
    let disposition = "Content-Disposition: form-data; name";
    let one = format!("--X|{disposition}=\"a\"||1|--X|{disposition}=\"b\"||2|--X--|");
    let base = print("X", &one);
    let same = [
        ("YZ", one.replace("--X", "--YZ")),
        ("\"Y Z\"", one.replace("--X", "--Y Z")),
        ("X", one.replace("X--|", "X--")),
        ("X", one.replace("\"a\"", "a")),
        ("X", one.replace("Content-D", "content-d")),
        ("X", one.replace("--X|", "--X|X-Other: 1|")),
    ];
    for (boundary, body) in same {
        assert_eq!(print(boundary, &body), base, "{boundary} {body}");
    }
    let different = [
        one.replace("||1", "||2"),
        one.replace("\"a\"", "\"c\""),
        one.replace("\"a\"", "\"a\"; filename=x"),
        one.replace("\"a\"", "\"a\"; filename*=x"),
        one.replace("\"a\"", "\"a\"|Content-Type: text/plain"),
        one.replace("\"a\"", "\"a\"|Content-Transfer-Encoding: base64"),
        one.replace("\"a\"", "\"a\"|Content-Encoding: gzip"),
        one.replace("||1|", "||1||"),
        format!("--X|{disposition}=b||2|--X|{disposition}=a||1|--X--|"),
        format!("--X|{disposition}=a||1|--X--|"),
    ];
    let mut prints: std::collections::BTreeSet<_> =
        different.iter().map(|body| print("X", body)).collect();
    prints.insert(base);
    assert_eq!(prints.len(), different.len() + 1);
}

#[test]
fn by_default_only_multipart_bodies_count_by_their_content() {
    let config = config(&FingerprintRule::default());
    let upload = |boundary: &str, content: &str| {
        let content_type = format!("multipart/form-data; boundary={boundary}");
        let disposition = "Content-Disposition: form-data; name=\"f\"; filename=\"a\"";
        let body = format!("--{boundary}\r\n{disposition}\r\n\r\n{content}\r\n--{boundary}--\r\n");
        let request = Request::post(&content_type, body);
        assert!(!request.start(&config).keeps_body());
        request.fingerprint(&config)
    };
    assert_eq!(upload("X", "tea"), upload("YZ", "tea"));
    assert_ne!(upload("X", "tea"), upload("X", "ten"));
    let large = "x".repeat(AUTO_BYTES_MAX);
    assert_eq!(upload("X", &large), upload("X", &large));
    assert_ne!(upload("X", &large), upload("Y", &large));
    assert_ne!(upload("X", &large), upload("X", &format!("{large}x")));
    let json = |body: &str| Request::post("application/json", body).fingerprint(&config);
    assert_ne!(json("[1,2]"), json("[1, 2]"));
}

#[test]
fn an_ignored_body_leaves_the_rest() {
    let config = with_body(BodyRule::None);
    let print = |uri: &str, body: &str| {
        Request { uri: uri.into(), ..Request::post("text/plain", body) }.fingerprint(&config)
    };
    assert_eq!(print("/a", "x"), print("/a", "y"));
    assert_ne!(print("/a", "x"), print("/b", "x"));
}
