//! A step as commands for the application's Redis client.

use std::sync::Arc;

use bytes::Bytes;
use idemptx::store::redis::protocol::{Command, Next, Reply};
use idemptx_core::store::StoreError;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyInt, PyList, PyString, PyTuple};

use super::conversation::Conversation;
use super::layout::{Layout, Server};
use crate::misuse;
use crate::step::Step;

/// A step as a sequence of commands for the application's Redis client.
#[pyclass(module = "idemptx._idemptx")]
pub(crate) struct ClientCommands {
    server: Arc<Server>,
    conversation: Conversation,
    command: Option<Command>,
    step: Py<Step>,
    /// True if the client may send a command again by itself, having lost the answer.
    resends: bool,
}

#[pymethods]
impl ClientCommands {
    #[new]
    #[pyo3(signature = (layout, step, resends = true))]
    fn new(layout: &Layout, step: Bound<'_, Step>, resends: bool) -> PyResult<Self> {
        let server = Arc::clone(&layout.0);
        let mut conversation = Conversation::about(step.try_borrow_mut()?.begin());
        let command = Some(conversation.begin(&server.layout, server.micros()));
        Ok(Self { server, conversation, command, step: step.unbind(), resends })
    }

    #[getter]
    fn command<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        self.command.as_ref().map(|command| arguments(py, command)).transpose()
    }

    fn reply(&mut self, reply: &Bound<'_, PyAny>) -> PyResult<()> {
        let heard = from_python(reply, 0)?;
        self.answer(reply.py(), heard)
    }

    fn error(&mut self, py: Python<'_>, text: String) -> PyResult<()> {
        self.answer(py, Reply::Error(Bytes::from(text)))
    }
}

impl ClientCommands {
    fn answer(&mut self, py: Python<'_>, reply: Reply) -> PyResult<()> {
        if self.command.is_none() {
            return Err(misuse("the step has its verdict: nothing was asked"));
        }
        self.command = match self.conversation.answer(&self.server.layout, reply) {
            Next::Ask(command) => Some(command),
            Next::Done(verdict) => {
                let verdict =
                    if self.resends { verdict.map_err(StoreError::in_doubt) } else { verdict };
                self.step.bind(py).try_borrow_mut()?.take(verdict);
                None
            }
        };
        Ok(())
    }
}

/// Converts a command to the arguments that Redis clients take.
pub(super) fn arguments<'py>(py: Python<'py>, command: &Command) -> PyResult<Bound<'py, PyList>> {
    PyList::new(py, command.arguments().map(|argument| PyBytes::new(py, argument)))
}

/// Converts a reply to the Python types that Redis clients return.
pub(super) fn from_python(reply: &Bound<'_, PyAny>, depth: usize) -> PyResult<Reply> {
    if reply.is_none() {
        return Ok(Reply::Nil);
    }
    if let Ok(bytes) = reply.cast::<PyBytes>() {
        return Ok(Reply::Bytes(Bytes::copy_from_slice(bytes.as_bytes())));
    }
    if let Ok(truth) = reply.cast::<PyBool>() {
        return Ok(Reply::Integer(truth.is_true().into()));
    }
    if reply.is_instance_of::<PyInt>() {
        return Ok(Reply::Integer(reply.extract()?));
    }
    if let Ok(text) = reply.cast::<PyString>() {
        return Ok(Reply::Bytes(Bytes::from(text.to_str()?.to_owned())));
    }
    let is_series = reply.is_instance_of::<PyList>() || reply.is_instance_of::<PyTuple>();
    if !is_series {
        let kind = reply.get_type().name()?;
        return Err(PyTypeError::new_err(format!("no Redis client gives a reply of type {kind}")));
    }
    if depth >= DEPTH_MAX {
        return Err(PyValueError::new_err("the reply is nested too deeply"));
    }
    let parts = reply.try_iter()?.map(|part| from_python(&part?, depth + 1));
    Ok(Reply::Array(parts.collect::<PyResult<_>>()?))
}

const DEPTH_MAX: usize = 8;
