//! The leases of running handlers, for the thread that renews them.

use std::time::Instant;

use idemptx_core::coordination::LeaseSchedule;
use idemptx_core::time::{Timestamp, millis};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use crate::exchange::PyExchange;
use crate::misuse;
use crate::step::{Step, StoreCall};

/// The leases of running handlers.
#[pyclass(module = "idemptx._idemptx")]
pub(crate) struct Leases {
    schedule: LeaseSchedule<Py<PyAny>>,
    /// The next look of the thread, kept where the lease that was due then has ended.
    ///
    /// Most handlers end long before: a thread without a plan would be woken by each.
    look: Option<Timestamp>,
    made: Instant,
}

#[pymethods]
impl Leases {
    #[new]
    fn new() -> Self {
        Self { schedule: LeaseSchedule::new(), look: None, made: Instant::now() }
    }

    fn add(&mut self, exchange: &Bound<'_, PyExchange>, holder: Py<PyAny>) -> PyResult<bool> {
        let lease = exchange.try_borrow()?.leased()?.clone();
        let now = self.now();
        let due = now.after(LeaseSchedule::<Py<PyAny>>::time_limit(&lease));
        self.schedule.add(lease, holder, now);
        let is_sooner = self.look.is_none_or(|look| due < look);
        if is_sooner {
            self.look = Some(due);
        }
        Ok(is_sooner)
    }

    fn remove(slf: &Bound<'_, Self>, exchange: &Bound<'_, PyExchange>) -> PyResult<()> {
        let token = exchange.try_borrow()?.leased().map(|lease| lease.token);
        let Ok(token) = token else { return Ok(()) };
        // Dropped when the schedule is no longer borrowed: its end may run any code.
        let holder = slf.try_borrow_mut()?.schedule.remove(&token);
        drop(holder);
        Ok(())
    }

    fn plan(&mut self) -> Option<f64> {
        let now = self.now();
        self.look = self.schedule.plan().or(self.look.filter(|look| *look > now));
        self.look.map(|look| look.since(now).as_secs_f64())
    }

    fn take_due(&mut self, py: Python<'_>) -> PyResult<Vec<(Py<PyAny>, Py<Step>)>> {
        let now = self.now();
        let due = self.schedule.take_due(now).into_iter();
        due.map(|(lease, holder)| {
            let step = Py::new(py, Step::new(StoreCall::Renew(lease.clone())))?;
            Ok((holder.clone_ref(py), step))
        })
        .collect()
    }

    fn renewed(&mut self, step: &Bound<'_, Step>) -> PyResult<Option<Py<PyAny>>> {
        let step = step.try_borrow()?;
        let StoreCall::Renew(lease) = step.call() else {
            return Err(misuse("only a renewal renews a lease"));
        };
        let now = self.now();
        Ok(self.schedule.renewed(&lease.token, step.outcome().confirmed(), now))
    }

    fn __len__(&self) -> usize {
        self.schedule.len()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.schedule.holders().try_for_each(|holder| visit.call(holder))
    }

    fn __clear__(&mut self) {
        self.schedule = LeaseSchedule::new();
    }
}

impl Leases {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(millis(self.made.elapsed()))
    }
}
