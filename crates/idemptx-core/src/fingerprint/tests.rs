mod bodies;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, PartialEq)]
struct Request {
    method: String,
    uri: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Request {
    fn post(content_type: &str, body: impl AsRef<[u8]>) -> Self {
        Self {
            method: "POST".into(),
            uri: "/charges".into(),
            headers: vec![("content-type", content_type.into())],
            body: body.as_ref().into(),
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    fn start(&self, config: &FingerprintConfig) -> Fingerprinter {
        let method = Method::from_bytes(self.method.as_bytes()).expect("a method");
        config.start(&method, &self.uri.parse().expect("a URI"), &self.headers())
    }

    fn fingerprint(&self, config: &FingerprintConfig) -> Fingerprint {
        let mut fingerprinter = self.start(config);
        fingerprinter.update(&self.body);
        fingerprinter.finish()
    }
}

fn config(rule: &FingerprintRule) -> FingerprintConfig {
    FingerprintConfig::new(Some(rule), &[], None)
}

fn with_body(body: BodyRule) -> FingerprintConfig {
    config(&FingerprintRule { body, ..FingerprintRule::default() })
}

fn with_query(query: QueryRule) -> FingerprintConfig {
    config(&FingerprintRule { query, ..FingerprintRule::default() })
}

fn fields(pointers: &[&str]) -> BodyRule {
    BodyRule::Fields(pointers.iter().map(|&pointer| pointer.to_owned()).collect())
}

fn secret(id: u8) -> Secret {
    Secret::new(id, b"sixteen bytes or more").expect("long enough")
}

#[test]
fn fingerprints_are_settled() {
    // Stored records hold them: other values here are another format, with another version.
    let request = Request {
        uri: "/charges?b=1&a=2".into(),
        ..Request::post("application/json; charset=utf-8", r#"{"a": [1, "x"], "b": null}"#)
    };
    let rules = [
        FingerprintRule::default(),
        FingerprintRule { body: BodyRule::Json, ..FingerprintRule::default() },
        FingerprintRule { body: fields(&["/a/1", "/c"]), ..FingerprintRule::default() },
        FingerprintRule {
            body: BodyRule::None,
            query: QueryRule::Sorted,
            headers: HeaderRule::Only(vec![CONTENT_TYPE]),
        },
    ];
    let prints = rules.map(|rule| {
        let print = request.fingerprint(&config(&rule));
        format!("{:08x} {}", print.config, &print.signature()[..16])
    });
    assert_eq!(
        prints,
        [
            "63a8be96 2a411cc34f46b921",
            "5e27c7ba e7a8f73004647aea",
            "46c161e9 78de446e923d770b",
            "e1ce15a3 706ff9bd808e839a"
        ]
    );
    let work = Fingerprint::of(&[b"a", b"b"], None);
    assert_eq!(
        format!("{:08x} {}", work.config, &work.signature()[..16]),
        "95e90e71 7806c0a9e942c848"
    );
}

#[test]
fn a_stranger_is_told_nothing_else() {
    let print = |config, digest: u8, binding: u8| Fingerprint {
        config,
        digest: [digest; 32],
        binding: [binding; 16],
        operation: [0; 16],
    };
    let recorded = print(1, 2, 3);
    assert_eq!(print(1, 2, 3).compare(&recorded), Match::Same);
    assert_eq!(print(1, 9, 3).compare(&recorded), Match::DifferentRequest);
    assert_eq!(print(9, 2, 3).compare(&recorded), Match::Incomparable);
    assert_eq!(print(9, 9, 3).compare(&recorded), Match::Incomparable);
    for other in [print(1, 2, 9), print(1, 9, 9), print(9, 2, 9), print(9, 9, 9)] {
        assert_eq!(other.compare(&recorded), Match::DifferentPrincipal);
    }
    let mut last_byte = recorded;
    last_byte.digest[31] ^= 1;
    assert!(recorded.same_request(&recorded) && !last_byte.same_request(&recorded));
    let mut last_byte = recorded;
    last_byte.binding[15] ^= 1;
    assert_eq!(last_byte.compare(&recorded), Match::DifferentPrincipal);
}

#[test]
fn without_a_rule_only_the_principal_counts() {
    let config = FingerprintConfig::new(None, &[http::header::AUTHORIZATION], None);
    let request = |token: &str, body: &str| {
        let mut request = Request::post("text/plain", body);
        request.headers.push(("authorization", token.into()));
        request.fingerprint(&config)
    };
    assert_eq!(request("a", "1").compare(&request("a", "2")), Match::Same);
    assert_eq!(request("a", "1").compare(&request("b", "1")), Match::DifferentPrincipal);
    assert_eq!(request("a", "1").digest, [0; 32]);
    let unbound = FingerprintConfig::new(None, &[], None);
    let print = Request::post("text/plain", "1").fingerprint(&unbound);
    assert_eq!((print.digest, print.binding), ([0; 32], [0; 16]));
    assert_eq!(Fingerprint::unchecked().compare(&Fingerprint::unchecked()), Match::Same);
}

#[test]
fn the_binding_is_of_all_bound_lines_and_of_nothing_else() {
    let bind = [http::header::AUTHORIZATION, http::header::COOKIE];
    let rule = FingerprintRule::default();
    let config = FingerprintConfig::new(Some(&rule), &bind, None);
    let swapped = FingerprintConfig::new(Some(&rule), &[bind[1].clone(), bind[0].clone()], None);
    let request = |headers: &[(&'static str, &str)]| Request {
        headers: headers.iter().map(|&(name, value)| (name, value.to_owned())).collect(),
        ..Request::post("", "")
    };
    let requests = [
        request(&[]),
        request(&[("authorization", "")]),
        request(&[("cookie", "")]),
        request(&[("authorization", "a")]),
        request(&[("authorization", "a"), ("authorization", "")]),
        request(&[("authorization", "a"), ("cookie", "b")]),
        request(&[("authorization", "b"), ("cookie", "a")]),
        request(&[("authorization", "ab")]),
    ];
    let bindings: std::collections::BTreeSet<_> =
        requests.iter().map(|request| request.fingerprint(&config).binding).collect();
    assert_eq!(bindings.len(), requests.len());
    assert!(!bindings.contains(&[0; 16]));
    for request in &requests {
        assert_eq!(request.fingerprint(&config), request.fingerprint(&swapped));
    }
    let bound = requests[3].fingerprint(&config);
    let other = request(&[("authorization", "a"), ("user-agent", "x")]).fingerprint(&config);
    assert_eq!(bound, other);
}

#[test]
fn another_rule_or_secret_is_another_configuration() {
    let rule = FingerprintRule::default;
    let only =
        |names: &[&str]| QueryRule::Only(names.iter().map(|&name| name.to_owned()).collect());
    let headers = |names: &[&'static str]| {
        HeaderRule::Only(names.iter().map(|name| HeaderName::from_static(name)).collect())
    };
    let rules = [
        rule(),
        FingerprintRule { body: BodyRule::Raw, ..rule() },
        FingerprintRule { body: BodyRule::Exclude(vec!["/a".into()]), ..rule() },
        FingerprintRule { body: BodyRule::Json, ..rule() },
        FingerprintRule { body: BodyRule::Form, ..rule() },
        FingerprintRule { body: BodyRule::Multipart, ..rule() },
        FingerprintRule { body: BodyRule::None, ..rule() },
        FingerprintRule { body: fields(&[]), ..rule() },
        FingerprintRule { body: fields(&["/a"]), ..rule() },
        FingerprintRule { body: fields(&["/a", "/b"]), ..rule() },
        FingerprintRule { body: fields(&["/a/b"]), ..rule() },
        FingerprintRule { query: QueryRule::Sorted, ..rule() },
        FingerprintRule { query: QueryRule::None, ..rule() },
        FingerprintRule { query: only(&[]), ..rule() },
        FingerprintRule { query: only(&["a", "b"]), ..rule() },
        FingerprintRule { query: only(&["ab"]), ..rule() },
        FingerprintRule { headers: headers(&["a", "b"]), ..rule() },
        FingerprintRule { headers: headers(&["ab"]), ..rule() },
        FingerprintRule { headers: HeaderRule::All, ..rule() },
    ];
    let secrets = [None, Some(secret(0)), Some(secret(1))];
    let mut ids = std::collections::BTreeSet::from([Fingerprint::of(&[], None).config]);
    for secret in &secrets {
        ids.insert(FingerprintConfig::new(None, &[], secret.as_ref()).config_id());
        for rule in &rules {
            ids.insert(FingerprintConfig::new(Some(rule), &[], secret.as_ref()).config_id());
        }
    }
    assert_eq!(ids.len(), 1 + secrets.len() * (1 + rules.len()));
    let id = |query| with_query(query).config_id();
    assert_eq!(id(only(&["a", "b"])), id(only(&["b", "a", "b"])), "a set has no order");
}

#[test]
fn a_secret_keys_everything() {
    let bind = [http::header::AUTHORIZATION];
    let rule = FingerprintRule::default();
    let other = Secret::new(1, b"another sixteen bytes or more").unwrap();
    let print = |secret| {
        Request::post("text/plain", "x").fingerprint(&FingerprintConfig::new(
            Some(&rule),
            &bind,
            secret,
        ))
    };
    let prints = [print(None), print(Some(&secret(1))), print(Some(&other))];
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        assert_ne!(prints[one].digest, prints[other].digest);
        assert_ne!(prints[one].binding, prints[other].binding);
    }
    assert_ne!(
        Fingerprint::of(&[b"x"], None).digest,
        Fingerprint::of(&[b"x"], Some(&secret(1))).digest
    );
}

#[test]
fn parameters_and_case_of_the_content_type_do_not_count() {
    let print = |types: &[&str]| {
        let headers = types.iter().map(|&line| ("content-type", line.to_owned())).collect();
        Request { headers, ..Request::post("", "x") }.fingerprint(&with_body(BodyRule::Raw)).digest
    };
    let long = format!("text/{}", "Long".repeat(20));
    assert_eq!(print(&["text/plain"]), print(&["Text/Plain ; charset=utf-8"]));
    assert_eq!(print(&[&long]), print(&[&long.to_lowercase()]));
    assert_ne!(print(&["text/plain"]), print(&["text/html"]));
    assert_ne!(print(&["text/plain"]), print(&[]));
    assert_ne!(print(&[""]), print(&[]));
    assert_ne!(print(&["text/plain"]), print(&["text/plain", "text/plain"]));
}

#[test]
fn the_content_type_counts_with_the_body_alone() {
    let print = |rule: BodyRule, content_type| {
        Request::post(content_type, "x").fingerprint(&with_body(rule)).digest
    };
    assert_eq!(print(BodyRule::None, "text/plain"), print(BodyRule::None, "text/html"));
    assert_ne!(print(BodyRule::Raw, "text/plain"), print(BodyRule::Raw, "text/html"));
}

#[test]
fn headers_count_as_the_rule_says() {
    let request = |headers: &[(&'static str, &str)]| Request {
        headers: headers.iter().map(|&(name, value)| (name, value.to_owned())).collect(),
        ..Request::post("", "")
    };
    let version = HeaderName::from_static("api-version");
    let only = FingerprintRule { headers: HeaderRule::Only(vec![version]), ..Default::default() };
    let all = FingerprintRule { headers: HeaderRule::All, ..Default::default() };
    let one = request(&[("api-version", "1"), ("x", "1")]);
    let swapped = request(&[("x", "1"), ("api-version", "1")]);
    let other_x = request(&[("api-version", "1"), ("x", "2")]);
    let other_version = request(&[("api-version", "2"), ("x", "1")]);
    let [only, all] = [only, all].map(|rule| config(&rule));
    assert_eq!(one.fingerprint(&only), other_x.fingerprint(&only));
    assert_ne!(one.fingerprint(&only), other_version.fingerprint(&only));
    assert_eq!(one.fingerprint(&all), swapped.fingerprint(&all));
    assert_ne!(one.fingerprint(&all), other_x.fingerprint(&all));
}

#[test]
fn all_headers_are_not_those_that_each_try_has_anew() {
    let all = config(&FingerprintRule { headers: HeaderRule::All, ..Default::default() });
    let print = |headers| Request { headers, ..Request::post("", "") }.fingerprint(&all);
    let of = |name: &'static str, value: &str| print(vec![(name, value.to_owned())]);
    let without = print(Vec::new());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/policy.md");
    let reference = std::fs::read_to_string(path).unwrap();
    let (_, section) = reference.split_once("## Headers that never count").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    let listed = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let listed: Vec<_> = listed.map(|name| name.to_lowercase().replace('*', "x")).collect();
    assert!(listed.len() > 60, "{listed:?}");
    for name in listed {
        assert_eq!(of(name.clone().leak(), "1"), without, "{name}");
    }
    for name in [
        "authorization",
        "cookie",
        "host",
        "user-agent",
        "x-envoyage",
        "x-forwarded-client-cert",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-priority",
    ] {
        assert_ne!(of(name, "1"), of(name, "2"), "{name}");
        assert_ne!(of(name, "1"), without, "{name}");
    }
}

#[test]
fn queries_count_as_the_rule_says() {
    let only = QueryRule::Only(vec!["a".into(), "b c".into()]);
    let table: &[(QueryRule, &str, &str, bool)] = &[
        (QueryRule::Raw, "/?a=1&b=2", "/?a=1&b=2", true),
        (QueryRule::Raw, "/?a=1&b=2", "/?b=2&a=1", false),
        (QueryRule::Raw, "/", "/?", false),
        (QueryRule::Sorted, "/?a=1&b=2", "/?b=2&&a=1&", true),
        (QueryRule::Sorted, "/?a=%31+2", "/?a=1%202", true),
        (QueryRule::Sorted, "/?a=1&a=2", "/?a=2&a=1", false),
        (QueryRule::Sorted, "/?a=1&b=2", "/?a=1", false),
        (QueryRule::Sorted, "/?ab=c", "/?a=bc", false),
        (QueryRule::Sorted, "/?a=%zz", "/?a=%25zz", true),
        (QueryRule::Sorted, "/?a=%2", "/?a=%20", false),
        (QueryRule::Sorted, "/?a=1=2", "/?a=1", false),
        (only.clone(), "/?a=1&utm=x&b+c=2", "/?b%20c=2&%61=1&utm=y", true),
        (only.clone(), "/?a=1&b+c=2", "/?a=1", false),
        (only, "/?a=1", "/?a=2", false),
        (QueryRule::None, "/?a=1", "/", true),
        (QueryRule::None, "/a", "/b", false),
    ];
    for (rule, one, other, same) in table {
        let config = with_query(rule.clone());
        let print = |uri: &str| {
            Request { uri: uri.into(), ..Request::post("text/plain", "x") }.fingerprint(&config)
        };
        assert_eq!(print(one) == print(other), *same, "{one} and {other} under {rule:?}");
    }
}

#[test]
fn a_fingerprinter_does_not_show_the_body() {
    let mut fingerprinter = Request::post("application/json", "").start(&with_body(BodyRule::Json));
    fingerprinter.update(b"\"secret\"");
    assert!(!format!("{fingerprinter:?}").contains("secret"));
}

fn requests() -> impl Strategy<Value = Request> {
    let headers = prop::collection::vec(
        (prop::sample::select(&["x", "y", "content-type"][..]), "[ab]{0,2}"),
        0..3,
    );
    let parts = ("[AB]{1,2}", "/[ab/]{0,2}(\\?[ab]{0,2})?", headers, "[ab]{0,2}");
    parts.prop_map(|(method, uri, headers, body)| Request {
        method,
        uri,
        headers,
        body: body.into_bytes(),
    })
}

/// Sorts the headers by name, with the lines of each in their order.
fn by_name(request: &Request) -> Request {
    let mut request = request.clone();
    request.headers.sort_by_key(|(name, _)| *name);
    request
}

proptest! {
    #[test]
    fn only_the_same_request_has_the_same_fingerprint(one in requests(), other in requests()) {
        let headers = HeaderRule::Only(["x", "y"].map(HeaderName::from_static).to_vec());
        for headers in [headers, HeaderRule::All] {
            let config = config(&FingerprintRule { headers, ..FingerprintRule::default() });
            let same = one.fingerprint(&config).compare(&other.fingerprint(&config)) == Match::Same;
            prop_assert_eq!(same, by_name(&one) == by_name(&other));
        }
    }

    #[test]
    fn only_the_same_work_has_the_same_fingerprint(
        one in prop::collection::vec("[ab]{0,2}", 0..4),
        other in prop::collection::vec("[ab]{0,2}", 0..4),
    ) {
        let of = |parts: &[String]| {
            Fingerprint::of(&parts.iter().map(String::as_bytes).collect::<Vec<_>>(), None)
        };
        prop_assert_eq!(of(&one).same_request(&of(&other)), one == other);
    }

    #[test]
    fn how_the_body_is_cut_does_not_count(
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..5_000),
            "[\\[{\"a:1,}\\]&=% \r\n-]{0,40}".prop_map(String::into_bytes),
        ],
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        content_type in prop::sample::select(&[
            "application/json",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=a",
            "text/plain",
        ][..]),
    ) {
        let rules = [
            BodyRule::Raw,
            BodyRule::Json,
            BodyRule::Form,
            BodyRule::Multipart,
            BodyRule::Auto,
            BodyRule::Exclude(vec!["/a".into()]),
            fields(&["/a"]),
            BodyRule::None,
        ];
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
        cuts.sort_unstable();
        let request = Request::post(content_type, &body);
        for config in rules.map(with_body) {
            let mut fingerprinter = request.start(&config);
            let mut start = 0;
            for &cut in &cuts {
                fingerprinter.update(&body[start..cut]);
                start = cut;
            }
            fingerprinter.update(&body[start..]);
            prop_assert_eq!(fingerprinter.finish(), request.fingerprint(&config));
        }
    }
}
