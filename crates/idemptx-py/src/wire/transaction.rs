//! A step for a Redis client without scripts.

use std::sync::Arc;

use bytes::Bytes;
use idemptx::store::redis::protocol::Read;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::client_commands::arguments;
use super::conversation::Conversation;
use super::layout::{Layout, Server};
use crate::step::Step;

/// A step for a Redis client without scripts: reads under WATCH, decides, writes in MULTI.
#[pyclass(frozen, module = "idemptx._idemptx")]
pub(crate) struct Transaction {
    server: Arc<Server>,
    conversation: Conversation,
    keys: [String; 2],
    step: Py<Step>,
}

#[pymethods]
impl Transaction {
    #[new]
    fn new(layout: &Layout, step: Bound<'_, Step>) -> PyResult<Self> {
        let server = Arc::clone(&layout.0);
        let (conversation, keys) = {
            let mut step = step.try_borrow_mut()?;
            (Conversation::about(step.begin()), server.layout.keys(step.record_id()))
        };
        Ok(Self { server, conversation, keys, step: step.unbind() })
    }

    #[getter]
    fn keys<'py>(&self, py: Python<'py>) -> (Bound<'py, PyBytes>, Bound<'py, PyBytes>) {
        let [record, response] = &self.keys;
        (PyBytes::new(py, record.as_bytes()), PyBytes::new(py, response.as_bytes()))
    }

    #[pyo3(signature = (record, pttl, response, micros))]
    fn decide<'py>(
        &self,
        py: Python<'py>,
        record: Option<&[u8]>,
        pttl: i64,
        response: Option<&[u8]>,
        micros: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        let read = Read {
            record: record.map(Bytes::copy_from_slice),
            pttl,
            response: response.map(Bytes::copy_from_slice),
            micros,
        };
        let decision = self.conversation.decide(&self.server.layout, read);
        self.step.bind(py).try_borrow_mut()?.take(decision.verdict);
        let writes = decision.writes.iter().map(|command| arguments(py, command));
        PyList::new(py, writes.collect::<PyResult<Vec<_>>>()?)
    }
}
