//! A server with an engine, whose handler waits for a gate.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use http::StatusCode;
use idemptx::{Engine, Execution, Policy};
use idemptx_core::policy::PolicyBuilder;
use idemptx_core::store::Store;
use idemptx_testkit::scripted_store::{Gate, ScriptedStore};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::http_client::{Reply, post, send};

/// An engine in front of one handler, as in one process.
///
/// The handler responds with the number of its run once the gate is open.
#[derive(Clone, Debug)]
pub(crate) struct App<S> {
    pub(crate) engine: Engine<S>,
    pub(crate) router: Router,
    /// The gate that the handler waits for.
    pub(crate) gate: Gate,
    pub(crate) runs: Runs,
}

impl<S: Store> App<S> {
    /// Creates one whose handler responds at once.
    pub(crate) fn quick(engine: Engine<S>) -> Self {
        let app = Self::slow(engine);
        app.gate.open();
        app
    }

    /// Creates one whose handler responds when the gate opens.
    pub(crate) fn slow(engine: Engine<S>) -> Self {
        let (gate, runs) = (Gate::closed(), Runs::new());
        let (opens, run) = (gate.clone(), runs.clone());
        let handler = move |request: Request| {
            let (opens, run) = (opens.clone(), run.clone());
            async move {
                let number = run.begin(request.extensions().get().cloned());
                let _running = Running(run.clone());
                opens.opened().await;
                let status = run.0.status.load(Ordering::SeqCst);
                (StatusCode::from_u16(status).unwrap(), format!("run {number}"))
            }
        };
        let router = Router::new().fallback(handler).layer(engine.layer());
        Self { engine, router, gate, runs }
    }

    pub(crate) async fn post(&self, key: &str) -> Reply {
        send(&self.router, post(key)).await
    }

    /// Starts a client that waits for its reply; aborting it disconnects.
    pub(crate) fn client(&self, key: &str) -> JoinHandle<Reply> {
        let (router, request) = (self.router.clone(), post(key));
        tokio::spawn(async move { send(&router, request).await })
    }
}

/// Builds an engine on a store, with changes to the draft policy.
pub(crate) fn engine<S: Store>(
    store: S,
    change: impl FnOnce(PolicyBuilder) -> PolicyBuilder,
) -> Engine<S> {
    let policy = change(Policy::draft().into_builder()).build().unwrap();
    Engine::builder(store).policy(policy).build().unwrap()
}

/// Creates a scripted store, and an app on it whose handler responds at once.
pub(crate) fn quick(
    change: impl FnOnce(PolicyBuilder) -> PolicyBuilder,
) -> (ScriptedStore, App<ScriptedStore>) {
    let (store, app) = slow(change);
    app.gate.open();
    (store, app)
}

/// Creates a scripted store, and an app on it whose handler responds when the gate opens.
pub(crate) fn slow(
    change: impl FnOnce(PolicyBuilder) -> PolicyBuilder,
) -> (ScriptedStore, App<ScriptedStore>) {
    let store = ScriptedStore::new();
    (store.clone(), App::slow(engine(store, change)))
}

/// The runs of a handler.
#[derive(Clone, Debug)]
pub(crate) struct Runs(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    status: AtomicU16,
    /// The number of runs started, running now, and running at once at most.
    counts: watch::Sender<[usize; 3]>,
    executions: Mutex<Vec<Execution>>,
}

impl Runs {
    fn new() -> Self {
        Self(Arc::new(Counted {
            status: AtomicU16::new(200),
            counts: watch::Sender::new([0; 3]),
            executions: Mutex::default(),
        }))
    }

    fn begin(&self, execution: Option<Execution>) -> usize {
        self.0.executions.lock().unwrap().extend(execution);
        self.0.counts.send_modify(|[began, running, most]| {
            *began += 1;
            *running += 1;
            *most = (*most).max(*running);
        });
        self.began()
    }

    pub(crate) fn answer_with(&self, status: u16) {
        self.0.status.store(status, Ordering::SeqCst);
    }

    /// Makes handlers panic from now on, because zero is no status.
    pub(crate) fn break_down(&self) {
        self.answer_with(0);
    }

    pub(crate) fn began(&self) -> usize {
        self.0.counts.borrow()[0]
    }

    pub(crate) fn most_at_once(&self) -> usize {
        self.0.counts.borrow()[2]
    }

    pub(crate) fn last(&self) -> Execution {
        self.0.executions.lock().unwrap().last().unwrap().clone()
    }

    /// Waits until this many runs have started.
    pub(crate) async fn reach(&self, runs: usize) {
        let mut counts = self.0.counts.subscribe();
        let reached = counts.wait_for(|[began, ..]| *began >= runs);
        tokio::time::timeout(PATIENCE, reached).await.unwrap().unwrap();
    }
}

struct Running(Runs);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.counts.send_modify(|[_, running, _]| *running -= 1);
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
