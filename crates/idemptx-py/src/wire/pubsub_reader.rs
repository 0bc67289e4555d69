//! Messages of a subscribed connection.

use idemptx::store::redis::protocol::Reply;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::reply_error;
use super::reply_reader::ReplyReader;

/// Reads the messages of a subscribed connection.
#[pyclass(module = "idemptx._idemptx")]
pub(crate) struct PubSubReader(ReplyReader);

#[pymethods]
impl PubSubReader {
    #[new]
    fn new() -> Self {
        Self(ReplyReader::default())
    }

    fn feed<'py>(&mut self, py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyList>> {
        let mut received = Vec::new();
        let intact = self.0.feed(data, |reply| received.push(reply));
        let messages = PyList::empty(py);
        for reply in received {
            if let Some((channel, payload)) = message(reply)? {
                messages.append((PyBytes::new(py, &channel), PyBytes::new(py, &payload)))?;
            }
        }
        intact.map_err(|malformed| PyValueError::new_err(malformed.to_string()))?;
        Ok(messages)
    }
}

/// Returns channel and payload of a message; a confirmation has an empty payload.
fn message(reply: Reply) -> PyResult<Option<(bytes::Bytes, bytes::Bytes)>> {
    let parts = match reply {
        Reply::Array(parts) => parts,
        Reply::Error(error) => return Err(reply_error(&error)),
        // The answer to a command such as AUTH or PING that went before.
        _ => return Ok(None),
    };
    let mut parts = parts.into_iter();
    let Some(Reply::Bytes(kind)) = parts.next() else {
        return Err(PyValueError::new_err("a message without a kind"));
    };
    match (&*kind, parts.next(), parts.next()) {
        (b"message", Some(Reply::Bytes(channel)), Some(Reply::Bytes(payload))) => {
            Ok(Some((channel, payload)))
        }
        (b"subscribe", Some(Reply::Bytes(channel)), Some(Reply::Integer(_))) => {
            Ok(Some((channel, bytes::Bytes::new())))
        }
        (b"message" | b"subscribe", ..) => {
            Err(PyValueError::new_err("a message without its parts"))
        }
        _ => Ok(None),
    }
}
