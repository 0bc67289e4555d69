//! Records in this process' memory.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use idemptx::store::MemoryStore as Records;
use idemptx_core::key::RecordId;
use idemptx_core::record::Record;
use idemptx_core::store::{ErrorKind, RecordSnapshot, Store, StoreError};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use crate::step::{Step, StoreCall, Verdict, record_id};

/// Records in this process; every step is done at once.
#[pyclass(frozen, module = "idemptx._idemptx")]
pub(crate) struct MemoryStore(Records);

#[pymethods]
impl MemoryStore {
    #[new]
    #[pyo3(signature = (bytes_max = None))]
    fn new(bytes_max: Option<usize>) -> Self {
        let builder = Records::builder();
        Self(match bytes_max {
            Some(bytes_max) => builder.bytes_max(bytes_max).build(),
            None => builder.build(),
        })
    }

    fn perform(&self, step: &Bound<'_, Step>) -> PyResult<()> {
        // Not borrowed during the call: ending a claim wakes waiters, which may run any code.
        let call = step.try_borrow_mut()?.begin().clone();
        let verdict = self.verdict(&call);
        step.try_borrow_mut()?.take(verdict);
        Ok(())
    }

    #[pyo3(signature = (record, wake, /))]
    fn watch(&self, record: &[u8], wake: Py<PyAny>) -> PyResult<Watch> {
        let id = record_id(record)?;
        let callback = Arc::new(WakeCallback(Mutex::new(Some(wake))));
        let watching = at_once(self.0.watch(&id)).flatten();
        let watch = watching.map(|mut watching| {
            let waker = Waker::from(Arc::clone(&callback));
            if watching.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                waker.wake();
            }
            Mutex::new(watching)
        });
        Ok(Watch { _watching: watch, callback })
    }

    fn maintain(&self) {
        // Attached, so that no process is forked while a shard is locked.
        self.0.maintain();
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    #[getter]
    fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

impl MemoryStore {
    /// Returns a settled record.
    pub(crate) fn recall(&self, id: &RecordId) -> Option<Record> {
        self.0.recall(id)
    }

    fn verdict(&self, call: &StoreCall) -> Result<Verdict, StoreError> {
        let step = match call {
            StoreCall::Claim(id, claim_request) => {
                at_once(self.0.claim(id, claim_request)).map(|it| it.map(Verdict::from))
            }
            StoreCall::Lookup(id, _) => at_once(self.0.lookup(id)).map(|it| it.map(Verdict::from)),
            StoreCall::Renew(lease) => {
                at_once(self.0.renew(lease)).map(|it| it.map(|_| Verdict::Done))
            }
            StoreCall::Release(lease) => {
                at_once(self.0.release(lease)).map(|it| it.map(|()| Verdict::Done))
            }
            StoreCall::Settle(lease, done) => {
                at_once(self.0.settle(lease, done)).map(|it| it.map(|()| Verdict::Done))
            }
            // Every claim's end wakes its watchers, so there is nothing to mark.
            StoreCall::Watch(id) => at_once(self.0.lookup(id)).map(|it| {
                it.map(|seen| match seen {
                    Some(RecordSnapshot::Held(_)) => Verdict::Done,
                    _ => Verdict::Absent,
                })
            }),
        };
        step.unwrap_or_else(|| Err(ErrorKind::Internal.into()))
    }
}

/// Watches as long as it is referred to.
#[pyclass(frozen, module = "idemptx._idemptx")]
pub(crate) struct Watch {
    /// Locked only to be `Sync`; it is never polled again.
    _watching: Option<Mutex<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    callback: Arc<WakeCallback>,
}

#[pymethods]
impl Watch {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.callback.0.try_lock() {
            Ok(wake) => wake.as_ref().map_or(Ok(()), |wake| visit.call(wake)),
            // The thread that holds the lock keeps the tasks alive.
            Err(_) => Ok(()),
        }
    }

    fn __clear__(&self) {
        drop(self.callback.take());
    }
}

/// Calls a Python function once, from any thread.
struct WakeCallback(Mutex<Option<Py<PyAny>>>);

impl WakeCallback {
    fn take(&self) -> Option<Py<PyAny>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Wake for WakeCallback {
    fn wake(self: Arc<Self>) {
        let Some(wake) = self.take() else { return };
        Python::attach(|py| {
            if let Err(error) = wake.call0(py) {
                error.write_unraisable(py, Some(wake.bind(py)));
            }
        });
    }
}

/// Returns the output of a future that is ready at its first poll, as all of this store's are.
fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
