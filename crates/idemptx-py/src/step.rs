//! A store step and its verdict.

pub(crate) mod verdict;

use std::error::Error;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use idemptx_core::coordination::Update as Change;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::{Record, State};
use idemptx_core::store::{ClaimInfo, ClaimRequest, ErrorKind, Expected, Settlement, StoreError};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

pub(crate) use self::verdict::Verdict;
use self::verdict::number;
use crate::misuse;

/// A store step and its verdict.
#[pyclass(module = "idemptx._idemptx")]
pub(crate) struct Step {
    call: StoreCall,
    verdict: Verdict,
    failure: Option<String>,
    /// True if a store has, or may have, received the step.
    asked: bool,
    /// True if an earlier request of the step was lost after it may have been received.
    in_doubt: bool,
}

/// An operation on a store.
#[derive(Clone)]
pub(crate) enum StoreCall {
    Claim(RecordId, ClaimRequest),
    /// A lookup, with the fingerprint of the request.
    Lookup(RecordId, Fingerprint),
    Renew(Lease),
    Release(Lease),
    Settle(Lease, Settlement),
    Watch(RecordId),
}

/// The state of a record: a holder, a result, or a failure to read it.
#[pyclass(frozen, module = "idemptx._idemptx")]
pub(crate) struct Update(pub(crate) Change);

impl StoreCall {
    /// The id of the record.
    pub(crate) const fn record_id(&self) -> &RecordId {
        match self {
            Self::Claim(id, _) | Self::Lookup(id, _) | Self::Watch(id) => id,
            Self::Renew(lease) | Self::Release(lease) | Self::Settle(lease, _) => &lease.id,
        }
    }

    /// Returns true for a settlement.
    pub(crate) const fn settles(&self) -> bool {
        matches!(self, Self::Settle(..))
    }
}

impl Step {
    pub(crate) const fn new(call: StoreCall) -> Self {
        Self { call, verdict: Verdict::Pending, failure: None, asked: false, in_doubt: false }
    }

    /// Returns the operation and notes that a store may have received it.
    pub(crate) const fn begin(&mut self) -> &StoreCall {
        self.asked = true;
        &self.call
    }

    /// Returns true if a claim is, or may become, in force.
    pub(crate) const fn may_be_in_force(&self) -> bool {
        match &self.verdict {
            Verdict::Granted(_) => true,
            // Only a step that was sent, and not certainly refused, can have left a claim.
            Verdict::Pending => self.asked,
            Verdict::Failed(failure) => self.asked && failure.kind.is_unknown(),
            _ => false,
        }
    }

    pub(crate) const fn call(&self) -> &StoreCall {
        &self.call
    }

    pub(crate) const fn outcome(&self) -> &Verdict {
        &self.verdict
    }

    /// Takes a store's result.
    pub(crate) fn take(&mut self, verdict: Result<Verdict, StoreError>) {
        match verdict {
            Ok(verdict) => self.conclude(verdict),
            Err(error) => {
                let error = if self.in_doubt { error.in_doubt() } else { error };
                self.verdict = Verdict::Failed(error.failure());
                self.failure = Some(with_sources(&error));
            }
        }
    }

    /// Fails the step without a store's answer.
    pub(crate) fn give_up(&mut self, kind: ErrorKind, failure: String) {
        let error = StoreError::from(kind);
        let error = if self.in_doubt { error.in_doubt() } else { error };
        self.verdict = Verdict::Failed(error.failure());
        self.failure = (!failure.is_empty()).then_some(failure);
    }

    fn conclude(&mut self, verdict: Verdict) {
        self.verdict = verdict;
        self.failure = None;
    }

    pub(crate) const fn record_id(&self) -> &RecordId {
        self.call.record_id()
    }

    /// The fingerprint of the request; `None` for steps other than a claim or a lookup.
    const fn asked_with(&self) -> Option<Fingerprint> {
        match &self.call {
            StoreCall::Claim(_, claim_request) => Some(claim_request.fingerprint),
            StoreCall::Lookup(_, fingerprint) => Some(*fingerprint),
            _ => None,
        }
    }
}

