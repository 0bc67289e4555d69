//! The state machine of one request, as Python drives it.

pub(crate) mod numbers;
pub(crate) mod recovery;
mod transitions;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use idemptx_core::coordination::Update as Change;
use idemptx_core::exchange::{
    Answer, BodyEnd, Event, Exchange, Handled, ProbeResult, classified_status, confirmed,
};
use idemptx_core::fingerprint::Fingerprinters;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::outcome::{Outcome, Rejection};
use idemptx_core::record::State;
use idemptx_core::response::StoredResponse;
use idemptx_core::store::{ClaimInfo, Settlement};
use idemptx_core::time::Timestamp;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyList};

use self::numbers::{action, answer};
use self::recovery::Recovery;
use crate::memory::MemoryStore;
use crate::refusal::Refusal;
use crate::shared::Shared;
use crate::step::{Step, StoreCall, Update};
use crate::{http_lines, misuse};

/// The state machine of one request.
#[pyclass(name = "Exchange", module = "idemptx._idemptx")]
pub(crate) struct PyExchange {
    shared: Arc<Shared>,
    machine: Exchange,
    phase: Phase,
    /// The record of the current action.
    id: Option<RecordId>,
    prints: Option<Fingerprinters>,
    /// The number of body bytes fed so far.
    fed_bytes: u64,
    /// True if a claim is, or may become, in force, so that it must be released.
    at_stake: bool,
    /// The lease that the handler runs under.
    lease: Option<Lease>,
    began: Timestamp,
    /// The stored form of the handler's response.
    kept: Option<StoredResponse>,
    /// The settlement, sent or still unconfirmed.
    settlement: Option<Settlement>,
    /// True if the handler's transaction is committed together with the settlement.
    commits: bool,
    /// The content type of a gRPC call.
    grpc: Option<HeaderValue>,
    /// The claim that is kept until the body has ended, and the state to settle as if it breaks
    /// off.
    after_body: Option<(Lease, Option<State>)>,
    /// The name of something that an operator should know of the request or the response.
    concern: Option<&'static str>,
}

/// The current action with its data.
enum Phase {
    Body {
        bytes_max: u64,
    },
    /// A store call, and the step that was handed out for it.
    Store(StoreCall, Option<Py<Step>>),
    Wait {
        holder: ClaimInfo,
        until: Timestamp,
    },
    Probe {
        attempt: u32,
    },
    Execute,
    /// The answer, and a store call that continues without the client.
    Answer(Box<Answer>, Option<StoreCall>),
    /// The client left before an answer.
    Abandoned,
}

#[pymethods]
impl PyExchange {
    #[getter]
    const fn action(&self) -> i32 {
        match &self.phase {
            Phase::Body { .. } => action::READ_BODY,
            Phase::Store(..) => action::STORE,
            Phase::Wait { .. } => action::WAIT,
            Phase::Probe { .. } => action::PROBE,
            Phase::Execute => action::EXECUTE,
            Phase::Answer(..) | Phase::Abandoned => action::ANSWER,
        }
    }

    #[getter]
    fn answer(&self) -> PyResult<i32> {
        Ok(match self.answered()? {
            Answer::Pass(_) => answer::PASS,
            Answer::Replay(_) => answer::REPLAY,
            Answer::Own { .. } => answer::OWN,
            _ => answer::REFUSE,
        })
    }

