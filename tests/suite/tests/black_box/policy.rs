//! The effects of a policy.

use hyper::Method;
use serde_json::{Value, json};
use target_tests::{Difference, Request, SharedStore, Target, retry_until};

#[tokio::test]
async fn a_shadow_only_tells_what_it_would_do() {
    let target = Target::with_policy(json!({ "mode": "shadow", "required": true })).await;
    let told = async |request: Request| {
        let answer = request.send().await;
        assert_eq!(answer.status, 201, "{answer:?}");
        assert!(!answer.is_replay(), "{answer:?}");
        answer.header("idempotency-status").map(ToOwned::to_owned)
    };
    told(target.post("/count").key("k")).await;
    assert_eq!(told(target.post("/count").key("k")).await.as_deref(), Some("would-replay"));
    let reused = told(target.post("/count?ms=1").key("k")).await;
    assert_eq!(reused.as_deref(), Some("would-refuse-key-reused"));
    assert_eq!(told(target.post("/count")).await.as_deref(), Some("would-refuse-missing-key"));
    let invalid = told(target.post("/count").key("a, b")).await;
    assert_eq!(invalid.as_deref(), Some("would-refuse-invalid-key"));
    target.journal.assert_executions("k", 3, 3);
}

#[tokio::test]
async fn a_route_may_stay_open_without_its_store() {
    if Difference::StoreHasNoServer.applies() {
        return;
    }
    let store = SharedStore::absent().await;
    let policy = json!({ "on_store_error": "fail_open", "expose": ["status"] });
    let target = Target::builder().store(store.url()).policy(policy).start().await;
    for _ in 0..2 {
        let answer = target.post("/count").key("k").send().await;
        answer.assert_unstored(201);
        assert_eq!(answer.header("idempotency-status"), Some("unprotected"));
    }
    target.journal.assert_executions("k", 2, 2);
}

#[tokio::test]
async fn only_what_is_exposed_is_told() {
    let quiet = Target::start().await;
    let answer = quiet.post("/count").key("k").send().await;
    let told = answer.headers.keys().find(|name| name.as_str().contains("idempoten"));
    assert_eq!(told, None, "{answer:?}");

    let policy = json!({ "expose": ["status", "key", "signature", "expiry"] });
    let target = Target::with_policy(policy).await;
    let request = target.post("/count").key("\"my key\"");
    let first = request.send().await;
    assert_eq!(first.header("idempotency-status"), Some("created"));
    assert!(first.header("idempotency-key").is_some_and(|key| key.contains("my key")), "{first:?}");
    let signature = first.header("x-idempotency-signature").expect("the signature").to_owned();
    let replay = request.send().await;
    assert_eq!(replay.header("idempotency-status"), Some("replayed"));
    assert_eq!(replay.header("x-idempotency-signature"), Some(&*signature));
    let reused = target.post("/slow").key("\"my key\"").send().await;
    assert_eq!(reused.header("idempotency-status"), Some("mismatch"));
    // The one who sends a key may be told which it was; the document goes to logs, too.
    assert!(reused.header("idempotency-key").is_some_and(|key| key.contains("my key")));
    assert!(!String::from_utf8_lossy(&reused.body).contains("my key"), "{reused:?}");
    let released = target.post("/status/503").key("released").send().await;
    assert_eq!(released.header("idempotency-status"), Some("not-stored"));
    let safe = target.request(Method::GET, "/count").key("k").send().await;
    let ignored = (!Difference::OnlyHandlersAreProtected.applies()).then_some("ignored");
    assert_eq!(safe.header("idempotency-status"), ignored);
}

