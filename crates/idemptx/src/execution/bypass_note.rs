//! The reasons that extractors give where there is no execution.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use idemptx_core::exchange::{Operation, Rules};
use idemptx_core::outcome::{Bypass, Rejection};
use idemptx_core::problem::Problem;

use super::Execution;

/// The layer's note on a request that it passed without a claim.
#[derive(Clone)]
pub(crate) struct BypassNote {
    pub(crate) rules: Arc<Rules>,
    pub(crate) bypass: Bypass,
    /// The operation of a request under a key.
    pub(crate) operation: Option<Operation>,
}

impl BypassNote {
    /// Returns the execution without a claim of a request under a key.
    pub(crate) fn execution(&self) -> Option<Execution> {
        Some(Execution::unprotected(self.operation.clone()?, Arc::clone(&self.rules)))
    }
}

/// The refusal of an [`Execution`]; answers with a problem document.
#[derive(Debug)]
pub struct NoExecution(Missing);

impl NoExecution {
    /// Explains the absence of `what`.
    pub(crate) fn of(note: Option<&BypassNote>, what: &str) -> Self {
        Self(Missing::of(note, what))
    }

    pub(crate) fn response(&self) -> Response<Bytes> {
        self.0.response()
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
                "there is no {what} without `Engine::layer` or `Engine::middleware` around the handler"
            ));
        };
        match Rejection::without_execution(*bypass, rules.policy()) {
            Some(rejection) => Self::Refused(rejection),
            None => Self::Misconfigured(format!(
                "there is no {what} for a request that keys are not for ({bypass:?})"
            )),
        }
    }

    pub(crate) fn response(&self) -> Response<Bytes> {
        match self {
            Self::Refused(rejection) => Problem::from(rejection).into_response(),
            Self::Misconfigured(text) => {
                let mut response = Response::new(Bytes::copy_from_slice(text.as_bytes()));
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                response
            }
        }
    }
}
