//! One execution of a handler.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, Query};
use axum::http::{HeaderMap, HeaderName, Method, request::Parts};
use axum::response::{IntoResponse, Response};
use idemptx::Execution;
use idemptx_core::key::Key;
use idemptx_core::policy::KeySyntax;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::App;
use crate::protect;

/// A running execution.
///
/// Taking it from the request journals the start and sleeps as long as the request asks; it must
/// be a handler's last part, so that nothing refuses the request after the start.
#[derive(Debug)]
pub(super) struct Run {
    /// The identifier that no other execution has.
    pub(super) n: String,
    /// The request's key, `-` without one.
    pub(super) key: String,
    /// The handler's view of its execution.
    pub(super) seen: RecordSnapshot,
    app: Arc<App>,
    method: Method,
    path: String,
}

impl Run {
    /// The body of most answers.
    pub(super) fn serial(&self) -> Json<Value> {
        Json(json!({ "n": self.n }))
    }

    /// Journals the end, for the answer is whole.
    pub(super) fn end(&self, answer: impl IntoResponse) -> Response {
        self.record("end");
        answer.into_response()
    }

    /// Journals the end of an answer that was streamed.
    pub(super) fn streamed(&self) {
        self.record("end");
    }

    fn record(&self, event: &str) {
        if let Some(journal) = &self.app.journal {
            // A disk that is busy must not hold up the other requests, nor the heartbeats.
            tokio::task::block_in_place(|| {
                journal.record(event, self.method.as_str(), &self.path, &self.key);
            });
        }
    }
}

impl FromRequestParts<Arc<App>> for Run {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        let Query(pause) = Query::<Pause>::from_request_parts(parts, app)
            .await
            .map_err(IntoResponse::into_response)?;
        let seen = RecordSnapshot::of(parts.extensions.get(), &parts.headers);
        let run = Self {
            n: app.next(),
            key: seen.key.clone().unwrap_or_else(|| "-".to_owned()),
            seen,
            app: app.clone(),
            method: parts.method.clone(),
            path: parts.uri.path().to_owned(),
        };
        run.record("start");
        tokio::time::sleep(Duration::from_millis(pause.ms)).await;
        Ok(run)
    }
}

/// A handler's view of its execution; empty without a key.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RecordSnapshot {
    /// The key.
    pub key: Option<String>,
    /// The number of the execution.
    pub attempt: Option<u32>,
    /// The token of the claim.
    pub token: Option<String>,
    /// The key for another system.
    pub derived: Option<String>,
}

impl RecordSnapshot {
    /// Reads it from the layer's extension, or else from the request's header lines.
    #[must_use]
    pub fn of(execution: Option<&Execution>, headers: &HeaderMap) -> Self {
        execution.map(protect::snapshot).unwrap_or_else(|| {
            let lines = headers.get_all(KEY);
            let key = Key::from_lines(lines, KeySyntax::Lenient, KEY_BYTES_MAX).ok().flatten();
            // What the gateway tells, where there is one in front.
            let told = |name| headers.get(name)?.to_str().ok().map(str::to_owned);
            Self {
                key: key.map(|key| key.as_str().to_owned()),
                attempt: told(ATTEMPT).and_then(|attempt| attempt.parse().ok()),
                token: told(FENCE),
                derived: told(DERIVED),
            }
        })
    }
}

#[derive(Deserialize)]
struct Pause {
    #[serde(default)]
    ms: u64,
}

const DERIVED: HeaderName = HeaderName::from_static("idempotency-derived");
const FENCE: HeaderName = HeaderName::from_static("idempotency-fence");
const ATTEMPT: HeaderName = HeaderName::from_static("idempotency-attempt");
const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const KEY_BYTES_MAX: usize = 1024;
