use std::time::Duration;

use http::{HeaderName, StatusCode};

use super::*;
use crate::fingerprint::{BodyRule, FingerprintRule, HeaderRule, QueryRule};
use crate::key::{InvalidKey, Key};
use crate::outcome::{Code, Rejection};
use crate::problem::Problem;
use crate::secret::Secret;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
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
fn every_profile_is_usable_but_payments_demands_a_scope() {
    for profile in PROFILES {
        let policy = Policy::profile(profile);
        assert_eq!(policy.profile, profile);
        assert_eq!(profile.as_str().parse(), Ok(profile));
        let built = policy.clone().into_builder().build();
        if profile == Profile::Payments {
            assert_eq!(built.unwrap_err().field(), "scope");
            let scope = ScopeRule::Shared;
            assert!(policy.into_builder().scope(scope).build().is_ok());
        } else {
            assert_eq!(built, Ok(policy));
        }
    }
}

#[test]
fn profiles_differ_in_what_they_promise() {
    let [draft, stripe, payments, idemptx, ..] = PROFILES.map(Policy::profile);
    assert_eq!((draft.retain, draft.key_retain), (DAY, DAY));
    assert_eq!(stripe.mismatch_status, 400);
    assert_eq!((payments.retain, payments.key_retain), (DAY, 90 * DAY));
    assert_eq!(
        (payments.on_orphan, payments.on_panic),
        (OnOrphan::Quarantine, OnPanic::Quarantine)
    );
    assert_eq!(payments.rebind_statuses, Statuses::default());
    assert_eq!(idemptx.key_space, KeySpace::Route);
    assert_eq!(idemptx.retain, Duration::from_secs(300));
    assert_eq!(idemptx.expose, [Expose::Key, Expose::Signature, Expose::Status]);
    assert_eq!(idemptx.status_header, "x-idempotency-status");
}

#[test]
fn profiles_of_protocols_follow_them() {
    let [.., acp, ucp, iceberg] = PROFILES.map(Policy::profile);
    assert!(acp.required && acp.methods == [http::Method::POST]);
    assert_eq!((acp.key_space, acp.key_retain), (KeySpace::Route, acp.retain));
    let rule = acp.fingerprint.clone().unwrap();
    assert_eq!((rule.body, rule.query), (BodyRule::Json, QueryRule::None));
    assert!(acp.release_statuses.contains(StatusCode::INTERNAL_SERVER_ERROR));
    for (code, status, name) in [
        (Code::MissingKey, 400, "idempotency_key_required"),
        (Code::KeyReused, 422, "idempotency_conflict"),
        (Code::InProgress, 409, "idempotency_in_flight"),
        (Code::StoreUnavailable, 503, "store-unavailable"),
    ] {
        let problem = Problem::from(Rejection::new(code, &acp));
        let body = String::from_utf8(problem.body().to_vec()).unwrap();
        assert!(body.contains(&format!("\"code\":\"{name}\",\"message\":")), "{body}");
        assert_eq!(problem.into_response().status(), status, "{code}");
    }
    assert!(ucp.methods.contains(&http::Method::PUT));
    assert_eq!(ucp.mismatch_status, 409);
    assert!(iceberg.methods.contains(&http::Method::DELETE));
    assert_eq!(iceberg.key_pattern, KeyPattern::new("uuid_v7").ok());
    assert_eq!(iceberg.expose, [Expose::Expiry]);
}

#[test]
fn a_session_in_a_cookie_alone_binds_a_key_to_no_one() {
    let bind = |names: &[&'static str]| {
        ScopeRule::Bind(names.iter().map(|name| HeaderName::from_static(name)).collect())
    };
    let headers = |names: &[&'static str]| -> http::HeaderMap {
        let line = |name: &&'static str| (HeaderName::from_static(name), "x".parse().unwrap());
        names.iter().map(line).collect()
    };
    let bound = bind(&["authorization", "host"]);
    assert!(bound.misses_session(&headers(&["cookie", "host"])));
    assert!(!bound.misses_session(&headers(&["host"])));
    assert!(!bound.misses_session(&headers(&["cookie", "host", "authorization"])));
    assert!(!bind(&["cookie"]).misses_session(&headers(&["cookie"])));
    for rule in [ScopeRule::Shared, ScopeRule::Cookie("sid".to_owned()), ScopeRule::Custom] {
        assert!(!rule.misses_session(&headers(&["cookie"])), "{rule:?}");
    }
}

