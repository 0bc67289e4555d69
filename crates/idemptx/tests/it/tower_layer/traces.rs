//! Spans and events for `tracing`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use http::Request;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::{app, engine};
use crate::support::http_client::{post, send};

#[tokio::test]
async fn an_execution_has_a_span_and_each_outcome_an_event() {
    let recorder = Recorder::default();
    let _guard = tracing::subscriber::set_default(recorder.clone());
    let engine = engine(|policy| policy);
    let (app, _) = app(&engine, async |_: Request<Body>| {
        tracing::info!(target: "shop", "charged");
        "done"
    });
    for _ in 0..2 {
        send(&app, post("k")).await;
    }
    let seen = recorder.seen.lock().unwrap();
    let line = |at: usize, name: &str| seen[at].1.get(name).map(String::as_str);
    let names: Vec<_> = seen.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["execution", "shop in execution", "idemptx", "idemptx"]);
    assert_eq!((line(0, "attempt"), line(2, "attempt")), (Some("1"), Some("1")));
    assert_eq!(
        (line(2, "outcome"), line(3, "outcome")),
        (Some("\"executed\""), Some("\"replayed\""))
    );
    assert!(line(0, "record").is_some_and(|id| line(3, "record") == Some(id)));
    assert_eq!(line(3, "monotonic_counter.idemptx_requests"), Some("1"));
}

/// The names and fields of spans and events.
type Seen = Vec<(String, BTreeMap<String, String>)>;

/// Records the spans and events of the library and of the test.
#[derive(Clone, Debug, Default)]
struct Recorder {
    seen: Arc<Mutex<Seen>>,
    spans: Arc<AtomicU64>,
    entered: Arc<Mutex<Vec<u64>>>,
}

impl Subscriber for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        ["idemptx", "shop"].contains(&metadata.target())
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields::default();
        span.record(&mut fields);
        self.seen.lock().unwrap().push((span.metadata().name().to_owned(), fields.0));
        Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let is_inside = !self.entered.lock().unwrap().is_empty();
        let place = if is_inside { " in execution" } else { "" };
        let name = format!("{}{place}", event.metadata().target());
        self.seen.lock().unwrap().push((name, fields.0));
    }

    fn enter(&self, span: &Id) {
        self.entered.lock().unwrap().push(span.into_u64());
    }

    fn exit(&self, _: &Id) {
        self.entered.lock().unwrap().pop();
    }
}

#[derive(Default)]
struct Fields(BTreeMap<String, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}
