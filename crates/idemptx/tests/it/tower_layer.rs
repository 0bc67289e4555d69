//! The tower layer: requests and responses through an engine.

mod admission;
mod bodies;
mod codings;
mod cut_streams;
mod front_door;
mod handlers;
mod modes;
#[cfg(feature = "axum")]
mod policies;
mod refusals;
mod replay;
#[cfg(feature = "spool")]
mod spool;
#[cfg(feature = "tracing")]
mod traces;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use idemptx::store::MemoryStore;
use idemptx::{Engine, Policy};
use idemptx_core::policy::PolicyBuilder;

/// An engine on a new memory store.
fn engine(change: impl FnOnce(PolicyBuilder) -> PolicyBuilder) -> Engine<MemoryStore> {
    let policy = change(Policy::draft().into_builder()).build().unwrap();
    Engine::builder(MemoryStore::new()).policy(policy).build().unwrap()
}

/// A server with one handler under the engine, whose runs are counted.
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

/// The number of runs of a handler.
#[derive(Clone, Debug, Default)]
struct Count(Arc<AtomicU32>);

impl Count {
    fn runs(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}
