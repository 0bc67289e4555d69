//! A retry gets the answer of the first request, and runs nothing.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::json;
use target_tests::{Difference, Target, retry_until};

#[tokio::test]
async fn a_retry_gets_the_first_answer_and_runs_nothing() {
    let target = Target::start().await;
    let request = target.post("/count").key("k");
    let first = request.send().await;
    first.assert_fresh(201);
    for _ in 0..3 {
        request.send().await.assert_replay_of(&first);
    }
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_patch_is_protected_as_a_post_is() {
    let target = Target::start().await;
    let request = target.request(Method::PATCH, "/count").key("k");
    let first = request.send().await;
    first.assert_fresh(201);
    request.send().await.assert_replay_of(&first);
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_replay_has_the_same_headers_byte_for_byte() {
    let target = Target::start().await;
    let request = target.post("/headers").key("k");
    let first = request.send().await;
    let replay = request.send().await;
    replay.assert_replay_of(&first);
    for name in [
        "x-multi",
        "x-latin",
        "etag",
        "location",
        "cache-control",
        "content-type",
        "content-length",
    ] {
        assert!(first.headers.contains_key(name), "{name} is missing: {first:?}");
        assert_eq!(replay.header_lines(name), first.header_lines(name), "{name}");
    }
    assert_eq!(replay.header_lines("x-multi"), [b"first", b"second".as_slice()]);
    assert_eq!(replay.header_lines("x-latin"), [b"caf\xe9"]);
}

#[tokio::test]
async fn what_belongs_to_one_connection_or_moment_is_not_replayed() {
    let target = Target::start().await;
    let request = target.post("/headers").key("k");
    let first = request.send().await;
    let hop = (!Difference::IsAHopItself.applies()).then_some("1");
    assert_eq!(first.header("x-hop"), hop, "the first answer is the handler's own");
    assert!(first.headers.contains_key("date"), "{first:?}");
    let replay = request.send().await;
    assert!(!replay.headers.contains_key("x-hop"), "{replay:?}");
    assert!(!replay.header("connection").is_some_and(|it| it.contains("X-Hop")), "{replay:?}");
    // The date is the answer's own: it goes on while the stored answer stays.
    let later = retry_until(&request, |later| later.header("date") != first.header("date")).await;
    later.assert_replay_of(&first);
    assert_eq!(later.header_lines("date").len(), 1, "{later:?}");
}

#[tokio::test]
async fn the_first_client_gets_its_cookies_and_nobody_else_does() {
    let target = Target::start().await;
    let request = target.post("/cookie").key("k");
    let first = request.send().await;
    assert_eq!(first.header_lines("set-cookie").len(), 2, "{first:?}");
    let replay = request.send().await;
    replay.assert_replay_of(&first);
    assert!(!replay.headers.contains_key("set-cookie"), "{replay:?}");
}

#[tokio::test]
async fn a_binary_body_and_its_type_come_back_as_they_were() {
    let target = Target::start().await;
    let body: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let request = target.post("/echo").key("k").header("content-type", "application/x-own; a=b");
    let request = request.body(body.clone());
    let first = request.send().await;
    first.assert_fresh(200);
    assert!(first.body == body, "the echo is not what was sent");
    let replay = request.send().await;
    replay.assert_replay_of(&first);
    assert_eq!(replay.header("content-type"), Some("application/x-own; a=b"));
    assert_eq!(replay.header("x-executed"), first.header("x-executed"));
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_quoted_key_and_a_bare_one_are_one_key() {
    let target = Target::start().await;
    let first = target.post("/count").key("k-1").send().await;
    target.post("/count").key("\"k-1\"").send().await.assert_replay_of(&first);
    target.post("/count").key("\"k-1\";parameter=1").send().await.assert_replay_of(&first);
    let spaced = target.post("/count").key("\"a \\\"b\\\\\"").send().await;
    spaced.assert_fresh(201);
    target.post("/count").key("\"a \\\"b\\\\\"").send().await.assert_replay_of(&spaced);
    target.journal.assert_executions("k-1", 1, 1);
    target.journal.assert_executions("a \"b\\", 1, 1);
}

#[tokio::test]
async fn a_request_without_a_key_is_untouched() {
    let target = Target::start().await;
    let request = target.post("/count");
    let (first, second) = (request.send().await, request.send().await);
    assert_ne!(first.n(), second.n());
    for answer in [first, second] {
        let told = answer.headers.keys().find(|name| name.as_str().starts_with("idempoten"));
        assert_eq!(told, None, "{answer:?}");
    }
    let large = target.post("/echo").body(vec![7; 2 << 20]).send().await;
    assert_eq!((large.status.as_u16(), large.body.len()), (200, 2 << 20));
    target.journal.assert_executions("-", 3, 3);
}

#[tokio::test]
async fn a_key_on_a_method_that_is_safe_anyway_does_nothing() {
    let target = Target::start().await;
    target.post("/count").send().await;
    let get = target.request(Method::GET, "/count").key("k");
    let before = get.send().await;
    assert_eq!(before.status, 200);
    assert_eq!(target.request(Method::HEAD, "/count").key("k").send().await.status, 200);
    target.post("/count").key("k").send().await.assert_fresh(201);
    let after = get.send().await;
    assert!(!after.is_replay() && after.n() != before.n(), "{after:?}");
}

#[tokio::test]
async fn an_answer_that_settles_the_operation_is_stored() {
    let target = Target::start().await;
    for status in [200, 201, 202, 204, 303, 304, 400, 402, 410, 422] {
        let key = status.to_string();
        let request = target.post(&format!("/status/{status}")).key(&key);
        let first = request.send().await;
        first.assert_fresh(status);
        request.send().await.assert_replay_of(&first);
        target.journal.assert_executions(&key, 1, 1);
    }
}

#[tokio::test]
async fn an_answer_that_may_change_gives_the_key_up() {
    let target = Target::start().await;
    for status in
        [307, 401, 403, 404, 405, 408, 409, 412, 413, 415, 423, 425, 429, 500, 502, 503, 504]
    {
        let key = status.to_string();
        let request = target.post(&format!("/status/{status}")).key(&key);
        let first = request.send().await;
        first.assert_unstored(status);
        let second = request.send().await;
        second.assert_unstored(status);
        assert_ne!(first.n(), second.n(), "{status}");
        target.journal.assert_executions(&key, 2, 2);
    }
}

#[tokio::test]
async fn a_failed_validation_may_be_corrected_under_the_same_key() {
    let target = Target::start().await;
    for status in [400, 422] {
        let key = status.to_string();
        let wrong = target.post(&format!("/status/{status}")).key(&key);
        let refused = wrong.send().await;
        wrong.send().await.assert_replay_of(&refused);
        let corrected = target.post("/count").key(&key);
        let done = corrected.send().await;
        done.assert_fresh(201);
        corrected.send().await.assert_replay_of(&done);
        wrong.send().await.assert_refused(422, "key-reused");
        target.journal.assert_executions(&key, 2, 2);
    }
}

#[tokio::test]
async fn an_operation_that_fails_for_a_while_succeeds_once() {
    let target = Target::start().await;
    let request = target.post("/flaky?fails=2").key("k");
    request.send().await.assert_unstored(503);
    request.send().await.assert_unstored(503);
    let done = request.send().await;
    done.assert_fresh(201);
    request.send().await.assert_replay_of(&done);
    target.journal.assert_executions("k", 3, 3);
}

#[tokio::test]
async fn a_handler_that_breaks_down_is_answered_for_and_may_be_retried() {
    let target = Target::start().await;
    for path in ["/raise", "/abort"] {
        let request = target.post(path).alone().key(path);
        for execution in 1..=2 {
            request.send().await.assert_failed(true);
            target.journal.assert_executions(path, execution, 0);
        }
    }
}

#[tokio::test]
async fn a_handler_that_breaks_down_under_quarantine_is_never_run_again() {
    let target = Target::with_policy(json!({ "on_panic": "quarantine" })).await;
    for path in ["/raise", "/abort"] {
        let request = target.post(path).alone().key(path);
        request.send().await.assert_failed(false);
        let problem = request.send().await.assert_refused(409, "outcome-unknown");
        assert_eq!(
            (&problem["retryable"], &problem["safe_new_key"]),
            (&json!(false), &json!(false))
        );
        target.journal.assert_executions(path, 1, 0);
    }
}

#[tokio::test]
async fn an_answer_up_to_the_limit_is_kept_and_a_larger_one_is_passed_on() {
    let target = Target::start().await;
    let limit = 1 << 20;
    let fits = target.post(&format!("/bytes?n={limit}")).key("fits");
    let first = fits.send().await;
    first.assert_fresh(200);
    fits.send().await.assert_replay_of(&first);
    let exceeds = target.post(&format!("/bytes?n={}", limit + 1)).key("exceeds");
    let large = exceeds.send().await;
    large.assert_unstored(200);
    assert_eq!(large.body.len(), limit + 1);
    let problem = exceeds.send().await.assert_refused(409, "result-unavailable");
    assert_eq!(problem["original_status"], 200);
    assert_eq!((&problem["retryable"], &problem["safe_new_key"]), (&json!(false), &json!(false)));
    target.journal.assert_executions("fits", 1, 1);
    target.journal.assert_executions("exceeds", 1, 1);
}

#[tokio::test]
async fn a_streamed_answer_of_a_moderate_size_is_stored_whole() {
    let target = Target::start().await;
    let request = target.post("/stream?chunks=5&gap=10").key("k");
    let first = request.send().await;
    first.assert_fresh(200);
    let replay = request.send().await;
    replay.assert_replay_of(&first);
    assert_eq!(replay.header("content-type"), first.header("content-type"));
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_streamed_answer_beyond_the_limit_is_passed_on_whole() {
    let target = Target::start().await;
    let request = target.post("/stream?chunks=200000").key("k");
    let large = request.send().await;
    large.assert_unstored(200);
    let lines = large.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    assert_eq!(lines.count(), 200_000);
    request.send().await.assert_refused(409, "result-unavailable");
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_streamed_answer_goes_on_when_its_client_has_left() {
    let target = Target::start().await;
    let request = target.post("/stream?chunks=200000").key("k");
    let answer = request.open().await.expect("an answer");
    assert_eq!(answer.headers()["idempotency-stored"], "false");
    drop(answer);
    target.journal.ended("k", 1).await;
    request.send().await.assert_refused(409, "result-unavailable");
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn events_arrive_while_they_happen_and_are_not_replayed() {
    let target = Target::start().await;
    let request = target.post("/events?chunks=3&gap=3000").key("k");
    let mut live = request.open().await.expect("an answer");
    assert_eq!(live.headers()["idempotency-stored"], "false");
    let event = live.body_mut().frame().await.expect("an event").expect("a whole one");
    assert!(event.into_data().is_ok_and(|data: Bytes| data.starts_with(b"data: ")));
    target.journal.assert_executions("k", 1, 0);
    let rest = live.into_body().collect().await.expect("the other events").to_bytes();
    assert_eq!(rest.windows(6).filter(|part| part == b"data: ").count(), 2, "{rest:?}");
    request.send().await.assert_refused(409, "result-unavailable");
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn what_is_not_to_be_held_back_arrives_while_it_is_made() {
    let target = Target::start().await;
    for query in ["kind=application/x-ndjson", "kind=application/jsonl", "kind=a/b&buffering=no"] {
        let request = target.post(&format!("/events?chunks=2&gap=3000&{query}")).key(query);
        let mut live = request.open().await.expect("an answer");
        assert_eq!(live.headers()["idempotency-stored"], "false", "{query}");
        let event = live.body_mut().frame().await.expect("a part").expect("a whole one");
        assert!(event.into_data().is_ok_and(|data: Bytes| data.starts_with(b"data: ")));
        target.journal.assert_executions(query, 1, 0);
        request.send().await.assert_refused(409, "result-unavailable");
    }
}

#[tokio::test]
async fn a_key_that_is_released_is_free_once_the_body_has_ended() {
    let target = Target::start().await;
    let request = target.post("/events?chunks=2&gap=1500&o=release").key("k");
    let mut live = request.open().await.expect("an answer");
    assert_eq!(live.headers()["idempotency-stored"], "false");
    assert_eq!(live.headers().get("idempotency-outcome"), None);
    live.body_mut().frame().await.expect("an event").expect("a whole one");
    request.send().await.assert_refused(409, "in-progress");
    target.journal.assert_executions("k", 1, 0);
    live.into_body().collect().await.expect("the other event");
    // At once, and with another body: nothing is left that it could be compared with.
    request.body("another").send().await.assert_unstored(200);
    target.journal.assert_executions("k", 2, 2);
}

#[tokio::test]
async fn a_handler_directs_what_becomes_of_its_answer() {
    let target = Target::start().await;
    let stored = target.post("/outcome?o=store").key("store");
    let first = stored.send().await;
    first.assert_fresh(200);
    stored.send().await.assert_replay_of(&first);

    let released = target.post("/outcome?o=release").key("release");
    let first = released.send().await;
    first.assert_unstored(200);
    assert_ne!(released.send().await.n(), first.n());

    let unknown = target.post("/outcome?o=unknown").key("unknown");
    let first = unknown.send().await;
    first.assert_unstored(200);
    unknown.send().await.assert_refused(409, "outcome-unknown");

    assert!(!first.headers.contains_key("idempotency-outcome"), "{first:?}");
    target.journal.assert_executions("store", 1, 1);
    target.journal.assert_executions("release", 2, 2);
    target.journal.assert_executions("unknown", 1, 1);
}

#[tokio::test]
async fn a_client_cannot_direct_the_outcome() {
    let target = Target::start().await;
    let request = target.post("/count").key("k").header("idempotency-outcome", "release");
    let first = request.send().await;
    first.assert_fresh(201);
    request.send().await.assert_replay_of(&first);
}

#[tokio::test]
async fn a_handler_sees_its_execution() {
    let target = Target::start().await;
    let request = target.post("/execution").key("\"order 17\"");
    let first = request.send().await;
    first.assert_fresh(200);
    let seen = first.json();
    assert_eq!((&seen["key"], &seen["attempt"]), (&json!("order 17"), &json!(1)));
    assert!(seen["token"].as_str().is_some_and(|token| !token.is_empty()), "{seen}");
    assert!(seen["derived"].as_str().is_some_and(|derived| !derived.is_empty()), "{seen}");
    request.send().await.assert_replay_of(&first);

    let other = target.post("/execution").key("other").send().await.json();
    assert_ne!(other["derived"], seen["derived"]);
    assert_ne!(other["token"], seen["token"]);

    let keyless = target.post("/execution").send().await.json();
    assert_eq!(keyless, json!({ "key": null, "attempt": null, "token": null, "derived": null }));
}

#[tokio::test]
async fn a_derived_key_depends_on_scope_key_and_label_alone() {
    let policy = json!({ "scope": { "header": "X-Tenant" } });
    let (one, another) =
        (Target::with_policy(policy.clone()).await, Target::with_policy(policy).await);
    let derived = async |target: &Target, tenant: &str| {
        let request = target.post("/execution").key("k").header("x-tenant", tenant);
        request.send().await.json()["derived"].clone()
    };
    assert_eq!(derived(&one, "a").await, derived(&another, "a").await);
    assert_ne!(derived(&one, "a").await, derived(&one, "b").await);
}
