use http::HeaderValue;
use proptest::prelude::*;

use super::*;

fn header_map(lines: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        map.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
    }
    map
}

fn capture(lines: &[(&str, &str)], rules: &ReplayRules) -> Vec<String> {
    let headers = header_map(lines);
    let body = Bytes::from_static(b"{}");
    let captured = StoredResponse::capture(StatusCode::OK, &headers, body, Some(&headers), rules);
    assert_eq!(captured.headers, captured.trailers, "both are filtered alike");
    captured.headers.keys().map(|name| name.as_str().to_owned()).collect()
}

#[test]
fn a_status_without_content_is_kept_without_a_body() {
    let (none, rules) = (HeaderMap::new(), ReplayRules::default());
    for (status, kept) in [(200, "{}"), (204, ""), (205, "{}"), (304, ""), (404, "{}")] {
        let status = StatusCode::from_u16(status).expect("a status");
        let body = Bytes::from_static(b"{}");
        let parts = StorableParts::of(status, &none, &body, None, &rules).encode_after(&[]);
        let captured = StoredResponse::capture(status, &none, body, None, &rules);
        assert_eq!(captured.body, kept, "{status}");
        assert_eq!(StoredResponse::decode(&parts).expect("a response"), captured, "{status}");
    }
}

#[test]
fn what_is_of_the_moment_is_not_kept() {
    let dropped = [
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Content-Length",
        "Proxy-Authenticate",
        "Proxy-Connection",
        "Date",
        "Age",
        "Server",
        "Via",
        "Server-Timing",
        "Alt-Svc",
        "Set-Cookie",
        "WWW-Authenticate",
        "Authentication-Info",
        "Access-Control-Allow-Origin",
        "traceparent",
        "tracestate",
        "X-Request-Id",
        "X-Correlation-Id",
        "X-Trace-Id",
        "X-Amzn-Trace-Id",
        "x-amzn-RequestId",
        "X-Amz-Cf-Id",
        "X-Cloud-Trace-Context",
        "X-Runtime",
        "CF-Ray",
        "Fly-Request-Id",
        "X-B3-TraceId",
        "X-Envoy-Upstream-Service-Time",
        "X-Envoy-Immediate-Health-Check-Fail",
        "Authorization",
        "Cookie",
        "Set-Cookie2",
        "RateLimit",
        "RateLimit-Policy",
        "X-RateLimit-Remaining",
        "NEL",
        "Report-To",
        "Idempotency-Outcome",
        "Idempotency-Stored",
        "Idempotency-Status",
        "Idempotent-Replayed",
    ];
    for name in dropped {
        assert!(capture(&[(name, "x")], &ReplayRules::default()).is_empty(), "{name}");
    }
    let kept = [
        "content-type",
        "location",
        "etag",
        "cache-control",
        "retry-after",
        "content-encoding",
        "idempotency-key",
        "dated",
        "x-proxy-y",
        "x-custom",
        "vary",
        "link",
        "allow",
    ];
    for name in kept {
        assert_eq!(capture(&[(name, "x")], &ReplayRules::default()), [name]);
    }
}

#[test]
fn the_reference_lists_what_is_never_kept() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/policy.md");
    let reference = std::fs::read_to_string(path).unwrap();
    let (_, section) = reference.split_once("## Headers that are never replayed").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    let listed = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let listed: Vec<_> = listed.filter(|name| !["set_cookie", "cors"].contains(name)).collect();
    assert!(listed.len() > 40, "{listed:?}");
    for name in listed {
        let name = name.replace('*', "x");
        assert!(capture(&[(&name, "x")], &ReplayRules::default()).is_empty(), "{name}");
    }
}

#[test]
fn what_connection_names_is_not_kept() {
    let lines = [
        ("connection", "close, X-Hop"),
        ("x-hop", "1"),
        ("connection", " x-other "),
        ("x-other", "1"),
        ("x-hope", "1"),
    ];
    assert_eq!(capture(&lines, &ReplayRules::default()), ["x-hope"]);
}

#[test]
fn rules_narrow_what_is_kept_and_may_let_cookies_through() {
    let lines = [("set-cookie", "a=b"), ("date", "x"), ("etag", "x"), ("location", "x")];
    let names = |names: &[&'static str]| -> Vec<HeaderName> {
        names.iter().map(|name| HeaderName::from_static(name)).collect()
    };
    let cookies = ReplayRules { set_cookie: true, ..ReplayRules::default() };
    assert_eq!(capture(&lines, &cookies), ["set-cookie", "etag", "location"]);
    let lines_with_cors = [("access-control-allow-origin", "*"), ("etag", "x")];
    assert_eq!(capture(&lines_with_cors, &ReplayRules::default()), ["etag"]);
    let cors = ReplayRules { cors: true, ..ReplayRules::default() };
    assert_eq!(capture(&lines_with_cors, &cors), ["access-control-allow-origin", "etag"]);
    let deny = ReplayRules { deny: names(&["etag"]), ..ReplayRules::default() };
    assert_eq!(capture(&lines, &deny), ["location"]);
    let allow = Some(names(&["date", "etag", "set-cookie"]));
    assert_eq!(capture(&lines, &ReplayRules { allow, ..ReplayRules::default() }), ["etag"]);
}

