//! The command pipeline of one connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use idemptx::store::redis::protocol::{Next, Reply};
use idemptx_core::store::ErrorKind;
use pyo3::exceptions::{PyConnectionError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use pyo3::{PyTraverseError, PyVisit, intern};

use super::conversation::Conversation;
use super::layout::{Layout, Server};
use super::reply_error;
use super::reply_reader::ReplyReader;
use crate::futures::{is_done, reject, resolve};
use crate::step::Step;

/// The commands and replies of one connection, in order; the owner of the socket moves the bytes.
#[pyclass(module = "idemptx._idemptx")]
pub(crate) struct Channel {
    server: Arc<Server>,
    output: Vec<u8>,
    replies: ReplyReader,
    waiting: VecDeque<Waiting>,
    /// The reason the connection was lost.
    lost: Option<String>,
    /// True once the server has said that it is a replica.
    demoted: bool,
}

/// A command without a reply yet.
struct Waiting {
    asked: Asked,
    future: Py<PyAny>,
    since: Instant,
}

enum Asked {
    Step(Box<Conversation>, Py<Step>),
    Command,
}

#[pymethods]
impl Channel {
    #[new]
    fn new(layout: &Layout) -> Self {
        Self {
            server: Arc::clone(&layout.0),
            output: Vec::new(),
            replies: ReplyReader::default(),
            waiting: VecDeque::new(),
            lost: None,
            demoted: false,
        }
    }

    fn perform(
        slf: &Bound<'_, Self>,
        step: &Bound<'_, Step>,
        future: Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let refused = slf.try_borrow()?.refusal();
        if let Some((kind, failure)) = refused {
            step.try_borrow_mut()?.give_up(kind, failure);
            resolve(&future, slf.py().None())?;
            return Ok(false);
        }
        let mut conversation = Conversation::about(step.try_borrow_mut()?.begin());
        let mut channel = slf.try_borrow_mut()?;
        let was_empty = channel.output.is_empty();
        let server = Arc::clone(&channel.server);
        conversation.begin(&server.layout, server.micros()).encode(&mut channel.output);
        let asked = Asked::Step(Box::new(conversation), step.clone().unbind());
        channel.wait(asked, future.unbind());
        Ok(was_empty)
    }

    fn command(
        slf: &Bound<'_, Self>,
        arguments: Vec<Bound<'_, PyBytes>>,
        future: Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        if arguments.is_empty() {
            return Err(PyValueError::new_err("a command has at least a name"));
        }
        let refused = slf.try_borrow()?.refusal();
        if let Some((_, failure)) = refused {
            reject(&future, PyConnectionError::new_err(failure))?;
            return Ok(false);
        }
        let mut channel = slf.try_borrow_mut()?;
        let was_empty = channel.output.is_empty();
        encode(arguments, &mut channel.output);
        channel.wait(Asked::Command, future.unbind());
        Ok(was_empty)
    }

    fn take_output<'py>(&mut self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let output = PyBytes::new(py, &self.output);
        self.output.clear();
        self.output.shrink_to(OUTPUT_BYTES_KEPT);
        output
    }

    fn feed(slf: &Bound<'_, Self>, data: &[u8]) -> PyResult<bool> {
        let (answered, intact) = {
            let mut channel = slf.try_borrow_mut()?;
            if channel.lost.is_some() {
                return Ok(false);
            }
            channel.match_replies(data)
        };
        // Not borrowed from here on: to resolve a future may be any code.
        let mut asks_more = false;
        let mut fault = None;
        for (waiting, reply) in answered {
            match Self::answered(slf, waiting, reply) {
                Ok(asked) => asks_more |= asked,
                Err(error) => fault = fault.or(Some(error)),
            }
        }
        intact.map_err(PyValueError::new_err)?;
        fault.map_or(Ok(asks_more), Err)
    }

    #[getter]
    const fn is_demoted(&self) -> bool {
        self.demoted
    }

    #[getter]
    fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn waited(&self) -> f64 {
        self.waiting.front().map_or(0.0, |oldest| oldest.since.elapsed().as_secs_f64())
    }

    fn lose(slf: &Bound<'_, Self>, failure: &str) -> PyResult<()> {
        let waiting = {
            let mut channel = slf.try_borrow_mut()?;
            channel.output = Vec::new();
            channel.replies = ReplyReader::default();
            channel.lost = Some(failure.to_owned());
            std::mem::take(&mut channel.waiting)
        };
        let mut fault = None;
        for waiting in waiting {
            if let Err(error) = waiting.lose(slf.py(), failure) {
                fault = fault.or(Some(error));
            }
        }
        fault.map_or(Ok(()), Err)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.waiting.iter().try_for_each(|waiting| {
            if let Asked::Step(_, step) = &waiting.asked {
                visit.call(step)?;
            }
            visit.call(&waiting.future)
        })
    }

    fn __clear__(&mut self) {
        self.waiting.clear();
    }
}

