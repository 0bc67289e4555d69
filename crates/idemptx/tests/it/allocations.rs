//! The heap allocations that the layer adds to a request, which a busy machine cannot blur.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::post;
use http_body_util::BodyExt;
use idemptx::store::{AnyStore, MemoryStore};
use idemptx::{Engine, Policy};
use tower::ServiceExt;

/// The recorded figures: lower them with the code, and raise one only for a reason.
const RECORDED: [(Keys, u64); 3] = [(Keys::None, 11), (Keys::One, 11), (Keys::Fresh, 30)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    /// No request has a key.
    None,
    /// All have the same: one is executed, the others are replays.
    One,
    /// Each has its own: all are executed.
    Fresh,
}

#[test]
fn the_layer_allocates_no_more_for_a_request_than_recorded() {
    let store = AnyStore::from(MemoryStore::new());
    let engine = Engine::builder(store).policy(Policy::draft()).build().unwrap();
    let routes = Router::new().route("/orders", post(async || (StatusCode::CREATED, "ordered")));
    let protected = routes.clone().layer(engine.layer());
    for (keys, recorded) in RECORDED {
        let more = allocations(&protected, keys) - allocations(&routes, keys);
        assert!(
            more * 20 <= recorded * 21,
            "{keys:?}: {more} allocations, where {recorded} are recorded"
        );
        assert!(
            more * 21 >= recorded * 20,
            "{keys:?}: only {more} allocations, where {recorded} are recorded: lower that figure"
        );
    }
}

/// Returns the median number of allocations of a request.
fn allocations(router: &Router, keys: Keys) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut counts: Vec<u64> = (0..CALLS)
        .map(|number| {
            let request = request(keys, number);
            let counted = allocation_counter::measure(|| runtime.block_on(call(router, request)));
            counted.count_total
        })
        .collect();
    counts.sort_unstable();
    counts[counts.len() / 2]
}

async fn call(router: &Router, request: Request<Body>) {
    let response = router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    response.into_body().collect().await.unwrap();
}

fn request(keys: Keys, number: u32) -> Request<Body> {
    let request = Request::post("/orders").header("content-type", "application/json");
    let request = match keys {
        Keys::None => request,
        Keys::One => request.header("idempotency-key", format!("{:032x}", CALLS)),
        Keys::Fresh => request.header("idempotency-key", format!("{number:032x}")),
    };
    request.body(Body::from(r#"{"item":"tea"}"#)).unwrap()
}

const CALLS: u32 = 101;
