//! The layout of records in Redis, and the server's clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use idemptx::store::SafetyReport;
use idemptx::store::redis::protocol::check::{self, Transport};
use idemptx::store::redis::protocol::{self, Reply, rights};
use idemptx_core::key::RecordId;
use pyo3::exceptions::{PyConnectionError, PyException};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::client_commands::{arguments, from_python};
use crate::safety::as_python;
use crate::step::{micros_since_epoch, with_sources};

/// The layout of records in Redis, and the server's clock.
#[pyclass(frozen, module = "idemptx._idemptx")]
pub(crate) struct Layout(pub(super) Arc<Server>);

/// State shared by all connections to a server.
pub(super) struct Server {
    pub(super) layout: protocol::Layout,
    origin: Instant,
    /// The server's clock at the origin; until it is learnt, this machine's.
    micros_at_origin: AtomicU64,
    is_learnt: AtomicBool,
}

impl Server {
    /// The server's clock, as well as it is known, in microseconds since the Unix epoch.
    pub(super) fn micros(&self) -> u64 {
        self.micros_at_origin.load(Ordering::Relaxed).saturating_add(self.elapsed())
    }

    /// Sets the server's clock at the origin from its answer to TIME.
    ///
    /// The estimate is late by the command's latency and never runs backwards, so that a fence taken
    /// from it exceeds every earlier fence of the server's clock.
    fn learn(&self, at_origin: u64) {
        if self.is_learnt.swap(true, Ordering::Relaxed) {
            self.micros_at_origin.fetch_max(at_origin, Ordering::Relaxed);
        } else {
            self.micros_at_origin.store(at_origin, Ordering::Relaxed);
        }
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

#[pymethods]
impl Layout {
    #[new]
    fn new(prefix: &str) -> Self {
        Self(Arc::new(Server {
            layout: protocol::Layout::new(prefix),
            origin: Instant::now(),
            micros_at_origin: AtomicU64::new(micros_since_epoch()),
            is_learnt: AtomicBool::new(false),
        }))
    }

    #[getter]
    fn channel<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.layout.channel().as_bytes())
    }

    /// Returns the microseconds since the origin, for `learn_time`.
    fn moment(&self) -> u64 {
        self.0.elapsed()
    }

    fn learn_time(&self, seconds: u64, micros: u64, asked: u64) {
        let shown = seconds.saturating_mul(1_000_000).saturating_add(micros);
        self.0.learn(shown.saturating_sub(asked));
    }

    /// The commands that query a server's configuration.
    #[staticmethod]
    fn questions(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyList>>> {
        check::questions().iter().map(|question| arguments(py, question)).collect()
    }

    /// The commands that find out what the user may not run.
    fn rights_questions<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyList>>> {
        rights::questions(&self.0.layout).iter().map(|question| arguments(py, question)).collect()
    }

    /// Evaluates the answers: the guarantee, and the findings, gravest first.
    fn evaluate(
        &self,
        answers: [Bound<'_, PyAny>; 2],
        allowed: [Bound<'_, PyAny>; 2],
        is_overheard: bool,
    ) -> PyResult<(String, Vec<(i32, String)>)> {
        let [about, configuration] = answers;
        let replies = [answer(&about)?, answer(&configuration)?];
        let transport = if is_overheard { Transport::Plaintext } else { Transport::Private };
        let checked = check::evaluate(&self.0.layout, transport, replies)
            .map_err(|error| PyConnectionError::new_err(with_sources(&error)))?;
        let [known, script] = allowed;
        let lacking = rights::finding(&[answer(&known)?, answer(&script)?]);
        let findings = lacking.into_iter().chain(checked.report.findings).collect();
        Ok(as_python(SafetyReport::new(findings, checked.report.guarantee)))
    }

    #[staticmethod]
    #[pyo3(signature = (text, /))]
    fn id_from_text<'py>(py: Python<'py>, text: &[u8]) -> Option<Bound<'py, PyBytes>> {
        let id: RecordId = std::str::from_utf8(text).ok()?.parse().ok()?;
        Some(PyBytes::new(py, id.as_bytes()))
    }
}

/// Converts an answer from Python; an exception stands for an error reply with its text.
fn answer(answer: &Bound<'_, PyAny>) -> PyResult<Reply> {
    if answer.is_instance_of::<PyException>() {
        return Ok(Reply::Error(Bytes::from(answer.str()?.to_string())));
    }
    from_python(answer, 0)
}