impl Channel {
    /// Returns the reason a command is refused unsent, if it is.
    fn refusal(&self) -> Option<(ErrorKind, String)> {
        match &self.lost {
            Some(failure) => Some((ErrorKind::Unavailable, failure.clone())),
            None if self.waiting.len() >= WAITING_MAX => {
                Some((ErrorKind::Full, "too many commands wait for replies".to_owned()))
            }
            None => None,
        }
    }

    fn wait(&mut self, asked: Asked, future: Py<PyAny>) {
        self.waiting.push_back(Waiting { asked, future, since: Instant::now() });
    }

    /// Pairs each reply with its request, and validates the rest of the data.
    fn match_replies(&mut self, data: &[u8]) -> (Vec<(Waiting, Reply)>, Result<(), String>) {
        let mut answered = Vec::new();
        let mut unasked = false;
        let Self { replies, waiting, demoted, .. } = self;
        let read = replies.feed(data, |reply| {
            *demoted |= matches!(&reply, Reply::Error(error) if is_of_replica(error));
            match waiting.pop_front() {
                Some(waiting) => answered.push((waiting, reply)),
                None => unasked = true,
            }
        });
        let intact = match read {
            Ok(()) if unasked => Err("a reply that nobody asked for".to_owned()),
            read => read.map_err(|malformed| malformed.to_string()),
        };
        (answered, intact)
    }

    /// Delivers a reply; returns true if that queued another command.
    fn answered(slf: &Bound<'_, Self>, waiting: Waiting, reply: Reply) -> PyResult<bool> {
        let py = slf.py();
        let future = waiting.future.bind(py);
        // The future was cancelled, and the step may be in use elsewhere.
        if is_done(future)? {
            return Ok(false);
        }
        let Asked::Step(mut conversation, step) = waiting.asked else {
            match reply {
                Reply::Error(error) => reject(future, reply_error(&error))?,
                reply => {
                    let reply = to_python(py, reply)?;
                    future.call_method1(intern!(py, "set_result"), (reply,))?;
                }
            }
            return Ok(false);
        };
        let server = Arc::clone(&slf.try_borrow()?.server);
        match conversation.answer(&server.layout, reply) {
            Next::Ask(command) => {
                let mut channel = slf.try_borrow_mut()?;
                command.encode(&mut channel.output);
                channel.wait(Asked::Step(conversation, step), waiting.future);
                Ok(true)
            }
            Next::Done(verdict) => {
                step.bind(py).try_borrow_mut()?.take(verdict);
                future.call_method1(intern!(py, "set_result"), (py.None(),))?;
                Ok(false)
            }
        }
    }
}

impl Waiting {
    fn lose(self, py: Python<'_>, failure: &str) -> PyResult<()> {
        let future = self.future.bind(py);
        if is_done(future)? {
            return Ok(());
        }
        match self.asked {
            Asked::Step(_, step) => {
                let mut step = step.bind(py).try_borrow_mut()?;
                step.give_up(ErrorKind::Unavailable, failure.to_owned());
                drop(step);
                resolve(future, py.None())
            }
            Asked::Command => reject(future, PyConnectionError::new_err(failure.to_owned())),
        }
    }
}

/// Returns true for an error that only a replica gives.
fn is_of_replica(error: &[u8]) -> bool {
    error.starts_with(b"READONLY") || error.starts_with(b"MASTERDOWN")
}

/// Encodes a command as the Redis protocol does: an array of bulk strings.
fn encode(arguments: Vec<Bound<'_, PyBytes>>, output: &mut Vec<u8>) {
    output.extend_from_slice(format!("*{}\r\n", arguments.len()).as_bytes());
    for argument in arguments {
        let bytes = argument.as_bytes();
        output.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
        output.extend_from_slice(bytes);
        output.extend_from_slice(b"\r\n");
    }
}

/// Converts a reply to the Python types that Redis clients return.
fn to_python(py: Python<'_>, reply: Reply) -> PyResult<Py<PyAny>> {
    Ok(match reply {
        Reply::Integer(number) => number.into_pyobject(py)?.into_any().unbind(),
        Reply::Bytes(bytes) => PyBytes::new(py, &bytes).into_any().unbind(),
        Reply::Array(parts) => {
            let parts = parts.into_iter().map(|part| to_python(py, part));
            PyList::new(py, parts.collect::<PyResult<Vec<_>>>()?)?.into_any().unbind()
        }
        Reply::Error(error) => reply_error(&error).into_value(py).into_any(),
        _ => py.None(),
    })
}

/// A bound far above the number of concurrent executions.
const WAITING_MAX: usize = 100_000;
const OUTPUT_BYTES_KEPT: usize = 64 << 10;
