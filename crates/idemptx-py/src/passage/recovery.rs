//! A step of a handler whose result outlives it, as the Rust engine keeps it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use idemptx_core::fingerprint::Match;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;

use idemptx_core::record::{Record, State};
use idemptx_core::response::{ReplayRules, StoredResponse};
use idemptx_core::store::{ClaimRequest, ErrorKind, Expected, Settlement};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::Passage;
use crate::misuse;
use crate::shared::Shared;
use crate::step::{Job, Step, Verdict};

/// One step of a handler: its record is looked for, and then kept.
#[pyclass(module = "idemptx._idemptx")]
pub(crate) struct Recovery {
    shared: Arc<Shared>,
    lease: Lease,
    label: String,
    /// The ids under all secrets, while they rotate.
    ids: Vec<RecordId>,
    keeping: Option<(ClaimRequest, Settlement)>,
    found: Option<Bytes>,
    is_contended: bool,
}

impl Recovery {
    /// Of the operation that a passage executes.
    pub(super) fn of(passage: &Passage, label: &str) -> PyResult<Self> {
        if !(1..=LABEL_BYTES_MAX).contains(&label.len()) {
            return Err(PyValueError::new_err("a step's label has 1 to 255 bytes"));
        }
        let lease = passage.leased()?.clone();
        let ids = passage.exchange.operation().map_or(&[][..], |operation| operation.ids());
        let ids = ids.iter().map(|id| id.step(label)).collect();
        let (shared, label) = (Arc::clone(&passage.shared), label.to_owned());
        Ok(Self { shared, lease, label, ids, keeping: None, found: None, is_contended: false })
    }

    fn claim_request(&self) -> ClaimRequest {
        let retain = self.shared.policy().key_retain;
        ClaimRequest::new(self.shared.token(), self.lease.fingerprint, TERM, retain)
    }

    fn claim(&self, claim_request: &ClaimRequest) -> Step {
        Step::new(Job::Claim(self.lease.id.step(&self.label), claim_request.clone()))
    }

    /// Takes a result that is there already.
    fn find(&mut self, record: &Record) -> PyResult<()> {
        let matches = self.lease.fingerprint.compare(&record.fingerprint);
        if matches!(matches, Match::DifferentRequest | Match::DifferentPrincipal) {
            let text = "an earlier request under the same key, with other content, ran this step";
            return Err(PyValueError::new_err(text));
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
        self.ids.iter().map(|id| Step::new(Job::Lookup(*id, fingerprint))).collect()
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
        let policy = self.shared.policy();
        if json.len() > policy.response_bytes_max {
            return None;
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let (status, rules) = (StatusCode::OK, ReplayRules::default());
        let json = Bytes::copy_from_slice(json);
        let payload = StoredResponse::capture(status, &headers, json, None, &rules).encode();
        let done = Settlement::new(State::Completed, payload, policy.key_retain, policy.key_retain);
        let claim_request = self.claim_request();
        let step = self.claim(&claim_request);
        self.keeping = Some((claim_request, done));
        Some(step)
    }

    fn kept(&mut self, step: &Bound<'_, Step>) -> PyResult<Option<Step>> {
        let Some((mut claim_request, done)) = self.keeping.clone() else {
            return Err(misuse("keep a result first"));
        };
        let step = step.try_borrow()?;
        self.is_contended = false;
        match (step.job(), step.outcome()) {
            (Job::Claim(..), Verdict::Granted(lease)) => {
                return Ok(Some(Step::new(Job::Settle(lease.clone(), done))));
            }
            (Job::Settle(..), Verdict::Done) => return Ok(None),
            (_, Verdict::Settled(record)) if record.token == claim_request.token => {
                return Ok(None);
            }
            // Whoever was there first is right: results do not change.
            (_, Verdict::Settled(record)) => return self.find(record).map(|()| None),
            (_, Verdict::Held(holder)) => {
                claim_request.expected = Some(Expected::Orphan(holder.token))
            }
            // Who was fenced finds out by whom.
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
    const fn is_contended(&self) -> bool {
        self.is_contended
    }
}

const LABEL_BYTES_MAX: usize = 255;
/// Whoever finds a claim on a step's record may take it over at once: the result exists, and only
/// the first to settle counts.
const TERM: Duration = Duration::from_millis(1);
