//! The operations that one event loop has pending at a durable store.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use idemptx::store::AnyStore;
use idemptx_core::key::RecordId;
use idemptx_core::store::{ErrorKind, Watch};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};
use tokio::runtime::Handle;

use super::fork_guard::ForkGuard;
use super::loop_handle::WatchHandle;
use super::loop_waker::{LoopWaker, TaskWaker};
use super::native_store::Source;
use super::task::{self, Asked, Outcome, Task, Work};
use crate::futures::{is_done, reject, resolve};
use crate::misuse;
use crate::safety;
use crate::step::Step;

/// The tasks of one event loop, polled by that loop.
pub(crate) struct PendingOps {
    source: Arc<Source>,
    /// The reason this process may not open the store.
    refusal: Option<String>,
    runtime: Handle,
    /// Locked only by threads attached to the interpreter, and never across a call into Python.
    tasks: Mutex<Tasks>,
    claim_millis_max: AtomicU64,
    settle_millis_max: AtomicU64,
}

struct Tasks {
    /// Taken when the handle is closed.
    loop_waker: Option<Arc<LoopWaker>>,
    /// Set once the store is open.
    store: Option<Arc<AnyStore>>,
    pending: HashMap<u64, Task>,
    last: u64,
}

impl PendingOps {
    pub(super) fn new(py: Python<'_>, source: &Arc<Source>, runtime: Handle) -> io::Result<Self> {
        let loop_waker = Some(Arc::new(LoopWaker::new()?));
        let tasks = Tasks { loop_waker, store: None, pending: HashMap::new(), last: 0 };
        Ok(Self {
            refusal: source.join(py),
            source: Arc::clone(source),
            runtime,
            tasks: Mutex::new(tasks),
            claim_millis_max: AtomicU64::new(FOREVER_MILLIS),
            settle_millis_max: AtomicU64::new(FOREVER_MILLIS),
        })
    }

    /// The descriptor to watch; `None` once the handle is closed.
    pub(super) fn descriptor(&self) -> Option<i64> {
        self.tasks().loop_waker.as_ref().map(|loop_waker| loop_waker.descriptor())
    }

    pub(super) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(super) fn store(&self) -> Option<Arc<AnyStore>> {
        self.tasks().store.clone()
    }

    pub(super) fn limit_to(&self, claim_timeout: f64, settle_timeout: f64) {
        self.claim_millis_max.fetch_min(millis(claim_timeout), Ordering::Relaxed);
        self.settle_millis_max.fetch_min(millis(settle_timeout), Ordering::Relaxed);
    }

    pub(super) fn limit(&self, settles: bool) -> Duration {
        let millis = if settles { &self.settle_millis_max } else { &self.claim_millis_max };
        Duration::from_millis(millis.load(Ordering::Relaxed))
    }

    /// Returns the reason a new operation is refused, if it is.
    pub(super) fn refuses(&self) -> Option<(ErrorKind, String)> {
        if let Some(refusal) = &self.refusal {
            return Some((ErrorKind::Unavailable, refusal.clone()));
        }
        let tasks = self.tasks();
        if tasks.loop_waker.is_none() {
            return Some((ErrorKind::Unavailable, CLOSED.to_owned()));
        }
        let is_full = tasks.pending.len() >= PENDING_MAX;
        is_full.then(|| (ErrorKind::Full, "too many steps wait for the store".to_owned()))
    }

    /// Begins a step, once the store is open.
    pub(super) fn perform(
        self: &Arc<Self>,
        py: Python<'_>,
        step: Py<Step>,
        future: Py<PyAny>,
    ) -> PyResult<()> {
        let Some(store) = self.store() else {
            let work = task::open(Arc::clone(&self.source), self.limit(false));
            return self.begin(py, work, Asked::Opening { step, future }).map(drop);
        };
        let call = step.bind(py).try_borrow_mut()?.begin().clone();
        let limit = self.limit(call.settles());
        self.begin(py, task::perform(store, call, limit), Asked::Step { step, future }).map(drop)
    }

    pub(super) fn watch(
        self: &Arc<Self>,
        id: RecordId,
        future: &Bound<'_, PyAny>,
        wake: Py<PyAny>,
    ) -> PyResult<()> {
        let py = future.py();
        let Some(store) = self.store() else { return resolve(future, py.None()) };
        let asked = Asked::Watch { future: future.clone().unbind(), wake };
        self.begin(py, task::watch(store, id), asked).map(drop)
    }

    pub(super) fn check(self: &Arc<Self>, future: Bound<'_, PyAny>) -> PyResult<()> {
        let (py, work) = (future.py(), task::check(Arc::clone(&self.source)));
        self.begin(py, work, Asked::Report { future: future.unbind() }).map(drop)
    }

    /// Polls every task that was woken.
    pub(super) fn collect(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        let Some(loop_waker) = self.tasks().loop_waker.clone() else { return Ok(()) };
        let mut fault = None;
        for id in loop_waker.answer() {
            if let Err(error) = self.go_on(py, id) {
                fault = fault.or(Some(error));
            }
        }
        fault.map_or(Ok(()), Err)
    }

    /// Drops a task without its result.
    pub(super) fn forget(&self, id: u64) {
        let forgotten = self.tasks().pending.remove(&id);
        drop(forgotten);
    }

