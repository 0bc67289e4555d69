//! Requests to a service in the same process, and their complete replies.

use std::convert::Infallible;
use std::fmt::Debug;

use axum::body::Body;
use bytes::Bytes;
use http::{Extensions, HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use idemptx::Outcome;
use tower::{Service, ServiceExt};

/// A complete reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) extensions: Extensions,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn outcome(&self) -> &Outcome {
        self.extensions.get().unwrap()
    }

    pub(crate) fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }

    pub(crate) fn is_unstored(&self) -> bool {
        self.header("idempotency-stored") == Some("false")
    }

    /// Returns the problem document that the reply must be.
    pub(crate) fn problem(&self) -> serde_json::Value {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        assert_eq!(self.header("cache-control"), Some("no-store"));
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["status"], self.status.as_u16());
        problem
    }

    /// Asserts that the reply is this problem.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.problem()["code"], code);
    }

    /// Asserts that the reply is this response.
    #[track_caller]
    pub(crate) fn answered(&self, status: u16, text: &str) {
        assert_eq!((self.status.as_u16(), self.text()), (status, text), "{self:?}");
    }
}

/// Returns a request with this key.
pub(crate) fn post(key: &str) -> Request<Body> {
    posted(key, "order 4711")
}

/// Returns a request with this key and body.
pub(crate) fn posted(key: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post("/orders").header("idempotency-key", key);
    request.body(body.into()).unwrap()
}

/// Sends a request and reads the complete reply.
pub(crate) async fn send<T, B>(service: &T, request: Request<Body>) -> Reply
where
    T: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone,
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    let Ok(response) = service.clone().oneshot(request).await;
    read(response).await
}

/// Reads a complete response.
pub(crate) async fn read<B>(response: Response<B>) -> Reply
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    let (parts, body) = response.into_parts();
    let body = Box::pin(body).collect().await.unwrap();
    let trailers = body.trailers().cloned();
    Reply {
        status: parts.status,
        headers: parts.headers,
        body: body.to_bytes(),
        trailers,
        extensions: parts.extensions,
    }
}
