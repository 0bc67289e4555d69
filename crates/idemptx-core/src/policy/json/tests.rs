use std::time::Duration;

use super::*;
use crate::policy::{OnOrphan, ScopeRule, Statuses};
use crate::secret::Secret;

const PROFILES: [Profile; 7] = [
    Profile::Draft,
    Profile::Stripe,
    Profile::Payments,
    Profile::Idemptx,
    Profile::Acp,
    Profile::Ucp,
    Profile::Iceberg,
];

#[test]
fn an_empty_object_is_the_profile() {
    for profile in PROFILES.into_iter().filter(|it| *it != Profile::Payments) {
        assert_eq!(Policy::from_json(profile, "{}"), Ok(Policy::profile(profile)));
    }
}

/// Each row has the JSON to read and the JSON to write, which is empty if they are equal.
#[test]
fn every_value_is_read_and_shown() {
    for (written, shown) in [
        (r#""header_name":"Idempotency-Key""#, r#""header_name":"idempotency-key""#),
        (r#""header_name":["idempotency-key","x-key"]"#, ""),
        (r#""key_syntax":"strict_sf""#, ""),
        (r#""key_bytes_max":36"#, ""),
        (r#""key_pattern":"uuid_v7""#, ""),
        (r#""key_pattern":"[a-z0-9-]{8,}""#, ""),
        (r#""key_pattern":null"#, ""),
        (r#""on_placeholder_key":"refuse""#, ""),
        (r#""methods":["POST","PURGE"]"#, ""),
        (r#""required":true"#, ""),
        (
            r#""scope":{"bind":["Authorization","x-a"]}"#,
            r#""scope":{"bind":["authorization","x-a"]}"#,
        ),
        (r#""scope":{"header":"x-account"}"#, ""),
        (r#""scope":{"cookie":"__Host-session"}"#, ""),
        (r#""scope":"shared""#, ""),
        (r#""key_space":"route""#, ""),
        (r#""retain_ms":1"#, r#""retain_ms":1,"key_retain_ms":1,"#),
        (r#""key_retain_ms":99000000"#, ""),
        (r#""lease_ms":100"#, ""),
        (r#""wait_ms":0"#, ""),
        (r#""wait_ms":3600000"#, ""),
        (r#""waiters_max":1"#, ""),
        (r#""waiters_total_max":1"#, ""),
        (r#""missing_status":428"#, ""),
        (r#""in_flight_status":503"#, ""),
        (r#""mismatch_status":409"#, ""),
        (r#""challenge":"Basic realm=\"orders\"""#, ""),
        (r#""on_orphan":"probe""#, ""),
        (r#""on_not_replayable":"reexecute""#, ""),
        (r#""on_panic":"quarantine""#, ""),
        (r#""on_store_error":"fail_open""#, ""),
        (r#""store_statuses":["2xx",404]"#, ""),
        (r#""release_statuses":[503,"4xx",404]"#, r#""release_statuses":["4xx",503]"#),
        (r#""rebind_statuses":[]"#, ""),
        (r#""request_bytes_max":0"#, ""),
        (r#""response_bytes_max":268435456"#, ""),
        (r#""on_large_body":"stream""#, ""),
        (r#""fingerprint":false"#, ""),
        (
            r#""fingerprint":{"body":"json"}"#,
            r#""fingerprint":{"body":"json","headers":[],"query":"raw"}"#,
        ),
        (r#""fingerprint":{"body":{"fields":["/a"]},"headers":"all","query":["b"]}"#, ""),
        (r#""fingerprint":{"body":"none","headers":["x-version"],"query":"sorted"}"#, ""),
        (r#""fingerprint":{"body":{"exclude":["/sent_at"]},"headers":[],"query":"raw"}"#, ""),
        (r#""fingerprint":{"body":"raw","headers":[],"query":"raw"}"#, ""),
        (r#""fingerprint":{"body":"form","headers":[],"query":"none"}"#, ""),
        (r#""fingerprint":{"body":"multipart","headers":[],"query":"raw"}"#, ""),
        (r#""replay_headers":{"allow":["etag"],"cors":true,"deny":["x-a"],"set_cookie":true}"#, ""),
        (
            r#""replay_headers":{"deny":["x-a"]}"#,
            r#"{"allow":null,"cors":false,"deny":["x-a"],"set_cookie":false}"#,
        ),
        (r#""expose":["status","key","signature","expiry"]"#, ""),
        (r#""status_header":"x-status""#, ""),
        (
            r#""problem":{"base":"https://a.example/","codes":{},"format":"flat","should_retry":false}"#,
            "",
        ),
        (
            r#""problem":{"codes":{"key-reused":"conflict"}}"#,
            r#""codes":{"key-reused":"conflict"},"#,
        ),
        (r#""problem":{"format":"flat"}"#, r#""format":"flat","should_retry":true}"#),
        (r#""secrets":[]"#, ""),
        (
            r#""store_timeout_ms":{"claim":250}"#,
            r#""store_timeout_ms":{"claim":250,"settle":5000}"#,
        ),
        (r#""on_unsafe_store":"refuse""#, ""),
        (r#""drain_ms":0"#, ""),
        (r#""mode":"shadow""#, ""),
        (r#""new_keys_per_minute_max":600"#, ""),
        (r#""new_keys_per_minute_max":null"#, ""),
    ] {
        let policy = Policy::from_json(Profile::Draft, &format!("{{{written}}}")).unwrap();
        let json = policy.to_json();
        let shown = if shown.is_empty() { written } else { shown };
        assert!(json.contains(shown), "{shown} is not in {json}");
        assert_eq!(Policy::from_json(Profile::Draft, &json), Ok(policy), "{written}");
    }
}

#[test]
fn what_is_wrong_is_named_with_what_to_write_instead() {
    for (written, message) in [
        (r#""header_name":[]"#, "`header_name`: name at least one"),
        (r#""header_name":"a b""#, "`header_name`: write the name of a header, or a list"),
        (r#""key_syntax":"strict""#, "`key_syntax`: write `lenient` or `strict_sf`"),
        (r#""key_bytes_max":1025"#, "`key_bytes_max`: give a number from 1 to 1024, not 1025"),
        (r#""key_pattern":"(""#, "`key_pattern`: write `uuid`, `uuid_v4`, `uuid_v7`, or a regular"),
        (r#""key_pattern":7"#, "`key_pattern`: write `uuid`, `uuid_v4`, `uuid_v7`, or a regular"),
        (r#""problem":{"format":"xml"}"#, "`problem.format`: write `rfc9457` or `flat`"),
        (r#""problem":{"base":"a b"}"#, "`problem.base`: write the address that a code is"),
        (r#""problem":{"codes":{"lost":"a"}}"#, "`problem.codes.lost`: no such field"),
        (r#""problem":{"codes":{"key-reused":"a b"}}"#, "`problem.codes`: write each code's name"),
        (r#""methods":["post"]"#, "`methods`: write methods in capitals, as `POST`"),
        (r#""methods":"POST""#, "`methods`: write a list"),
        (r#""required":"yes""#, "`required`: write true or false"),
        (
            r#""scope":"custom""#,
            "`scope`: a function cannot be written here; set the scope in code",
        ),
        (r#""scope":null"#, "`scope`: write {\"bind\": [headers]}"),
        (r#""scope":{}"#, "`scope`: write {\"bind\": [headers]}"),
        (r#""scope":{"bind":["a"],"header":"b"}"#, "`scope`: write {\"bind\": [headers]}"),
        (r#""scope":{"bind":"a"}"#, "`scope.bind`: write a list"),
        (
            r#""scope":{"claim":"sub"}"#,
            "`scope.claim`: no such field; there is `bind`, `header`, `cookie`",
        ),
        (r#""challenge":" ""#, "`challenge`: write a challenge (RFC 9110"),
        (r#""challenge":"a\nb""#, "`challenge`: write the value of a header"),
        (r#""scope":{"cookie":"a b"}"#, "`scope.cookie`: write the name of a cookie"),
        (r#""scope":{"cookie":7}"#, "`scope.cookie`: write a text"),
        (r#""retain_ms":0"#, "`retain_ms`: give a number from 1 to "),
        (r#""retain_ms":-1"#, "`retain_ms`: it cannot be negative"),
        (r#""retain_ms":1.5"#, "`retain_ms`: write a whole number"),
        (r#""retain_ms":"1h""#, "`retain_ms`: write a whole number"),
        (r#""retain_ms":18446744073709551615"#, "`retain_ms`: give a number from 1 to "),
        (r#""retain_ms":2,"key_retain_ms":1"#, "`key_retain_ms`: a key must be remembered as"),
        (r#""waiters_max":null"#, "`waiters_max`: write a whole number"),
        (r#""missing_status":70000"#, "`missing_status`: the number is too large"),
        (r#""missing_status":200"#, "`missing_status`: give a status from 400 to 499"),
        (r#""in_flight_status":404"#, "`in_flight_status`: give one of 409, 423, 425, 503"),
        (r#""mismatch_status":404"#, "`mismatch_status`: give one of 400, 409, 422"),
        (r#""on_orphan":1"#, "`on_orphan`: write `reexecute` or `quarantine` or `probe`"),
        (r#""store_statuses":"2xx""#, "`store_statuses`: write a list"),
        (r#""store_statuses":["6xx"]"#, "`store_statuses`: list statuses from 100 to 599"),
        (r#""store_statuses":[600]"#, "`store_statuses`: list statuses from 100 to 599"),
        (r#""rebind_statuses":[200]"#, "`rebind_statuses`: name 4xx only"),
        (r#""fingerprint":true"#, "`fingerprint`: write an object, or false for no comparison"),
        (r#""fingerprint":{"body":"xml"}"#, "`fingerprint.body`: write `auto`, `raw`, `json`"),
        (r#""fingerprint":{"body":{"fields":["a"]}}"#, "`fingerprint.body`: write each field as"),
        (r#""fingerprint":{"query":1}"#, "`fingerprint.query`: write `raw`, `sorted`"),
        (r#""fingerprint":{"headers":"none"}"#, "`fingerprint.headers`: write a list of headers"),
        (r#""fingerprint":{"method":1}"#, "`fingerprint.method`: no such field"),
        (r#""replay_headers":{"allow":"etag"}"#, "`replay_headers.allow`: write a list"),
        (
            r#""replay_headers":{"allow":["etag","x-request-id"]}"#,
            "`replay_headers.allow`: leave `x-request-id` out",
        ),
        (
            r#""replay_headers":{"allow":["Set-Cookie"]}"#,
            "`replay_headers.allow`: set `set_cookie` as well",
        ),
        (r#""expose":["all"]"#, "`expose`: write `status` or `key` or `signature` or `expiry`"),
        (r#""secrets":[{"id":256,"secret":"s"}]"#, "`secrets.id`: give 0 to 255"),
        (r#""secrets":[{"id":1,"secret":"short"}]"#, "`secrets`: a secret needs at least 16 bytes"),
        (r#""secrets":[{"secret":"0123456789abcdef"}]"#, "`secrets`: write each as {\"id\""),
        (
            r#""store_timeout_ms":1000"#,
            "`store_timeout_ms`: write an object with `claim`, `settle`",
        ),
        (r#""store_timeout_ms":{"claim":0}"#, "`store_timeout_ms.claim`: give a number from 1"),
        (r#""mode":"off""#, "`mode`: write `enforce` or `shadow`"),
        (r#""new_keys_per_minute_max":0"#, "`new_keys_per_minute_max`: give a number from 1"),
        (r#""wait_ms":1,"wait_ms":2"#, "`wait_ms`: it stands here twice; keep one"),
        (
            r#""fingerprint":{"body":"raw","body":"none"}"#,
            "`fingerprint.body`: it stands here twice; keep one",
        ),
        (
            r#""scope":{"header":"x-a","header":"x-b"}"#,
            "`scope.header`: it stands here twice; keep one",
        ),
        (
            r#""store_timeout_ms":{"claim":1,"claim":2}"#,
            "`store_timeout_ms.claim`: it stands here twice; keep one",
        ),
        (r#""retain":1"#, "`retain`: no such field; did you mean `retain_ms`?"),
        (r#""on_orphans":1"#, "`on_orphans`: no such field; did you mean `on_orphan`?"),
        (r#""fingreprint":1"#, "`fingreprint`: no such field; did you mean `fingerprint`?"),
        (r#""colour":1"#, "`colour`: no such field; docs/reference/policy.md lists them"),
    ] {
        let error = Policy::from_json(Profile::Draft, &format!("{{{written}}}")).unwrap_err();
        assert!(error.to_string().starts_with(message), "{written}: {error}");
    }
}

#[test]
fn a_text_that_is_no_object_is_refused() {
    for text in ["", "[]", "7", "{", "{} {}", "null"] {
        let error = Policy::from_json(Profile::Draft, text).unwrap_err();
        assert_eq!(error.field(), "policy", "{text}");
        assert!(error.to_string().starts_with("`policy`: give one JSON object ("), "{error}");
    }
}

#[test]
fn payments_demands_a_scope_and_remembers_keys_for_long() {
    let error = Policy::from_json(Profile::Payments, "{}").unwrap_err();
    assert_eq!(error.field(), "scope");
    let text = r#"{"scope": {"header": "X-Account"}, "retain_ms": 60000}"#;
    let policy = Policy::from_json(Profile::Payments, text).unwrap();
    assert_eq!(policy.scope, Some(ScopeRule::Header("x-account".parse().unwrap())));
    assert_eq!(policy.retain, Duration::from_secs(60));
    assert_eq!(policy.key_retain, Duration::from_secs(90 * 24 * 60 * 60));
    assert_eq!(policy.on_orphan, OnOrphan::Quarantine);
}

#[test]
fn the_order_of_names_does_not_change_the_policy() {
    let names = [r#""release_statuses":[503]"#, r#""store_statuses":["2xx","5xx"]"#];
    let read = |[one, other]: [&str; 2]| {
        Policy::from_json(Profile::Draft, &format!("{{{one},{other}}}")).unwrap()
    };
    let policy = read(names);
    assert_eq!(policy, read([names[1], names[0]]));
    assert_eq!(policy.release_statuses, Statuses::of(&[503]));
    let stored = Policy::from_json(Profile::Draft, r#"{"store_statuses":["2xx",404]}"#).unwrap();
    assert!(!stored.release_statuses.contains(http::StatusCode::NOT_FOUND));
}

#[test]
fn json_is_laid_over_whatever_the_builder_has() {
    let policy = Policy::draft()
        .into_builder()
        .required(true)
        .store_statuses(Statuses::everything())
        .overlay_json(r#"{"fingerprint": {"query": "none"}}"#)
        .and_then(|builder| builder.overlay_json(r#"{"fingerprint": {"body": "json"}}"#))
        .and_then(PolicyBuilder::build)
        .unwrap();
    assert!(policy.required);
    assert_eq!(policy.store_statuses, Statuses::everything());
    assert!(policy.to_json().contains(r#"{"body":"json","headers":[],"query":"none"}"#));
    assert!(policy.to_json().contains(r#"["1xx","2xx","3xx","4xx","5xx"]"#));
}

#[test]
fn secrets_are_read_and_never_shown() {
    let text = r#"{"secrets": [{"id": 2, "secret": "correct horse battery"}]}"#;
    let policy = Policy::from_json(Profile::Draft, text).unwrap();
    assert_eq!(policy.secrets, [Secret::new(2, b"correct horse battery").unwrap()]);
    assert!(policy.to_json().contains(r#""secrets":[{"id":2}]"#));
    assert!(!format!("{policy:?}").contains("horse"));
    let weak = r#"{"secrets": [{"id": 2, "secret": "horse"}]}"#;
    assert!(!Policy::from_json(Profile::Draft, weak).unwrap_err().to_string().contains("horse"));
}

#[test]
fn serde_shows_what_to_json_shows() {
    for policy in PROFILES.map(Policy::profile) {
        assert_eq!(serde_json::to_string(&policy).unwrap(), policy.to_json());
    }
}

#[test]
fn the_nearest_name_is_the_one_with_the_fewest_changes() {
    for (from, to, changes) in
        [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
    {
        assert_eq!(distance(from, to), changes, "{from} {to}");
    }
}

#[test]
fn the_reference_has_every_name_and_the_default_of_every_profile() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/policy.md");
    let page = std::fs::read_to_string(path).unwrap();
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let names: Vec<_> = Policy::draft().json_entries().iter().map(|(name, _)| *name).collect();
    for (position, name) in names.iter().enumerate() {
        let name = format!("`{name}`");
        let of_name: Vec<_> = rows.iter().filter(|row| row[0] == name).collect();
        let [defaults, meaning] = of_name.as_slice() else {
            panic!("{name} must have a row for its defaults and one for its meaning");
        };
        assert_eq!((defaults.len(), meaning.len()), (1 + PROFILES.len(), 3), "{name}");
        for (profile, cell) in PROFILES.iter().zip(&defaults[1..]) {
            let documented = if cell.is_empty() { defaults[1] } else { cell };
            let value = &Policy::profile(*profile).json_entries()[position].1;
            assert_eq!(documented, format!("`{value}`"), "{name} in {profile}");
        }
    }
    assert_eq!(rows.len(), 2 * names.len(), "a row for a name that does not exist");
}
