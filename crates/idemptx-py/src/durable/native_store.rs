//! A durable store of one process, shared by its event loops.

use std::error::Error;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use idemptx::store::AnyStore;
use idemptx::store::postgres::{ParameterStyle, PostgresStore, SettleParameter, SynchronousCommit};
use idemptx_core::store::Store;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple};

use super::fork_guard::ForkGuard;
use super::store_config::{Postgres, Redis, StoreConfig};
use crate::misuse;
use crate::step::{Step, StoreCall, with_sources};

/// A durable store of one process; opened when the first loop needs it.
#[pyclass(frozen, module = "idemptx._idemptx")]
pub(crate) struct NativeStore {
    source: ForkGuard<Arc<Source>>,
    /// A second PostgreSQL store without sessions, for schema and statement text.
    unconnected: Option<Arc<PostgresStore>>,
}

#[pymethods]
impl NativeStore {
    #[staticmethod]
    #[pyo3(signature = (path, timeout = None))]
    fn sqlite(path: PathBuf, timeout: Option<f64>) -> PyResult<Self> {
        let timeout = timeout.map(duration).transpose()?;
        Ok(Self::of(StoreConfig::Sqlite { path, timeout }, None))
    }

    #[staticmethod]
    #[pyo3(signature = (
        url, *, schema = None, table = None, migrate = true, pooled = false, sessions = None,
        synchronous_commit = None, timeout = None, ca_certificates = None,
    ))]
    #[allow(clippy::too_many_arguments, reason = "they have names in Python")]
    fn postgres(
        url: String,
        schema: Option<String>,
        table: Option<String>,
        migrate: bool,
        pooled: bool,
        sessions: Option<usize>,
        synchronous_commit: Option<&str>,
        timeout: Option<f64>,
        ca_certificates: Option<Vec<u8>>,
    ) -> PyResult<Self> {
        let settings = Postgres {
            url,
            schema,
            table,
            migrate,
            pooled,
            sessions,
            synchronous_commit: synchronous_commit.map(level).transpose()?,
            timeout: timeout.map(duration).transpose()?,
            ca_certificates,
        };
        let unconnected = settings.open();
        let unconnected =
            unconnected.map_err(|error| PyValueError::new_err(with_sources(&error)))?;
        let unconnected = Arc::new(unconnected);
        Ok(Self::of(StoreConfig::Postgres(unconnected.clone()), Some(unconnected)))
    }

    #[staticmethod]
    #[pyo3(signature = (url, prefix, timeout = None))]
    fn redis(url: String, prefix: String, timeout: Option<f64>) -> PyResult<Self> {
        let settings = Redis { url, prefix, timeout: timeout.map(duration).transpose()? };
        settings.open().map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self::of(StoreConfig::Redis(settings), None))
    }

    fn schema_sql(&self) -> PyResult<String> {
        Ok(self.postgres_store()?.schema_sql())
    }

    fn settle_statement<'py>(
        &self,
        step: &Bound<'py, Step>,
        style: &str,
        transaction: Option<&str>,
    ) -> PyResult<(String, Bound<'py, PyTuple>)> {
        let style = match style {
            "numeric" => ParameterStyle::Numbered,
            "pyformat" => ParameterStyle::Named,
            _ => return Err(PyValueError::new_err("the style is numeric or pyformat")),
        };
        let step = step.try_borrow()?;
        let StoreCall::Settle(lease, done) = step.call() else {
            return Err(misuse("only a settlement is settled"));
        };
        let store = self.postgres_store()?;
        let statement = store.settle_statement(lease, done, transaction, style);
        let py = step.py();
        let parameters = statement.parameters.iter().map(|value| as_python(py, value));
        let parameters = parameters.collect::<PyResult<Vec<_>>>()?;
        Ok((statement.text, PyTuple::new(py, parameters)?))
    }
}

/// Converts a parameter to the type that Python drivers take.
fn as_python<'py>(py: Python<'py>, value: &SettleParameter) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        SettleParameter::Bytes(bytes) => PyBytes::new(py, bytes).into_any(),
        SettleParameter::Text(text) => PyString::new(py, text).into_any(),
        SettleParameter::Integer(number) => number.into_pyobject(py)?.into_any(),
        _ => py.None().into_bound(py),
    })
}

