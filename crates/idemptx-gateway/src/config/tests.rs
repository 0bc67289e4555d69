//! Configurations, and the errors in them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use idemptx::Profile;
use idemptx_core::policy::{OnLargeBody, OnPanic, ScopeRule};

use super::{
    Config, Forwarded, ForwardedRule, HostRule, JwtKey, LogFormat, OnAmbiguous, ScopeSource,
    UpstreamVersion, forgotten_records,
};

const WHOLE: &str = r#"
[[listener]]
address = "127.0.0.1:8443"
http1 = false
forwarded = "append"
tls = { certificate = "cert.pem", key = "key.pem", client_ca = "ca.pem", client_required = false }

[[upstream]]
name = "shop"
urls = ["https://10.0.0.1:9000", "http://shop"]
http2 = true
host = "upstream"
ca = "shop.pem"
connect_timeout_ms = 1
response_timeout_ms = 2
pause_timeout_ms = 3
idle_timeout_ms = 0
connections_max = 5
down_ms = 0
health = { path = "/up?deep=1", interval_ms = 1, unhealthy_after = 4, statuses = [204, "3xx"] }

[[route]]
name = "payments"
host = "Shop.Example"
methods = ["POST", "GET"]
path = "/payments/*/capture"
upstream = "shop"
profile = "payments"
on_ambiguous = "release"
forward = ["attempt", "fence", "derived"]

[route.policy]
scope = { header = "X-Account" }
wait_ms = 2000
store_statuses = ["2xx", 503]
secrets = [{ id = 1, secret = "${SECRET}" }]
fingerprint = { body = "json", headers = ["X-Version"] }

[[route]]
path = "/**"
upstream = "shop"
protect = false
report_ignored = true

[store]
url = "redis://:${PASSWORD}@redis/0"
near_bytes = 1000
seal = { keys = "1:${SECRET}", accept_unsealed = true }

[limits]
connections_max = 1
body_rate_min = 0
spool_directory = "/var/spool/x"

[admin]
address = "127.0.0.1:9901"

[log]
level = "debug"
format = "json"
"#;

const SIMPLE: &str = r#"[[listener]]
address = "127.0.0.1:8080"
[[upstream]]
name = "up"
urls = ["http://127.0.0.1:9000"]
[[route]]
upstream = "up"
"#;

fn environment(name: &str) -> Option<String> {
    match name {
        "SECRET" => Some("0123456789abcdef".to_owned()),
        "PASSWORD" => Some("p$w".to_owned()),
        _ => None,
    }
}

fn read(text: &str) -> Result<Config, String> {
    Config::parse("gateway.toml", text, environment).map_err(|error| error.to_string())
}

#[test]
fn a_whole_file_says_everything() {
    let config = read(WHOLE).unwrap();
    let listener = &config.listeners[0];
    assert!(!listener.http1 && listener.http2);
    assert_eq!(listener.forwarded, ForwardedRule::Append);
    assert!(listener.tls.as_ref().is_some_and(|tls| !tls.client_required));
    let upstream = &config.upstreams[0];
    assert_eq!(upstream.version, UpstreamVersion::Http2);
    assert_eq!(upstream.host, HostRule::Upstream);
    assert!(upstream.origins[0].tls && upstream.origins[0].port() == 9000);
    assert!(!upstream.origins[1].tls && upstream.origins[1].port() == 80);
    assert_eq!(upstream.pause_timeout, Duration::from_millis(3));
    let health = upstream.health.as_ref().unwrap();
    assert_eq!((health.path.as_str(), health.interval), ("/up?deep=1", Duration::from_millis(1)));
    assert_eq!((health.healthy_after, health.unhealthy_after), (2, 4));
    assert_eq!(health.statuses.to_string(), "204, 3xx");
    let route = &config.routes[0];
    assert_eq!(route.host.as_deref(), Some("shop.example"));
    let protection = route.protection.as_ref().unwrap();
    assert_eq!(protection.policy.profile, Profile::Payments);
    assert_eq!(protection.policy.scope, Some(ScopeRule::Header("x-account".parse().unwrap())));
    assert_eq!(protection.policy.wait, Duration::from_secs(2));
    assert_eq!(protection.policy.secrets.len(), 1);
    assert_eq!(protection.on_ambiguous, OnAmbiguous::Release);
    assert_eq!(protection.policy.on_panic, OnPanic::Release);
    assert_eq!(protection.forward, [Forwarded::Attempt, Forwarded::Fence, Forwarded::Derived]);
    assert!(config.routes[1].protection.is_none() && config.routes[1].report_ignored);
    assert_eq!(config.store.url, "redis://:p$w@redis/0");
    let store = &config.store;
    assert_eq!((store.near_bytes, store.near_hold), (1000, Duration::from_secs(1)));
    assert!(config.store.seal.as_ref().is_some_and(|seal| seal.accept_unsealed));
    assert_eq!((config.limits.connections_max, config.limits.body_rate_min), (1, 0));
    assert_eq!(config.log.format, LogFormat::Json);
    let shown = format!("{config:?}");
    assert!(!shown.contains("p$w") && !shown.contains("0123456789abcdef"), "{shown}");
}

