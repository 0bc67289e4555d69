//! The export of spans: OTLP over HTTP, in batches, from a background thread.
//!
//! A slow or unavailable collector costs spans, never requests: the number of waiting spans is
//! limited.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span, SpanData,
    SpanExporter, SpanProcessor,
};
use tokio::runtime::Handle;

use crate::config::Traces;
use crate::error::StartError;
use crate::error::error_text;

/// Exports spans until it is shut down.
#[derive(Debug)]
pub(super) struct ExportPipeline {
    provider: SdkTracerProvider,
    queue: Arc<SpanBudget>,
}

impl ExportPipeline {
    pub(super) fn start(config: &Traces) -> Result<Self, StartError> {
        let queue = Arc::new(SpanBudget { max: config.queue_max, ..SpanBudget::default() });
        let exporter = CountingExporter { exporter: exporter(config)?, queue: Arc::clone(&queue) };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(config.queue_max)
            .with_max_export_batch_size(config.queue_max.min(BATCH_MAX))
            .build();
        let batches = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let processor = BoundedProcessor { batches, queue: Arc::clone(&queue) };
        let builder = SdkTracerProvider::builder()
            .with_resource(resource(config))
            .with_span_processor(processor);
        let builder = match config.sample_ratio {
            // From the environment, or else every request.
            None => builder,
            Some(ratio) => builder
                .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio)))),
        };
        Ok(Self { provider: builder.build(), queue })
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.provider.tracer("idemptx")
    }

    /// The number of spans that were not exported.
    pub(super) fn dropped(&self) -> u64 {
        self.queue.dropped.load(Ordering::Relaxed)
    }

    /// Exports the remaining spans, within a time limit.
    pub(super) async fn shutdown(&self) {
        let provider = self.provider.clone();
        let ending = move || provider.shutdown_with_timeout(SHUTDOWN_MAX);
        if !matches!(tokio::task::spawn_blocking(ending).await, Ok(Ok(()))) {
            tracing::warn!("the final spans were not exported in time");
        }
    }

    /// Stops at once; remaining spans are lost.
    pub(super) fn abandon(&self) {
        self.queue.abandoned.store(true, Ordering::Relaxed);
    }
}

/// Builds the exporter.
pub(super) fn exporter(config: &Traces) -> Result<opentelemetry_otlp::SpanExporter, StartError> {
    let tls = crate::tls::client(config.ca.as_deref()).map_err(StartError::Tls)?;
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let client = HyperClient::new(connector.enable_http1().build(), config.timeout, None);
    let http_client =
        OtlpHttpClient { client, runtime: Handle::current(), failing: AtomicBool::new(false) };
    let headers = config.headers.iter();
    let headers = headers.filter_map(|(name, value)| {
        Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
    });
    let mut builder = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(http_client)
        .with_headers(headers.collect())
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(config.timeout);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.to_string());
    }
    builder.build().map_err(|error| StartError::Traces(Box::new(error)))
}

/// The service's name and version, from the configuration or the environment.
fn resource(config: &Traces) -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let builder = Resource::builder().with_attribute(version);
    let found = Resource::builder().build().get(&Key::new("service.name"));
    match (&config.service_name, found) {
        (Some(name), _) => builder.with_service_name(name.clone()),
        (None, Some(name)) if !name.as_str().starts_with("unknown_service") => builder,
        _ => builder.with_service_name("idemptx"),
    }
    .build()
}

/// Counts waiting and dropped spans.
#[derive(Debug, Default)]
struct SpanBudget {
    max: usize,
    waiting: AtomicUsize,
    dropped: AtomicU64,
    abandoned: AtomicBool,
}

impl SpanBudget {
    fn try_reserve(&self) -> bool {
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.max {
            return true;
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.dropped.fetch_add(1, Ordering::Relaxed);
        false
    }

    fn release(&self, spans: usize, exported: bool) {
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        if !exported {
            self.dropped.fetch_add(spans as u64, Ordering::Relaxed);
        }
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }
}

/// Limits the waiting spans and counts the others; the library's own queue drops them silently.
#[derive(Debug)]
struct BoundedProcessor {
    batches: BatchSpanProcessor,
    queue: Arc<SpanBudget>,
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.queue.try_reserve() {
            self.batches.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        // Waiting would block the thread that drops the last span.
        match self.queue.is_abandoned() {
            true => Ok(()),
            false => self.batches.shutdown_with_timeout(timeout),
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Counts the spans that the collector did not accept.
#[derive(Debug)]
struct CountingExporter {
    exporter: opentelemetry_otlp::SpanExporter,
    queue: Arc<SpanBudget>,
}

impl SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exported = match self.queue.is_abandoned() {
            true => Err(OTelSdkError::AlreadyShutdown),
            false => self.exporter.export(batch).await,
        };
        self.queue.release(spans, exported.is_ok());
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Sends batches on the gateway's runtime, since the exporting thread has none.
struct OtlpHttpClient {
    client: HyperClient<HttpsConnector<HttpConnector>>,
    runtime: Handle,
    failing: AtomicBool,
}

impl OtlpHttpClient {
    /// Logs when exports begin to fail, and when they succeed again.
    fn log_transition(&self, answer: &Result<Response<Bytes>, HttpError>) {
        let trouble = match answer {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("the collector answered {}", response.status())),
            Err(error) => Some(error_text(&**error)),
        };
        if self.failing.swap(trouble.is_some(), Ordering::Relaxed) == trouble.is_some() {
            return;
        }
        match trouble {
            Some(trouble) => tracing::warn!("traces cannot be exported: {trouble}"),
            None => tracing::info!("traces are exported again"),
        }
    }
}

impl HttpClient for OtlpHttpClient {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let client = self.client.clone();
        let sending = self.runtime.spawn(async move { client.send_bytes(request).await });
        Box::pin(async move {
            let answer = sending.await.map_err(HttpError::from).flatten();
            self.log_transition(&answer);
            answer
        })
    }
}

impl fmt::Debug for OtlpHttpClient {
    /// Omits the headers, which may hold a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Courier").finish_non_exhaustive()
    }
}

/// The maximum number of spans in a request to the collector.
const BATCH_MAX: usize = 512;
/// The time limit of the final export.
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);
