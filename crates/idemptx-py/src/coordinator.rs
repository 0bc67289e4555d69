//! State shared by the requests of one event loop: single flight, and unconfirmed operations.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use idemptx_core::coordination::{
    self, Entry, Journal, Next, Place, SingleFlight, Unconfirmed, Update as Change, Waiting,
};
use idemptx_core::key::RecordId;
use idemptx_core::time::{Timestamp, millis};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use crate::exchange::PyExchange;
use crate::step::{Step, StoreCall, Update, record_id};
use crate::{futures, misuse};

/// State shared by the requests of one event loop.
#[pyclass(module = "idemptx._idemptx")]
pub(crate) struct Coordinator {
    create_future: Option<Py<PyAny>>,
    /// A future for the next request that follows another; most requests lead.
    spare: Option<Py<PyAny>>,
    single_flight: SingleFlight<Py<PyAny>>,
    journal: Arc<Journal>,
    made: Instant,
}

#[pymethods]
impl Coordinator {
    #[new]
    fn new(create_future: Py<PyAny>) -> Self {
        Self {
            create_future: Some(create_future),
            spare: None,
            single_flight: SingleFlight::new(Arc::new(AtomicUsize::new(0))),
            journal: Arc::default(),
            made: Instant::now(),
        }
    }

    fn enter<'py>(
        slf: &Bound<'py, Self>,
        step: &Bound<'py, Step>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let (py, id) = (slf.py(), *step.try_borrow()?.record_id());
        let listener = Self::listener(slf)?.unbind();
        let mut coordinator = slf.try_borrow_mut()?;
        let entry = coordinator.single_flight.enter(id, || listener.clone_ref(py));
        if let Entry::Follow = entry {
            return Ok(Some(listener.into_bound(py)));
        }
        coordinator.spare = Some(listener);
        Ok(match entry {
            Entry::Held(claim) => Some(Bound::new(py, Update(Change::Held(claim)))?.into_any()),
            _ => None,
        })
    }

    fn announce(slf: &Bound<'_, Self>, step: &Bound<'_, Step>) -> PyResult<()> {
        let (id, update) = {
            let step = step.try_borrow()?;
            (*step.record_id(), step.update())
        };
        let Some(Update(Change::Held(claim))) = update else {
            return Err(misuse("only a granted claim is announced"));
        };
        let listeners = slf.try_borrow_mut()?.single_flight.announce(&id, claim);
        resolve(slf.py(), &listeners, Change::Held(claim))
    }

    #[pyo3(signature = (record, update))]
    fn complete(slf: &Bound<'_, Self>, record: &[u8], update: Option<&Update>) -> PyResult<()> {
        let id = record_id(record)?;
        let listeners = slf.try_borrow_mut()?.single_flight.complete(&id);
        resolve(slf.py(), &listeners, update.map_or(Change::Changed, |update| update.0.clone()))
    }

    fn conclude(slf: &Bound<'_, Self>, step: &Bound<'_, Step>) -> PyResult<()> {
        let id = *step.try_borrow()?.record_id();
        let listeners = slf.try_borrow_mut()?.single_flight.complete(&id);
        if listeners.is_empty() {
            return Ok(());
        }
        let update = step.try_borrow()?.update();
        resolve(slf.py(), &listeners, update.map_or(Change::Changed, |update| update.0))
    }

    fn wait<'py>(
        slf: &Bound<'py, Self>,
        exchange: &Bound<'py, PyExchange>,
    ) -> PyResult<Option<Waiter>> {
        let (id, holder, limits) = exchange.try_borrow()?.waiting()?;
        let listener = Self::listener(slf)?;
        let waiting = slf
            .try_borrow_mut()?
            .single_flight
            .wait(id, holder, limits, || listener.clone().unbind());
        let (place, watches) = match waiting {
            Waiting::Full => return Ok(None),
            Waiting::Joined(place) => (place, false),
            Waiting::Watch(place) => (place, true),
        };
        let coordinator = slf.clone().unbind();
        Ok(Some(Waiter { coordinator, id, place, update: listener.unbind(), watches }))
    }

    fn is_awaited(&self, record: &[u8]) -> PyResult<bool> {
        Ok(self.single_flight.is_awaited(&record_id(record)?))
    }

    #[getter]
    fn waiting(&self) -> usize {
        self.single_flight.waiting()
    }

    fn admit(&self, step: &Bound<'_, Step>) -> PyResult<Option<Confirmation>> {
        let operation = match step.try_borrow()?.call() {
            StoreCall::Release(lease) => Unconfirmed::Release(lease.clone()),
            StoreCall::Settle(lease, done) => Unconfirmed::Settle(lease.clone(), done.clone()),
            _ => return Err(misuse("only a release or a settlement is repeated")),
        };
        let (journal, made) = (Arc::clone(&self.journal), self.made);
        let confirmation = journal.admit(operation, now(made));
        Ok(confirmation.map(|it| Confirmation { confirmation: Some(it), journal, made }))
    }

    #[getter]
    fn unconfirmed(&self) -> usize {
        self.journal.unconfirmed()
    }

    #[getter]
    fn is_full(&self) -> bool {
        self.journal.is_full()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let mut owned = self.create_future.iter().chain(&self.spare);
        let mut visited = owned.try_for_each(|it| visit.call(it));
        self.single_flight.for_each_listener(|listener| {
            if visited.is_ok() {
                visited = visit.call(listener);
            }
        });
        visited
    }

    fn __clear__(&mut self) {
        self.create_future = None;
        self.spare = None;
        self.single_flight = SingleFlight::new(Arc::new(AtomicUsize::new(0)));
    }
}