#[test]
fn settings_of_a_server_go_into_the_query_of_its_url() {
    let settings = "[store]\nurl = \"postgres://app@db/shop?sslmode=require\"\n\
        ca_file = \"/etc/ca & co.pem\"\nschema = \"shop\"\npooled = true\nmigrate = false\n\
        sessions = 8\ntimeout_ms = 5000\npassword_command = \"aws token --host=db\"\n";
    let config = read(&format!("{SIMPLE}{settings}")).unwrap();
    assert_eq!(
        config.store.full_url(),
        "postgres://app@db/shop?sslmode=require&ca_file=/etc/ca%20%26%20co.pem\
         &password_command=aws%20token%20--host%3Ddb&schema=shop&pooled=true&migrate=false\
         &sessions=8&timeout_ms=5000"
    );
    assert_eq!(read(SIMPLE).unwrap().store.full_url(), "memory:");
    let settings = "[store]\nurl = \"redis+sentinel://guard/records\"\nwait_replicas = \"all\"\n\
        wait_aof = true\nfailover_grace_ms = 15000\nsentinel_user = \"app\"\n\
        sentinel_password_file = \"/run/secret\"\nsentinel_tls = true\n";
    assert_eq!(
        read(&format!("{SIMPLE}{settings}")).unwrap().store.full_url(),
        "redis+sentinel://guard/records?wait_replicas=all&wait_aof=true&failover_grace_ms=15000\
         &sentinel_user=app&sentinel_password_file=/run/secret&sentinel_tls=true"
    );
    let counted = format!("{SIMPLE}[store]\nurl = \"redis://cache\"\nwait_replicas = 2\n");
    assert_eq!(read(&counted).unwrap().store.full_url(), "redis://cache?wait_replicas=2");
    for (setting, advice) in [
        ("wait_replicas = \"some\"", "give a number, or \"all\""),
        ("connect_timeout_ms = 0", "give at least 1 millisecond"),
    ] {
        let refused = read(&counted.replace("wait_replicas = 2", setting)).unwrap_err();
        assert!(refused.contains(advice), "{refused}");
    }
}

#[test]
fn a_claim_with_more_time_than_its_store_has_is_warned_of() {
    let warned = |claim: u32, store: &str| {
        let policy = format!("[route.policy]\nstore_timeout_ms = {{ claim = {claim} }}\n");
        let config = read(&format!("{SIMPLE}{policy}[store]\n{store}\n")).unwrap();
        config.warnings.into_iter().find(|it| it.contains("timeout_ms") || it.contains("the most"))
    };
    for (claim, store, expected) in [
        (1000, "url = \"redis://cache\"", None),
        (
            1001,
            "url = \"redis://cache\"",
            Some("a claim 1001 ms, and a step of the store has 1000 ms"),
        ),
        (2001, "url = \"postgres://db/shop\"", Some("has 2000 ms: set `timeout_ms` in [store]")),
        (9000, "url = \"redis://cache\"\ntimeout_ms = 9000", None),
        (9000, "url = \"redis://cache?prefix=a:&timeout_ms=8000\"", Some("has 8000 ms")),
        (5001, "url = \"sqlite:keys.db\"", Some("that is the most")),
        (60_000, "url = \"memory:\"", None),
    ] {
        let warning = warned(claim, store);
        let is_as_expected =
            warning.as_deref().map(|it| expected.is_some_and(|text| it.contains(text)));
        assert_eq!(is_as_expected, expected.map(|_| true), "{claim} {store}: {warning:?}");
    }
}

