use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::key::InvalidKey;

/// Code, status, retryable, safe_new_key, seconds of Retry-After: semantics for `Policy::draft`.
const DRAFT: [(Code, u16, bool, bool, Option<u64>); 13] = [
    (Code::MissingKey, 400, false, true, None),
    (Code::InvalidKey, 400, false, true, None),
    (Code::ScopeUnresolved, 400, false, true, None),
    (Code::BodyTooLarge, 413, false, true, None),
    (Code::BodyUnreadable, 400, true, true, None),
    (Code::InProgress, 409, true, false, Some(1)),
    (Code::KeyReused, 422, false, true, None),
    (Code::OutcomeUnknown, 409, false, false, None),
    (Code::ResultUnavailable, 409, false, false, None),
    (Code::KeyExpired, 409, false, false, None),
    (Code::StoreUnavailable, 503, true, false, Some(1)),
    (Code::TooManyKeys, 429, true, false, Some(60)),
    (Code::HandlerFailed, 500, true, false, None),
];

#[test]
fn every_code_has_its_status_and_advice() {
    assert_eq!(DRAFT.map(|row| row.0), Code::ALL);
    for (code, status, retryable, safe_new_key, retry_after) in DRAFT {
        let rejection = Rejection::new(code, &Policy::draft());
        let response = Problem::from(&rejection).into_response();
        assert_eq!(response.status(), status, "{code}");
        let json = document(&rejection);
        assert_eq!(json["status"], status, "{code}");
        assert_eq!(json["code"], code.as_str());
        assert_eq!(json["retryable"], retryable, "{code}");
        assert_eq!(json["safe_new_key"], safe_new_key, "{code}");
        assert_eq!(json.get("retry_after").and_then(Value::as_u64), retry_after, "{code}");
        let header = response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap());
        assert_eq!(header.map(|value| value.parse().unwrap()), retry_after, "{code}");
    }
}

#[test]
fn another_credential_is_named_where_nothing_else_differs() {
    let mut rejection = Rejection::new(Code::KeyReused, &Policy::draft());
    let other_request = Problem::from(&rejection).detail();
    rejection.credential_differs = true;
    let detail = Problem::from(&rejection).detail();
    assert!(detail.contains("credential") && !other_request.contains("credential"), "{detail}");
    assert_eq!(document(&rejection)["code"], "key-reused");
}

#[test]
fn the_policy_chooses_its_statuses() {
    let policy = Policy::draft()
        .into_builder()
        .missing_status(StatusCode::PRECONDITION_REQUIRED)
        .in_flight_status(StatusCode::LOCKED)
        .mismatch_status(StatusCode::CONFLICT)
        .build()
        .unwrap();
    for (code, status) in [(Code::MissingKey, 428), (Code::InProgress, 423), (Code::KeyReused, 409)]
    {
        assert_eq!(Rejection::new(code, &policy).status, status, "{code}");
    }
}

#[test]
fn a_failed_handler_is_retryable_only_where_the_key_is_released() {
    let released = Rejection::new(Code::HandlerFailed, &Policy::draft());
    let quarantined = Rejection::new(Code::HandlerFailed, &Policy::payments());
    assert!(released.retryable && !quarantined.retryable);
    assert_ne!(document(&released)["detail"], document(&quarantined)["detail"]);
}

#[test]
fn every_refusal_is_a_problem_document_that_nobody_caches() {
    for code in Code::ALL {
        let rejection = Rejection::new(code, &Policy::draft());
        let headers = Problem::from(&rejection).headers();
        assert_eq!(headers[CONTENT_TYPE], "application/problem+json");
        assert_eq!(headers[CACHE_CONTROL], "no-store");
        let json = document(&rejection);
        let url = json["type"].as_str().unwrap();
        assert_eq!(headers[LINK], format!("<{url}>; rel=\"describedby\""));
        assert!(!headers.contains_key(STORED) && !headers.contains_key(LOCATION), "{code}");
        let detail = json["detail"].as_str().unwrap();
        assert!(detail.starts_with(char::is_uppercase) && detail.ends_with('.'), "{detail}");
    }
}

