//! Paths that can be read in two ways.

use super::is_ambiguous;

#[test]
fn a_path_that_another_server_would_take_for_another_is_ambiguous() {
    for path in ["/", "/a", "/a/", "/a/b.c", "/.well-known/x", "/...", "/a/%20b", "/a;b=1", "*"] {
        assert!(!is_ambiguous(path), "{path}");
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
        assert!(is_ambiguous(path), "{path}");
    }
}