#[test]
fn each_status_is_stored_or_releases_the_key() {
    let [draft, stripe, payments, idemptx, ..] = PROFILES.map(Policy::profile);
    let stored = |policy: &Policy, status| {
        let status = StatusCode::from_u16(status).unwrap();
        policy.store_statuses.contains(status) && !policy.release_statuses.contains(status)
    };
    for status in [200, 201, 204, 301, 304, 400, 402, 410, 422, 451] {
        assert!(stored(&draft, status) && stored(&payments, status), "{status}");
    }
    let not_applied = [
        307, 308, 401, 403, 404, 405, 406, 407, 409, 411, 412, 413, 414, 415, 416, 417, 421, 423,
        425, 426, 428, 429, 431,
    ];
    for status in not_applied {
        for policy in [&draft, &stripe, &payments, &idemptx] {
            assert!(!stored(policy, status), "{status} in {}", policy.profile);
        }
    }
    // A time-out layer sends 408 while the handler may be half-way.
    for status in [408, 500, 502, 503, 504, 599] {
        assert!(!stored(&draft, status) && !stored(&idemptx, status), "{status}");
        assert!(stored(&stripe, status) && stored(&payments, status), "{status}");
    }
}

#[test]
fn keys_are_remembered_as_long_as_responses_unless_set_otherwise() {
    let shared = || ScopeRule::Shared;
    let hour = Duration::from_secs(3600);
    for (what, builder, key_retain) in [
        ("draft follows", Policy::draft().into_builder().retain(hour), hour),
        (
            "payments keeps",
            Policy::payments().into_builder().scope(shared()).retain(hour),
            90 * DAY,
        ),
        (
            "payments grows",
            Policy::payments().into_builder().scope(shared()).retain(100 * DAY),
            100 * DAY,
        ),
        (
            "payments shrinks to its own and no further",
            Policy::payments().into_builder().scope(shared()).retain(100 * DAY).retain(hour),
            90 * DAY,
        ),
        ("said before", Policy::draft().into_builder().key_retain(2 * hour).retain(hour), 2 * hour),
        ("said after", Policy::draft().into_builder().retain(hour).key_retain(2 * hour), 2 * hour),
    ] {
        assert_eq!(builder.build().unwrap().key_retain, key_retain, "{what}");
    }
}

