//! The transaction as an axum extractor.

use std::fmt;
use std::sync::Arc;

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
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
                Refusal::Problem(Rejection::new(Code::StoreUnavailable, policy))
            }
            error => Refusal::Mistake(error.to_string()),
        })
    })
}

/// Why a handler gets no [`IdempotentTransaction`]; answers with a problem document.
#[derive(Debug)]
pub struct NoTransaction(Refusal);

#[derive(Debug)]
enum Refusal {
    /// The client's, or the store's.
    Problem(Rejection),
    /// The developer's.
    Mistake(String),
}

/// What the layer tells a service of a request that it passed without a claim.
#[derive(Clone)]
pub(crate) struct Unclaimed {
    pub(crate) rules: Arc<Rules>,
    pub(crate) passed: Bypass,
}

fn refusal(unclaimed: Option<&Unclaimed>) -> Refusal {
    let Some(Unclaimed { rules, passed }) = unclaimed else {
        return Refusal::Mistake(format!("{NONE} without `Engine::layer` around the handler"));
    };
    let code = match passed {
        Bypass::NoKey => Code::MissingKey,
        Bypass::LargeBody => Code::BodyTooLarge,
        Bypass::Unprotected => Code::StoreUnavailable,
        _ => {
            let why = "for a request that keys are not for";
            return Refusal::Mistake(format!("{NONE} {why} ({passed:?})"));
        }
    };
    Refusal::Problem(Rejection::new(code, rules.policy()))
}

impl IntoResponse for NoTransaction {
    fn into_response(self) -> Response {
        match self.0 {
            Refusal::Problem(rejection) => {
                Problem::from(&rejection).into_response().map(axum_core::body::Body::from)
            }
            Refusal::Mistake(text) => (StatusCode::INTERNAL_SERVER_ERROR, text).into_response(),
        }
    }
}

impl fmt::Display for NoTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Refusal::Problem(rejection) => write!(f, "no transaction: {}", rejection.code),
            Refusal::Mistake(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for NoTransaction {}

const NONE: &str = "there is no `IdempotentTransaction`";