#[pymethods]
impl Step {
    #[staticmethod]
    #[pyo3(signature = (record, /))]
    fn lookup(record: &[u8]) -> PyResult<Self> {
        Ok(Self::new(StoreCall::Lookup(record_id(record)?, Fingerprint::unchecked())))
    }

    #[staticmethod]
    #[pyo3(signature = (record, /))]
    fn watch(record: &[u8]) -> PyResult<Self> {
        Ok(Self::new(StoreCall::Watch(record_id(record)?)))
    }

    #[getter]
    const fn kind(&self) -> i32 {
        match self.call {
            StoreCall::Claim(..) => kind::CLAIM,
            StoreCall::Lookup(..) => kind::LOOKUP,
            StoreCall::Renew(_) => kind::RENEW,
            StoreCall::Release(_) => kind::RELEASE,
            StoreCall::Settle(..) => kind::SETTLE,
            StoreCall::Watch(_) => kind::WATCH,
        }
    }

    #[getter]
    fn id<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.record_id().as_bytes())
    }

    #[getter]
    const fn verdict(&self) -> i32 {
        self.verdict.number()
    }

    #[getter]
    fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    #[pyo3(signature = (verdict, failure = ""))]
    fn fail(&mut self, verdict: i32, failure: &str) -> PyResult<()> {
        let kind = match verdict {
            number::UNAVAILABLE => ErrorKind::Unavailable,
            number::INTERNAL => ErrorKind::Internal,
            number::FULL => ErrorKind::Full,
            number::REFUSED => ErrorKind::Refused,
            _ => {
                let advice = "a step fails as UNAVAILABLE, INTERNAL, REFUSED or FULL";
                return Err(PyValueError::new_err(advice));
            }
        };
        self.give_up(kind, failure.to_owned());
        Ok(())
    }

    fn reset(&mut self) {
        self.in_doubt |= self.asked
            && match &self.verdict {
                Verdict::Pending => true,
                Verdict::Failed(failure) => failure.kind.is_unknown(),
                _ => false,
            };
        self.conclude(Verdict::Pending);
    }

    pub(crate) fn update(&self) -> Option<Update> {
        let told = match (&self.call, &self.verdict) {
            (_, Verdict::Granted(lease)) => {
                Change::Held(ClaimInfo::new(&Record::running(lease), lease.term))
            }
            (_, Verdict::Held(holder)) => Change::Held(*holder),
            (_, Verdict::Settled(record)) => Change::Settled(record.clone()),
            (StoreCall::Settle(lease, done), Verdict::Done) => {
                Change::Settled(Record::settled(lease, done))
            }
            (StoreCall::Claim(..), Verdict::Failed(failure)) => Change::Failed(*failure),
            _ => return None,
        };
        Some(Update(told))
    }

    fn is_held_as(&self, update: &Update) -> bool {
        match (&self.call, &self.verdict, &update.0) {
            (StoreCall::Lookup(..), Verdict::Held(found), Change::Held(known)) => {
                found.token == known.token && !found.is_orphan()
            }
            _ => false,
        }
    }

    #[getter]
    fn remaining(&self) -> f64 {
        match &self.verdict {
            Verdict::Held(holder) => holder.remaining.as_secs_f64(),
            _ => 0.0,
        }
    }

    fn grant(&mut self) -> PyResult<()> {
        let StoreCall::Claim(id, claim_request) = &self.call else {
            return Err(misuse("only a claim can be granted"));
        };
        // A store of locks cannot name the former holder, only that there was one.
        let attempt = if claim_request.expected.is_some() { 2 } else { 1 };
        let lease = Lease::granted(*id, claim_request, micros_since_epoch(), attempt);
        self.conclude(Verdict::Granted(lease));
        Ok(())
    }

    fn hold(&mut self, remaining: f64) -> PyResult<()> {
        let Some(fingerprint) = self.asked_with() else {
            return Err(misuse("only a claim or a lookup can find a holder"));
        };
        let lease = Lease::granted(*self.record_id(), &unknown(fingerprint), 0, 1);
        let holder = ClaimInfo::new(&Record::running(&lease), duration(remaining));
        self.conclude(Verdict::Held(holder));
        Ok(())
    }

    fn replaces(&self, record: &[u8]) -> bool {
        let StoreCall::Claim(id, ClaimRequest { expected: Some(Expected::Settled(token)), .. }) =
            &self.call
        else {
            return false;
        };
        Record::decode(id, &Bytes::copy_from_slice(record))
            .is_ok_and(|record| record.state != State::Running && record.token == *token)
    }

    fn find(&mut self, record: &[u8]) -> PyResult<()> {
        if self.asked_with().is_none() {
            return Err(misuse("only a claim or a lookup can find a record"));
        }
        match Record::decode(self.record_id(), &Bytes::copy_from_slice(record)) {
            Ok(record) if record.state == State::Running => {
                let failure = "a claim stands where a settled record should";
                self.give_up(ErrorKind::Corrupt, failure.to_owned());
            }
            Ok(record) if record.apart => {
                self.conclude(Verdict::Settled(record.with_response_expired()));
            }
            Ok(record) => self.conclude(Verdict::Settled(record)),
            Err(reason) => {
                self.take(Err(StoreError::with_source(ErrorKind::Corrupt, reason)));
            }
        }
        Ok(())
    }

    fn succeed(&mut self) -> PyResult<()> {
        self.conclude(match self.call {
            StoreCall::Claim(..) => return Err(misuse("a claim is granted, not done")),
            StoreCall::Lookup(..) => Verdict::Absent,
            _ => Verdict::Done,
        });
        Ok(())
    }

    fn record<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let StoreCall::Settle(lease, done) = &self.call else {
            return Err(misuse("only a settlement has a record to be kept"));
        };
        Ok(PyBytes::new(py, &Record::settled(lease, done).encode()))
    }

    #[getter]
    fn retain(&mut self) -> PyResult<f64> {
        // A caller that reads the duration is about to take the lock.
        self.asked = true;
        let retain = match &self.call {
            StoreCall::Claim(_, claim_request) => claim_request.retain,
            // One value holds both, and a forgotten key would be executed again.
            StoreCall::Settle(_, done) => done.key_retain.max(done.retain),
            _ => return Err(misuse("only a claim or a settlement is kept")),
        };
        Ok(retain.as_secs_f64())
    }
}