impl Coordinator {
    /// Creates a future; not while the coordinator is borrowed, because that may run any code.
    fn listener<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        if let Some(spare) = slf.try_borrow_mut()?.spare.take() {
            return Ok(spare.into_bound(slf.py()));
        }
        let create = slf.try_borrow()?.create_future.as_ref().map(|it| it.clone_ref(slf.py()));
        let create = create.ok_or_else(|| misuse("the event loop is being destroyed"))?;
        create.into_bound(slf.py()).call0()
    }
}

/// Resolves futures with an update, or with `None`, which means: ask the store.
fn resolve(py: Python<'_>, listeners: &[Py<PyAny>], change: Change) -> PyResult<()> {
    if listeners.is_empty() {
        return Ok(());
    }
    let update = match change {
        Change::Changed => py.None(),
        change => Py::new(py, Update(change))?.into_any(),
    };
    listeners.iter().try_for_each(|it| futures::resolve(it.bind(py), update.clone_ref(py)))
}

/// A place among the requests that wait.
#[pyclass(frozen, module = "idemptx._idemptx")]
pub(crate) struct Waiter {
    coordinator: Py<Coordinator>,
    id: RecordId,
    place: Place,
    #[pyo3(get)]
    update: Py<PyAny>,
    #[pyo3(get)]
    watches: bool,
}

#[pymethods]
impl Waiter {
    fn leave(&self, py: Python<'_>) -> PyResult<()> {
        self.coordinator.try_borrow_mut(py)?.single_flight.leave(&self.id, self.place);
        Ok(())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.coordinator)?;
        visit.call(&self.update)
    }
}

/// The repetition of a release or a settlement until the store confirms or refuses it.
#[pyclass(module = "idemptx._idemptx")]
pub(crate) struct Confirmation {
    /// `None` once it is closed.
    confirmation: Option<coordination::Confirmation>,
    journal: Arc<Journal>,
    made: Instant,
}

#[pymethods]
impl Confirmation {
    #[classattr]
    const AT_ONCE_MAX: usize = coordination::Confirmation::AT_ONCE_MAX;

    fn attempted(&mut self, step: &Bound<'_, Step>) -> PyResult<Option<f64>> {
        let outcome = step.try_borrow()?.outcome().confirmed();
        let Some(confirmation) = &mut self.confirmation else {
            return Err(misuse("the confirmation is closed"));
        };
        Ok(match confirmation.attempted(outcome, now(self.made), &self.journal) {
            Next::Repeat(pause) => Some(pause.as_secs_f64()),
            Next::Over(_) => None,
        })
    }

    fn close(&mut self) {
        if let Some(confirmation) = self.confirmation.take() {
            confirmation.close(&self.journal);
        }
    }
}

fn now(made: Instant) -> Timestamp {
    Timestamp::from_millis(millis(made.elapsed()))
}
