use idemptx_core::store::Store;
use tower_layer::Layer;

use super::service::Idempotency;
use crate::engine::Engine;

/// Wraps services in [`Idempotency`]; see the [module](super).
#[derive(Debug)]
pub struct IdempotencyLayer<S> {
    engine: Engine<S>,
}

impl<S> IdempotencyLayer<S> {
    /// A layer with the engine's policy, store and limits.
    #[must_use]
    pub const fn new(engine: Engine<S>) -> Self {
        Self { engine }
    }
}

impl<S: Store> Engine<S> {
    /// A layer that puts this engine around HTTP services; see [`tower`](crate::tower).
    #[must_use]
    pub fn layer(&self) -> IdempotencyLayer<S> {
        IdempotencyLayer::new(self.clone())
    }
}

impl<S> Clone for IdempotencyLayer<S> {
    fn clone(&self) -> Self {
        Self { engine: self.engine.clone() }
    }
}

impl<S: Store, T> Layer<T> for IdempotencyLayer<S> {
    type Service = Idempotency<S, T>;

    fn layer(&self, inner: T) -> Idempotency<S, T> {
        Idempotency::new(self.engine.clone(), inner)
    }
}
