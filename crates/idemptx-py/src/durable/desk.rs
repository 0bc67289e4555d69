//! Where one event loop leaves steps for a durable store.

use std::sync::{Arc, Weak};

use idemptx_core::store::{ErrorKind, StoreError};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::depot::Depot;
use super::native::Native;
use super::runtime;
use super::task;
use super::under_way::UnderWay;
use crate::futures::reject;
use crate::misuse;
use crate::step::{Step, record_id};

/// Where one event loop leaves steps for a durable store.
#[pyclass(frozen, module = "idemptx._idemptx")]
pub(crate) struct Desk(Native<Arc<UnderWay>>);

#[pymethods]
impl Desk {
    #[new]
    fn new(py: Python<'_>, depot: &Depot) -> PyResult<Self> {
        let under_way = UnderWay::new(py, depot.source()?, runtime::handle(py)?)?;
        Ok(Self(Native::new(Arc::new(under_way))))
    }

    fn fileno(&self) -> PyResult<i64> {
        self.under_way()?.descriptor().ok_or_else(|| misuse("the desk is closed"))
    }

    fn expect(&self, claim_timeout: f64, settle_timeout: f64) -> PyResult<()> {
        self.under_way()?.limit_to(claim_timeout, settle_timeout);
        Ok(())
    }

    fn perform(&self, step: &Bound<'_, Step>, future: Bound<'_, PyAny>) -> PyResult<bool> {
        let under_way = self.under_way()?;
        if let Some((kind, failure)) = under_way.refuses() {
            step.try_borrow_mut()?.give_up(kind, failure);
            return Ok(true);
        }
        under_way.perform(step.py(), step.clone().unbind(), future.unbind())?;
        Ok(false)
    }

    fn watch(&self, record: &[u8], future: &Bound<'_, PyAny>, wake: Py<PyAny>) -> PyResult<()> {
        let id = record_id(record)?;
        self.under_way()?.watch(id, future, wake)
    }

    fn check(&self, future: Bound<'_, PyAny>) -> PyResult<()> {
        let under_way = self.under_way()?;
        match under_way.refuses() {
            Some((_, refusal)) => reject(&future, PyOSError::new_err(refusal)),
            None => under_way.check(future),
        }
    }

    fn collect(&self, py: Python<'_>) -> PyResult<()> {
        self.under_way()?.collect(py)
    }

    fn renew(&self, py: Python<'_>, steps: Vec<Bound<'_, Step>>) -> PyResult<()> {
        let under_way = self.under_way()?;
        let Some(store) = under_way.store() else {
            return Err(misuse("a lease is renewed in the store that granted it"));
        };
        let (runtime, limit) = (under_way.runtime(), under_way.limit(false));
        let mut steps = steps.into_iter();
        loop {
            let some: Vec<_> = steps.by_ref().take(RENEWED_AT_ONCE_MAX).collect();
            if some.is_empty() {
                return Ok(());
            }
            let mut renewing = Vec::with_capacity(some.len());
            for step in &some {
                let (store, job) = (Arc::clone(&store), step.try_borrow_mut()?.begin().clone());
                let renewal = async move { task::verdict(&store, &job, limit).await };
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
        self.0.get().map_or(Ok(()), |under_way| under_way.close(py))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.0.get().map_or(Ok(()), |under_way| under_way.traverse(&visit))
    }

    fn __clear__(&self) {
        if let Some(under_way) = self.0.get() {
            under_way.clear();
        }
    }
}

impl Desk {
    fn under_way(&self) -> PyResult<&Arc<UnderWay>> {
        let elsewhere = "this desk belongs to the process that this one was forked from";
        self.0.get().ok_or_else(|| misuse(elsewhere))
    }
}

/// Watches as long as it is referred to.
#[pyclass(frozen, module = "idemptx._idemptx")]
pub(crate) struct Vigil {
    pub(super) id: u64,
    pub(super) under_way: Native<Weak<UnderWay>>,
}

impl Drop for Vigil {
    fn drop(&mut self) {
        if let Some(under_way) = self.under_way.get().and_then(Weak::upgrade) {
            under_way.forget(self.id);
        }
    }
}

/// How many leases are renewed at the same time.
const RENEWED_AT_ONCE_MAX: usize = 1024;
