//! The application: middleware around the layer, middleware inside it, and a handler.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{OriginalUri, Request};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use idemptx::store::MemoryStore;
use idemptx::tower::IdempotencyLayer;
use proptest::prelude::*;
use tower::limit::ConcurrencyLimitLayer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::set_header::SetResponseHeaderLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

#[derive(Clone, Debug)]
pub(super) struct Application {
    pub(super) outside: Vec<Wrap>,
    pub(super) inside: Vec<Wrap>,
    pub(super) nested: bool,
    pub(super) handler: Handler,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Wrap {
    Timeout(u16),
    TaskLocal,
    Span,
    BodyLimit,
    Cors,
    OneAtATime,
    CatchPanic,
    Header,
}

#[derive(Clone, Debug)]
pub(super) struct Handler {
    pub(super) pauses: Vec<u16>,
    pub(super) reads_body: bool,
    pub(super) ending: Ending,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    Answers { status: u16, bytes: usize },
    Streams { chunks: u8, pause: u16 },
    BreaksOff { chunks: u8 },
    Panics,
}

/// A started application.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) router: Router,
    counts: Counts,
}

impl Running {
    pub(super) fn runs(&self) -> usize {
        self.counts.0.lock().unwrap().runs
    }

    pub(super) fn is_idle(&self) -> bool {
        self.counts.0.lock().unwrap().running.values().all(|running| *running == 0)
    }

    pub(super) fn ran_one_key_twice_at_once(&self) -> bool {
        self.counts.0.lock().unwrap().met
    }
}

impl Application {
    pub(super) fn start(&self, layer: Option<IdempotencyLayer<MemoryStore>>) -> Running {
        let counts = Counts::default();
        let handler = self.handler.clone();
        let counted = counts.clone();
        let endpoint = routing::any(move |request: Request| {
            let (handler, counts) = (handler.clone(), counted.clone());
            async move { handler.handle(request, counts).await }
        });
        let mut router = Router::new().route("/orders/{id}", endpoint);
        for wrap in &self.inside {
            router = wrap.around(router);
        }
        if let Some(layer) = layer {
            router = router.layer(layer);
        }
        for wrap in &self.outside {
            router = wrap.around(router);
        }
        if self.nested {
            router = Router::new().nest("/tenants/{tenant}", router);
        }
        Running { router, counts }
    }
}

impl Wrap {
    fn around(self, router: Router) -> Router {
        match self {
            Self::Timeout(millis) => {
                let after = Duration::from_millis(millis.into());
                router.layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, after))
            }
            Self::TaskLocal => router.layer(middleware::from_fn(|request: Request, next: Next| {
                USER.scope("alice", next.run(request))
            })),
            Self::Span => router.layer(TraceLayer::new_for_http()),
            Self::BodyLimit => router.layer(RequestBodyLimitLayer::new(BODY_LIMIT)),
            Self::Cors => router.layer(CorsLayer::permissive()),
            Self::OneAtATime => router.layer(ConcurrencyLimitLayer::new(1)),
            Self::CatchPanic => router.layer(CatchPanicLayer::new()),
            Self::Header => router.layer(SetResponseHeaderLayer::overriding(
                HeaderName::from_static("x-wrapped"),
                HeaderValue::from_static("yes"),
            )),
        }
    }

    pub(super) fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            (1..400_u16).prop_map(Self::Timeout),
            Just(Self::TaskLocal),
            Just(Self::Span),
            Just(Self::BodyLimit),
            Just(Self::Cors),
            Just(Self::OneAtATime),
            Just(Self::CatchPanic),
            Just(Self::Header),
        ]
    }
}

