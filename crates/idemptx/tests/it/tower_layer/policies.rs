//! Several policies on one engine, and what it reports.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::routing::post as to;
use axum::{Router, extract::Request};
use http::{HeaderValue, Method, StatusCode};
use idemptx::operator::Query;
use idemptx::store::MemoryStore;
use idemptx::{Bypass, Code, Completed, Engine, Execution, Outcome, Policy, Scope};
use idemptx_core::policy::{OnNotReplayable, OnStoreError, ScopeRule};
use idemptx_core::store::ErrorKind;
use idemptx_testkit::scripted_store::{Behavior, Gate, Operation, ScriptedStore};
use tower_http::timeout::TimeoutLayer;

use super::{app, engine};
use crate::support::app::App;
use crate::support::http_client::{post, posted, send};

#[tokio::test]
async fn each_route_has_its_policy_on_one_engine() {
    let store = ScriptedStore::new();
    let engine = Engine::builder(store.clone()).executions_max(1).build().unwrap();
    let strict = Policy::payments().into_builder().required(true).scope(ScopeRule::Shared);
    let strict = engine.with_policy(strict.build().unwrap()).unwrap();
    let gate = Gate::closed();
    let opens = gate.clone();
    let pay = move || {
        let opens = opens.clone();
        async move {
            opens.opened().await;
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    let app: Router = Router::new()
        .route("/payments", to(pay).layer(strict.layer()))
        .route("/orders", to(async || StatusCode::INTERNAL_SERVER_ERROR).layer(engine.layer()));
    let request = |path: &'static str, key: Option<&str>| {
        let mut request = key.map_or_else(|| posted("", ""), post);
        *request.uri_mut() = path.parse().unwrap();
        if key.is_none() {
            request.headers_mut().remove("idempotency-key");
        }
        request
    };
    send(&app, request("/payments", None)).await.refused(400, "missing-key");
    assert_eq!(send(&app, request("/orders", None)).await.status, 500);

    // One set of permits.
    let paying = tokio::spawn({
        let (app, request) = (app.clone(), request("/payments", Some("p")));
        async move { send(&app, request).await }
    });
    store.called(Operation::Claim, 1).await;
    send(&app, request("/orders", Some("o"))).await.refused(503, "store-unavailable");
    assert_eq!(engine.load().executing, 1);
    gate.open();
    assert_eq!(paying.await.unwrap().status, 500);
    assert!(send(&app, request("/payments", Some("p"))).await.is_replay(), "5xx are stored");
    for _ in 0..2 {
        assert!(!send(&app, request("/orders", Some("o"))).await.is_replay(), "5xx are released");
    }
    assert!(strict.drain().await && engine.drain().await);
}

#[tokio::test]
async fn routes_of_one_policy_share_its_count_of_new_keys_and_those_of_another_do_not() {
    let store = MemoryStore::new();
    let limited = |keys| {
        let policy = Policy::draft().into_builder().scope(ScopeRule::Shared);
        policy.new_keys_per_minute_max(keys).build().unwrap()
    };
    let orders = Engine::builder(store).policy(limited(2)).route("orders").build().unwrap();
    let refunds = orders.for_route("refunds").build().unwrap();
    let others = orders.for_route("others").policy(limited(1)).build().unwrap();
    let by_account = |parts: &http::request::Parts| parts.headers.get("x-account").map(Scope::new);
    let accounts = orders.for_route("accounts").scope(by_account).build().unwrap();
    let app: Router = Router::new()
        .route("/orders", to(async || "").layer(orders.layer()))
        .route("/refunds", to(async || "").layer(refunds.layer()))
        .route("/others", to(async || "").layer(others.layer()))
        .route("/accounts", to(async || "").layer(accounts.layer()));
    let ask = async |path: &str, key: &'static str| {
        let mut request = post(key);
        *request.uri_mut() = path.parse().unwrap();
        send(&app, request).await
    };
    assert_eq!(ask("/orders", "a").await.status, 200);
    assert_eq!(ask("/refunds", "b").await.status, 200);
    ask("/refunds", "c").await.refused(429, "too-many-keys");
    ask("/orders", "c").await.refused(429, "too-many-keys");
    assert!(ask("/refunds", "b").await.is_replay(), "it is no new key");
    assert_eq!(ask("/others", "d").await.status, 200);
    ask("/others", "e").await.refused(429, "too-many-keys");
    ask("/accounts", "f").await.refused(401, "scope-unresolved");
    // Each record is described by its own route.
    let records = orders.operator().list(&Query::all()).await.unwrap().entries;
    let mut routes: Vec<_> =
        records.iter().map(|record| record.description().unwrap().route).collect();
    routes.sort();
    assert_eq!(routes, ["orders", "others", "refunds"]);
}

