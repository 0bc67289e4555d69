//! How records are named, and what the server's clock shows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use idemptx::store::redis::protocol;
use idemptx_core::key::RecordId;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::step::micros_since_epoch;

/// How records are laid out in Redis, and the server's clock.
#[pyclass(frozen, module = "idemptx._idemptx")]
pub(crate) struct Layout(pub(super) Arc<Server>);

/// What all connections to a server share.
pub(super) struct Server {
    pub(super) layout: protocol::Layout,
    origin: Instant,
    /// The server's clock at the origin; until it is learnt, this machine's.
    micros_at_origin: AtomicU64,
}

impl Server {
    /// The server's clock, as well as it is known, in microseconds since the Unix epoch.
    pub(super) fn micros(&self) -> u64 {
        self.micros_at_origin.load(Ordering::Relaxed).saturating_add(self.elapsed())
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
        }))
    }

    #[getter]
    fn channel<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.layout.channel().as_bytes())
    }

    fn learn_time(&self, seconds: u64, micros: u64) {
        let now = seconds.saturating_mul(1_000_000).saturating_add(micros);
        let at_origin = now.saturating_sub(self.0.elapsed());
        self.0.micros_at_origin.store(at_origin, Ordering::Relaxed);
    }

    #[staticmethod]
    #[pyo3(signature = (text, /))]
    fn id_from_text<'py>(py: Python<'py>, text: &[u8]) -> Option<Bound<'py, PyBytes>> {
        let id: RecordId = std::str::from_utf8(text).ok()?.parse().ok()?;
        Some(PyBytes::new(py, id.as_bytes()))
    }
}