impl Handler {
    async fn handle(self, request: Request, counts: Counts) -> Response {
        let (parts, body) = request.into_parts();
        let key = parts.headers.get("idempotency-key").map(|key| key.as_bytes().to_vec());
        let run = counts.begin(key);
        let OriginalUri(uri) = parts.extensions.get().cloned().unwrap();
        for pause in &self.pauses {
            tokio::time::sleep(Duration::from_millis((*pause).into())).await;
        }
        let read = if self.reads_body {
            body.collect().await.map(|body| body.to_bytes().len().to_string())
        } else {
            Ok("unread".to_owned())
        };
        let Ok(read) = read else { return StatusCode::PAYLOAD_TOO_LARGE.into_response() };
        let user = USER.try_with(|user| *user).unwrap_or("nobody");
        let said = format!("{} {uri} {read} {user}", parts.method);
        let headers = [("x-run", run.number.to_string()), ("content-type", "text/x-said".into())];
        match self.ending {
            Ending::Answers { status, bytes } => {
                let status = StatusCode::from_u16(status).unwrap();
                (status, headers, said + &"-".repeat(bytes)).into_response()
            }
            Ending::Streams { chunks, pause } => {
                let body =
                    Body::new(Chunks { left: chunks, said, pause, breaks_off: false }.body());
                (headers, body).into_response()
            }
            Ending::BreaksOff { chunks } => {
                let body = Chunks { left: chunks, said, pause: 1, breaks_off: true }.body();
                (headers, Body::new(body)).into_response()
            }
            Ending::Panics => panic!("as the application wants it"),
        }
    }

    pub(super) fn any() -> impl Strategy<Value = Self> {
        let statuses = prop::sample::select(vec![200, 201, 303, 401, 404, 410, 422, 429, 500, 503]);
        let ending = prop_oneof![
            6 => (statuses, prop::sample::select(vec![0, 10, 70_000]))
                .prop_map(|(status, bytes)| Ending::Answers { status, bytes }),
            2 => (0..4_u8, 0..50_u16)
                .prop_map(|(chunks, pause)| Ending::Streams { chunks, pause }),
            1 => (0..3_u8).prop_map(|chunks| Ending::BreaksOff { chunks }),
            1 => Just(Ending::Panics),
        ];
        (prop::collection::vec(0..300_u16, 0..3), any::<bool>(), ending)
            .prop_map(|(pauses, reads_body, ending)| Self { pauses, reads_body, ending })
    }
}

/// A body that comes piece by piece.
struct Chunks {
    left: u8,
    said: String,
    pause: u16,
    breaks_off: bool,
}

impl Chunks {
    fn body(self) -> impl http_body::Body<Data = Bytes, Error = axum::Error> + Send {
        let (sender, body) = http_body_util::channel::Channel::new(1);
        tokio::spawn(self.send(sender));
        body
    }

    async fn send(self, mut to: http_body_util::channel::Sender<Bytes, axum::Error>) {
        for chunk in 0..self.left {
            tokio::time::sleep(Duration::from_millis(self.pause.into())).await;
            if to.send_data(format!("{chunk} {}\n", self.said).into()).await.is_err() {
                return;
            }
        }
        if self.breaks_off {
            to.abort(axum::Error::new(std::io::Error::other("broken off")));
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Counts(Arc<Mutex<Counted>>);

#[derive(Debug, Default)]
struct Counted {
    runs: usize,
    running: HashMap<Option<Vec<u8>>, usize>,
    met: bool,
}

impl Counts {
    fn begin(&self, key: Option<Vec<u8>>) -> Run {
        let mut counted = self.0.lock().unwrap();
        counted.runs += 1;
        let number = counted.runs;
        let running = counted.running.entry(key.clone()).or_default();
        *running += 1;
        let met = *running > 1 && key.is_some();
        counted.met |= met;
        Run { number, key, counts: self.clone() }
    }
}

/// A run of the handler, over when it is dropped.
struct Run {
    number: usize,
    key: Option<Vec<u8>>,
    counts: Counts,
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut counted = self.counts.0.lock().unwrap();
        *counted.running.get_mut(&self.key).unwrap() -= 1;
    }
}

tokio::task_local! {
    static USER: &'static str;
}

pub(super) const BODY_LIMIT: usize = 1000;