/// A layer inside answers for a handler that has charged and is not done.
#[tokio::test(start_paused = true)]
async fn a_time_out_inside_frees_no_key_where_the_effect_may_have_happened() {
    for (policy, charges) in [(Policy::draft(), 2), (Policy::stripe(), 1), (Policy::payments(), 1)]
    {
        let policy = policy.into_builder().scope(ScopeRule::Shared).build().unwrap();
        let engine = Engine::builder(ScriptedStore::new()).policy(policy).build().unwrap();
        let charged = Arc::new(AtomicU32::new(0));
        let charge = Arc::clone(&charged);
        let handler = async move || {
            charge.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(60)).await;
        };
        let limit = Duration::from_millis(200);
        let app = Router::new()
            .fallback(handler)
            .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, limit))
            .layer(engine.layer());
        for is_retry in [false, true] {
            let reply = send(&app, post("k")).await;
            assert_eq!(reply.status, 408);
            assert_eq!(reply.is_replay(), is_retry && charges == 1);
        }
        assert_eq!(charged.load(Ordering::SeqCst), charges);
    }
}

#[tokio::test]
async fn of_two_policies_around_one_route_the_outer_one_counts() {
    let outer = engine(|policy| policy);
    let inner = outer.with_policy(Policy::idemptx()).unwrap();
    let (app, count) = app(&inner, async |_| "done");
    let app = app.layer(outer.layer());
    for is_replay in [false, true] {
        let reply = send(&app, post("k")).await;
        reply.answered(200, "done");
        assert_eq!(reply.is_replay(), is_replay);
        assert_eq!(reply.header("x-idempotency-status"), None);
    }
    assert_eq!(count.runs(), 1);
}

#[tokio::test]
async fn a_policy_that_the_engine_cannot_carry_out_is_refused() {
    let engine = engine(|policy| policy);
    let unscoped = engine.with_policy(Policy::payments()).unwrap_err();
    assert!(unscoped.to_string().contains("scope"), "{unscoped}");
    let mut lazy = Policy::draft();
    lazy.lease = Duration::ZERO;
    assert!(engine.with_policy(lazy).unwrap_err().to_string().contains("lease_ms"));
}

#[tokio::test]
async fn one_principal_cannot_take_all_permits() {
    let engine = Engine::builder(MemoryStore::new())
        .policy(Policy::draft().into_builder().claim_timeout(SHORT).build().unwrap())
        .scope(|parts| parts.headers.get("x-account").map(Scope::new))
        .executions_per_scope_max(1)
        .build()
        .unwrap();
    let app = App::slow(engine);
    let by = |account: &'static str, key: &str| {
        let mut request = post(key);
        request.headers_mut().insert("x-account", HeaderValue::from_static(account));
        request
    };
    let start = |request: Request| {
        let router = app.router.clone();
        tokio::spawn(async move { send(&router, request).await })
    };
    let first = start(by("loud", "1"));
    app.runs.reach(1).await;
    send(&app.router, by("loud", "2")).await.refused(503, "store-unavailable");
    let other = start(by("quiet", "1"));
    app.runs.reach(2).await;
    app.gate.open();
    for client in [first, other] {
        assert_eq!(client.await.unwrap().status, 200);
    }
    assert_eq!(send(&app.router, by("loud", "2")).await.status, 200);
    assert_eq!(app.runs.most_at_once(), 2);
}