#[test]
fn an_answer_that_a_retry_will_not_get_says_so() {
    let mut rejection = Rejection::new(Code::HandlerFailed, &Policy::draft());
    rejection.unstored = true;
    assert_eq!(Problem::from(rejection).headers()[STORED], "false");
}

#[test]
fn a_missing_key_names_the_headers_of_the_policy() {
    let names = ["idempotency-key", "x-request-key"].map(HeaderName::from_static);
    let policy = Policy::draft().into_builder().header_names(names).build().unwrap();
    let json = document(&Rejection::new(Code::MissingKey, &policy));
    let detail = json["detail"].as_str().unwrap();
    assert!(detail.contains("in the header Idempotency-Key or X-Request-Key,"), "{detail}");
}

#[test]
fn clients_that_retry_every_409_are_told_not_to() {
    for code in Code::ALL {
        let rejection = Rejection::new(code, &Policy::draft());
        let headers = Problem::from(&rejection).headers();
        assert_eq!(headers["x-should-retry"], rejection.retryable.to_string(), "{code}");
    }
    let rules = ProblemRules { should_retry: false, ..ProblemRules::default() };
    let policy = Policy::draft().into_builder().problem(rules).build().unwrap();
    let headers = Problem::from(Rejection::new(Code::KeyReused, &policy)).headers();
    assert!(!headers.contains_key("x-should-retry"));
}

#[test]
fn the_policy_chooses_the_format_and_the_pages_of_problems() {
    let base = "https://api.example.com/errors#".into();
    let rules = ProblemRules { format: ProblemFormat::Flat, base, ..ProblemRules::default() };
    let policy = Policy::draft().into_builder().problem(rules).build().unwrap();
    let rejection = Rejection::new(Code::KeyReused, &policy);
    let json = document(&rejection);
    assert_eq!(json["type"], "invalid_request");
    assert_eq!(json["code"], "key-reused");
    assert_eq!(json["message"], Problem::from(&rejection).detail());
    assert_eq!(json.as_object().unwrap().len(), 3);
    let headers = Problem::from(&rejection).headers();
    assert_eq!(headers[CONTENT_TYPE], "application/json");
    let link = "<https://api.example.com/errors#key-reused>; rel=\"describedby\"";
    assert_eq!(headers[LINK], link);
    for base in ["", "https://example.com/>", "two words", "\u{e9}"] {
        let rules = ProblemRules { base: base.into(), ..ProblemRules::default() };
        let error = Policy::draft().into_builder().problem(rules).build().unwrap_err();
        assert_eq!(error.field(), "problem.base", "{base}");
    }
}

#[test]
fn titles_tell_codes_apart() {
    let titles: BTreeSet<_> = Code::ALL.map(title).into_iter().collect();
    assert_eq!(titles.len(), Code::ALL.len());
}

#[test]
fn retry_after_is_whole_seconds_rounded_up_and_at_least_one() {
    for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (14_999, 15)] {
        let rejection = Rejection::new(Code::InProgress, &Policy::draft())
            .retry_after(Duration::from_millis(millis));
        assert_eq!(rejection.retry_after, Some(Duration::from_secs(seconds)), "{millis} ms");
    }
    let forever = Rejection::new(Code::InProgress, &Policy::draft()).retry_after(Duration::MAX);
    assert_eq!(forever.retry_after, Some(Duration::from_secs(u64::MAX)));
}

#[test]
fn the_reason_of_an_invalid_key_is_its_detail() {
    let mut rejection = Rejection::new(Code::InvalidKey, &Policy::draft());
    rejection.invalid_key = Some(InvalidKey::TooLong { bytes_max: 255 });
    let detail = "The key is longer than 255 bytes; send a shorter one.";
    assert_eq!(document(&rejection)["detail"], detail);
}

