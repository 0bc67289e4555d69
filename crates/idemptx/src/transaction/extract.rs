//! The transaction as an axum extractor.

use std::fmt;
use std::sync::Arc;

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;
use idemptx_core::exchange::Rules;
use idemptx_core::outcome::{Bypass, Code, Rejection};
use idemptx_core::problem::Problem;

use super::{IdempotentTransaction, TransactionError};
use crate::execution::Execution;

/// Begins the transaction; without a key there is none, and the request is refused.
impl<S: Send + Sync> FromRequestParts<S> for IdempotentTransaction {
    type Rejection = NoTransaction;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NoTransaction> {
        match parts.extensions.get::<Execution>().cloned() {
            Some(execution) => begin(&execution).await,
            None => Err(NoTransaction(refusal(parts.extensions.get()))),
        }
    }
}

/// Begins the transaction where the request is under a key.
impl<S: Send + Sync> OptionalFromRequestParts<S> for IdempotentTransaction {
    type Rejection = NoTransaction;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, NoTransaction> {
        match parts.extensions.get::<Execution>().cloned() {
            Some(execution) => begin(&execution).await.map(Some),
            None => Ok(None),
        }
    }
}

async fn begin(execution: &Execution) -> Result<IdempotentTransaction, NoTransaction> {
    execution.begin().await.map_err(|error| {
        NoTransaction(match error {
            TransactionError::Store(_) => {
                let policy = execution.rules().policy();
                Reason::Problem(Rejection::new(Code::StoreUnavailable, policy))
            }
            error => Reason::Misconfigured(error.to_string()),
        })
    })
}

/// The refusal of an [`IdempotentTransaction`]; answers with a problem document.
#[derive(Debug)]
pub struct NoTransaction(Reason);

#[derive(Debug)]
enum Reason {
    /// The client's, or the store's.
    Problem(Rejection),
    /// The developer's.
    Misconfigured(String),
}

/// The layer's note on a request that it passed without a claim.
#[derive(Clone)]
pub(crate) struct BypassNote {
    pub(crate) rules: Arc<Rules>,
    pub(crate) bypass: Bypass,
}

fn refusal(note: Option<&BypassNote>) -> Reason {
    let Some(BypassNote { rules, bypass }) = note else {
        return Reason::Misconfigured(format!("{NONE} without `Engine::layer` around the handler"));
    };
    let code = match bypass {
        Bypass::NoKey => Code::MissingKey,
        Bypass::LargeBody => Code::BodyTooLarge,
        Bypass::Unprotected => Code::StoreUnavailable,
        _ => {
            let why = "for a request that keys are not for";
            return Reason::Misconfigured(format!("{NONE} {why} ({bypass:?})"));
        }
    };
    Reason::Problem(Rejection::new(code, rules.policy()))
}

impl IntoResponse for NoTransaction {
    fn into_response(self) -> Response {
        match self.0 {
            Reason::Problem(rejection) => {
                Problem::from(&rejection).into_response().map(axum::body::Body::from)
            }
            Reason::Misconfigured(text) => {
                (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
            }
        }
    }
}

impl fmt::Display for NoTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Reason::Problem(rejection) => write!(f, "no transaction: {}", rejection.code),
            Reason::Misconfigured(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for NoTransaction {}

const NONE: &str = "there is no `IdempotentTransaction`";