impl NativeStore {
    fn of(config: StoreConfig, unconnected: Option<Arc<PostgresStore>>) -> Self {
        let source =
            Source { config, opening: tokio::sync::Mutex::new(()), state: Mutex::default() };
        Self { source: ForkGuard::new(Arc::new(source)), unconnected }
    }

    /// Returns the store that needs no session.
    fn postgres_store(&self) -> PyResult<&PostgresStore> {
        let unconnected = self.unconnected.as_deref();
        unconnected.ok_or_else(|| misuse("that is PostgreSQL's alone"))
    }

    pub(super) fn source(&self) -> PyResult<&Arc<Source>> {
        let elsewhere = "this store belongs to the process that this one was forked from";
        self.source.get().ok_or_else(|| misuse(elsewhere))
    }
}

/// The store that a process' loops share, once it is open.
pub(super) struct Source {
    config: StoreConfig,
    /// Locked while the store is being opened.
    opening: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    handles: usize,
    store: Option<Arc<AnyStore>>,
    failed: Option<(Instant, String)>,
}

impl Source {
    /// Registers a loop; returns a reason if this process may not use the store.
    pub(super) fn join(&self, py: Python<'_>) -> Option<String> {
        self.state().handles += 1;
        self.config.is_inherited(py)
    }

    /// Unregisters a loop; the store is closed with the last one.
    pub(super) fn leave(&self) {
        let mut state = self.state();
        state.handles = state.handles.saturating_sub(1);
        let closed = if state.handles == 0 { state.store.take() } else { None };
        drop(state);
        drop(closed);
    }

    /// Opens the store once for all callers; returns it, or the reason it cannot be opened.
    ///
    /// An opening that has begun continues if the caller is cancelled.
    pub(super) async fn opened(self: Arc<Self>) -> Result<Arc<AnyStore>, String> {
        let opening = tokio::spawn(async move {
            let _alone = self.opening.lock().await;
            if let Some(known) = self.known() {
                return known;
            }
            let source = Arc::clone(&self);
            let opened = tokio::task::spawn_blocking(move || source.config.open()).await;
            self.take(opened.unwrap_or_else(|ended| Err(ended.into())))
        });
        opening.await.unwrap_or_else(|ended| Err(with_sources(&ended)))
    }

    fn known(&self) -> Option<Result<Arc<AnyStore>, String>> {
        let state = self.state();
        if let Some(store) = &state.store {
            return Some(Ok(Arc::clone(store)));
        }
        let (since, failure) = state.failed.as_ref()?;
        (since.elapsed() < REOPEN_PAUSE).then(|| Err(failure.clone()))
    }

    fn take(
        &self,
        opened: Result<AnyStore, Box<dyn Error + Send + Sync>>,
    ) -> Result<Arc<AnyStore>, String> {
        let mut state = self.state();
        match opened {
            Ok(store) => {
                let store = Arc::new(store);
                tokio::spawn(maintain(Arc::downgrade(&store)));
                state.failed = None;
                if state.handles > 0 {
                    state.store = Some(Arc::clone(&store));
                }
                Ok(store)
            }
            Err(error) => {
                let failure = with_sources(error.as_ref());
                state.failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes expired records for as long as the store exists.
async fn maintain(store: Weak<AnyStore>) {
    loop {
        tokio::time::sleep(TEND_EVERY).await;
        let Some(store) = store.upgrade() else { return };
        store.maintain();
    }
}

fn level(word: &str) -> PyResult<SynchronousCommit> {
    Ok(match word {
        "local" => SynchronousCommit::Local,
        "remote_write" => SynchronousCommit::RemoteWrite,
        "on" => SynchronousCommit::On,
        "remote_apply" => SynchronousCommit::RemoteApply,
        _ => {
            let advice = "synchronous_commit is \"local\", \"remote_write\", \"on\" or \
                          \"remote_apply\"; \"off\" would lose what was acknowledged";
            return Err(PyValueError::new_err(advice));
        }
    })
}

fn duration(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| !duration.is_zero() && *duration <= TIMEOUT_MAX)
        .ok_or_else(|| PyValueError::new_err("timeout is a number of seconds, up to an hour"))
}

/// The pause before a file that could not be opened is tried again.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);
const TEND_EVERY: Duration = Duration::from_secs(5);
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
