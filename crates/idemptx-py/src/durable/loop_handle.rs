//! Hands one event loop's steps to a durable store.

use std::sync::{Arc, Weak};

use idemptx_core::store::{ErrorKind, StoreError};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::fork_guard::ForkGuard;
use super::native_store::NativeStore;
use super::pending_ops::PendingOps;
use super::runtime;
use super::task;
use crate::futures::reject;
use crate::misuse;
use crate::step::{Step, record_id};

/// One event loop's connection to a durable store.
#[pyclass(frozen, module = "idemptx._idemptx")]
pub(crate) struct LoopHandle(ForkGuard<Arc<PendingOps>>);

#[pymethods]
impl LoopHandle {
    #[new]
    fn new(py: Python<'_>, native_store: &NativeStore) -> PyResult<Self> {
        let pending_ops = PendingOps::new(py, native_store.source()?, runtime::handle(py)?)?;
        Ok(Self(ForkGuard::new(Arc::new(pending_ops))))
    }

    fn fileno(&self) -> PyResult<i64> {
        self.pending_ops()?.descriptor().ok_or_else(|| misuse("the handle is closed"))
    }

    fn expect(&self, claim_timeout: f64, settle_timeout: f64) -> PyResult<()> {
        self.pending_ops()?.limit_to(claim_timeout, settle_timeout);
        Ok(())
    }

    fn perform(&self, step: &Bound<'_, Step>, future: Bound<'_, PyAny>) -> PyResult<bool> {
        let pending_ops = self.pending_ops()?;
        if let Some((kind, failure)) = pending_ops.refuses() {
            step.try_borrow_mut()?.give_up(kind, failure);
            return Ok(true);
        }
        pending_ops.perform(step.py(), step.clone().unbind(), future.unbind())?;
        Ok(false)
    }

    fn watch(&self, record: &[u8], future: &Bound<'_, PyAny>, wake: Py<PyAny>) -> PyResult<()> {
        let id = record_id(record)?;
        self.pending_ops()?.watch(id, future, wake)
    }

    fn check(&self, future: Bound<'_, PyAny>) -> PyResult<()> {
        let pending_ops = self.pending_ops()?;
        match pending_ops.refuses() {
            Some((_, refusal)) => reject(&future, PyOSError::new_err(refusal)),
            None => pending_ops.check(future),
        }
    }

    fn collect(&self, py: Python<'_>) -> PyResult<()> {
        self.pending_ops()?.collect(py)
    }

    fn renew(&self, py: Python<'_>, steps: Vec<Bound<'_, Step>>) -> PyResult<()> {
        let pending_ops = self.pending_ops()?;
        let Some(store) = pending_ops.store() else {
            return Err(misuse("a lease is renewed in the store that granted it"));
        };
        let (runtime, limit) = (pending_ops.runtime(), pending_ops.limit(false));
        let mut steps = steps.into_iter();
        loop {
            let some: Vec<_> = steps.by_ref().take(RENEWED_AT_ONCE_MAX).collect();
            if some.is_empty() {
                return Ok(());
            }
            let mut renewing = Vec::with_capacity(some.len());
            for step in &some {
                let (store, call) = (Arc::clone(&store), step.try_borrow_mut()?.begin().clone());
                let renewal = async move { task::verdict(&store, &call, limit).await };
                renewing.push(runtime.spawn(renewal));
            }
            let verdicts: Vec<_> = py.detach(|| {
                let renewed = renewing.into_iter().map(|one| runtime.block_on(one));
                renewed.collect()
            });
            for (step, verdict) in some.iter().zip(verdicts) {
                let ended = |error| Err(StoreError::with_source(ErrorKind::Unavailable, error));
                step.try_borrow_mut()?.take(verdict.unwrap_or_else(ended));
            }
        }
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.0.get().map_or(Ok(()), |pending_ops| pending_ops.close(py))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.0.get().map_or(Ok(()), |pending_ops| pending_ops.traverse(&visit))
    }

    fn __clear__(&self) {
        if let Some(pending_ops) = self.0.get() {
            pending_ops.clear();
        }
    }
}

impl LoopHandle {
    fn pending_ops(&self) -> PyResult<&Arc<PendingOps>> {
        let elsewhere = "this handle belongs to the process that this one was forked from";
        self.0.get().ok_or_else(|| misuse(elsewhere))
    }
}

/// Watches as long as it is referred to.
#[pyclass(frozen, module = "idemptx._idemptx")]
pub(crate) struct WatchHandle {
    pub(super) id: u64,
    pub(super) pending_ops: ForkGuard<Weak<PendingOps>>,
}

impl Drop for WatchHandle {
    fn drop(&mut self) {
        if let Some(pending_ops) = self.pending_ops.get().and_then(Weak::upgrade) {
            pending_ops.forget(self.id);
        }
    }
}

/// The largest number of leases renewed at the same time.
const RENEWED_AT_ONCE_MAX: usize = 1024;
