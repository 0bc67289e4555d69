//! The target application by itself, before any protection.

use hyper::Method;
use target_tests::{Difference, Event, Target, refused_start};

#[tokio::test]
async fn no_two_executions_answer_alike() {
    let target = Target::builder().unprotected().start().await;
    for path in ["/count", "/slow", "/status/404", "/flaky?fails=1", "/cookie", "/headers"] {
        let request = target.post(path).key("k");
        assert_ne!(request.send().await.n(), request.send().await.n(), "{path}");
    }
    for path in ["/bytes?n=9", "/stream?chunks=2&gap=1", "/events?chunks=2&gap=1"] {
        let request = target.post(path).key("k");
        assert_ne!(request.send().await.body, request.send().await.body, "{path}");
    }
}

#[tokio::test]
async fn a_get_tells_the_last_execution_and_is_none_itself() {
    let target = Target::builder().unprotected().start().await;
    let n = target.post("/count").send().await.n();
    assert_eq!(target.request(Method::GET, "/count").send().await.n(), n);
    let head = target.request(Method::HEAD, "/count").send().await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    assert_eq!(target.journal.entries().len(), 2);
}

#[tokio::test]
async fn the_journal_tells_who_did_what() {
    let target = Target::builder().unprotected().start().await;
    target.post("/slow?ms=1").key("\"with \\\"quotes\\\" and spaces\"").send().await;
    target.request(Method::PATCH, "/count").send().await;
    let entries = target.journal.entries();
    let told: Vec<_> = entries
        .iter()
        .map(|entry| (entry.event, entry.method.as_str(), entry.path.as_str(), entry.key.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (Event::Start, "POST", "/slow", "with \"quotes\" and spaces"),
            (Event::End, "POST", "/slow", "with \"quotes\" and spaces"),
            (Event::Start, "PATCH", "/count", "-"),
            (Event::End, "PATCH", "/count", "-"),
        ]
    );
}

#[tokio::test]
async fn a_handler_that_breaks_down_has_no_end() {
    let target = Target::builder().unprotected().start().await;
    for path in ["/raise", "/abort"] {
        let answer = target.post(path).alone().key(path).try_send().await;
        let status = if Difference::BrokenAnswersAreLost.applies() { 502 } else { 500 };
        assert!(answer.map_or(true, |answer| answer.status == status), "{path} succeeded");
        target.journal.assert_executions(path, 1, 0);
    }
}

#[tokio::test]
async fn other_methods_are_refused_without_an_execution() {
    let target = Target::builder().unprotected().start().await;
    for (method, path) in [
        (Method::DELETE, "/count"),
        (Method::PUT, "/echo"),
        (Method::GET, "/slow"),
        (Method::HEAD, "/status/200"),
        (Method::PATCH, "/raise"),
    ] {
        assert_eq!(target.request(method, path).send().await.status, 405, "{path}");
    }
    assert_eq!(target.journal.entries(), []);
}

#[tokio::test]
async fn every_post_can_be_slowed_down_after_its_start() {
    let target = Target::builder().unprotected().start().await;
    for path in ["/echo", "/status/204", "/bytes?n=1", "/stream?chunks=1", "/execution"] {
        let separator = if path.contains('?') { '&' } else { '?' };
        let slow = target.post(&format!("{path}{separator}ms=60000")).key(path);
        let running = tokio::spawn(async move { slow.try_send().await });
        target.journal.started(path, 1).await;
        running.abort();
        target.journal.assert_executions(path, 1, 0);
    }
}

#[tokio::test]
async fn the_headers_are_as_specified() {
    let target = Target::builder().unprotected().start().await;
    let answer = target.post("/headers").send().await;
    assert_eq!(answer.header_lines("x-multi"), [b"first", b"second".as_slice()]);
    assert_eq!(answer.header_lines("x-latin"), [b"caf\xe9"]);
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    assert!(answer.header("etag").is_some() && answer.header("location").is_some());
    let cookies = target.post("/cookie").send().await;
    assert_eq!(cookies.header_lines("set-cookie").len(), 2);
    let bytes = target.post("/bytes?n=12345").send().await;
    assert_eq!((bytes.body.len(), bytes.header("content-length")), (12345, Some("12345")));
    let stream = target.post("/stream?chunks=3&gap=1").send().await;
    assert_eq!(stream.header("content-length"), None);
    assert!(stream.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    let events = target.post("/events?chunks=3&gap=1").send().await;
    assert!(
        events.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"))
    );
}

#[tokio::test]
async fn an_echo_is_what_was_sent() {
    let target = Target::builder().unprotected().start().await;
    let sent = vec![0xFF; 3 << 20];
    let answer = target.post("/echo").header("content-type", "x/y").body(sent.clone()).send().await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("x/y")));
    assert!(answer.body == sent && answer.header("x-executed").is_some());
}

#[tokio::test]
async fn a_flaky_operation_succeeds_in_the_end() {
    let target = Target::builder().unprotected().start().await;
    let request = target.post("/flaky?fails=2").key("k");
    let mut codes = Vec::new();
    for _ in 0..4 {
        codes.push(request.send().await.status.as_u16());
    }
    assert_eq!(codes, [503, 503, 201, 201]);
    assert_eq!(target.post("/flaky?fails=1").key("other").send().await.status, 503);
}

#[tokio::test]
async fn without_protection_every_request_is_an_execution() {
    let target = Target::builder().unprotected().start().await;
    let request = target.post("/count").key("k");
    request.send_at_once(5).await;
    target.journal.assert_executions("k", 5, 5);
}

#[tokio::test]
async fn an_unknown_flag_is_refused() {
    let ended = refused_start(&["--listen", "127.0.0.1:0", "--colour", "red"]).await;
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stdout.is_empty());
    assert!(String::from_utf8_lossy(&ended.stderr).contains("--colour"));
}

#[tokio::test]
async fn a_terminated_target_finishes_what_it_runs() {
    let mut target = Target::builder().unprotected().start().await;
    let slow = target.post("/slow?ms=500").key("k");
    let running = tokio::spawn(async move { slow.send().await });
    target.journal.started("k", 1).await;
    target.terminate();
    assert_eq!(running.await.expect("an answer").status, 201);
    assert_eq!(target.exited().await.code(), Some(0));
    target.journal.assert_executions("k", 1, 1);
}