    /// Fails every pending operation and releases the store.
    pub(super) fn close(&self, py: Python<'_>) -> PyResult<()> {
        let (pending_ops, store) = {
            let mut tasks = self.tasks();
            if tasks.loop_waker.take().is_none() {
                return Ok(());
            }
            (std::mem::take(&mut tasks.pending), tasks.store.take())
        };
        drop(store);
        self.source.leave();
        let mut fault = None;
        for task in pending_ops.into_values() {
            if let Err(error) = give_up(py, task.asked) {
                fault = fault.or(Some(error));
            }
        }
        fault.map_or(Ok(()), Err)
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        // The thread that holds the lock keeps the tasks alive.
        let Ok(tasks) = self.tasks.try_lock() else { return Ok(()) };
        tasks.pending.values().try_for_each(|task| task.asked.traverse(visit))
    }

    pub(super) fn clear(&self) {
        let pending_ops = std::mem::take(&mut self.tasks().pending);
        drop(pending_ops);
    }

    fn begin(self: &Arc<Self>, py: Python<'_>, work: Work, asked: Asked) -> PyResult<u64> {
        let id = {
            let mut tasks = self.tasks();
            tasks.last += 1;
            tasks.last
        };
        self.poll(py, id, Task { work, asked })?;
        Ok(id)
    }

    /// Polls one task, unless its future is done.
    fn go_on(self: &Arc<Self>, py: Python<'_>, id: u64) -> PyResult<()> {
        let Some(task) = self.tasks().pending.remove(&id) else { return Ok(()) };
        if let Some(future) = task.asked.future()
            && is_done(future.bind(py))?
        {
            return Ok(());
        }
        self.poll(py, id, task)
    }

    fn poll(self: &Arc<Self>, py: Python<'_>, id: u64, mut task: Task) -> PyResult<()> {
        let Some(loop_waker) = self.tasks().loop_waker.clone() else {
            return give_up(py, task.asked);
        };
        let polled = {
            let _timers_and_sockets = self.runtime.enter();
            let waker = Waker::from(Arc::new(TaskWaker { loop_waker, id }));
            task.work.as_mut().poll(&mut Context::from_waker(&waker))
        };
        match polled {
            Poll::Ready(outcome) => self.tell(py, task.asked, outcome),
            Poll::Pending => {
                self.tasks().pending.insert(id, task);
                Ok(())
            }
        }
    }

    /// Delivers a task's output to its requester.
    fn tell(self: &Arc<Self>, py: Python<'_>, asked: Asked, outcome: Outcome) -> PyResult<()> {
        match (asked, outcome) {
            (Asked::Opening { step, future }, Outcome::Opened(Ok(store))) => {
                self.tasks().store.get_or_insert(store);
                self.perform(py, step, future)
            }
            (Asked::Opening { step, future }, Outcome::Opened(Err(failure))) => {
                step.bind(py).try_borrow_mut()?.give_up(ErrorKind::Unavailable, failure);
                resolve(future.bind(py), py.None())
            }
            (Asked::Step { step, future }, Outcome::Verdict(verdict)) => {
                step.bind(py).try_borrow_mut()?.take(verdict);
                resolve(future.bind(py), py.None())
            }
            (Asked::Report { future }, Outcome::Report(Ok(report))) => {
                let report = safety::as_python(report).into_pyobject(py)?;
                resolve(future.bind(py), report.into_any().unbind())
            }
            (Asked::Report { future }, Outcome::Report(Err(failure))) => {
                reject(future.bind(py), PyOSError::new_err(failure))
            }
            (Asked::Watch { future, .. }, Outcome::Watching(None)) => {
                resolve(future.bind(py), py.None())
            }
            (Asked::Watch { future, wake }, Outcome::Watching(Some(watch))) => {
                let handle = self.keep_watching(py, watch, wake)?;
                resolve(future.bind(py), Py::new(py, handle)?.into_any())
            }
            (Asked::End { wake }, _) => wake.call0(py).map(drop),
            _ => Err(misuse("a task ended as another")),
        }
    }

    fn keep_watching(
        self: &Arc<Self>,
        py: Python<'_>,
        watch: Watch,
        wake: Py<PyAny>,
    ) -> PyResult<WatchHandle> {
        let id = self.begin(py, task::end(watch), Asked::End { wake })?;
        Ok(WatchHandle { id, pending_ops: ForkGuard::new(Arc::downgrade(self)) })
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PendingOps {
    fn drop(&mut self) {
        let loop_waker = self.tasks().loop_waker.take();
        if loop_waker.is_some() {
            self.source.leave();
        }
    }
}

/// Fails a request because the handle was closed.
fn give_up(py: Python<'_>, asked: Asked) -> PyResult<()> {
    match asked {
        Asked::Opening { step, future } | Asked::Step { step, future } => {
            let future = future.bind(py);
            if is_done(future)? {
                return Ok(());
            }
            step.bind(py).try_borrow_mut()?.give_up(ErrorKind::Unavailable, CLOSED.to_owned());
            resolve(future, py.None())
        }
        Asked::Report { future } => reject(future.bind(py), PyOSError::new_err(CLOSED)),
        Asked::Watch { future, .. } => resolve(future.bind(py), py.None()),
        Asked::End { .. } => Ok(()),
    }
}

fn millis(seconds: f64) -> u64 {
    let duration = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    u64::try_from(duration.as_millis()).unwrap_or(FOREVER_MILLIS).max(1)
}

const CLOSED: &str = "the backend was closed meanwhile";
/// A bound far above the number of concurrent executions.
const PENDING_MAX: usize = 100_000;
/// Longer than any policy allows a store.
const FOREVER_MILLIS: u64 = 24 * 60 * 60 * 1000;
