//! asyncio's futures, as we resolve them.

use pyo3::intern;
use pyo3::prelude::*;

pub(crate) fn is_done(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    future.call_method0(intern!(future.py(), "done"))?.is_truthy()
}

pub(crate) fn resolve(future: &Bound<'_, PyAny>, result: Py<PyAny>) -> PyResult<()> {
    if !is_done(future)? {
        future.call_method1(intern!(future.py(), "set_result"), (result,))?;
    }
    Ok(())
}

pub(crate) fn reject(future: &Bound<'_, PyAny>, error: PyErr) -> PyResult<()> {
    if !is_done(future)? {
        let py = future.py();
        future.call_method1(intern!(py, "set_exception"), (error.into_value(py),))?;
    }
    Ok(())
}