#[test]
fn a_result_that_was_not_kept_tells_what_is_known_of_it() {
    let mut rejection = Rejection::new(Code::ResultUnavailable, &Policy::draft());
    rejection.original_status = Some(StatusCode::CREATED);
    rejection.location = Some(HeaderValue::from_static("/a?q=\"x\\y\""));
    let json = document(&rejection);
    assert_eq!(json["original_status"], 201);
    assert_eq!(json["location"], "/a?q=\"x\\y\"");
    assert_eq!(Problem::from(rejection).headers()[LOCATION], "/a?q=\"x\\y\"");
}

#[test]
fn a_location_that_is_no_text_is_a_header_only() {
    let location = HeaderValue::from_bytes(b"/caf\xe9").unwrap();
    let mut rejection = Rejection::new(Code::ResultUnavailable, &Policy::draft());
    rejection.location = Some(location.clone());
    assert_eq!(document(&rejection).get("location"), None);
    assert_eq!(Problem::from(rejection).headers()[LOCATION], location);
}

#[test]
fn applying_keeps_the_links_that_are_there() {
    let mut headers = HeaderMap::new();
    headers.insert(LINK, HeaderValue::from_static("</docs>; rel=\"help\""));
    Problem::from(Rejection::new(Code::MissingKey, &Policy::draft())).apply(&mut headers);
    assert_eq!(headers.get_all(LINK).iter().count(), 2);
}

#[test]
fn any_text_becomes_valid_json() {
    let text: String = (0..0x250).filter_map(char::from_u32).collect();
    let mut json = Object::default();
    json.text("text", &text);
    let read: Value = serde_json::from_str(&json.finish()).unwrap();
    assert_eq!(read["text"], text);
}

#[test]
fn every_code_has_a_page_that_says_what_the_document_says() {
    for code in Code::ALL {
        let page = page(code.as_str());
        let rejection = example(code);
        let json = document(&rejection);
        let (heading, _) = page.split_once('\n').unwrap();
        assert_eq!(heading, format!("# `{code}`: {}", title(code)));
        for fact in [
            format!("| `retryable` | `{}` |", json["retryable"]),
            format!("| `safe_new_key` | `{}` |", json["safe_new_key"]),
            format!("| Status | {} |", rejection.status),
        ] {
            let start = fact.trim_end_matches(" |");
            assert!(page.lines().any(|line| line.starts_with(start)), "{code}: no `{fact}`");
        }
        for section in
            ["What happened", "Why", "What a client does", "What the operator does", "Example"]
        {
            assert!(page.contains(&format!("\n## {section}\n")), "{code}: no `{section}`");
        }
        let (_, shown) = page.split_once("```json\n").unwrap();
        let (shown, _) = shown.split_once("```").unwrap();
        let shown: Value = serde_json::from_str(shown).unwrap();
        assert_eq!(shown, json, "{code}: the example is not what is sent");
    }
}

#[test]
fn the_index_lists_every_page() {
    let index = page("README");
    for code in Code::ALL {
        assert!(index.contains(&format!("[`{code}`]({code}.md)")), "{code}");
        assert!(index.contains(title(code)), "{code}");
    }
}

fn document(rejection: &Rejection) -> Value {
    serde_json::from_slice(&Problem::from(rejection).body()).unwrap()
}

/// Returns the rejection that the page of `code` shows.
fn example(code: Code) -> Rejection {
    let mut rejection = Rejection::new(code, &Policy::draft());
    match code {
        Code::InvalidKey => rejection.invalid_key = Some(InvalidKey::SeveralLines),
        Code::InProgress => rejection = rejection.retry_after(Duration::from_secs(12)),
        Code::ResultUnavailable => {
            rejection.original_status = Some(StatusCode::CREATED);
            rejection.location = Some(HeaderValue::from_static("/payments/42"));
        }
        _ => {}
    }
    rejection
}

fn page(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/problems");
    std::fs::read_to_string(format!("{folder}/{name}.md")).unwrap()
}