#[pymethods]
impl Update {
    #[getter]
    const fn is_held(&self) -> bool {
        matches!(self.0, Change::Held(_))
    }
}

/// Reads a record's name.
pub(crate) fn record_id(bytes: &[u8]) -> PyResult<RecordId> {
    let bytes = <[u8; RecordId::BYTES]>::try_from(bytes)
        .map_err(|_| PyValueError::new_err("a record's id has 32 bytes"))?;
    Ok(RecordId::from_bytes(bytes))
}

/// Returns a claim request of an unknown client with the same fingerprint.
const fn unknown(fingerprint: Fingerprint) -> ClaimRequest {
    let token = Token::from_bytes([0; Token::BYTES]);
    ClaimRequest::new(token, fingerprint, Duration::ZERO, Duration::ZERO)
}

fn duration(seconds: f64) -> Duration {
    // Negative durations, such as a TTL of -1, count as none left.
    if seconds > 0.0 {
        Duration::try_from_secs_f64(seconds).unwrap_or(FOREVER).min(FOREVER)
    } else {
        Duration::ZERO
    }
}

pub(crate) fn micros_since_epoch() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since_epoch.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

pub(crate) fn with_sources(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    for _ in 0..SOURCES_MAX {
        let Some(cause) = source else { break };
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// `Step.kind`.
pub(crate) mod kind {
    pub(crate) const CLAIM: i32 = 0;
    pub(crate) const LOOKUP: i32 = 1;
    pub(crate) const RENEW: i32 = 2;
    pub(crate) const RELEASE: i32 = 3;
    pub(crate) const SETTLE: i32 = 4;
    pub(crate) const WATCH: i32 = 5;
    pub(crate) const ALL: [(&str, i32); 6] = [
        ("CLAIM", CLAIM),
        ("LOOKUP", LOOKUP),
        ("RENEW", RENEW),
        ("RELEASE", RELEASE),
        ("SETTLE", SETTLE),
        ("WATCH", WATCH),
    ];
}

/// One century, longer than any lease.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
const SOURCES_MAX: usize = 8;
