//! The execution as an axum extractor.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::response::{IntoResponse, Response};
use http::request::Parts;

use super::{BypassNote, Execution, Missing, NoExecution};

/// Takes the execution of the request's key; without a key the request is refused.
///
/// Where the policy lets a request under a key run without a claim, as in shadow mode, the execution
/// is one without a claim: attempt 1, a token and a fence of zero.
impl<S: Send + Sync> FromRequestParts<S> for Execution {
    type Rejection = NoExecution;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NoExecution> {
        of_request(parts)
            .ok_or_else(|| NoExecution::of(parts.extensions.get::<BypassNote>(), "`Execution`"))
    }
}

/// Takes the execution where the request is under a key.
impl<S: Send + Sync> OptionalFromRequestParts<S> for Execution {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(of_request(parts))
    }
}

fn of_request(parts: &Parts) -> Option<Execution> {
    if let Some(execution) = parts.extensions.get::<Execution>() {
        return Some(execution.clone());
    }
    parts.extensions.get().and_then(BypassNote::execution)
}

impl IntoResponse for NoExecution {
    fn into_response(self) -> Response {
        self.response().map(Body::from)
    }
}

impl IntoResponse for Missing {
    fn into_response(self) -> Response {
        self.response().map(Body::from)
    }
}