#[tokio::test]
async fn a_result_that_was_not_kept_is_made_again_where_the_policy_says_so() {
    let engine =
        engine(|policy| policy.response_bytes_max(2).on_not_replayable(OnNotReplayable::Reexecute));
    let (app, count) = app(&engine, async |_| "a long export");
    for _ in 0..2 {
        let reply = send(&app, post("k")).await;
        reply.answered(200, "a long export");
        assert!(reply.is_unstored() && !reply.is_replay());
    }
    send(&app, posted("k", "another")).await.refused(422, "key-reused");
    assert_eq!(count.runs(), 2);
}

#[tokio::test]
async fn every_outcome_is_reported_to_the_observer() {
    let seen: Arc<Mutex<Vec<Completed>>> = Arc::default();
    let sees = Arc::clone(&seen);
    let observed = Engine::builder(MemoryStore::new())
        .observe(move |completed| sees.lock().unwrap().push(completed.clone()))
        .build()
        .unwrap();
    let (router, _) = app(&observed, async |_| "done");
    send(&router, post("k")).await;
    send(&router, post("k")).await;
    send(&router, posted("k", "another")).await;
    send(&router, post("\"k")).await;
    let mut get = post("k");
    *get.method_mut() = Method::GET;
    send(&router, get).await;
    observed.run("job", b"", async |_| Ok::<_, std::io::Error>(1)).await.unwrap();
    let outcomes: Vec<_> =
        seen.lock().unwrap().drain(..).map(|it| (it.outcome, it.record.is_some())).collect();
    let executed = Outcome::Executed { attempt: 1, stored: true };
    assert_eq!(
        outcomes,
        [
            (executed.clone(), true),
            (Outcome::Replayed, true),
            (Outcome::Refused(Code::KeyReused), true),
            (Outcome::Refused(Code::InvalidKey), false),
            (Outcome::Bypassed(Bypass::Method { keyed: true }), false),
            (executed, true),
        ]
    );
}

#[tokio::test]
async fn the_outcome_of_a_client_that_has_left_is_reported() {
    let (report, mut reports) = tokio::sync::mpsc::unbounded_channel();
    let engine = Engine::builder(MemoryStore::new())
        .observe(move |completed| report.send(completed.outcome.clone()).unwrap())
        .build()
        .unwrap();
    let app = App::slow(engine);
    let client = app.client("k");
    app.runs.reach(1).await;
    client.abort();
    app.gate.open();
    let reported = reports.recv().await;
    assert_eq!(reported, Some(Outcome::Executed { attempt: 1, stored: true }));
}

#[tokio::test]
async fn a_handler_takes_its_execution_as_an_argument() {
    let required = async |execution: Execution| execution.derive("charge");
    let optional = async |execution: Option<Execution>| {
        execution.map_or_else(|| "none".to_owned(), |it| it.key().to_owned())
    };
    let policy = Policy::draft().into_builder().on_store_error(OnStoreError::FailOpen);
    let store = ScriptedStore::new();
    let engine = Engine::builder(store.clone()).policy(policy.build().unwrap()).build().unwrap();
    let routes = Router::new().route("/orders", to(required)).route("/optional", to(optional));
    let app = routes.clone().layer(engine.layer());
    let unkeyed = |path: &str| Request::post(path).body(Body::empty()).unwrap();

    let derived = send(&app, post("k")).await;
    assert_eq!((derived.status.as_u16(), derived.text().len()), (200, 40));
    send(&app, unkeyed("/orders")).await.refused(400, "missing-key");
    send(&app, unkeyed("/optional")).await.answered(200, "none");
    let mut keyed = post("other");
    *keyed.uri_mut() = "/optional".parse().unwrap();
    send(&app, keyed).await.answered(200, "other");

    // Under a key without a claim it derives the same keys.
    store.always(Operation::Claim, Behavior::Fail(ErrorKind::Unavailable));
    let unprotected = send(&app, post("k")).await;
    assert_eq!(unprotected.outcome(), &Outcome::Bypassed(Bypass::Unprotected));
    assert_eq!(unprotected.text(), derived.text());
    let bare = send(&routes, post("k")).await;
    assert_eq!(bare.status, 500, "there is no layer");
}

const SHORT: Duration = Duration::from_millis(100);
