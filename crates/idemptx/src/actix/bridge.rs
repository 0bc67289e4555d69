//! The inner service of actix, as the tower layer calls it.
//!
//! Nothing of actix may leave its thread, and all that the layer is given must be able to: so it is
//! wrapped, and the wrapper panics on another thread.
//! None sees it, because the runtime of a worker has one thread only.

use std::cell::RefCell;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_web::body::MessageBody;
use actix_web::dev::{Service, ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::{Error, HttpMessage, HttpRequest, HttpResponse};
use send_wrapper::SendWrapper;

use super::message::{
    HandlerBody, ProtectedBody, RequestPayload, payload_of, response_of, translated,
};
use crate::execution::{BypassNote, Execution};
use crate::tower::{RequestBody, ResponseBody as LayerBody};

/// The request as actix knows it, while the layer has the other one.
///
/// It is taken and put back, never cloned: actix's router expects to be the only one that has it.
#[derive(Clone)]
pub(super) struct Original(SendWrapper<Rc<RefCell<Option<HttpRequest>>>>);

impl Original {
    pub(super) fn new(request: HttpRequest) -> Self {
        Self(SendWrapper::new(Rc::new(RefCell::new(Some(request)))))
    }

    fn take(&self) -> Option<HttpRequest> {
        self.0.borrow_mut().take()
    }

    fn put_back(&self, request: HttpRequest) {
        *self.0.borrow_mut() = Some(request);
    }

    /// Makes actix's response of the layer's.
    pub(super) fn answer(
        &self,
        answer: Result<http::Response<LayerBody<HandlerBody>>, SendWrapper<Error>>,
    ) -> Result<ServiceResponse<ProtectedBody>, Error> {
        let response = translated(answer.map_err(SendWrapper::take)?);
        match self.take() {
            Some(request) => Ok(ServiceResponse::new(request, response)),
            // A service that ends with an error keeps the request: the response goes the same way.
            None => {
                Err(InternalError::from_response(FAILED, response.map_into_boxed_body()).into())
            }
        }
    }
}

/// A service of actix for one request.
pub(super) struct Bridge<T> {
    inner: SendWrapper<Rc<T>>,
    original: Original,
}

impl<T> Bridge<T> {
    pub(super) fn new(inner: Rc<T>, original: Original) -> Self {
        Self { inner: SendWrapper::new(inner), original }
    }
}

impl<T> Clone for Bridge<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), original: self.original.clone() }
    }
}

type Answer = Result<http::Response<HandlerBody>, SendWrapper<Error>>;

impl<T, B> tower_service::Service<http::Request<RequestBody<RequestPayload>>> for Bridge<T>
where
    T: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = http::Response<HandlerBody>;
    type Error = SendWrapper<Error>;
    type Future = SendWrapper<Pin<Box<dyn Future<Output = Answer>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SendWrapper<Error>>> {
        // Actix has asked its service before it gave the request.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<RequestBody<RequestPayload>>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let Some(request) = self.original.take() else {
            return SendWrapper::new(Box::pin(called_twice()));
        };
        let execution = parts.extensions.remove::<Execution>();
        // One that is there already is that of a layer outside.
        let execution = execution.filter(|it| !it.is_of(&request));
        let is_executed = execution.is_some();
        if let Some(execution) = execution {
            request.extensions_mut().insert(execution);
        }
        if let Some(note) = parts.extensions.remove::<BypassNote>() {
            request.extensions_mut().insert(note);
        }
        let original = self.original.clone();
        let response = self.inner.call(ServiceRequest::from_parts(request, payload_of(body)));
        SendWrapper::new(Box::pin(async move {
            match response.await {
                Ok(response) => {
                    let (request, response) = response.into_parts();
                    original.put_back(request);
                    Ok(response_of(response.map_into_boxed_body()))
                }
                Err(error) if is_executed => Ok(response_of(HttpResponse::from_error(error))),
                Err(error) => Err(SendWrapper::new(error)),
            }
        }))
    }
}

impl Execution {
    /// Returns `true` if the request is under this very execution.
    fn is_of(&self, request: &HttpRequest) -> bool {
        request.extensions().get::<Self>().is_some_and(|it| it.token() == self.token())
    }
}

/// The layer calls its inner service once for a request.
fn called_twice() -> Ready<Answer> {
    debug_assert!(false, "a request that was called with is called with again");
    ready(Err(SendWrapper::new(actix_web::error::ErrorInternalServerError(FAILED))))
}

const FAILED: &str = "the service failed";
