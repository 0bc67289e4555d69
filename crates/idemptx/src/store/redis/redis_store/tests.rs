use std::time::Duration;

use super::*;
use crate::store::redis::server_clock::ServerClock;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::lease::Token;
use idemptx_core::store::ErrorKind;
use tokio::time::Instant;

fn id() -> RecordId {
    RecordId::from_bytes([7; RecordId::BYTES])
}

fn refusal(url: &str) -> String {
    RedisStore::open(url).unwrap_err().to_string()
}

#[test]
fn every_form_of_url_is_read() {
    for (url, server) in [
        ("redis://localhost", "localhost:6379/0"),
        ("redis://127.0.0.1:7000/3", "127.0.0.1:7000/3"),
        ("redis://:secret@[::1]:7000/", "[::1]:7000/0"),
        ("rediss://user:secret@cache.example:7000/1", "cache.example:7000/1"),
        ("valkey://localhost:7000", "localhost:7000/0"),
        ("redis://localhost:7000?db=2&user=app&pass=secret", "localhost:7000/2"),
        ("redis://localhost:7000/1?db=2&timeout_ms=500", "localhost:7000/2"),
        ("redis+unix:///run/redis.sock?db=2&user=app&pass=secret", "/run/redis.sock/2"),
        ("unix:///run/redis.sock", "/run/redis.sock/0"),
        ("redis+cluster://a,b:7000", "cluster a:6379,b:7000"),
        ("rediss+cluster://user:secret@[::1]:7000,10.0.0.1/0", "cluster [::1]:7000,10.0.0.1:6379"),
        ("redis+sentinel://a,b:7000/records", "sentinel service records"),
        ("redis+sentinel://u:secret@a/records/3?sentinel_password=x", "sentinel service records"),
    ] {
        let store = RedisStore::open(url).unwrap();
        assert_eq!(&**store.runner.deployment.name(), server, "{url}");
    }
}

#[test]
fn plain_text_beyond_this_host_is_noticed() {
    for (url, plaintext) in [
        ("redis://localhost", false),
        ("redis://127.0.0.1:7000/3", false),
        ("redis://[::1]:7000/", false),
        ("redis+unix:///run/redis.sock", false),
        ("rediss://cache.example", false),
        ("redis://cache.example", true),
        ("redis://10.0.0.1", true),
        ("redis+cluster://localhost,10.0.0.1", true),
        ("rediss+cluster://10.0.0.1", false),
        ("redis+sentinel://localhost/records", false),
        ("redis+sentinel://10.0.0.1/records", true),
        ("rediss+sentinel://10.0.0.1/records", false),
        ("rediss+sentinel://10.0.0.1/records?sentinel_tls=false", true),
        ("redis+sentinel://10.0.0.1/records?sentinel_tls=true", true),
    ] {
        let store = RedisStore::open(url).unwrap();
        assert_eq!(store.runner.deployment.is_plaintext(), plaintext, "{url}");
    }
}

#[test]
fn a_wrong_url_is_refused_with_what_to_change() {
    for (url, hint) in [
        ("http://localhost", "redis://"),
        ("localhost:6379", "redis://"),
        ("redis://localhost/zero", "must be a number"),
        ("redis://localhost/-1", "must be a number"),
        ("redis+unix:///run/redis.sock?db=x", "must be a number"),
        ("redis://localhost?db=x", "must be a number"),
        ("redis://localhost?timeout=5", "`timeout`"),
        ("rediss://localhost/0#insecure", "always verified"),
        ("redis:///0", "ostname"),
        ("redis+cluster://", "host:port,host:port"),
        ("redis+cluster://a,,b", "host:port,host:port"),
        ("redis+cluster://a:x", "host:port,host:port"),
        ("redis+cluster://a/1", "no database but 0"),
        ("redis+cluster://a?db=1", "no database but 0"),
        ("redis+cluster://a?prefix=x{y}:", "`{`"),
        ("redis+cluster://a?timeout=5", "`timeout`"),
        ("redis+sentinel://a", "no service"),
        ("redis+sentinel://a/records/x", "must be a number"),
        ("redis+sentinel://a/records?sentinel_tls=maybe", "`true` or `false`"),
        ("redis+sentinel://a/records?sentinel_ca_file=/nowhere", "/nowhere"),
    ] {
        assert!(refusal(url).contains(hint), "{url}: {}", refusal(url));
    }
}

#[test]
fn no_text_about_a_store_shows_its_password() {
    let url = "redis://app:hunter2@localhost/0";
    assert!(!format!("{:?}", RedisStore::builder(url)).contains("hunter2"));
    assert!(!format!("{:?}", RedisStore::open(url).unwrap()).contains("hunter2"));
    for url in
        ["redis://app:hunter2@localhost/x", "http://app:hunter2@localhost", "redis://a:hunter2@/0"]
    {
        assert!(!refusal(url).contains("hunter2"), "{}", refusal(url));
    }
}

#[test]
fn certificates_need_tls_and_must_be_some() {
    let plain = RedisStore::builder("redis://localhost").ca_certificates("x").open();
    assert!(plain.unwrap_err().to_string().contains("rediss://"));
    let empty = RedisStore::builder("rediss://localhost").ca_certificates("x").open();
    assert!(empty.unwrap_err().to_string().contains("PEM"));
}

#[test]
fn a_step_outside_a_runtime_is_an_error_and_no_panic() {
    let store = RedisStore::open("redis://localhost").unwrap();
    let token = Token::from_bytes([1; Token::BYTES]);
    let fingerprint =
        Fingerprint { config: 0, digest: [0; 32], binding: [0; 16], operation: [4; 16] };
    let term = Duration::from_secs(1);
    let request = ClaimRequest::new(token, fingerprint, term, term);
    let id = id();
    let mut claim = std::pin::pin!(store.claim(&id, &request));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match claim.as_mut().poll(&mut context) {
        std::task::Poll::Ready(Err(error)) => assert_eq!(error.kind(), ErrorKind::Internal),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_servers_clock_goes_on_between_questions() {
    let clock = ServerClock::new();
    clock.set(1_700_000_000_250_000, Instant::now());
    let first = clock.micros();
    assert!((1_700_000_000_250_000..1_700_000_060_000_000).contains(&first), "{first}");
    assert!(clock.micros() >= first);
}
