//! Recoverable steps of a handler, stored as the Rust engine stores them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use idemptx_core::fingerprint::Match;
use idemptx_core::lease::Lease;

use idemptx_core::record::{Record, State};
use idemptx_core::response::{ReplayRules, StoredResponse};
use idemptx_core::store::{ClaimRequest, ErrorKind, Expected, Settlement};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::PyExchange;
use crate::misuse;
use crate::shared::Shared;
use crate::step::{Step, StoreCall, Verdict};

/// One recoverable step of a handler: its record is looked up, and written if absent.
#[pyclass(module = "idemptx._idemptx")]
pub(crate) struct Recovery {
    shared: Arc<Shared>,
    lease: Lease,
    label: String,
    keeping: Option<(ClaimRequest, Settlement)>,
    found: Option<Bytes>,
    is_unkept: bool,
    is_contended: bool,
}

impl Recovery {
    /// Creates the step of the operation that an exchange executes.
    pub(super) fn of(exchange: &PyExchange, label: &str) -> PyResult<Self> {
        if !(1..=LABEL_BYTES_MAX).contains(&label.len()) {
            return Err(PyValueError::new_err("a step's label has 1 to 255 bytes"));
        }
        let lease = exchange.leased()?.clone();
        let (shared, label) = (Arc::clone(&exchange.shared), label.to_owned());
        let (keeping, found) = (None, None);
        Ok(Self { shared, lease, label, keeping, found, is_unkept: false, is_contended: false })
    }

    fn claim_request(&self) -> ClaimRequest {
        let retain = self.shared.policy().key_retain;
        ClaimRequest::new(self.shared.token(), self.lease.fingerprint, TERM, retain)
    }

    fn claim(&self, claim_request: &ClaimRequest) -> Step {
        Step::new(StoreCall::Claim(self.lease.id.step(&self.label), claim_request.clone()))
    }

    /// Begins to store a result, or that there is none to store.
    fn store(&mut self, state: State, json: Bytes) -> Step {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let (status, rules) = (StatusCode::OK, ReplayRules::default());
        let payload = StoredResponse::capture(status, &headers, json, None, &rules).encode();
        let retain = self.shared.policy().key_retain;
        let done = Settlement::new(state, payload, retain, retain);
        let claim_request = self.claim_request();
        let step = self.claim(&claim_request);
        self.keeping = Some((claim_request, done));
        step
    }

    /// Takes a stored result.
    fn find(&mut self, record: &Record) -> PyResult<()> {
        let matches = self.lease.fingerprint.compare(&record.fingerprint);
        if !matches!(matches, Match::Same | Match::Incomparable) {
            let text = "an earlier request under the same key, with other content, ran this step";
            return Err(PyValueError::new_err(text));
        }
        if record.state == State::NotReplayable {
            self.is_unkept = true;
            return Ok(());
        }
        let stored = StoredResponse::decode(&record.payload);
        let unreadable = |_| PyValueError::new_err("the step's record holds no result");
        self.found = Some(stored.map_err(unreadable)?.body);
        Ok(())
    }
}

#[pymethods]
impl Recovery {
    fn lookups(&self) -> Vec<Step> {
        let fingerprint = self.lease.fingerprint;
        vec![Step::new(StoreCall::Lookup(self.lease.id.step(&self.label), fingerprint))]
    }

    fn looked(&mut self, step: &Bound<'_, Step>) -> PyResult<bool> {
        let step = step.try_borrow()?;
        match step.outcome() {
            Verdict::Settled(record) => self.find(record).map(|()| true),
            _ => Ok(false),
        }
    }

    #[getter]
    fn found<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.found.as_ref().map(|json| PyBytes::new(py, json))
    }

    fn keep(&mut self, json: &[u8]) -> Option<Step> {
        let is_small = json.len() <= self.shared.policy().response_bytes_max;
        is_small.then(|| self.store(State::Completed, Bytes::copy_from_slice(json)))
    }

    fn keep_none(&mut self) -> Step {
        self.store(State::NotReplayable, Bytes::new())
    }

    fn kept(&mut self, step: &Bound<'_, Step>) -> PyResult<Option<Step>> {
        let Some((mut claim_request, done)) = self.keeping.clone() else {
            return Err(misuse("keep a result first"));
        };
        let step = step.try_borrow()?;
        self.is_contended = false;
        match (step.call(), step.outcome()) {
            (StoreCall::Claim(..), Verdict::Granted(lease)) => {
                return Ok(Some(Step::new(StoreCall::Settle(lease.clone(), done))));
            }
            (StoreCall::Settle(..), Verdict::Done) => return Ok(None),
            (_, Verdict::Settled(record)) if record.token == claim_request.token => {
                return Ok(None);
            }
            // The first result stands: results never change.
            (_, Verdict::Settled(record)) => return self.find(record).map(|()| None),
            (_, Verdict::Held(holder)) => {
                claim_request.expected = Some(Expected::Orphan(holder.token));
            }
            // A fenced attempt claims again to read the result that fenced it.
            (_, Verdict::Failed(failure))
                if failure.kind.is_transient() || failure.kind == ErrorKind::Fenced => {}
            _ => return Err(misuse("the store has no room for the step's result, or refused it")),
        }
        self.is_contended = true;
        let again = self.claim(&claim_request);
        self.keeping = Some((claim_request, done));
        Ok(Some(again))
    }

    #[getter]
    const fn is_unkept(&self) -> bool {
        self.is_unkept
    }

    #[getter]
    const fn is_contended(&self) -> bool {
        self.is_contended
    }
}

const LABEL_BYTES_MAX: usize = 255;
/// A claim on a step's record may be taken over at once: the result exists already, and only the
/// first settlement counts.
const TERM: Duration = Duration::from_millis(1);
