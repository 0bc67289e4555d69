//! The transaction as an axum extractor.

use std::fmt;

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use idemptx_core::outcome::{Code, Rejection};

use super::{IdempotentTransaction, TransactionError};
use crate::execution::{BypassNote, Execution, Missing};

/// Begins the transaction; without a key there is none, and the request is refused.
impl<S: Send + Sync> FromRequestParts<S> for IdempotentTransaction {
    type Rejection = NoTransaction;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NoTransaction> {
        match parts.extensions.get::<Execution>().cloned() {
            Some(execution) => begin(&execution).await,
            None => {
                let note = parts.extensions.get::<BypassNote>();
                Err(NoTransaction(Missing::of(note, "`IdempotentTransaction`")))
            }
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
                Missing::Refused(Rejection::new(Code::StoreUnavailable, policy))
            }
            error => Missing::Misconfigured(error.to_string()),
        })
    })
}

/// The refusal of an [`IdempotentTransaction`]; answers with a problem document.
#[derive(Debug)]
pub struct NoTransaction(Missing);

impl IntoResponse for NoTransaction {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

impl fmt::Display for NoTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Missing::Refused(rejection) => write!(f, "no transaction: {}", rejection.code),
            Missing::Misconfigured(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for NoTransaction {}
