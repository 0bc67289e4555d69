//! The spans and their attributes: HTTP's semantic conventions, and those of the gateway.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Version};
use idemptx::Outcome;
use idemptx_core::lease::Lease;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, TraceFlags,
    Tracer as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, Span};

use super::context::{Instrumented, TraceContext};
use super::export::{self, ExportPipeline};
use super::lease_spans::LeaseSpans;
use crate::config;
use crate::config::{Origin, Pattern};
use crate::error::StartError;
use crate::network::ClientAddress;
use crate::observation::{CompletedRequest, short_id};
use crate::observation::{StoreOperation, StoreResult, UpstreamResult};

/// Starts and exports spans, if traces are configured.
#[derive(Debug)]
pub(crate) struct Tracer(Option<Arc<TracerState>>);

/// Shared by everything that starts spans; reachable through a trace context.
#[derive(Debug)]
struct TracerState {
    tracer: SdkTracer,
    lease_spans: LeaseSpans,
    export: ExportPipeline,
}

impl Tracer {
    /// Returns a tracer without effect.
    pub(crate) const fn disabled() -> Self {
        Self(None)
    }

    /// Starts the export.
    pub(crate) fn start(config: Option<&config::Traces>) -> Result<Self, StartError> {
        let Some(config) = config else { return Ok(Self::disabled()) };
        let export = ExportPipeline::start(config)?;
        let (tracer, lease_spans) = (export.tracer(), LeaseSpans::default());
        Ok(Self(Some(Arc::new(TracerState { tracer, lease_spans, export }))))
    }

    /// Validates the configuration.
    pub(crate) fn check(config: Option<&config::Traces>) -> Result<(), StartError> {
        config.map(export::exporter).transpose().map(drop)
    }

    /// Starts the span of a client's request, as a child of the client's span.
    ///
    /// # Security
    ///
    /// A client can request that its request be sampled, as W3C Trace Context specifies.
    pub(crate) fn start_request<B>(
        &self,
        request: &mut Request<B>,
        scheme: &'static str,
        client: ClientAddress,
    ) -> RequestSpan {
        let Some(tracing) = &self.0 else { return RequestSpan::default() };
        let parent = parent(request.headers_mut());
        let builder = SpanBuilder::from_name(name(request.method())).with_kind(SpanKind::Server);
        let mut span = tracing.tracer.build_with_context(builder, &parent);
        if span.is_recording() {
            span.set_attributes([
                KeyValue::new("http.request.method", known_method(request.method())),
                KeyValue::new("url.scheme", scheme),
                KeyValue::new("url.path", request.uri().path().to_owned()),
                KeyValue::new("network.protocol.version", version(request.version())),
                KeyValue::new("client.address", client.to_string()),
            ]);
        }
        let context = Context::new().with_value(Arc::clone(tracing)).with_span(span);
        let context = TraceContext(Some(context));
        context.attach_to(request.extensions_mut());
        RequestSpan { context, name: name(request.method()) }
    }

    /// Starts the span of a store operation, as a child of the lease's holder or the current span.
    pub(crate) fn start_step(&self, operation: StoreOperation, lease: Option<&Lease>) -> StoreSpan {
        let Some(tracing) = &self.0 else { return StoreSpan(None) };
        let holder = lease.and_then(|lease| tracing.lease_spans.span_of(lease));
        StoreSpan(holder.or_else(current).map(|span| {
            let builder = SpanBuilder::from_name(operation.as_str());
            let parent = Context::new().with_remote_span_context(span);
            Box::new(tracing.tracer.build_with_context(builder, &parent))
        }))
    }

    /// Notes that the current request acquired a lease.
    pub(crate) fn lease_granted(&self, lease: &Lease) {
        if let Some(tracing) = &self.0
            && let Some(span) = current()
        {
            tracing.lease_spans.insert(lease, span);
        }
    }

    /// Notes that a lease was settled, released or lost.
    pub(crate) fn lease_ended(&self, lease: &Lease) {
        if let Some(tracing) = &self.0 {
            tracing.lease_spans.remove(lease);
        }
    }

    /// The number of spans that were not exported.
    pub(crate) fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |tracing| tracing.export.dropped())
    }

    /// Exports the remaining spans, within a time limit.
    pub(crate) async fn end(&self) {
        if let Some(tracing) = &self.0 {
            tracing.export.shutdown().await;
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if let Some(tracing) = &self.0 {
            tracing.export.abandon();
        }
    }
}

/// The span of a client's request.
#[derive(Debug, Default)]
pub(crate) struct RequestSpan {
    context: TraceContext,
    /// The name until the route is known.
    name: &'static str,
}

impl RequestSpan {
    /// Adds the route.
    pub(crate) fn routed(&self, path: &Pattern, route: &Arc<str>) {
        let Some(context) = &self.context.0 else { return };
        let span = context.span();
        if span.is_recording() {
            let path = path.to_string();
            span.update_name(format!("{} {path}", self.name));
            span.set_attribute(KeyValue::new("http.route", path));
            span.set_attribute(KeyValue::new("idemptx.route", Arc::clone(route)));
        }
    }

    /// Runs a future within the span.
    pub(crate) fn instrument<F>(&self, future: F) -> Instrumented<F> {
        self.context.instrument(future)
    }

