//! The execution as an axum extractor.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;
use idemptx_core::exchange::{Operation, Rules};
use idemptx_core::outcome::{Bypass, Rejection};
use idemptx_core::problem::Problem;

use super::Execution;

/// Takes the execution of the request's key; without a key the request is refused.
///
/// Where the policy lets a request under a key run without a claim, as in shadow mode, the execution
/// is one without a claim: attempt 1, a token and a fence of zero.
impl<S: Send + Sync> FromRequestParts<S> for Execution {
    type Rejection = NoExecution;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NoExecution> {
        of_request(parts).ok_or_else(|| {
            let note = parts.extensions.get::<BypassNote>();
            NoExecution(Missing::of(note, "`Execution`"))
        })
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
    let BypassNote { rules, operation, .. } = parts.extensions.get()?;
    Some(Execution::unprotected(operation.clone()?, Arc::clone(rules)))
}

/// The refusal of an [`Execution`]; answers with a problem document.
#[derive(Debug)]
pub struct NoExecution(Missing);

impl IntoResponse for NoExecution {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

impl fmt::Display for NoExecution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Missing::Refused(rejection) => write!(f, "no execution: {}", rejection.code),
            Missing::Misconfigured(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for NoExecution {}

/// The layer's note on a request that it passed without a claim.
#[derive(Clone)]
pub(crate) struct BypassNote {
    pub(crate) rules: Arc<Rules>,
    pub(crate) bypass: Bypass,
    /// The operation of a request under a key.
    pub(crate) operation: Option<Operation>,
}

/// The reason why an extractor has nothing to give.
#[derive(Debug)]
pub(crate) enum Missing {
    /// The client's, or the store's.
    Refused(Rejection),
    /// The developer's.
    Misconfigured(String),
}

impl Missing {
    /// Explains the absence of `what`.
    pub(crate) fn of(note: Option<&BypassNote>, what: &str) -> Self {
        let Some(BypassNote { rules, bypass, .. }) = note else {
            return Self::Misconfigured(format!(
                "there is no {what} without `Engine::layer` around the handler"
            ));
        };
        match Rejection::without_execution(*bypass, rules.policy()) {
            Some(rejection) => Self::Refused(rejection),
            None => Self::Misconfigured(format!(
                "there is no {what} for a request that keys are not for ({bypass:?})"
            )),
        }
    }
}

impl IntoResponse for Missing {
    fn into_response(self) -> Response {
        match self {
            Self::Refused(rejection) => {
                Problem::from(&rejection).into_response().map(axum::body::Body::from)
            }
            Self::Misconfigured(text) => (StatusCode::INTERNAL_SERVER_ERROR, text).into_response(),
        }
    }
}