#[test]
fn the_format_is_settled() {
    let response = StoredResponse {
        status: StatusCode::CREATED,
        headers: header_map(&[("etag", "\"1\""), ("link", "a"), ("link", "b")]),
        body: Bytes::from_static(b"{}"),
        trailers: header_map(&[("x-sum", "7")]),
    };
    let expected =
        b"\x01\x40\xC9\x17\x04etag\x03\"1\"\x04link\x01a\x04link\x01b\x02{}\x08\x05x-sum\x017";
    assert_eq!(response.encode(), expected[..]);
    let StoredResponse { status, headers, .. } = response;
    let head = StoredResponse::capture_head(status, &headers, &ReplayRules::default());
    assert_eq!(
        head.encode(),
        b"\x01\x40\xC9\x17\x04etag\x03\"1\"\x04link\x01a\x04link\x01b\0\0"[..]
    );
}

#[test]
fn truncated_padded_and_preceded_responses_are_read() {
    let decode = |bytes: &'static [u8]| StoredResponse::decode(&Bytes::from_static(bytes));
    let empty = decode(b"\x01\x40\xC8").unwrap();
    assert_eq!((empty.status, empty.headers.len(), empty.body.len()), (StatusCode::OK, 0, 0));
    for same in [
        &b"\x01\x40\xC8\0"[..],
        b"\x01\x40\xC8\0\0",
        b"\x01\x40\xC8\0\0\0",
        b"\x01\x40\xC8\0\0\0\0\0\0",
        b"\x40\x01\x80\0\0\xC8\x40\0\x40\0\x40\0",
        b"\x01\x40\x67\0\x40\x67\x06\x04link\0\x40\xC8",
    ] {
        assert_eq!(decode(same), Ok(empty.clone()), "{same:?}");
    }
    assert_eq!(decode(b"\x01\x40\xC8\0\x02hi").unwrap().body, "hi");
}

#[test]
fn what_is_no_known_length_response_is_refused() {
    use MalformedResponse::*;
    let table: &[(&[u8], MalformedResponse)] = &[
        (b"", Truncated),
        (b"\x00\x03GET", Framing),
        (b"\x02", Framing),
        (b"\x03\x40\xC8\0\0\0", Framing),
        (b"\x01", Truncated),
        (b"\x01\x40", Truncated),
        (b"\x01\x05", Status),
        (b"\x01\x43\xE8", Status),
        (b"\x01\x80\x01\0\xC8", Status),
        (b"\x01\x40\x67", Truncated),
        (b"\x01\x40\xC8\x01", Truncated),
        (b"\x01\x40\xC8\x02\x04l", Truncated),
        (b"\x01\x40\xC8\x05\x04link", Truncated),
        (b"\x01\x40\xC8\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", Truncated),
        (b"\x01\x40\xC8\0\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFFx", Truncated),
        (b"\x01\x40\xC8\x02\0\0", FieldLine),
        (b"\x01\x40\xC8\x03\x01A\0", FieldLine),
        (b"\x01\x40\xC8\x09\x07:status\0", FieldLine),
        (b"\x01\x40\xC8\x04\x01a\x01\n", FieldLine),
        (b"\x01\x40\xC8\0\0\0\0\x01", Padding),
    ];
    for (bytes, error) in table {
        let decoded = StoredResponse::decode(&Bytes::from_static(bytes));
        assert_eq!(decoded, Err(*error), "{bytes:?}");
    }
}

#[test]
fn the_number_of_field_lines_is_limited() {
    let name = HeaderName::from_static("a");
    let mut headers = HeaderMap::new();
    for _ in 0..FIELD_LINES_MAX {
        headers.append(&name, HeaderValue::from_static(""));
    }
    let mut response = StoredResponse {
        status: StatusCode::OK,
        headers,
        body: Bytes::new(),
        trailers: HeaderMap::new(),
    };
    assert!(response.is_storable());
    assert_eq!(StoredResponse::decode(&response.encode()), Ok(response.clone()));
    response.headers.append(&name, HeaderValue::from_static(""));
    assert!(!response.is_storable());
    let decoded = StoredResponse::decode(&response.encode());
    assert_eq!(decoded, Err(MalformedResponse::TooManyFieldLines));
}

#[test]
fn an_informational_response_is_not_storable() {
    let early_hints = StatusCode::from_u16(103).unwrap();
    let (headers, rules) = (HeaderMap::new(), ReplayRules::default());
    let hints = StoredResponse::capture(early_hints, &headers, Bytes::new(), None, &rules);
    assert!(!hints.is_storable());
    assert!(StoredResponse::decode(&hints.encode()).is_err());
}

