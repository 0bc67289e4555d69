//! The compiled half of the Python package: the protocol machine, and the stores' steps.
//!
//! It drives [`Exchange`](idemptx_core::exchange::Exchange) as the Rust engine does, but never
//! waits: Python owns the event loop, and moves Redis' bytes.
//! `python/idemptx/_idemptx.pyi` is the contract; every class and method is documented there.

mod coordinator;
mod durable;
mod exchange;
mod futures;
mod http_lines;
mod leases;
mod memory;
mod refusal;
mod rules;
mod safety;
mod shared;
mod step;
mod wire;

use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;

/// The compiled Python module; `python/idemptx/_idemptx.pyi` documents it.
///
/// Its objects are borrowed for the length of a call, which without the interpreter's lock another
/// thread could meet: a free-threaded interpreter turns its lock on again.
#[pymodule(gil_used = true)]
mod _idemptx {
    use pyo3::prelude::*;
    use pyo3::types::{PyBytes, PyList, PyTuple};

    #[pymodule_export]
    use super::check_token_source;
    #[pymodule_export]
    use super::coordinator::{Confirmation, Coordinator, Waiter};
    #[pymodule_export]
    use super::durable::{LoopHandle, NativeStore, WatchHandle};
    #[pymodule_export]
    use super::exchange::PyExchange;
    #[pymodule_export]
    use super::exchange::recovery::Recovery;
    #[pymodule_export]
    use super::is_live;
    #[pymodule_export]
    use super::leases::Leases;
    #[pymodule_export]
    use super::memory::{MemoryStore, Watch};
    #[pymodule_export]
    use super::refusal::Refusal;
    #[pymodule_export]
    use super::rules::Rules;
    #[pymodule_export]
    use super::step::{Step, Update};
    #[pymodule_export]
    use super::wire::{
        Channel, ClientCommands, Layout, PubSubReader, RedisReplyError, Transaction,
    };

    use crate::exchange::numbers::{action, answer};
    use crate::step::kind;
    use crate::step::verdict::number as verdict;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        for (name, number) in action::ALL.into_iter().chain(answer::ALL) {
            module.add(name, number)?;
        }
        for (name, number) in kind::ALL.into_iter().chain(verdict::ALL) {
            module.add(name, number)?;
        }
        let py = module.py();
        let bytes = py.get_type::<PyBytes>();
        let line = py.get_type::<PyTuple>().get_item((&bytes, &bytes))?;
        module.add("Headers", py.get_type::<PyList>().get_item(line)?)?;
        // Without `__all__` every name is public, which is intended here.
        module.delattr("__all__")
    }
}

/// Raises OSError if the system has no randomness to make tokens from.
#[pyfunction]
fn check_token_source() -> PyResult<()> {
    shared::Tokens::from_system().map(drop).map_err(|_| no_randomness())
}

/// Returns whether a response is passed on while it is made.
#[pyfunction]
fn is_live(status: u16, headers: &Bound<'_, PyAny>) -> PyResult<bool> {
    let headers = http_lines::headers(headers)?;
    Ok(idemptx_core::response::is_live(http_lines::status(status)?, &headers, None))
}

fn no_randomness() -> PyErr {
    PyOSError::new_err("the system has no randomness to make tokens from")
}

/// Creates the error for a call that the current state does not allow.
fn misuse(text: impl Into<String>) -> PyErr {
    PyRuntimeError::new_err(text.into())
}