#[test]
fn a_policy_that_cannot_work_is_refused_by_the_name_of_its_field() {
    let draft = || Policy::draft().into_builder();
    let millis = Duration::from_millis;
    let body = |pointers: &[&str]| {
        let pointers = pointers.iter().map(ToString::to_string).collect();
        let rule =
            FingerprintRule { body: BodyRule::Fields(pointers), ..FingerprintRule::default() };
        draft().fingerprint(rule)
    };
    let rule = |query, headers| FingerprintRule { query, headers, ..FingerprintRule::default() };
    let key: HeaderName = "idempotency-key".parse().unwrap();
    let secret = || Secret::new(7, &[1; 16]).unwrap();
    let many = vec![key.clone(); 65];
    let own_key = || HeaderName::from_static("idempotency-key");
    for (builder, field) in [
        (draft().key_bytes_max(0), "key_bytes_max"),
        (draft().key_bytes_max(1025), "key_bytes_max"),
        (draft().header_names([]), "header_name"),
        (draft().header_names([key.clone(), key.clone()]), "header_name"),
        (draft().status_header(key), "status_header"),
        (draft().methods([]), "methods"),
        (draft().retain(Duration::ZERO), "retain_ms"),
        (draft().retain(Duration::from_micros(999)), "retain_ms"),
        (draft().retain(Duration::MAX), "retain_ms"),
        (draft().key_retain(millis(1)), "key_retain_ms"),
        (draft().lease(millis(99)), "lease_ms"),
        (draft().lease(millis(3_600_001)), "lease_ms"),
        (draft().wait(millis(3_600_001)), "wait_ms"),
        (draft().waiters_max(0), "waiters_max"),
        (draft().waiters_total_max(0), "waiters_total_max"),
        (draft().missing_status(StatusCode::OK), "missing_status"),
        (draft().in_flight_status(StatusCode::BAD_REQUEST), "in_flight_status"),
        (draft().mismatch_status(StatusCode::LOCKED), "mismatch_status"),
        (draft().store_statuses(Statuses::of(&[600])), "store_statuses"),
        (draft().release_statuses(Statuses::of(&[99])), "release_statuses"),
        (draft().rebind_statuses(Statuses::of(&[200])), "rebind_statuses"),
        (draft().request_bytes_max((1 << 30) + 1), "request_bytes_max"),
        (draft().response_bytes_max((256 << 20) + 1), "response_bytes_max"),
        (draft().claim_timeout(Duration::ZERO), "store_timeout_ms.claim"),
        (draft().settle_timeout(Duration::ZERO), "store_timeout_ms.settle"),
        (draft().store_check(millis(99)), "store_check_ms"),
        (draft().store_check(millis(3_600_001)), "store_check_ms"),
        (draft().drain(millis(3_600_001)), "drain_ms"),
        (draft().new_keys_per_minute_max(0), "new_keys_per_minute_max"),
        (draft().scope(ScopeRule::Bind(Vec::new())), "scope.bind"),
        (draft().scope(ScopeRule::Bind(many)), "scope.bind"),
        (draft().scope(ScopeRule::Bind(vec![own_key()])), "scope.bind"),
        (draft().scope(ScopeRule::Header(own_key())), "scope.header"),
        (draft().secrets([secret(), secret()]), "secrets"),
        (body(&[]), "fingerprint.body"),
        (body(&["amount"]), "fingerprint.body"),
        (body(&["/a~2b"]), "fingerprint.body"),
        (
            draft().fingerprint(rule(QueryRule::Only(Vec::new()), HeaderRule::All)),
            "fingerprint.query",
        ),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.field(), field, "{error}");
    }
    assert!(body(&["", "/a~1b~0c"]).build().is_ok());
}

#[test]
fn the_extremes_that_make_sense_are_accepted() {
    let policy = Policy::draft()
        .into_builder()
        .wait(Duration::ZERO)
        .store_check(Duration::ZERO)
        .drain(Duration::ZERO)
        .request_bytes_max(0)
        .response_bytes_max(0)
        .fingerprint(None)
        .on_large_body(OnLargeBody::Stream)
        .on_orphan(OnOrphan::Probe)
        .new_keys_per_minute_max(1)
        .build()
        .unwrap();
    assert_eq!(policy.fingerprint, None);
    assert_eq!(policy.new_keys_per_minute_max, Some(1));
}

#[test]
fn an_error_says_what_to_write_instead() {
    let error = Policy::draft().into_builder().lease(Duration::ZERO).build().unwrap_err();
    assert_eq!(error.to_string(), "`lease_ms`: give a number from 100 to 3600000, not 0");
    let error = "drafts".parse::<Profile>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "`profile`: write `draft` or `stripe` or `payments` or `idemptx` or `acp` or `ucp` or \
         `iceberg`"
    );
}

#[test]
fn a_set_of_statuses_is_named_as_shortly_as_possible() {
    for (statuses, name) in [
        (Statuses::default(), ""),
        (Statuses::of(&[429, 409]), "409, 429"),
        (Statuses::classes(&[5]).and(Statuses::of(&[409, 503])), "409, 5xx"),
        (Statuses::everything(), "1xx, 2xx, 3xx, 4xx, 5xx"),
        (Statuses::classes(&[u16::MAX]), ""),
    ] {
        assert_eq!(statuses.to_string(), name);
    }
}