#[test]
fn the_body_is_not_copied() {
    let bytes = Bytes::from_static(b"\x01\x40\xC8\0\x02hi");
    let body = StoredResponse::decode(&bytes).unwrap().body;
    assert_eq!(body.as_ptr(), bytes[5..].as_ptr());
}

fn field_lines() -> impl Strategy<Value = HeaderMap> {
    let values = prop::collection::vec(prop_oneof![0x20..=0x7E_u8, 0x80..=0xFF_u8], 0..80);
    prop::collection::vec(("[a-z-]{1,3}", values), 0..8).prop_map(|lines| {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            map.append(name, HeaderValue::from_bytes(&value).expect("a value"));
        }
        map
    })
}

fn responses(statuses: std::ops::Range<u16>) -> impl Strategy<Value = StoredResponse> {
    let body = prop::collection::vec(any::<u8>(), 0..100).prop_map(Bytes::from);
    (statuses, field_lines(), body, field_lines()).prop_map(|(status, headers, body, trailers)| {
        let status = StatusCode::from_u16(status).expect("a status");
        StoredResponse { status, headers, body, trailers }
    })
}

fn lines_of(map: &HeaderMap) -> Vec<(Vec<u8>, Vec<u8>)> {
    map.iter().map(|(name, value)| (name.as_str().into(), value.as_bytes().into())).collect()
}

proptest! {
    #[test]
    fn a_response_reads_back_in_order(response in responses(200..1000)) {
        let decoded = StoredResponse::decode(&response.encode()).unwrap();
        prop_assert_eq!(lines_of(&decoded.headers), lines_of(&response.headers));
        prop_assert_eq!(lines_of(&decoded.trailers), lines_of(&response.trailers));
        prop_assert_eq!(decoded, response);
    }

    #[test]
    fn another_implementation_reads_ours(response in responses(200..600)) {
        let encoded = response.encode();
        let message = bhttp::Message::read_bhttp(&mut std::io::Cursor::new(&encoded[..])).unwrap();
        let lines = |section: &bhttp::FieldSection| -> Vec<_> {
            section.iter().map(|line| (line.name().to_vec(), line.value().to_vec())).collect()
        };
        let status = message.control().status().unwrap().code();
        prop_assert_eq!(status, response.status.as_u16());
        prop_assert_eq!(lines(message.header()), lines_of(&response.headers));
        prop_assert_eq!(message.content(), &response.body[..]);
        prop_assert_eq!(lines(message.trailer()), lines_of(&response.trailers));
    }

    #[test]
    fn ours_reads_another_implementation(response in responses(200..600)) {
        let status = bhttp::StatusCode::try_from(response.status.as_u16()).unwrap();
        let mut message = bhttp::Message::response(status);
        for (name, value) in lines_of(&response.headers) {
            message.put_header(name, value);
        }
        message.write_content(&response.body);
        for (name, value) in lines_of(&response.trailers) {
            message.put_trailer(name, value);
        }
        let mut bytes = Vec::new();
        message.write_bhttp(bhttp::Mode::KnownLength, &mut bytes).unwrap();
        prop_assert_eq!(StoredResponse::decode(&bytes.into()), Ok(response));
    }

    #[test]
    fn any_bytes_are_a_response_or_an_error(mut bytes: Vec<u8>, well_begun: bool) {
        if well_begun {
            bytes = [b"\x01\x40\xC8", &bytes[..]].concat();
        }
        if let Ok(response) = StoredResponse::decode(&bytes.into()) {
            prop_assert_eq!(StoredResponse::decode(&response.encode()), Ok(response));
        }
    }

    #[test]
    fn a_flipped_bit_gives_a_response_or_an_error(
        response in responses(200..1000),
        bit: prop::sample::Index,
    ) {
        let mut bytes = response.encode().to_vec();
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(decoded) = StoredResponse::decode(&bytes.into()) {
            prop_assert_ne!(decoded, response);
        }
    }

    #[test]
    fn a_shortened_response_is_never_another_body(response in responses(200..1000)) {
        let encoded = response.encode();
        for length in 0..encoded.len() {
            if let Ok(decoded) = StoredResponse::decode(&encoded.slice(..length)) {
                prop_assert!(decoded.body.is_empty() || decoded.body == response.body);
            }
        }
    }

    #[test]
    fn what_is_captured_is_a_part_of_the_response(headers in field_lines()) {
        let rules = ReplayRules::default();
        let body = Bytes::from_static(b"body");
        let stored =
            StoredResponse::capture(StatusCode::OK, &headers, body.clone(), None, &rules);
        let all = lines_of(&headers);
        prop_assert!(lines_of(&stored.headers).iter().all(|line| all.contains(line)));
        prop_assert_eq!(&stored.body, &body);
        // Filtering twice is filtering once.
        let again =
            StoredResponse::capture(StatusCode::OK, &stored.headers, body, None, &rules);
        prop_assert_eq!(again, stored);
    }
}
