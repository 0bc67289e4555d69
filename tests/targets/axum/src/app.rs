//! The application: endpoints whose every execution answers differently and can be counted.

pub mod body;
mod run;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, LOCATION, SET_COOKIE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

pub use self::run::RecordSnapshot;
use self::run::Run;
use crate::journal::Journal;

/// The state that the executions of one process share.
#[derive(Debug)]
pub struct App {
    /// The journal of executions.
    pub journal: Option<Journal>,
    executions: AtomicU64,
    flaky: Mutex<HashMap<String, u64>>,
}

impl App {
    /// An application that has executed nothing yet.
    #[must_use]
    pub fn new(journal: Option<Journal>) -> Self {
        Self { journal, executions: AtomicU64::new(0), flaky: Mutex::default() }
    }

    /// Returns the identifier of the last execution.
    #[must_use]
    pub fn last(&self) -> String {
        format!("{}-{}", std::process::id(), self.executions.load(Ordering::SeqCst))
    }

    /// Returns the identifier of the next execution.
    #[must_use]
    pub fn next(&self) -> String {
        let count = self.executions.fetch_add(1, Ordering::SeqCst) + 1;
        format!("{}-{count}", std::process::id())
    }

    /// Counts an execution of `/flaky` with this key, and returns the count.
    #[must_use]
    pub fn flaky(&self, key: &str) -> u64 {
        let mut counts = self.flaky.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.to_owned()).or_default();
        *count += 1;
        *count
    }
}

/// The application's routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/count", get(last).post(created).patch(created))
        .route("/echo", post(echo))
        .route("/slow", post(created))
        .route("/status/{code}", post(status))
        .route("/flaky", post(flaky))
        .route("/raise", post(raise))
        .route("/cookie", post(cookie))
        .route("/headers", post(headers))
        .route("/bytes", post(bytes))
        .route("/stream", post(stream))
        .route("/events", post(events))
        .route("/abort", post(abort))
        .route("/outcome", post(outcome))
        .route("/execution", post(execution))
        .layer(DefaultBodyLimit::max(ECHO_BYTES_MAX))
        .with_state(app)
}

async fn last(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({ "n": app.last() }))
}

async fn created(run: Run) -> Response {
    run.end((StatusCode::CREATED, run.serial()))
}

async fn echo(request: HeaderMap, run: Run, body: Bytes) -> Response {
    let kind = request.get(CONTENT_TYPE).map(|kind| (CONTENT_TYPE, kind.clone()));
    run.end((AppendHeaders(kind), [(EXECUTED, run.n.clone())], Body::from(body)))
}

async fn status(Path(code): Path<u16>, run: Run) -> Response {
    let code = StatusCode::from_u16(code).ok().filter(|code| !code.is_informational());
    match code {
        None => run.end(StatusCode::BAD_REQUEST),
        Some(code @ (StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)) => run.end(code),
        Some(code) => run.end((code, run.serial())),
    }
}

#[derive(Deserialize)]
struct Fails {
    fails: u64,
}

async fn flaky(State(app): State<Arc<App>>, Query(query): Query<Fails>, run: Run) -> Response {
    let failed = app.flaky(&run.key) <= query.fails;
    let code = if failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::CREATED };
    run.end((code, run.serial()))
}

async fn raise(_run: Run) -> Response {
    panic!("the handler fails, as it was asked to");
}

async fn cookie(run: Run) -> Response {
    let cookies = [(SET_COOKIE, format!("session={}", run.n)), (SET_COOKIE, "theme=dark".into())];
    run.end((AppendHeaders(cookies), run.serial()))
}

async fn headers(run: Run) -> Response {
    let fields = AppendHeaders([
        (MULTI, HeaderValue::from_static("first")),
        (MULTI, HeaderValue::from_static("second")),
        (ETAG, HeaderValue::from_static("\"v1\"")),
        (LOCATION, HeaderValue::from_static("/things/1")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (CONNECTION, HeaderValue::from_static("X-Hop")),
        (HOP, HeaderValue::from_static("1")),
        (LATIN, HeaderValue::from_bytes(b"caf\xe9").expect("obs-text is allowed in a field")),
    ]);
    run.end((fields, run.serial()))
}

#[derive(Deserialize)]
struct Size {
    n: usize,
}

async fn bytes(Query(size): Query<Size>, run: Run) -> Response {
    let body = body::random(&run.n, size.n);
    run.end(([(CONTENT_TYPE, "application/octet-stream")], body))
}

#[derive(Deserialize)]
struct Chunks {
    chunks: u64,
    #[serde(default)]
    gap: u64,
}

async fn stream(Query(query): Query<Chunks>, run: Run) -> Response {
    let line = format!("{} chunk\n", run.n);
    let body = body::chunks(run, line, query.chunks, query.gap);
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

#[derive(Deserialize)]
struct Events {
    chunks: u64,
    #[serde(default)]
    gap: u64,
    kind: Option<String>,
    buffering: Option<String>,
    o: Option<String>,
}

async fn events(Query(query): Query<Events>, run: Run) -> Response {
    let line = format!("data: {}\n\n", run.n);
    let body = body::chunks(run, line, query.chunks, query.gap);
    let kind = query.kind.unwrap_or_else(|| "text/event-stream".into());
    let lines = [(BUFFERING, query.buffering), (OUTCOME, query.o)];
    let lines = lines.into_iter().filter_map(|(name, value)| Some((name, value?)));
    ([(CONTENT_TYPE, kind)], AppendHeaders(lines), body).into_response()
}

async fn abort(_run: Run) -> Response {
    ([(CONTENT_LENGTH, body::HALF_BYTES * 2)], body::half()).into_response()
}

#[derive(Deserialize)]
struct Directed {
    o: String,
}

async fn outcome(Query(query): Query<Directed>, run: Run) -> Response {
    run.end(([(OUTCOME, query.o)], run.serial()))
}

async fn execution(run: Run) -> Response {
    run.end(Json(run.seen.clone()))
}

/// The longest request that is echoed, through any front door.
pub const ECHO_BYTES_MAX: usize = 64 << 20;

const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
const EXECUTED: HeaderName = HeaderName::from_static("x-executed");
const HOP: HeaderName = HeaderName::from_static("x-hop");
const LATIN: HeaderName = HeaderName::from_static("x-latin");
const MULTI: HeaderName = HeaderName::from_static("x-multi");
const OUTCOME: HeaderName = HeaderName::from_static("idempotency-outcome");
