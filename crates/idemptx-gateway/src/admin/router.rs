//! Routes requests of operators, and protects the responses.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue,
    REFERRER_POLICY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use idemptx::tower::BodyError;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::auth::{AccessDenied, AccessPolicy, actor};
use crate::config::Admin;
use crate::logging::LogRate;
use crate::metrics::CurrentValues;
use crate::network::ClientAddress;
use crate::proxy::RoutingTable;
use crate::recorder::Recorder;

/// Serves the admin listener.
pub(crate) struct AdminService {
    access: AccessPolicy,
    tables: watch::Receiver<Arc<RoutingTable>>,
    pub(super) recorder: Arc<Recorder>,
    /// The limit of lines about requests that are not allowed, which anyone can send.
    refusals: LogRate,
    /// The limit of lines about calls that failed.
    pub(super) failures: LogRate,
}

/// A failed call, as an RFC 9457 document.
#[derive(Debug)]
pub(super) struct ApiProblem {
    pub(super) status: StatusCode,
    pub(super) detail: String,
}

/// The caller of a change, for the audit log.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) address: ClientAddress,
    pub(super) name: String,
}

impl AdminService {
    pub(crate) fn new(
        config: &Admin,
        tables: watch::Receiver<Arc<RoutingTable>>,
        recorder: Arc<Recorder>,
    ) -> Self {
        Self {
            access: AccessPolicy::new(config.token.as_deref()),
            tables,
            recorder,
            refusals: LogRate::default(),
            failures: LogRate::default(),
        }
    }

    /// Answers a request.
    ///
    /// # Security
    ///
    /// Bodies are limited in size and time; the body of a denied request is not read.
    pub(crate) async fn answer<B>(
        &self,
        peer: ClientAddress,
        request: Request<B>,
    ) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BodyError>,
    {
        let (parts, body) = request.into_parts();
        let reads = parts.method == Method::GET || parts.method == Method::HEAD;
        let mut response = match self.public(parts.uri.path(), &parts.headers) {
            Some(response) if reads => response,
            Some(_) => only("GET, HEAD"),
            None => match self.access.authorize(&parts.method, &parts.headers) {
                Err(refusal) => {
                    self.log_refusal(refusal, peer, &parts);
                    refused(refusal)
                }
                Ok(()) => {
                    let name = actor(&parts.headers).to_owned();
                    self.private(&parts, body, &Caller { address: peer, name }).await
                }
            },
        };
        protect(&mut response);
        response
    }

    fn log_refusal(&self, refusal: AccessDenied, peer: ClientAddress, parts: &Parts) {
        let Some(suppressed) = self.refusals.admit() else { return };
        let (text, method, path) = (refusal.log_text(), &parts.method, parts.uri.path());
        tracing::info!(
            target: "idemptx::audit",
            from = %peer,
            "{text}: {method} {path}{suppressed}"
        );
    }

    /// Returns resources without access control: the page, which holds no data, and the probes.
    ///
    /// A browser sends no header with a page, and a cookie would allow the forgery that the header
    /// prevents.
    fn public(&self, path: &str, headers: &http::HeaderMap) -> Option<Response<Full<Bytes>>> {
        let answer = match path {
            "/" => text("text/html; charset=utf-8", PAGE),
            "/page.css" => text("text/css; charset=utf-8", STYLE),
            "/page.js" => text("text/javascript; charset=utf-8", SCRIPT),
            path => {
                let (status, log_text) = self.recorder.readiness().probe(path)?;
                let mut response = text(PLAIN, log_text);
                *response.status_mut() = status;
                response
            }
        };
        Some(self.access.check_host(headers).map_or_else(refused, |()| answer))
    }

    async fn private<B>(&self, parts: &Parts, body: B, caller: &Caller) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BodyError>,
    {
        let path: Vec<&str> = parts.uri.path().split('/').skip(1).collect();
        let query = parts.uri.query().unwrap_or_default();
        let reads = parts.method == Method::GET || parts.method == Method::HEAD;
        let posts = parts.method == Method::POST;
        let answer = match path.as_slice() {
            ["metrics"] if reads => return self.metrics(&parts.headers),
            ["api", "overview"] if reads => Ok(self.overview()),
            ["api", "records"] if reads => self.records(query).await,
            ["api", "records", id] if reads => self.record(id).await,
            ["api", "search"] if posts => match read(body).await {
                Ok(json) => self.search(&json).await,
                Err(problem) => Err(problem),
            },
            ["api", "records", id, action] if posts => match read(body).await {
                Ok(json) => self.act(id, action, &json, caller).await,
                Err(problem) => Err(problem),
            },
            ["metrics"] | ["api", "overview" | "records"] | ["api", "records", _] => {
                return only("GET, HEAD");
            }
            ["api", "search"] | ["api", "records", _, _] => return only("POST"),
            _ => Err(ApiProblem::new(StatusCode::NOT_FOUND, "Not found.")),
        };
        answer.map_or_else(ApiProblem::into_response, |value| json_text("application/json", &value))
    }

