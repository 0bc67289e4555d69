//! Records in this process' memory.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use idemptx::store::MemoryStore as Records;
use idemptx_core::store::{ErrorKind, RecordSnapshot, Store, StoreError};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use crate::step::{Job, Step, Verdict, record_id};

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
        // Not borrowed meanwhile: to end a claim wakes others, and that may be any code.
        let job = step.try_borrow_mut()?.begin().clone();
        let verdict = self.verdict(&job);
        step.try_borrow_mut()?.take(verdict);
        Ok(())
    }

    #[pyo3(signature = (record, wake, /))]
    fn watch(&self, record: &[u8], wake: Py<PyAny>) -> PyResult<Watch> {
        let id = record_id(record)?;
        let alarm = Arc::new(Alarm(Mutex::new(Some(wake))));
        let watching = at_once(self.0.watch(&id)).flatten();
        let watch = watching.map(|mut watching| {
            let waker = Waker::from(Arc::clone(&alarm));
            if watching.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                waker.wake();
            }
            Mutex::new(watching)
        });
        Ok(Watch { _watching: watch, alarm })
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
    fn verdict(&self, job: &Job) -> Result<Verdict, StoreError> {
        let step = match job {
            Job::Claim(id, claim_request) => {
                at_once(self.0.claim(id, claim_request)).map(|it| it.map(Verdict::from))
            }
            Job::Lookup(id, _) => at_once(self.0.lookup(id)).map(|it| it.map(Verdict::from)),
            Job::Renew(lease) => at_once(self.0.renew(lease)).map(|it| it.map(|_| Verdict::Done)),
            Job::Release(lease) => {
                at_once(self.0.release(lease)).map(|it| it.map(|()| Verdict::Done))
            }
            Job::Settle(lease, done) => {
                at_once(self.0.settle(lease, done)).map(|it| it.map(|()| Verdict::Done))
            }
            // Every claim's end is told to whoever watches; there is nothing to mark.
            Job::Watch(id) => at_once(self.0.lookup(id)).map(|it| {
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
    /// Under a lock only to be shared; it is not polled again.
    _watching: Option<Mutex<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    alarm: Arc<Alarm>,
}

#[pymethods]
impl Watch {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.alarm.0.try_lock() {
            Ok(wake) => wake.as_ref().map_or(Ok(()), |wake| visit.call(wake)),
            // Whoever holds it keeps it alive.
            Err(_) => Ok(()),
        }
    }

    fn __clear__(&self) {
        drop(self.alarm.take());
    }
}

/// Calls Python once, from whatever thread.
struct Alarm(Mutex<Option<Py<PyAny>>>);

impl Alarm {
    fn take(&self) -> Option<Py<PyAny>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        let Some(wake) = self.take() else { return };
        Python::attach(|py| {
            if let Err(error) = wake.call0(py) {
                error.write_unraisable(py, Some(wake.bind(py)));
            }
        });
    }
}

/// What a future gives at its first poll, as all of this store's do.
fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
