//! A collector: what it was sent, decoded.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use crate::support::hyper_service::{HyperService, full};

/// Takes spans.
#[derive(Clone, Debug)]
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    sent: Arc<Mutex<Sent>>,
}

#[derive(Debug, Default)]
struct Sent {
    headers: Vec<(String, HeaderMap)>,
    resources: Vec<Vec<KeyValue>>,
    spans: Vec<Span>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let sent = Arc::new(Mutex::new(Sent::default()));
        let taking = Arc::clone(&sent);
        let service = HyperService::start(move |_, request| {
            let taking = Arc::clone(&taking);
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let batch = ExportTraceServiceRequest::decode(body).unwrap();
                let mut sent = taking.lock().unwrap();
                sent.headers.push((parts.uri.path().to_owned(), parts.headers));
                for resource in batch.resource_spans {
                    sent.resources.push(resource.resource.unwrap().attributes);
                    let scopes = resource.scope_spans.into_iter();
                    sent.spans.extend(scopes.flat_map(|scope| scope.spans));
                }
                Response::new(full(""))
            }
        });
        Self { address: service.await.address, sent }
    }

    /// A configuration's table that sends everything here.
    pub(crate) fn table(&self) -> String {
        format!("[traces]\nendpoint = \"http://{}\"\n", self.address)
    }

    /// Every span so far, in the order of their beginnings.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let mut spans = self.sent.lock().unwrap().spans.clone();
        spans.sort_by_key(|span| span.start_time_unix_nano);
        spans
    }

    /// Paths and headers of what it was sent.
    pub(crate) fn headers(&self) -> Vec<(String, HeaderMap)> {
        self.sent.lock().unwrap().headers.clone()
    }

    /// Returns an attribute of the sender.
    pub(crate) fn resource(&self, name: &str) -> Option<String> {
        found(self.sent.lock().unwrap().resources.first()?, name)
    }
}

/// Accessors of a span.
pub(crate) trait Shown {
    fn attribute(&self, name: &str) -> Option<String>;
    fn trace(&self) -> String;
    fn id(&self) -> String;
    fn parent(&self) -> String;
    fn is_error(&self) -> bool;
}

impl Shown for Span {
    fn attribute(&self, name: &str) -> Option<String> {
        found(&self.attributes, name)
    }

    fn trace(&self) -> String {
        hexadecimal(&self.trace_id)
    }

    fn id(&self) -> String {
        hexadecimal(&self.span_id)
    }

    fn parent(&self) -> String {
        hexadecimal(&self.parent_span_id)
    }

    fn is_error(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.code == 2)
    }
}

/// The only span of a name.
#[track_caller]
pub(crate) fn only<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let named: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(named.len(), 1, "{name} in {:?}", names(spans));
    named[0]
}

pub(crate) fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

fn found(attributes: &[KeyValue], name: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == name)?;
    match attribute.value.as_ref()? {
        AnyValue { value: Some(Value::StringValue(text)) } => Some(text.clone()),
        AnyValue { value: Some(Value::IntValue(number)) } => Some(number.to_string()),
        other => panic!("{name} is {other:?}"),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