    #[getter]
    fn id<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let id = self.id.ok_or_else(|| misuse("a request without a key has no record"))?;
        Ok(PyBytes::new(py, id.as_bytes()))
    }

    #[getter]
    fn key(&self) -> PyResult<&str> {
        let operation = self.machine.operation();
        operation.map(|it| it.key().as_str()).ok_or_else(|| misuse("the request has no valid key"))
    }

    #[getter]
    const fn concern(&self) -> Option<&'static str> {
        self.concern
    }

    #[getter]
    fn fingerprint(&self) -> Option<String> {
        self.shared.policy().fingerprint.as_ref()?;
        self.machine.fingerprint().map(|fingerprint| fingerprint.signature())
    }

    fn feed(&mut self, chunk: &[u8]) -> PyResult<bool> {
        let Phase::Body { bytes_max } = self.phase else { return Err(self.misplaced("feed")) };
        self.fed_bytes = self.fed_bytes.saturating_add(chunk.len() as u64);
        if self.fed_bytes > bytes_max {
            return Ok(false);
        }
        if let Some(prints) = &mut self.prints {
            prints.update(chunk);
        }
        Ok(true)
    }

    fn end_body(&mut self) -> PyResult<i32> {
        self.whole_body(None)
    }

    #[pyo3(signature = (chunk, more, memory))]
    fn read(&mut self, chunk: &[u8], more: bool, memory: Option<&MemoryStore>) -> PyResult<i32> {
        if !self.feed(chunk)? {
            return self.body_too_large();
        }
        if more { Ok(action::READ_BODY) } else { self.whole_body(memory) }
    }

    fn body_too_large(&mut self) -> PyResult<i32> {
        let Phase::Body { .. } = self.phase else { return Err(self.misplaced("body_too_large")) };
        Ok(self.end(BodyEnd::TooLarge))
    }

    fn body_failed(&mut self) -> PyResult<i32> {
        let Phase::Body { .. } = self.phase else { return Err(self.misplaced("body_failed")) };
        Ok(self.end(BodyEnd::Failed))
    }

    fn step(&mut self, py: Python<'_>) -> PyResult<Py<Step>> {
        let Phase::Store(call, handed) = &mut self.phase else {
            return Err(self.misplaced("step"));
        };
        if let Some(step) = handed {
            return Ok(step.clone_ref(py));
        }
        let step = Py::new(py, Step::new(call.clone()))?;
        *handed = Some(step.clone_ref(py));
        Ok(step)
    }

    fn done(&mut self, step: &Bound<'_, Step>) -> PyResult<i32> {
        let Phase::Store(call, handed) = &self.phase else { return Err(self.misplaced("done")) };
        if !handed.as_ref().is_some_and(|handed| handed.is(step)) {
            return Err(misuse("hand back the very step that step() gave"));
        }
        let step = step.try_borrow()?;
        let event = transitions::event(call, step.outcome().clone())?;
        if matches!(call, StoreCall::Claim(..)) {
            self.at_stake = step.may_be_in_force();
        }
        Ok(self.advance(event))
    }

    #[getter]
    const fn commits(&self) -> bool {
        self.commits && matches!(self.phase, Phase::Store(StoreCall::Settle(..), _))
    }

    #[getter]
    const fn keeps(&self) -> bool {
        matches!(
            &self.phase,
            Phase::Store(StoreCall::Settle(_, done), _) if matches!(done.state, State::Completed | State::NotReplayable)
        )
    }

    fn uncommitted(&mut self) -> PyResult<i32> {
        let Phase::Store(StoreCall::Settle(..), _) = self.phase else {
            return Err(self.misplaced("uncommitted"));
        };
        Ok(self.advance(Event::Uncommitted))
    }

    fn confirmed(&mut self, looked: &Bound<'_, Step>) -> PyResult<i32> {
        let Phase::Store(StoreCall::Settle(lease, done), _) = &self.phase else {
            return Err(self.misplaced("confirmed"));
        };
        let settled = confirmed(lease, done, &looked.try_borrow()?.outcome().clone().looked());
        Ok(self.advance(settled.map_or(Event::Uncommitted, Event::Settled)))
    }

    fn claim_shared(&mut self, update: &Update) -> PyResult<i32> {
        let Phase::Store(StoreCall::Claim(..), _) = self.phase else {
            return Err(self.misplaced("claim_shared"));
        };
        // A request that shares a peer's result has left nothing in the store.
        self.at_stake = false;
        match update.0.clone().claimed() {
            Some(claimed) => Ok(self.advance(Event::Claimed(claimed))),
            None => Err(misuse("a record that changed is asked for again")),
        }
    }

    #[getter]
    fn wait(&self) -> PyResult<f64> {
        let Phase::Wait { until, .. } = &self.phase else { return Err(self.misplaced("wait")) };
        Ok(until.since(self.shared.now()).as_secs_f64())
    }

    #[getter]
    fn holder(&self) -> PyResult<Update> {
        let Phase::Wait { holder, .. } = &self.phase else { return Err(self.misplaced("holder")) };
        Ok(Update(Change::Held(*holder)))
    }

    #[pyo3(signature = (update))]
    fn woken(&mut self, update: Option<&Bound<'_, Update>>) -> PyResult<i32> {
        let Phase::Wait { .. } = self.phase else { return Err(self.misplaced("woken")) };
        let seen = update.and_then(|update| update.get().0.clone().awaited());
        Ok(self.advance(Event::Woken(seen)))
    }

    fn wait_over(&mut self) -> PyResult<i32> {
        let Phase::Wait { .. } = self.phase else { return Err(self.misplaced("wait_over")) };
        Ok(self.advance(Event::WaitOver))
    }

    fn waiters_full(&mut self) -> PyResult<i32> {
        let Phase::Wait { .. } = self.phase else { return Err(self.misplaced("waiters_full")) };
        Ok(self.advance(Event::WaitersFull))
    }

    #[getter]
    fn orphan_attempt(&self) -> PyResult<u32> {
        match self.phase {
            Phase::Probe { attempt } => Ok(attempt),
            _ => Err(self.misplaced("orphan_attempt")),
        }
    }

    #[pyo3(
        signature = (happened, status = 0, headers = None, body = None),
        text_signature = "($self, happened, status=0, headers=(), body=b'')"
    )]
    fn probed(
        slf: &Bound<'_, Self>,
        happened: Option<bool>,
        status: u16,
        headers: Option<&Bound<'_, PyAny>>,
        body: Option<PyBackedBytes>,
    ) -> PyResult<i32> {
        // Read the lines before borrowing: iterating them may run any Python code.
        let headers = headers.map(http_lines::headers).transpose()?.unwrap_or_default();
        let mut exchange = slf.try_borrow_mut()?;
        let Phase::Probe { .. } = exchange.phase else { return Err(exchange.misplaced("probed")) };
        let probed = match happened {
            None => ProbeResult::Unknown,
            Some(false) => ProbeResult::NotHappened,
            Some(true) => {
                let status = http_lines::status(status)?;
                let body = body.map(Bytes::from_owner).unwrap_or_default();
                let rules = &exchange.shared.policy().replay;
                ProbeResult::Happened(StoredResponse::capture(status, &headers, body, None, rules))
            }
        };
        Ok(exchange.advance(Event::Probed(probed)))
    }

    #[getter]
    fn attempt(&self) -> PyResult<u32> {
        self.leased().map(|lease| lease.attempt)
    }

    #[getter]
    fn token(&self) -> PyResult<String> {
        self.leased().map(|lease| lease.token.to_string())
    }

    #[getter]
    fn fence(&self) -> PyResult<u64> {
        self.leased().map(|lease| lease.fence)
    }

    fn derive(&self, label: &str) -> PyResult<String> {
        let operation = self.machine.operation();
        let operation = operation.ok_or_else(|| misuse("the request has no valid key"))?;
        Ok(operation.derive(label, self.shared.rules()))
    }

    fn recovery(&self, label: &str) -> PyResult<Recovery> {
        Recovery::of(self, label)
    }

    fn settlement(
        slf: &Bound<'_, Self>,
        status: u16,
        headers: &Bound<'_, PyAny>,
        body: PyBackedBytes,
    ) -> PyResult<Option<Step>> {
        let (status, headers) = (http_lines::status(status)?, http_lines::headers(headers)?);
        let exchange = slf.try_borrow()?;
        let Phase::Execute = exchange.phase else { return Err(exchange.misplaced("settlement")) };
        let policy = exchange.shared.policy();
        if body.len() > policy.response_bytes_max {
            return Ok(None);
        }
        let body = Bytes::from_owner(body);
        let kept = StoredResponse::capture(status, &headers, body, None, &policy.replay);
        if !kept.is_storable() {
            return Ok(None);
        }
        let lease = exchange.leased()?.clone();
        let done = Settlement::by(policy, State::Completed, kept.encode()).describing(&lease);
        Ok(Some(Step::new(StoreCall::Settle(lease, done))))
    }

    fn renewal(&self) -> PyResult<Step> {
        self.leased().map(|lease| Step::new(StoreCall::Renew(lease.clone())))
    }

    fn responded(
        slf: &Bound<'_, Self>,
        status: u16,
        headers: &Bound<'_, PyAny>,
        body: PyBackedBytes,
    ) -> PyResult<i32> {
        let (status, mut headers) = (http_lines::status(status)?, http_lines::headers(headers)?);
        let mut exchange = slf.try_borrow_mut()?;
        let Phase::Execute = exchange.phase else { return Err(exchange.misplaced("responded")) };
        let directive = exchange.directive(&mut headers);
        let policy = exchange.shared.policy();
        let classified = classified_status(status, &headers, &body, None);
        let whole = (body.len() <= policy.response_bytes_max)
            .then(|| {
                let body = Bytes::from_owner(body);
                StoredResponse::capture(status, &headers, body, None, &policy.replay)
            })
            .filter(StoredResponse::is_storable);
        let (kept, handled) = match whole {
            Some(whole) => (whole, Handled::Whole { status: classified, directive }),
            None => {
                let head = StoredResponse::capture_head(status, &headers, &policy.replay);
                (head, Handled::Partial { status: classified, directive })
            }
        };
        exchange.kept = Some(kept);
        Ok(exchange.handled(handled))
    }

    fn streamed(slf: &Bound<'_, Self>, status: u16, headers: &Bound<'_, PyAny>) -> PyResult<i32> {
        let (status, mut headers) = (http_lines::status(status)?, http_lines::headers(headers)?);
        let mut exchange = slf.try_borrow_mut()?;
        let Phase::Execute = exchange.phase else { return Err(exchange.misplaced("streamed")) };
        let directive = exchange.directive(&mut headers);
        let replay = &exchange.shared.policy().replay;
        exchange.kept = Some(StoredResponse::capture_head(status, &headers, replay));
        Ok(exchange.handled(Handled::Flowing { status, directive }))
    }

    #[getter]
    const fn flows(&self) -> bool {
        self.after_body.is_some()
    }

    fn body_ended(&mut self, whole: bool) -> PyResult<Step> {
        let taken = self.after_body.take();
        let (lease, broken) = taken.ok_or_else(|| misuse("no claim is kept for a body"))?;
        Ok(Step::new(match broken.filter(|_| !whole) {
            None => StoreCall::Release(lease),
            Some(state) => self.settle(lease, state, None),
        }))
    }

    #[pyo3(signature = (headers = None), text_signature = "($self, headers=())")]
    fn failed(slf: &Bound<'_, Self>, headers: Option<&Bound<'_, PyAny>>) -> PyResult<i32> {
        let mut headers = headers.map(http_lines::headers).transpose()?.unwrap_or_default();
        let mut exchange = slf.try_borrow_mut()?;
        let Phase::Execute = exchange.phase else { return Err(exchange.misplaced("failed")) };
        let directive = exchange.directive(&mut headers);
        Ok(exchange.handled(Handled::Failed { directive }))
    }

    fn broke_off(slf: &Bound<'_, Self>, headers: &Bound<'_, PyAny>) -> PyResult<i32> {
        let mut headers = http_lines::headers(headers)?;
        let mut exchange = slf.try_borrow_mut()?;
        let Phase::Execute = exchange.phase else { return Err(exchange.misplaced("broke_off")) };
        let directive = exchange.directive(&mut headers);
        Ok(exchange.handled(Handled::BrokenOff { directive }))
    }

    #[getter]
    fn outcome(&self) -> PyResult<(&'static str, &'static str)> {
        let answer = self.answered()?;
        Ok(transitions::noted(answer, &self.machine.outcome(answer)))
    }

    #[getter]
    fn stored(&self) -> PyResult<bool> {
        Ok(match self.answered()? {
            Answer::Own { stored, .. } => *stored,
            Answer::Replay(_) => true,
            _ => false,
        })
    }

    fn deferred(&self) -> PyResult<Option<Step>> {
        match &self.phase {
            Phase::Answer(_, deferred) => Ok(deferred.clone().map(Step::new)),
            _ => Err(self.misplaced("deferred")),
        }
    }

    fn marked<'py>(&self, headers: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        let outcome = self.machine.outcome(self.answered()?);
        http_lines::marked(headers, &self.marks(HeaderMap::new(), &outcome))
    }

    fn replay<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(u16, Bound<'py, PyList>, Bound<'py, PyBytes>)> {
        let Answer::Replay(stored) = self.answered()? else {
            return Err(misuse("there is nothing to replay: see `answer`"));
        };
        let headers = self.marks(stored.headers.clone(), &Outcome::Replayed);
        let lines = http_lines::with_length(py, &headers, stored.status, stored.body.len())?;
        Ok((stored.status.as_u16(), lines, PyBytes::new(py, &stored.body)))
    }

    #[pyo3(signature = (http_version = "1.1"))]
    fn refusal(&self, http_version: &str) -> PyResult<Refusal> {
        let answer = self.answered()?;
        let rejection = match answer {
            // Of one that broke, the handler's exception goes on; without one, its server would
            // report the failure.
            Answer::Refuse(rejection) | Answer::Broken { rejection, .. } => rejection,
            _ => return Err(misuse("the request was not refused: see `answer`")),
        };
        let version = http_lines::version(http_version);
        let refusal = Refusal::new(rejection, version, self.grpc.as_ref());
        Ok(refusal.marked(|headers| self.marks(headers, &self.machine.outcome(answer))))
    }

    #[pyo3(signature = (http_version = "1.1"))]
    fn without_execution(&self, http_version: &str) -> PyResult<Option<Refusal>> {
        let Answer::Pass(bypass) = self.answered()? else {
            return Err(misuse("the request is protected or refused: see `answer`"));
        };
        let rejection = Rejection::without_execution(*bypass, self.shared.policy());
        let version = http_lines::version(http_version);
        Ok(rejection.map(|rejection| Refusal::new(&rejection, version, self.grpc.as_ref())))
    }

    fn abandon(&mut self, py: Python<'_>) -> Option<Step> {
        let deferred = self.deferred_on_abandon(py);
        self.id = deferred.as_ref().map(|call| *call.record_id()).or(self.id);
        self.phase = Phase::Abandoned;
        deferred.map(Step::new)
    }
}

impl PyExchange {
    fn answered(&self) -> PyResult<&Answer> {
        match &self.phase {
            Phase::Answer(answer, _) => Ok(answer),
            Phase::Abandoned => Err(misuse("the exchange was abandoned, so it has no answer")),
            _ => Err(misuse("the exchange is not over yet: see `action`")),
        }
    }
}