    /// Ends the span of a completed request.
    pub(crate) fn end(mut self, completed: &CompletedRequest<'_>) {
        let Some(context) = self.context.0.take() else { return };
        let span = context.span();
        if span.is_recording() {
            span.set_attribute(status(completed.status));
            let (outcome, reason) = completed.labels();
            span.set_attribute(KeyValue::new("idempotency.outcome", outcome));
            if !reason.is_empty() {
                span.set_attribute(KeyValue::new("idempotency.reason", reason));
            }
            if let Some(Outcome::Executed { attempt, .. } | Outcome::Fenced { attempt, .. }) =
                completed.outcome
            {
                span.set_attribute(KeyValue::new("idempotency.attempt", i64::from(*attempt)));
            }
            if let Some(record) = completed.record {
                span.set_attribute(KeyValue::new("idempotency.key.hash", short_id(record)));
            }
            if completed.status >= 500 {
                span.set_attribute(KeyValue::new(ERROR, completed.status.to_string()));
                span.set_status(Status::error(""));
            }
        }
        span.end();
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        if let Some(context) = &self.context.0 {
            context.span().set_attribute(KeyValue::new(ERROR, "client-gone"));
            context.span().end();
        }
    }
}

/// The span of a request to an upstream address.
#[derive(Debug)]
pub(crate) struct UpstreamSpan(Option<Box<Span>>);

impl UpstreamSpan {
    /// Starts the span, and propagates it; `resent` is the number of earlier attempts.
    pub(crate) fn begin<B>(
        upstream: &str,
        origin: &Origin,
        resent: usize,
        request: &mut Request<B>,
    ) -> Self {
        let here = Context::map_current(|it| Some((Arc::clone(it.get()?), it.clone())));
        let Some((tracing, context)): Option<(Arc<TracerState>, _)> = here else {
            return Self(None);
        };
        let method = known_method(request.method());
        let builder = SpanBuilder::from_name(name(request.method())).with_kind(SpanKind::Client);
        let mut span = tracing.tracer.build_with_context(builder, &context);
        inject(request.headers_mut(), span.span_context());
        if !span.is_recording() {
            return Self(None);
        }
        let path = request.uri().path();
        let (scheme, authority) = (origin.scheme(), &origin.authority);
        let server = match &origin.socket {
            Some(socket) => socket.display().to_string(),
            None => authority.host().to_owned(),
        };
        span.set_attributes([
            KeyValue::new("http.request.method", method),
            KeyValue::new("url.full", format!("{scheme}://{authority}{path}")),
            KeyValue::new("server.address", server),
            KeyValue::new("idemptx.upstream", upstream.to_owned()),
        ]);
        if origin.socket.is_none() {
            span.set_attribute(KeyValue::new("server.port", i64::from(origin.port())));
        }
        if let Ok(resent @ 1..) = i64::try_from(resent) {
            span.set_attribute(KeyValue::new("http.request.resend_count", resent));
        }
        Self(Some(Box::new(span)))
    }

    /// Ends the span.
    pub(crate) fn end(mut self, answer: UpstreamResult) {
        let Some(mut span) = self.0.take() else { return };
        match answer {
            UpstreamResult::Status(code) => {
                span.set_attribute(status(code.as_u16()));
                if code.is_client_error() || code.is_server_error() {
                    span.set_attribute(KeyValue::new(ERROR, code.as_u16().to_string()));
                    span.set_status(Status::error(""));
                }
            }
            lost => {
                span.set_attribute(KeyValue::new(ERROR, lost.as_str()));
                span.set_status(Status::error(""));
            }
        }
    }
}

impl Drop for UpstreamSpan {
    fn drop(&mut self) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(ERROR, "client-gone"));
        }
    }
}

/// The span of a store operation.
#[derive(Debug)]
pub(crate) struct StoreSpan(Option<Box<Span>>);

impl StoreSpan {
    pub(crate) fn is_recording(&self) -> bool {
        self.0.is_some()
    }

    /// Ends the span.
    pub(crate) fn end(mut self, result: StoreResult) {
        let Some(mut span) = self.0.take() else { return };
        span.set_attribute(KeyValue::new("idempotency.store.result", result.as_str()));
        if let StoreResult::Failed(_) = result {
            span.set_attribute(KeyValue::new(ERROR, result.as_str()));
            span.set_status(Status::error(""));
        }
    }
}

impl Drop for StoreSpan {
    fn drop(&mut self) {
        // Dropped before a result: timed out, or its client disconnected.
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(ERROR, "given-up"));
        }
    }
}

/// Returns the current span, if it is sampled.
fn current() -> Option<SpanContext> {
    let span = Context::map_current(|context| context.span().span_context().clone());
    span.is_sampled().then_some(span)
}

/// Extracts the client's span (W3C Trace Context); an invalid one is removed with its state.
fn parent(headers: &mut HeaderMap) -> Context {
    let is_single = headers.get_all(TRACEPARENT).iter().nth(1).is_none();
    let extracted = match is_single {
        true => TraceContextPropagator::new()
            .extract_with_context(&Context::new(), &HeaderExtractor(headers)),
        false => Context::new(),
    };
    if !extracted.span().span_context().is_valid() {
        headers.remove(TRACEPARENT);
        headers.remove(TRACESTATE);
    }
    extracted
}

/// Propagates a span; the trace state passes through unchanged.
fn inject(headers: &mut HeaderMap, span: &SpanContext) {
    let (trace, id, flags) = (span.trace_id(), span.span_id(), span.trace_flags());
    let text = format!("00-{trace}-{id}-{:02x}", flags & TraceFlags::SAMPLED);
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(TRACEPARENT, value);
    }
}

fn status(code: u16) -> KeyValue {
    KeyValue::new("http.response.status_code", i64::from(code))
}

/// Returns a known method; span names must not depend on client input.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => "_OTHER",
    }
}

/// The method's part of a span name.
fn name(method: &Method) -> &'static str {
    match known_method(method) {
        "_OTHER" => "HTTP",
        known => known,
    }
}

const fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const ERROR: &str = "error.type";