#[test]
fn statuses_that_are_stored_explicitly_are_no_longer_released() {
    let stored = Statuses::classes(&[2, 5]).and(Statuses::of(&[404]));
    let policy = Policy::draft().into_builder().store_statuses(stored).build().unwrap();
    for status in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::NOT_FOUND] {
        assert!(!policy.release_statuses.contains(status), "{status}");
    }
    assert!(policy.release_statuses.contains(StatusCode::CONFLICT));
}

#[test]
fn the_order_of_setters_does_not_change_the_policy() {
    let draft = || Policy::draft().into_builder();
    let (stored, released) = (Statuses::classes(&[2, 5]), Statuses::of(&[503]));
    let one = draft().store_statuses(stored.clone()).release_statuses(released.clone()).build();
    let other = draft().release_statuses(released.clone()).store_statuses(stored).build();
    assert_eq!(one, other);
    assert_eq!(one.unwrap().release_statuses, released);
}

#[test]
fn the_default_scope_binds_keys_to_the_usual_credentials() {
    let names = ["authorization", "x-api-key"].map(HeaderName::from_static).to_vec();
    for policy in [Policy::draft(), Policy::stripe(), Policy::idemptx()] {
        assert_eq!(policy.scope, Some(ScopeRule::Bind(names.clone())));
    }
}

#[test]
fn keys_match_the_whole_pattern() {
    for (pattern, good, bad) in [
        (
            "uuid",
            &["8E03978E-40d5-43e8-bc93-6894a57f9324", "0196a3c2-5d5c-7cc0-8f2e-3b1f6a0d9e11"][..],
            &["8e03978e40d543e8bc936894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f932g"][..],
        ),
        (
            "uuid_v4",
            &["8e03978e-40d5-43e8-bc93-6894a57f9324"],
            &["0196a3c2-5d5c-7cc0-8f2e-3b1f6a0d9e11", "8e03978e-40d5-43e8-7c93-6894a57f9324"],
        ),
        (
            "uuid_v7",
            &["0196a3c2-5d5c-7cc0-8f2e-3b1f6a0d9e11"],
            &["8e03978e-40d5-43e8-bc93-6894a57f9324"],
        ),
        ("[a-z]{2}|[0-9]{3}", &["ab", "123"], &["ab1", "1234", "x123", "AB"]),
    ] {
        let policy = Policy::draft().into_builder().key_pattern(KeyPattern::new(pattern).unwrap());
        let policy = policy.build().unwrap();
        let check = |text: &str| policy.check_key(&Key::new(text, 255).unwrap());
        good.iter().for_each(|text| assert_eq!(check(text), Ok(()), "{text}"));
        bad.iter().for_each(|text| assert_eq!(check(text), Err(InvalidKey::Pattern), "{text}"));
    }
    for malformed in ["", "(", ")|(", "[a", &"a".repeat(1025)] {
        assert_eq!(KeyPattern::new(malformed).unwrap_err().field(), "key_pattern");
    }
}

#[test]
fn placeholders_are_refused_or_reported() {
    let draft = Policy::draft();
    let patterned = Policy::draft().into_builder().key_pattern(KeyPattern::new(".*").unwrap());
    let patterned = patterned.build().unwrap();
    for text in [
        "undefined",
        "null",
        "None",
        "[object Object]",
        "{{$guid}}",
        "${KEY}",
        "00000000-0000-0000-0000-000000000000",
    ] {
        let key = Key::new(text, 255).unwrap();
        assert_eq!(draft.check_key(&key), Ok(()));
        assert!(draft.warns_of_key(&key), "{text}");
        for policy in [&Policy::payments(), &patterned] {
            assert_eq!(policy.check_key(&key), Err(InvalidKey::Placeholder), "{text}");
            assert!(!policy.warns_of_key(&key));
        }
    }
    let key = Key::new("undefined-1", 255).unwrap();
    assert!(!draft.warns_of_key(&key) && Policy::payments().check_key(&key).is_ok());
}
