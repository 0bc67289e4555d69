//! The application: handlers that do next to nothing, so that everything else shows.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::post;
use bytes::Bytes;
use idemptx::store::near::NearLimits;
use idemptx::store::seal::SealKeys;
use idemptx::store::{AnyStore, MemoryStore};
use idemptx::{Engine, Policy};
use tokio::sync::watch;

use crate::Measured;

/// Handlers that wait for a sign before they end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<GateState>);

#[derive(Debug, Default)]
struct GateState {
    open: watch::Sender<bool>,
    entered: watch::Sender<usize>,
}

impl Gate {
    pub(crate) fn open(&self) {
        self.0.open.send_replace(true);
    }

    /// Resolves once a handler waits.
    pub(crate) async fn entered(&self) {
        drop(self.0.entered.subscribe().wait_for(|entered| *entered > 0).await);
    }

    async fn pass(&self) {
        self.0.entered.send_modify(|entered| *entered += 1);
        drop(self.0.open.subscribe().wait_for(|open| *open).await);
    }
}

/// The routes, with a gate at one of them.
pub(crate) fn routes(gate: Gate) -> Router {
    let held = async move || {
        gate.pass().await;
        order().await
    };
    Router::new()
        .route("/orders", post(async |_: Bytes| order().await))
        .route("/slow", post(slow))
        .route("/echo", post(async |body: Bytes| (StatusCode::CREATED, body)))
        .route("/held", post(held))
        .layer(DefaultBodyLimit::max(2 << 20))
}

/// The routes, protected by the layer.
pub(crate) fn protected(engine: &Engine<AnyStore>, gate: Gate) -> Router {
    routes(gate).layer(engine.layer())
}

/// An engine whose duplicates wait for so long.
pub(crate) fn engine(store: &str, wait: Duration) -> Measured<Engine<AnyStore>> {
    let store = self::store(store)?;
    let policy = Policy::draft().into_builder().wait(wait).waiters_max(WAITERS_MAX).build()?;
    Ok(Engine::builder(store).policy(policy).build()?)
}

/// The store at a URL; with `near+` or `sealed+` before it, one that is so.
pub(crate) fn store(url: &str) -> Measured<AnyStore> {
    if let Some(url) = url.strip_prefix("near+") {
        return Ok(store(url)?.near(NearLimits::default()));
    }
    if let Some(url) = url.strip_prefix("sealed+") {
        return Ok(store(url)?.sealed(SEAL_KEY.parse::<SealKeys>()?));
    }
    Ok(match url {
        // What is measured is not the limit.
        "memory:" => AnyStore::from(MemoryStore::builder().bytes_max(16 << 30).build()),
        url => AnyStore::from_url(url)?,
    })
}

async fn order() -> impl IntoResponse {
    (StatusCode::CREATED, [(CONTENT_TYPE, "application/json")], ORDER)
}

/// Takes as long as the request asks, in milliseconds, or a tenth of a second.
async fn slow(headers: HeaderMap) -> impl IntoResponse {
    let millis = headers.get("x-millis").and_then(|it| it.to_str().ok()?.parse().ok());
    tokio::time::sleep(Duration::from_millis(millis.unwrap_or(100))).await;
    order().await
}

/// A request of 200 bytes.
pub(crate) const WISH: &str = concat!(
    r#"{"customer":"c_81f3a90b2e","currency":"EUR","lines":[{"sku":"tea-earl-grey-250","#,
    r#""count":2,"cents":450},{"sku":"cake-carrot","count":1,"cents":380}],"#,
    r#""note":"please ring twice, the bell is very quiet"}"#,
);

/// An answer of 300 bytes.
pub(crate) const ORDER: &str = concat!(
    r#"{"id":"o_5b1f0c7a44d2","status":"created","customer":"c_81f3a90b2e","#,
    r#""currency":"EUR","total_cents":1280,"created":"2026-01-15T09:30:00Z","#,
    r#""lines":[{"sku":"tea-earl-grey-250","count":2,"cents":450,"total_cents":900},"#,
    r#"{"sku":"cake-carrot","count":1,"cents":380,"total_cents":380}],"#,
    r#""links":{"self":"/orders/1"}}"#,
);
const WAITERS_MAX: usize = 2000;
const SEAL_KEY: &str = "1:4f6c64206b6579732073746179207468657265207768696c65206e6565646564";
