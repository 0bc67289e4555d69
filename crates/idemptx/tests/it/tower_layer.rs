//! What the layer makes of requests and responses.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "support/http.rs"]
mod http_client;
#[path = "support/scripted_body.rs"]
mod scripted_body;
#[path = "support/told_store.rs"]
mod told_store;

#[path = "tower_layer/bodies.rs"]
mod bodies;
#[path = "tower_layer/gate.rs"]
mod gate;
#[path = "tower_layer/handlers.rs"]
mod handlers;
#[path = "tower_layer/modes.rs"]
mod modes;
#[path = "tower_layer/replay.rs"]
mod replay;
#[cfg(feature = "spool")]
#[path = "tower_layer/spool.rs"]
mod spool;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use idemptx::store::MemoryStore;
use idemptx::{Engine, Policy};
use idemptx_core::policy::PolicyBuilder;

/// An engine on memory of its own.
fn engine(change: impl FnOnce(PolicyBuilder) -> PolicyBuilder) -> Engine<MemoryStore> {
    let policy = change(Policy::draft().into_builder()).build().unwrap();
    Engine::builder(MemoryStore::new()).policy(policy).build().unwrap()
}

/// A server whose only handler, behind the engine, is counted.
fn app<S, F, R, A>(engine: &Engine<S>, handler: F) -> (Router, Count)
where
    S: idemptx_core::store::Store,
    F: Fn(Request) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = A> + Send,
    A: IntoResponse,
{
    let count = Count::default();
    let runs = count.clone();
    let handler = move |request: Request| {
        runs.0.fetch_add(1, Ordering::SeqCst);
        let answer = handler(request);
        async move { answer.await.into_response() as Response }
    };
    (Router::new().fallback(handler).layer(engine.layer()), count)
}

/// How often a handler ran.
#[derive(Clone, Debug, Default)]
struct Count(Arc<AtomicU32>);

impl Count {
    fn runs(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}
