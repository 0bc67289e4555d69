//! The middleware, as actix asks for it.

use std::fmt;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::rc::Rc;

use actix_web::body::MessageBody;
use actix_web::dev::{
    Extensions, Service, ServiceRequest, ServiceResponse, Transform, forward_ready,
};
use actix_web::error::{ErrorBadRequest, ErrorInternalServerError};
use actix_web::{Error, HttpMessage};
use idemptx_core::store::Store;
use tokio::runtime::{Handle, RuntimeFlavor};
use tower_service::Service as _;

use super::bridge::{Bridge, Original};
use super::message::{ProtectedBody, RequestPayload, head_of};
use crate::engine::Engine;
use crate::execution::Execution;
use crate::tower::Idempotency;

/// Makes the requests of an actix-web application that carry a key safe to retry; see the
/// [module](super).
pub struct IdempotencyMiddleware<S> {
    engine: Engine<S>,
    shown: Vec<Show>,
}

/// Copies a value from actix's extensions to those that the engine sees.
type Show = fn(&Extensions, &mut http::Extensions);

impl<S: Store> Engine<S> {
    /// Middleware that puts this engine around an actix-web application, a scope or a resource; see
    /// [`actix`](crate::actix).
    #[must_use]
    pub fn middleware(&self) -> IdempotencyMiddleware<S> {
        // A layer of this engine that is outside of this one.
        IdempotencyMiddleware { engine: self.clone(), shown: vec![show::<Execution>] }
    }
}

impl<S> IdempotencyMiddleware<S> {
    /// Shows the engine's [`scope`](crate::EngineBuilder::scope) what a middleware outside of this
    /// one, such as authentication, has put into the request's extensions.
    ///
    /// ```
    /// # use idemptx::{Engine, Scope, store::MemoryStore};
    /// #[derive(Clone)]
    /// struct Tenant(String); // put into the extensions by authentication
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let engine = Engine::builder(MemoryStore::new())
    ///     .scope(|request| request.extensions.get().map(|Tenant(name)| Scope::new(name)))
    ///     .build()?;
    /// let middleware = engine.middleware().with_extension::<Tenant>();
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_extension<T: Clone + Send + Sync + 'static>(mut self) -> Self {
        self.shown.push(show::<T>);
        self
    }
}

fn show<T: Clone + Send + Sync + 'static>(from: &Extensions, to: &mut http::Extensions) {
    if let Some(value) = from.get::<T>() {
        to.insert(value.clone());
    }
}

impl<S, T, B> Transform<T, ServiceRequest> for IdempotencyMiddleware<S>
where
    S: Store,
    T: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<ProtectedBody>;
    type Error = Error;
    type Transform = IdempotencyService<S, T>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, inner: T) -> Self::Future {
        let (engine, shown) = (self.engine.clone(), self.shown.as_slice().into());
        ready(Ok(IdempotencyService { engine, shown, inner: Rc::new(inner) }))
    }
}

/// A service whose requests under a key are safe to retry; see the [module](super).
pub struct IdempotencyService<S, T> {
    engine: Engine<S>,
    shown: Box<[Show]>,
    inner: Rc<T>,
}

impl<S, T, B> Service<ServiceRequest> for IdempotencyService<S, T>
where
    S: Store,
    T: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<ProtectedBody>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>>>>;

    forward_ready!(inner);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        if !stays_on_its_thread() {
            return Box::pin(ready(Err(ErrorInternalServerError(SEVERAL_THREADS))));
        }
        let (request, payload) = request.into_parts();
        let mut parts = match head_of(&request) {
            Ok(parts) => parts,
            Err(error) => return Box::pin(ready(Err(ErrorBadRequest(error)))),
        };
        self.shown.iter().for_each(|show| show(&request.extensions(), &mut parts.extensions));
        let body = RequestPayload::of(payload, &parts.headers);
        let original = Original::new(request);
        let bridge = Bridge::new(Rc::clone(&self.inner), original.clone());
        let mut protected = Idempotency::new(self.engine.clone(), bridge);
        let response = protected.call(http::Request::from_parts(parts, body));
        Box::pin(async move { original.answer(response.await) })
    }
}

/// Returns `true` if a task of this runtime stays on its thread, which actix's services must.
fn stays_on_its_thread() -> bool {
    Handle::try_current().is_ok_and(|it| it.runtime_flavor() == RuntimeFlavor::CurrentThread)
}

impl<S> fmt::Debug for IdempotencyMiddleware<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyMiddleware").finish_non_exhaustive()
    }
}

impl<S, T> fmt::Debug for IdempotencyService<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyService").finish_non_exhaustive()
    }
}

const SEVERAL_THREADS: &str = "idemptx's middleware for actix runs in a runtime of one thread, as \
                               actix's own workers have: serve this application with HttpServer";
