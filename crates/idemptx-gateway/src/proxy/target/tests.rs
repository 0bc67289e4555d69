//! Hosts, and paths that can be read in two ways.

use http::{Request, Version};

use super::{host, is_ambiguous, is_ambiguous_path, resolve};

#[test]
fn a_host_is_compared_in_lower_case_and_without_its_port() {
    for (line, expected) in [
        ("api.example.com", "api.example.com"),
        ("API.Example.com.", "api.example.com"),
        ("api_1.example.com:8080", "api_1.example.com"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("[::1]", "[::1]"),
        ("[2001:DB8::1]:8080", "[2001:db8::1]"),
    ] {
        let mut request = Request::get("/orders").header("host", line).body(()).unwrap();
        assert!(resolve(&mut request).is_ok(), "{line}");
        assert_eq!(host(request.headers()), expected);
        let absolute = format!("http://{line}/orders");
        let request = Request::get(absolute).version(Version::HTTP_2);
        let mut request = request.body(()).unwrap();
        assert!(resolve(&mut request).is_ok(), "{line}");
        assert_eq!((&*host(request.headers()), request.uri().path()), (expected, "/orders"));
    }
    for line in ["", "a b", "user@host", "a:", "a:x", "a:99999", "a:80:80", "a/b", "[::1"] {
        let request = Request::get("/orders").header("host", line);
        assert!(resolve(&mut request.body(()).unwrap()).is_err(), "{line}");
    }
    let request = Request::get("/orders").header("host", "a").header("host", "a");
    assert!(resolve(&mut request.body(()).unwrap()).is_err(), "two lines");
}

#[test]
fn a_path_that_another_server_would_take_for_another_is_ambiguous() {
    for path in ["/", "/a", "/a/", "/a/b.c", "/.well-known/x", "/...", "/a/%20b", "/a;b=1", "*"] {
        assert!(!is_ambiguous_path(path), "{path}");
    }
    for path in [
        "",
        "a",
        "//",
        "//a",
        "/a//b",
        "/.",
        "/..",
        "/a/.",
        "/a/../b",
        "/a/./b",
        "/..;/a",
        "/%2e",
        "/%2E%2e/a",
        "/a%2fb",
        "/a%2Fb",
        "/a%5Cb",
        "/a\\b",
        "/a%00",
        "/a%",
        "/a%2",
        "/a%g0",
    ] {
        assert!(is_ambiguous_path(path), "{path}");
    }
}

#[test]
fn a_target_has_no_bytes_beyond_ascii() {
    for (target, expected) in
        [("/caf\u{e9}", true), ("/a?caf\u{e9}", true), ("/caf%C3%A9?b=%C3%A9", false)]
    {
        assert_eq!(is_ambiguous(&target.parse().unwrap()), expected, "{target}");
    }
}

#[test]
fn a_host_has_no_empty_label_and_is_named_in_a_line() {
    let of = |version, target: &str, host: Option<&str>| {
        let mut request = Request::post(target).version(version);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let mut request = request.body(()).unwrap();
        resolve(&mut request).ok()?;
        Some(super::host(request.headers()).into_owned())
    };
    for (host, expected) in [
        ("shop.example", Some("shop.example")),
        ("Shop.example.", Some("shop.example")),
        ("shop.:80", Some("shop")),
        ("[::1]:80", Some("[::1]")),
        ("shop..", None),
        ("shop..example", None),
        (".shop", None),
        (".", None),
    ] {
        assert_eq!(of(Version::HTTP_11, "/", Some(host)).as_deref(), expected, "{host}");
    }
    for (version, host, expected) in [
        (Version::HTTP_11, None, None),
        (Version::HTTP_11, Some("shop"), Some("shop")),
        (Version::HTTP_10, None, Some("shop")),
        (Version::HTTP_2, None, Some("shop")),
    ] {
        let found = of(version, "http://shop/a", host);
        assert_eq!(found.as_deref(), expected, "{version:?} {host:?}");
    }
}
