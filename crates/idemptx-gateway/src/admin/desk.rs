//! Where an operator's request goes, and what every answer has.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue,
    REFERRER_POLICY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use idemptx::Policy;
use idemptx::tower::BodyError;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::auth::{Gate, Refusal, actor};
use crate::config::Admin;
use crate::metrics::Now;
use crate::observe::Observer;
use crate::proxy::Plan;

/// Answers operators.
pub(crate) struct Desk {
    gate: Gate,
    plans: watch::Receiver<Arc<Plan>>,
    pub(super) observer: Arc<Observer>,
}

/// What is answered, as JSON, or why not.
pub(super) type Answer = Result<Value, Problem>;

/// Why a call has no result: an RFC 9457 document.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) detail: String,
}

/// Who asks for a change, for the audit.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) address: IpAddr,
    pub(super) name: String,
}

impl Desk {
    pub(crate) fn new(
        config: &Admin,
        plans: watch::Receiver<Arc<Plan>>,
        observer: Arc<Observer>,
    ) -> Self {
        Self { gate: Gate::new(config.token.as_deref()), plans, observer }
    }

    /// Answers a request.
    ///
    /// # Security
    ///
    /// Bodies are limited in size and time; what is not admitted is not read at all.
    pub(crate) async fn answer<B>(&self, peer: IpAddr, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BodyError>,
    {
        let (parts, body) = request.into_parts();
        let reads = parts.method == Method::GET || parts.method == Method::HEAD;
        let mut response = match self.public(parts.uri.path(), &parts.headers) {
            Some(response) if reads => response,
            Some(_) => only("GET, HEAD"),
            None => match self.gate.admit(&parts.method, &parts.headers) {
                Err(refusal) => {
                    tracing::info!(target: "idemptx::audit", from = %peer, "{}", refusal.told());
                    refused(refusal)
                }
                Ok(()) => {
                    let name = actor(&parts.headers).to_owned();
                    self.private(&parts, body, &Asker { address: peer, name }).await
                }
            },
        };
        protect(&mut response);
        response
    }

    /// What everybody who comes here may have: the page, which holds no data, and the probes.
    fn public(&self, path: &str, headers: &http::HeaderMap) -> Option<Response<Full<Bytes>>> {
        let answer = match path {
            "/" => text("text/html; charset=utf-8", PAGE),
            "/page.css" => text("text/css; charset=utf-8", STYLE),
            "/page.js" => text("text/javascript; charset=utf-8", SCRIPT),
            path => {
                let (status, told) = self.observer.health().probe(path)?;
                let mut response = text(PLAIN, told);
                *response.status_mut() = status;
                response
            }
        };
        Some(self.gate.is_ours(headers).map_or_else(refused, |()| answer))
    }

    async fn private<B>(
        &self,
        parts: &http::request::Parts,
        body: B,
        asker: &Asker,
    ) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BodyError>,
    {
        let path: Vec<&str> = parts.uri.path().split('/').skip(1).collect();
        let query = parts.uri.query().unwrap_or_default();
        let reads = parts.method == Method::GET || parts.method == Method::HEAD;
        let posts = parts.method == Method::POST;
        let answer = match path.as_slice() {
            ["metrics"] if reads => return self.metrics(),
            ["api", "overview"] if reads => Ok(self.overview()),
            ["api", "records"] if reads => self.records(query).await,
            ["api", "records", id] if reads => self.record(id).await,
            ["api", "search"] if posts => match read(body).await {
                Ok(json) => self.search(&json).await,
                Err(problem) => Err(problem),
            },
            ["api", "records", id, action] if posts => match read(body).await {
                Ok(json) => self.act(id, action, &json, asker).await,
                Err(problem) => Err(problem),
            },
            ["metrics"] | ["api", "overview" | "records"] | ["api", "records", _] => {
                return only("GET, HEAD");
            }
            ["api", "search"] | ["api", "records", _, _] => return only("POST"),
            _ => Err(Problem::new(StatusCode::NOT_FOUND, "There is nothing here.")),
        };
        answer.map_or_else(Problem::into_response, |value| json_text("application/json", &value))
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let text = self.observer.metrics().map(|metrics| metrics.text(&self.now()));
        match text {
            Some(Ok(text)) => self::text(OPENMETRICS, text),
            _ => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "The metrics cannot be written.")
                .into_response(),
        }
    }

    pub(super) fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plans.borrow())
    }

    pub(super) fn now(&self) -> Now {
        let health = self.observer.health();
        let mut now =
            Now { store: health.store(), draining: health.is_draining(), ..Now::default() };
        let plan = self.plan();
        now.spooled = plan.spooled();
        now.addresses = plan
            .upstreams()
            .flat_map(|upstream| {
                let name = &upstream.config.name;
                upstream.standing().map(|(it, is_up)| (name.clone(), it.to_string(), is_up))
            })
            .collect();
        now.spans_dropped = self.observer.traces().dropped();
        if let Some(near) = plan.store.inner().near_cache() {
            (now.near_bytes, now.near_hits) = (near.bytes(), near.hits());
        }
        let mut counted: Vec<&Policy> = Vec::new();
        for engine in plan.engines() {
            // Routes may share an engine, after a reload.
            if counted.iter().any(|of| std::ptr::eq(*of, engine.policy())) {
                continue;
            }
            counted.push(engine.policy());
            let load = engine.load();
            now.executing += load.executing;
            now.waiting += load.waiting;
            now.unconfirmed += load.unconfirmed;
        }
        now
    }
}

impl Problem {
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

fn refused(refusal: Refusal) -> Response<Full<Bytes>> {
    let mut response = Problem::new(refusal.status(), refusal.detail()).into_response();
    if refusal == Refusal::Unauthorized {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn only(methods: &'static str) -> Response<Full<Bytes>> {
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("Use {methods}."));
    let mut response = problem.into_response();
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}

async fn read<B>(body: B) -> Answer
where
    B: Body<Data = Bytes>,
    B::Error: Into<BodyError>,
{
    let bad = |text: &str| Problem::new(StatusCode::BAD_REQUEST, text);
    let whole = timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    let whole = whole.map_err(|_| bad("The body came too slowly."))?;
    let whole = whole.map_err(|_| bad("The body is larger than 2 MiB, or broke off."))?;
    serde_json::from_slice(&whole.to_bytes()).map_err(|_| bad("The body is no JSON."))
}

fn text(kind: &'static str, content: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(content.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn json_text(kind: &'static str, value: &Value) -> Response<Full<Bytes>> {
    text(kind, value.to_string())
}

/// What keeps a browser from being turned against an operator.
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
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";
/// An answer to be stored may be as large as a policy allows by default, and some more for JSON.
const BODY_BYTES_MAX: usize = 2 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