#[tokio::test]
async fn the_stripe_profile_stores_failures_and_answers_a_mismatch_with_400() {
    let target = Target::builder().profile("stripe").start().await;
    let failing = target.post("/status/500").key("k");
    let first = failing.send().await;
    first.assert_fresh(500);
    failing.send().await.assert_replay_of(&first);
    target.post("/count").key("k").send().await.assert_refused(400, "key-reused");
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn the_original_profile_counts_keys_by_route_and_has_its_headers() {
    let target = Target::builder().profile("idemptx").start().await;
    let request = target.post("/count").key("k");
    let first = request.send().await;
    first.assert_fresh(201);
    assert_eq!(first.header("x-idempotency-status"), Some("new"), "{first:?}");
    assert_eq!(first.header("idempotency-key"), Some("k"));
    assert!(first.headers.contains_key("x-idempotency-signature"), "{first:?}");
    let replay = request.send().await;
    replay.assert_replay_of(&first);
    assert_eq!(replay.header("x-idempotency-status"), Some("hit"), "{replay:?}");
    // The same key on another route or with another method is another operation.
    target.post("/slow").key("k").send().await.assert_fresh(201);
    target.request(Method::PATCH, "/count").key("k").send().await.assert_fresh(201);
    target.journal.assert_executions("k", 3, 3);
}

#[tokio::test]
async fn payments_keep_failures_and_never_run_a_broken_handler_again() {
    let builder = Target::builder().profile("payments");
    let policy = json!({ "scope": "shared", "on_unsafe_store": "warn" });
    let target = builder.policy(policy).start().await;
    let failing = target.post("/status/500").key("failing");
    let first = failing.send().await;
    first.assert_fresh(500);
    failing.send().await.assert_replay_of(&first);
    let broken = target.post("/raise").alone().key("broken");
    broken.send().await.assert_failed(false);
    broken.send().await.assert_refused(409, "outcome-unknown");
    target.journal.assert_executions("failing", 1, 1);
    target.journal.assert_executions("broken", 1, 0);
}

#[tokio::test]
async fn a_key_belongs_to_its_scope() {
    let target = Target::with_policy(json!({ "scope": { "header": "X-Tenant" } })).await;
    let request = |tenant| target.post("/count").key("k").header("x-tenant", tenant);
    let (one, other) = (request("one").send().await, request("other").send().await);
    one.assert_fresh(201);
    other.assert_fresh(201);
    request("one").send().await.assert_replay_of(&one);
    request("other").send().await.assert_replay_of(&other);
    target.post("/count").key("k").send().await.assert_refused(400, "scope-unresolved");
    let by_credential = json!({ "scope": { "header": "Authorization" } });
    let target = Target::with_policy(by_credential).await;
    target.post("/count").key("k").send().await.assert_refused(401, "scope-unresolved");
}

#[tokio::test]
async fn a_shared_scope_asks_for_no_credential() {
    let target = Target::with_policy(json!({ "scope": "shared" })).await;
    let first = target.post("/count").key("k").credential("Bearer one").send().await;
    let second = target.post("/count").key("k").credential("Bearer two").send().await;
    second.assert_replay_of(&first);
}

#[tokio::test]
async fn a_json_fingerprint_does_not_mind_how_it_is_written() {
    let target = Target::with_policy(json!({ "fingerprint": { "body": "json" } })).await;
    let first = target.post("/echo").key("k").json(r#"{"a":1,"b":[true,"é"]}"#).send().await;
    first.assert_fresh(200);
    let rewritten = target.post("/echo").key("k").json("{ \"b\": [true, \"\\u00e9\"],\n\"a\": 1 }");
    rewritten.send().await.assert_replay_of(&first);
    let changed = target.post("/echo").key("k").json(r#"{"a":2,"b":[true,"é"]}"#);
    changed.send().await.assert_refused(422, "key-reused");
    // Not even where a double could not tell them apart.
    let large = target.post("/echo").key("large").json("9007199254740993");
    large.send().await.assert_fresh(200);
    let larger = target.post("/echo").key("large").json("9007199254740992");
    larger.send().await.assert_refused(422, "key-reused");
}

#[tokio::test]
async fn a_fingerprint_of_chosen_fields_minds_nothing_else() {
    let rule = json!({ "fingerprint": { "body": { "fields": ["/amount"] }, "query": "none" } });
    let target = Target::with_policy(rule).await;
    let first = target.post("/echo").key("k").json(r#"{"amount":1,"at":"noon"}"#).send().await;
    let later = target.post("/echo?ms=1").key("k").json(r#"{"at":"night","amount":1}"#);
    later.send().await.assert_replay_of(&first);
    let more = target.post("/echo").key("k").json(r#"{"amount":2,"at":"noon"}"#);
    more.send().await.assert_refused(422, "key-reused");
}

#[tokio::test]
async fn a_fingerprint_takes_in_the_headers_it_is_told_to() {
    let rule = json!({ "fingerprint": { "headers": ["X-Version"] } });
    let target = Target::with_policy(rule).await;
    let request = |version| target.post("/count").key("k").header("x-version", version);
    let first = request("1").send().await;
    request("1").header("x-other", "2").send().await.assert_replay_of(&first);
    request("2").send().await.assert_refused(422, "key-reused");
}

#[tokio::test]
async fn without_a_fingerprint_key_and_path_alone_decide() {
    let target = Target::with_policy(json!({ "fingerprint": false })).await;
    let first = target.post("/count").key("k").send().await;
    target.post("/count").key("k").body("whatever").send().await.assert_replay_of(&first);
    target.post("/echo").key("k").body("whatever").send().await.assert_refused(422, "key-reused");
}

#[tokio::test]
async fn statuses_of_refusals_are_as_configured() {
    let target = Target::with_policy(json!({
        "required": true, "missing_status": 428, "in_flight_status": 425, "mismatch_status": 409,
    }));
    let target = target.await;
    target.post("/count").send().await.assert_refused(428, "missing-key");
    let slow = target.post("/slow?ms=5000").key("k");
    let running = slow.start();
    target.journal.started("k", 1).await;
    slow.send().await.assert_refused(425, "in-progress");
    target.post("/count").key("k").send().await.assert_refused(409, "key-reused");
    running.await.expect("an answer").assert_fresh(201);
}

#[tokio::test]
async fn statuses_to_keep_and_to_give_up_are_as_configured() {
    let policy = json!({ "store_statuses": ["2xx", 503], "release_statuses": [202] });
    let target = Target::with_policy(policy).await;
    for (status, stored) in [(200, true), (503, true), (202, false), (404, false), (500, false)] {
        let request = target.post(&format!("/status/{status}")).key(&status.to_string());
        let first = request.send().await;
        assert_eq!((first.status.as_u16(), !first.is_unstored()), (status, stored), "{first:?}");
        assert_eq!(request.send().await.is_replay(), stored, "{status}");
    }
}

#[tokio::test]
async fn a_key_may_travel_under_several_names_but_only_once() {
    let target = Target::with_policy(json!({ "header_name": ["Idempotency-Key", "X-Key"] })).await;
    let first = target.post("/count").key("k").send().await;
    target.post("/count").header("x-key", "k").send().await.assert_replay_of(&first);
    let both = target.post("/count").key("k").header("x-key", "k");
    both.send().await.assert_refused(400, "invalid-key");
}

#[tokio::test]
async fn a_strict_policy_wants_a_key_in_quotes() {
    let target = Target::with_policy(json!({ "key_syntax": "strict_sf" })).await;
    target.post("/count").key("k").send().await.assert_refused(400, "invalid-key");
    target.post("/count").key("\"k\";a=1").send().await.assert_refused(400, "invalid-key");
    target.post("/count").key("\"k\"").send().await.assert_fresh(201);
}

#[tokio::test]
async fn only_the_methods_of_the_policy_are_protected() {
    let target = Target::with_policy(json!({ "methods": ["PATCH"] })).await;
    let post = target.post("/count").key("k");
    assert_ne!(post.send().await.n(), post.send().await.n());
    let patch = target.request(Method::PATCH, "/count").key("k");
    let first = patch.send().await;
    patch.send().await.assert_replay_of(&first);
}

#[tokio::test]
async fn what_has_expired_is_a_new_request() {
    let policy = json!({ "retain_ms": 5000, "key_retain_ms": 5000 });
    for target in [on_its_own(&policy).await, on_a_shared_store(&policy).await] {
        let (target, _store) = target;
        let request = target.post("/count").key("k");
        let first = request.send().await;
        request.send().await.assert_replay_of(&first);
        let later = retry_until(&request, |answer| !answer.is_replay()).await;
        later.assert_fresh(201);
        assert_ne!(later.n(), first.n());
        target.journal.assert_executions("k", 2, 2);
    }
}

#[tokio::test]
async fn a_key_is_remembered_longer_than_its_answer() {
    let policy = json!({ "retain_ms": 500, "key_retain_ms": 60_000 });
    for target in [on_its_own(&policy).await, on_a_shared_store(&policy).await] {
        let (target, _store) = target;
        let request = target.post("/count").key("k");
        request.send().await.assert_fresh(201);
        let later = retry_until(&request, |answer| !answer.is_replay()).await;
        let problem = later.assert_refused(409, "key-expired");
        assert_eq!(problem["safe_new_key"], false);
        target.post("/slow").key("k").send().await.assert_refused(422, "key-reused");
        target.journal.assert_executions("k", 1, 1);
    }
}

#[tokio::test]
async fn a_scope_has_only_so_many_new_keys_a_minute() {
    let policy = json!({ "new_keys_per_minute_max": 5, "scope": { "header": "X-Tenant" } });
    let target = Target::with_policy(policy).await;
    let post = |key: u32| target.post("/count").key(&key.to_string()).header("x-tenant", "one");
    // A minute may turn in between, hence two rounds.
    let mut refused = None;
    for key in 0..12 {
        let answer = post(key).send().await;
        if answer.status != 201 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("twelve new keys in less than two minutes");
    refused.assert_refused(429, "too-many-keys");
    assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    assert!(post(0).send().await.is_replay(), "old keys go on");
    let other = target.post("/count").key("0").header("x-tenant", "other");
    other.send().await.assert_fresh(201);
}

#[tokio::test]
async fn large_requests_may_be_let_through_unprotected() {
    let policy = json!({ "request_bytes_max": 1000, "on_large_body": "skip" });
    let target = Target::with_policy(policy).await;
    let large = target.post("/echo").key("k").body(vec![7; 1001]);
    for _ in 0..2 {
        let answer = large.send().await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 1001), "{answer:?}");
        assert!(!answer.is_replay(), "{answer:?}");
    }
    target.journal.assert_executions("k", 2, 2);
}

#[tokio::test]
async fn a_record_in_a_shared_store_betrays_neither_key_nor_scope() {
    let mut store = SharedStore::start().await;
    let policy = json!({ "scope": { "header": "X-Tenant" } });
    let target = Target::builder().store(store.url()).policy(policy).start().await;
    let request = target.post("/count").key("a-secret-key").header("x-tenant", "a-secret-tenant");
    request.send().await.assert_fresh(201);
    let contents = store.contents().await;
    assert!(contents.len() > 64, "the record is not there: {contents}");
    for secret in ["a-secret-key", "a-secret-tenant"] {
        assert!(!contents.contains(secret), "{secret} is in the store");
    }
}

async fn on_its_own(policy: &Value) -> (Target, Option<SharedStore>) {
    (Target::with_policy(policy.clone()).await, None)
}

async fn on_a_shared_store(policy: &Value) -> (Target, Option<SharedStore>) {
    let store = SharedStore::start().await;
    let builder = Target::builder().store(store.url()).policy(policy.clone());
    (builder.start().await, Some(store))
}