#[test]
fn a_simple_file_has_the_gateways_defaults() {
    let config = read(SIMPLE).unwrap();
    let protection = config.routes[0].protection.as_ref().unwrap();
    assert_eq!(protection.policy.profile, Profile::Draft);
    assert_eq!(protection.policy.on_large_body, OnLargeBody::Stream);
    assert_eq!(protection.on_ambiguous, OnAmbiguous::Unknown);
    assert_eq!(protection.policy.on_panic, OnPanic::Quarantine);
    assert_eq!(config.routes[0].name, "/**");
    assert_eq!(config.store.url, "memory:");
}

#[test]
fn scopes_come_from_certificates_and_tokens() {
    let scope = |text: &str| {
        let text = format!("{SIMPLE}policy = {{ scope = {text} }}\n");
        let config = read(&text)?;
        let protection = config.routes[0].protection.clone().unwrap();
        assert_eq!(protection.policy.scope, Some(ScopeRule::Custom));
        Ok::<_, String>(protection.scope)
    };
    assert_eq!(scope("{ mtls = \"subject\" }"), Ok(ScopeSource::Certificate));
    let rule =
        "{ jwt = \"sub\", secret = \"${SECRET}\", issuer = [\"me\"], algorithms = [\"HS512\"] }";
    let Ok(ScopeSource::Token(jwt)) = scope(rule) else { panic!("{rule}") };
    assert_eq!(jwt.claim, "sub");
    assert_eq!(jwt.key, JwtKey::Secret("0123456789abcdef".to_owned()));
    let one_of = "give one of `secret`, `key`, `jwks` and `jwks_url`";
    for (text, says) in [
        ("{ mtls = \"issuer\" }", "write `{ mtls = \"subject\" }`"),
        ("{ jwt = \"sub\" }", one_of),
        ("{ jwt = \"sub\", key = \"a\", jwks = \"b\" }", one_of),
        ("{ jwt = \"sub\", kee = \"a\" }", "unknown field `kee`"),
        ("{ jwt = \"sub\", jwks_url = \"https://a:65536/keys\" }", "write `https://host/path`"),
    ] {
        let said = scope(text).unwrap_err();
        assert!(said.starts_with("gateway.toml:8:12: `scope`: "), "{said}");
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn an_error_has_its_position() {
    let cases = [
        ("[[listener]\n", "gateway.toml:8:12: unclosed array table, expected `]`"),
        ("[limits]\nconnections_mx = 1\n", "gateway.toml:9:1: unknown field `connections_mx`"),
        ("[limits]\nhead_ms = 0\n", "gateway.toml:9:11: give at least 1 millisecond"),
        ("[limits]\nhead_ms = 99999999\n", "gateway.toml:9:11: give 3600000 milliseconds at most"),
        (
            "[limits]\nhead_ms = \"soon\"\n",
            "gateway.toml:9:11: invalid type: string \"soon\", expected a whole number",
        ),
        (
            "[limits]\nconnections_max = -1\n",
            "gateway.toml:9:19: invalid value: integer `-1`, expected a whole number from 0",
        ),
        (
            "[[upstream]]\nname = \"x\"\nurls = \"http://h\"\n",
            "gateway.toml:10:8: invalid type: \
          string \"http://h\", expected a list",
        ),
        (
            "[store]\nurl = \"sqlite:x\"\nseal = true\n",
            "gateway.toml:10:8: invalid type: \
          boolean `true`, expected a table",
        ),
        ("[limits]\nhead_bytes_max = 10\n", "gateway.toml:9:18: give 8192 to 16777216 bytes"),
        ("[log]\nlevel = \"loud\"\n", "gateway.toml:9:9: unknown variant `loud`"),
        (
            "[store]\nurl = \"redis://${HOST}/\"\n",
            "gateway.toml:9:7: the environment variable `HOST` is not set",
        ),
        (
            "[store]\nurl = \"redis://${HOST/\"\n",
            "gateway.toml:9:7: `${` has no `}`; write `$$` for a dollar",
        ),
        (
            "[store]\nurl = \"sqlite:x\"\nschema = \"shop\"\n",
            "gateway.toml:10:10: only a store on a server has this setting",
        ),
        ("[store]\nurl = \"memory:\"\n[store.seal]\n", "gateway.toml:10:1: give one of `keys` and"),
        ("profile = \"draught\"\n", "gateway.toml:8:11: `profile`: write `draft` or `stripe`"),
        ("profile = \"payments\"\n", "gateway.toml:8:11: `scope`: "),
        (
            "protect = false\nprofile = \"draft\"\n",
            "gateway.toml:9:11: this route is not protected",
        ),
        (
            "cors = { origins = [\"*\"], credentials = true }\n",
            "gateway.toml:8:8: with `credentials` browsers do not take `*`",
        ),
        ("cors = { origins = [\"shop.example\"] }\n", "gateway.toml:8:20: write origins as"),
        ("path = \"orders\"\n", "gateway.toml:8:8: a path begins with `/`"),
        ("path = \"/or*ders\"\n", "gateway.toml:8:8: `*` or `{name}` stands for one whole"),
        ("methods = [\"post\"]\n", "gateway.toml:8:11: write methods in capitals"),
        ("methods = []\n", "gateway.toml:8:11: name at least one"),
        (
            "[route.policy]\nwait = 1\n",
            "gateway.toml:9:1: `wait`: no such field; did you mean `wait_ms`?",
        ),
        (
            "[route.policy]\nlease_ms = 15000\nwait_ms = -1\n",
            "gateway.toml:10:1: `wait_ms`: it cannot be negative",
        ),
        ("[route.policy]\nlease_ms = 1\n", "gateway.toml:9:1: `lease_ms`: give a number from 100"),
        ("[route.policy]\nstore_statuses = [\"9xx\"]\n", "gateway.toml:9:1: `store_statuses`: "),
        (
            "[route.policy]\non_panic = \"release\"\n",
            "gateway.toml:9:1: `on_panic`: a gateway runs no handler",
        ),
        ("[route.policy]\nretain_ms = 1.5\n", "gateway.toml:9:1: write a whole number"),
        ("[[route]]\nupstream = \"down\"\n", "gateway.toml:9:12: there is no upstream `down`"),
        (
            "[admin]\naddress = \"0.0.0.0:9901\"\n",
            "gateway.toml:9:11: an address that is not loopback",
        ),
    ];
    let mut wrong = Vec::new();
    for (more, expected) in cases {
        let said = read(&format!("{SIMPLE}{more}")).unwrap_err();
        if !said.starts_with(expected) {
            wrong.push(format!("{more} said {said}, not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (text, expected) in [
        ("", "gateway.toml:1:1: at least one [[listener]] is required"),
        ("route = []\n", "gateway.toml:1:1: at least one [[listener]] is required"),
        (
            "listener = []\nupstream = []\nroute = []\n",
            "gateway.toml:1:12: at least one [[listener]] is required",
        ),
    ] {
        let said = read(text).unwrap_err();
        assert!(said.starts_with(expected), "{text}: {said}");
    }
    let twice = SIMPLE
        .replace("[[route]]", "[[upstream]]\nname = \"up\"\nurls = [\"http://a\"]\n[[route]]");
    assert_eq!(read(&twice).unwrap_err(), "gateway.toml:7:8: duplicate upstream `up`");
    for url in ["ftp://a", "http://a/b", "http://a#b", "http://u@a", "http://a:65536", "a:80"] {
        let text = SIMPLE.replace("http://127.0.0.1:9000", url);
        let said = read(&text).unwrap_err();
        assert!(said.starts_with("gateway.toml:5:8: write `http://host:port`"), "{url}: {said}");
    }
}

#[test]
fn an_error_in_a_health_check_is_reported() {
    for (wrong, expected) in [
        ("interval_ms = 1", "missing field `path`"),
        ("path = \"up\"", "a path begins with `/`"),
        ("path = \"/\"\nhealthy_after = 0", "give at least 1"),
        ("path = \"/\"\nstatuses = []", "write a list of statuses and classes"),
        ("path = \"/\"\nstatuses = [\"6xx\"]", "write a list of statuses and classes"),
        ("path = \"/\"\nstatuses = [99]", "write a list of statuses and classes"),
        ("path = \"/\"\nhost = \"a\"", "unknown field `host`"),
    ] {
        let said = read(&format!("{SIMPLE}[upstream.health]\n{wrong}\n")).unwrap_err();
        assert!(said.contains(expected), "{wrong}: {said}");
    }
}

#[cfg(feature = "otel")]
#[test]
fn traces_have_a_place_a_ratio_and_limits() {
    let traces = |table: &str| {
        read(&format!("{SIMPLE}[traces]\n{table}")).map(|config| config.traces.unwrap())
    };
    let all = traces(
        "endpoint = \"https://collector:4318\"\nca = \"ca.pem\"\nservice_name = \"shop\"\n\
         sample_ratio = 0.1\nheaders = { authorization = \"Bearer ${SECRET}\" }\n\
         timeout_ms = 1\nqueue_max = 2\n",
    );
    let all = all.unwrap();
    assert_eq!(all.endpoint.as_ref().unwrap(), "https://collector:4318/v1/traces");
    assert_eq!((all.sample_ratio, all.queue_max), (Some(0.1), 2));
    assert_eq!(all.headers["authorization"], "Bearer 0123456789abcdef");
    assert!(!format!("{all:?}").contains("0123456789abcdef"));
    let least = traces("").unwrap();
    assert_eq!((least.endpoint, least.sample_ratio, least.queue_max), (None, None, 2048));
    let named = traces("endpoint = \"http://c:1/otlp/traces\"").unwrap();
    assert_eq!(named.endpoint.unwrap(), "http://c:1/otlp/traces");
    for (wrong, expected) in [
        ("endpoint = \"collector:4318\"", "9:12: write `http://host:port`"),
        ("endpoint = \"http://u:p@c\"", "9:12: write `http://host:port`"),
        ("sample_ratio = 1.5", "9:16: give a number from 0 to 1"),
        ("queue_max = 0", "9:13: give 1 to 100000"),
        ("headers = { \"a b\" = \"${SECRET}\" }", "9:11: `a b` cannot be sent"),
        ("sampler = \"all\"", "9:1: unknown field `sampler`"),
    ] {
        let said = traces(wrong).unwrap_err();
        assert!(said.starts_with(&format!("gateway.toml:{expected}")), "{wrong}: {said}");
    }
}

#[cfg(not(feature = "otel"))]
#[test]
fn traces_are_refused_where_they_are_not_built_in() {
    let said = read(&format!("{SIMPLE}[traces]\n")).unwrap_err();
    let expected = "gateway.toml:8:1: this program was built without traces: build it with \
                    `--features otel`";
    assert_eq!(said, expected);
}

#[cfg(not(feature = "seal"))]
#[test]
fn sealing_is_refused_where_it_is_not_built_in() {
    let said = read(&format!("{SIMPLE}[store]\nurl = \"memory:\"\n[store.seal]\n")).unwrap_err();
    let expected = "gateway.toml:10:1: this program was built without sealing: build it with \
                    `--features seal`";
    assert_eq!(said, expected);
}

#[test]
fn a_route_that_no_request_could_take_is_refused() {
    let advice = "8:8: write one host without a port";
    for (line, expected) in [
        ("host = \"api.example.com:8080\"", advice),
        ("host = \"*.example.com\"", advice),
        ("host = \"https://api.example.com\"", advice),
        ("host = \"me@api.example.com\"", advice),
        ("host = \"api..example.com\"", advice),
        ("host = \"\"", advice),
        ("host = \"münchen.example\"", advice),
        ("path = \"/orders;v=2\"", "8:8: leave parameters"),
    ] {
        let said = read(&format!("{SIMPLE}{line}\n")).unwrap_err();
        assert!(said.starts_with(&format!("gateway.toml:{expected}")), "{line}: {said}");
    }
    for (host, expected) in [("API.example.com.", "api.example.com"), ("[::1]", "[::1]")] {
        let config = read(&format!("{SIMPLE}host = \"{host}\"\n")).unwrap();
        assert_eq!(config.routes[0].host.as_deref(), Some(expected));
    }
}

#[test]
fn a_token_that_lets_everyone_in_or_nobody_is_refused() {
    for token in ["", " ", "short", "a b c d e f", " s3cret-token", "s3cret-tökén"] {
        for address in ["127.0.0.1:9901", "0.0.0.0:9901"] {
            let table = format!("[admin]\naddress = \"{address}\"\ntoken = \"{token}\"\n");
            let said = read(&format!("{SIMPLE}{table}")).unwrap_err();
            assert!(said.starts_with("gateway.toml:10:9: write a token"), "{token}: {said}");
            assert!(token.len() < 2 || !said.contains(token), "{said}");
        }
    }
}

#[test]
fn a_reload_that_leaves_records_behind_is_warned_of() {
    let routes = |lines: &str| read(&format!("{SIMPLE}{lines}\n")).unwrap().routes;
    let before = routes("");
    for (lines, expected) in [
        ("", None),
        ("policy = { scope = \"shared\", secrets = [] }", None),
        ("policy = { scope = { header = \"x-account\" } }", Some("scope")),
        ("policy = { scope = { mtls = \"subject\" } }", Some("scope")),
        ("policy = { key_space = \"route\" }", Some("key_space")),
        ("name = \"other\"\npolicy = { key_space = \"route\" }", None),
        ("protect = false", None),
    ] {
        let found = forgotten_records(&before, &routes(lines));
        let expected = expected.map(|it| format!("route /** has another `{it}`: "));
        assert_eq!(found.len(), usize::from(expected.is_some()), "{lines}: {found:?}");
        assert!(expected.is_none_or(|expected| found[0].starts_with(&expected)), "{found:?}");
    }
    let token = |key| routes(&format!("policy = {{ scope = {{ jwt = \"sub\", {key} }} }}"));
    let (old, new) = (token("key = \"old.pem\""), token("key = \"new.pem\""));
    assert!(forgotten_records(&old, &new).is_empty(), "a key names nothing");
    let mut moved = before.clone();
    moved[0].upstream = "elsewhere".to_owned();
    assert!(forgotten_records(&before, &moved)[0].contains("another `upstream`"));
}

#[test]
fn two_dollars_are_one_with_or_without_a_variable() {
    let table = |url: &str| format!("{SIMPLE}[store]\nurl = \"{url}\"\n");
    for (url, expected) in [
        ("postgres://u:p$$w@db/shop", "postgres://u:p$w@db/shop"),
        ("postgres://u:$${PASSWORD}@db/shop", "postgres://u:${PASSWORD}@db/shop"),
        ("postgres://$$u:${PASSWORD}@db/shop", "postgres://$u:p$w@db/shop"),
    ] {
        assert_eq!(read(&table(url)).unwrap().store.url, expected);
    }
}

#[test]
fn a_processor_for_envoy_needs_neither_listeners_nor_addresses_of_services() {
    let text = "[ext_proc]\naddress = \"127.0.0.1:9100\"\n[[route]]\nupstream = \"shop\"\n";
    let config = Config::parse("gateway.toml", text, |_| None).unwrap();
    assert!(config.clone().into_gateway().is_none());
    let alone = config.into_ext_proc().unwrap();
    let names: Vec<_> = alone.upstreams.iter().map(|it| (&*it.name, it.origins.len())).collect();
    assert_eq!(names, [("shop", 0)]);
    let both = format!("{SIMPLE}{}", "[ext_proc]\naddress = \"127.0.0.1:9100\"\n");
    let both = Config::parse("gateway.toml", &both, |_| None).unwrap();
    assert!(both.clone().into_gateway().unwrap().ext_proc.is_none());
    assert!(both.into_ext_proc().unwrap().listeners.is_empty());
    assert!(Config::parse("gateway.toml", SIMPLE, |_| None).unwrap().into_ext_proc().is_none());
    for (more, expected) in [
        ("policy.wait_ms = 14000", "gateway.toml:1:1: an answer on route /** can take 15s"),
        ("policy.store_timeout_ms = { settle = 20000 }", "gateway.toml:1:1: an answer on route"),
        ("policy.scope = { mtls = \"subject\" }", "gateway.toml:5:16: Envoy ends TLS"),
    ] {
        let said = read(&format!("{text}{more}\n")).unwrap_err();
        assert!(said.starts_with(expected), "{more}: {said}");
    }
}
