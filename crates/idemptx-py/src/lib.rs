//! The compiled half of the Python package: the protocol machine, and the stores' steps.

use pyo3::prelude::*;

/// What Python calls; `python/idemptx/_idemptx.pyi` describes it.
#[pymodule]
mod _idemptx {
    use super::*;
}
