use super::*;

#[test]
fn unusual_multipart_bodies_are_not_understood() {
    let count =
        |body: &str| parts(body.replace('|', "\r\n").as_bytes(), b"X").map(|parts| parts.len());
    let good = "--X|Content-Disposition: form-data; name=\"a;\\\"b\"; x=y||1|--X--";
    assert_eq!(count(good), Some(1));
    assert_eq!(count("--X--|"), Some(0));
    for bad in [
        String::new(),
        "--X".into(),
        "--Y--".into(),
        format!("preamble|{good}"),
        format!("{good}|epilogue"),
        good.replace("|--X--", ""),
        good.replace("X--", "Xy"),
        good.replace("--X|", "--Xy|"),
        good.replace("--X|", "--X |"),
        good.replace("||", "|"),
        good.replace("Content-Disposition", "Content-Other"),
        good.replace("Content-Disposition:", "Content-Disposition :"),
        good.replace("--X|", "--X|Content-Disposition: form-data; name=b|"),
        good.replace("--X|", "--X|Content-Type: a/b|Content-Type: a/b|"),
        good.replace("||", "|Content-Encoding: a|content-encoding: a||"),
        good.replace("x=y", "name=y"),
        good.replace("x=y", "x"),
        good.replace("x=y", "x=\"y"),
        good.replace("x=y", "x=\"y\"z"),
        good.replace("x=y", "; x=y"),
        good.replace("x=y", "x=y; X=z"),
        good.replace("x=y", "x =y"),
        good.replace("x=y", "=y"),
        good.replace("x=y", "x=a\"b;c\""),
        good.replace("x=y", "x=y|\tfolded: 1"),
        good.replace('|', "\n"),
    ] {
        assert_eq!(count(&bad), None, "{bad}");
    }
    let many =
        |count: usize| format!("--X{}--", "|Content-Disposition: form-data|||--X".repeat(count));
    assert_eq!(count(&many(PARTS_MAX)), Some(PARTS_MAX));
    assert_eq!(count(&many(PARTS_MAX + 1)), None);
}

#[test]
fn a_boundary_is_taken_only_from_a_well_formed_content_type() {
    let read = |line: &'static str| boundary(line.as_bytes());
    assert_eq!(read("multipart/form-data; boundary=abc"), Some(&b"abc"[..]));
    assert_eq!(read("multipart/form-data;x=1 ; Boundary=\"a;c\" ;"), Some(&b"a;c"[..]));
    assert_eq!(read("multipart/form-data"), None);
    assert_eq!(read("multipart/form-data; boundary="), None);
    assert_eq!(read("multipart/form-data; boundary=a; boundary=b"), None);
    let longest = format!("multipart/form-data; boundary={}", "b".repeat(BOUNDARY_BYTES_MAX));
    assert!(boundary(longest.as_bytes()).is_some());
    assert!(boundary(format!("{longest}b").as_bytes()).is_none());
    let crowded = format!("multipart/form-data{}; boundary=a", "; x=1".repeat(20));
    assert!(boundary(crowded.as_bytes()).is_none());
}