    /// Returns the metrics, as OpenMetrics text for readers that ask for it.
    fn metrics(&self, headers: &http::HeaderMap) -> Response<Full<Bytes>> {
        let takes_openmetrics = headers.get_all(ACCEPT).iter().any(|line| {
            line.to_str().is_ok_and(|line| line.contains("application/openmetrics-text"))
        });
        let content_type = if takes_openmetrics { OPENMETRICS } else { METRICS };
        let text = self.recorder.metrics().map(|metrics| match takes_openmetrics {
            true => metrics.text(&self.current_values()),
            false => metrics.plain_text(&self.current_values()),
        });
        match text {
            Some(Ok(text)) => self::text(content_type, text),
            _ => {
                ApiProblem::new(StatusCode::INTERNAL_SERVER_ERROR, "The metrics cannot be encoded.")
                    .into_response()
            }
        }
    }

    pub(super) fn table(&self) -> Arc<RoutingTable> {
        Arc::clone(&self.tables.borrow())
    }

    pub(super) fn current_values(&self) -> CurrentValues {
        let health = self.recorder.readiness();
        let mut current_values = CurrentValues {
            store: health.store(),
            report: health.report(),
            store_refused: health.is_store_refused(),
            draining: health.is_draining(),
            uptime: health.uptime(),
            ..CurrentValues::default()
        };
        let table = self.table();
        current_values.spooled = table.spooled();
        current_values.addresses =
            table.upstreams().flat_map(|upstream| upstream.addresses()).collect();
        let key_sets = table.key_sets().iter();
        current_values.key_sets =
            key_sets.map(|it| (it.config().url.clone(), it.count(), it.age())).collect();
        current_values.spans_dropped = self.recorder.traces().dropped();
        if let Some(near) = table.store.inner().near_cache() {
            (current_values.near_bytes, current_values.near_hits) = (near.bytes(), near.hits());
        }
        for load in table.loads() {
            current_values.executing += load.executing;
            current_values.waiting += load.waiting;
            current_values.unconfirmed += load.unconfirmed;
        }
        current_values
    }
}

impl ApiProblem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let title = self.status.canonical_reason().unwrap_or("Refused");
        let status = self.status.as_u16();
        let document = json!({ "title": title, "status": status, "detail": self.detail });
        let mut response = json_text("application/problem+json", &document);
        *response.status_mut() = self.status;
        response
    }
}

fn refused(refusal: AccessDenied) -> Response<Full<Bytes>> {
    let mut response = ApiProblem::new(refusal.status(), refusal.detail()).into_response();
    if refusal == AccessDenied::Unauthorized {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn only(methods: &'static str) -> Response<Full<Bytes>> {
    let problem = ApiProblem::new(StatusCode::METHOD_NOT_ALLOWED, format!("Use {methods}."));
    let mut response = problem.into_response();
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}

async fn read<B>(body: B) -> Result<Value, ApiProblem>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BodyError>,
{
    let bad = |text: &str| ApiProblem::new(StatusCode::BAD_REQUEST, text);
    let whole = timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    let whole = whole.map_err(|_| bad("The body arrived too slowly."))?;
    let whole = whole.map_err(|_| bad("The body exceeds 2 MiB or is incomplete."))?;
    serde_json::from_slice(&whole.to_bytes()).map_err(|_| bad("The body is not valid JSON."))
}

fn text(kind: &'static str, content: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(content.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn json_text(kind: &'static str, value: &Value) -> Response<Full<Bytes>> {
    text(kind, value.to_string())
}

/// Sets the fields that protect an operator's browser.
fn protect(response: &mut Response<Full<Bytes>>) {
    let lines = [
        (CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in lines {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
}

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
const PLAIN: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";
/// The default limit of a stored response, with some overhead for JSON.
const BODY_BYTES_MAX: usize = 2 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
