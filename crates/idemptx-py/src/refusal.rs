//! The problem document of a refused request.

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use idemptx_core::outcome::{Code, Rejection};
use idemptx_core::problem::Problem;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::http_lines;

/// A problem document (RFC 9457).
#[pyclass(frozen, module = "idemptx._idemptx")]
pub(crate) struct Refusal {
    code: Code,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    detail: String,
    retry_after: Option<u64>,
}

impl Refusal {
    /// Makes the refusal of a request in this version of HTTP, or of a gRPC call of this content
    /// type.
    pub(crate) fn new(rejection: &Rejection, version: Version, grpc: Option<&HeaderValue>) -> Self {
        let problem = Problem::from(rejection);
        let detail = problem.detail();
        let response = match grpc {
            Some(content_type) => problem.into_grpc_response(content_type.clone()),
            None => problem.into_response(),
        };
        let (mut parts, body) = response.into_parts();
        if rejection.closes_connection(version) {
            parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Self {
            code: rejection.code,
            status: parts.status,
            headers: parts.headers,
            body,
            detail,
            retry_after: rejection.retry_after.map(|wait| wait.as_secs()),
        }
    }

    /// Adds the idempotency headers.
    pub(crate) fn marked(self, mark: impl FnOnce(HeaderMap) -> HeaderMap) -> Self {
        Self { headers: mark(self.headers), ..self }
    }
}

#[pymethods]
impl Refusal {
    #[getter]
    const fn code(&self) -> &'static str {
        self.code.as_str()
    }

    #[getter]
    fn status(&self) -> u16 {
        self.status.as_u16()
    }

    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        http_lines::with_length(py, &self.headers, self.status, self.body.len())
    }

    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.body)
    }

    #[getter]
    fn detail(&self) -> &str {
        &self.detail
    }

    #[getter]
    const fn retry_after(&self) -> Option<u64> {
        self.retry_after
    }
}
