//! A policy made ready, and where passages begin.

use std::sync::{Arc, Mutex, PoisonError};

use http::Method;
use idemptx_core::exchange::{Exchange, Head};
use idemptx_core::key::{Key, Scope};
use idemptx_core::outcome::{Bypass, Rejection};
use idemptx_core::policy::{Mode, OnLargeBody, OnStoreError, OnUnsafeStore, Policy, ScopeRule};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::exchange::PyExchange;
use crate::refusal::Refusal;
use crate::shared::Shared;
use crate::{http_lines, no_randomness};

/// A policy made ready.
#[pyclass(frozen, module = "idemptx._idemptx")]
pub(crate) struct Rules(Arc<Shared>);

impl Rules {
    fn of(policy: Policy, namespace: &str) -> PyResult<Self> {
        Shared::new(policy, namespace).map(Self).map_err(|_| no_randomness())
    }
}

#[pymethods]
impl Rules {
    #[new]
    #[pyo3(signature = (profile, policy, namespace = ""))]
    fn new(profile: &str, policy: &str, namespace: &str) -> PyResult<Self> {
        let wrong = |error| PyValueError::new_err(format!("{error}"));
        let policy = Policy::from_json(profile.parse().map_err(wrong)?, policy).map_err(wrong)?;
        if policy.on_large_body == OnLargeBody::Stream {
            let advice = "`on_large_body`: `stream` is for the gateway; write `reject` or `skip`";
            return Err(PyValueError::new_err(advice));
        }
        Self::of(policy, namespace)
    }

    #[getter]
    fn profile(&self) -> &'static str {
        self.0.policy().profile.as_str()
    }

    #[getter]
    fn required(&self) -> bool {
        self.0.policy().required
    }

    #[getter]
    fn asks_for_scope(&self) -> bool {
        self.0.policy().scope == Some(ScopeRule::Custom)
    }

    #[getter]
    fn is_shadow(&self) -> bool {
        self.0.policy().mode == Mode::Shadow
    }

    #[getter]
    fn fails_open(&self) -> bool {
        self.0.policy().on_store_error == OnStoreError::FailOpen
    }

    #[getter]
    fn request_bytes_max(&self) -> u64 {
        self.0.policy().request_bytes_max
    }

    #[getter]
    fn response_bytes_max(&self) -> usize {
        self.0.policy().response_bytes_max
    }

    #[getter]
    fn waiters_max(&self) -> usize {
        self.0.policy().waiters_max
    }

    #[getter]
    fn waiters_total_max(&self) -> usize {
        self.0.policy().waiters_total_max
    }

    #[getter]
    fn retain(&self) -> f64 {
        self.0.policy().retain.as_secs_f64()
    }

    #[getter]
    fn lease(&self) -> f64 {
        self.0.policy().lease.as_secs_f64()
    }

    #[getter]
    fn claim_timeout(&self) -> f64 {
        self.0.policy().claim_timeout.as_secs_f64()
    }

    #[getter]
    fn settle_timeout(&self) -> f64 {
        self.0.policy().settle_timeout.as_secs_f64()
    }

    #[getter]
    fn drain(&self) -> f64 {
        self.0.policy().drain.as_secs_f64()
    }

    #[getter]
    fn store_check(&self) -> f64 {
        self.0.policy().store_check.as_secs_f64()
    }

    #[getter]
    fn refuses_unsafe_stores(&self) -> bool {
        self.0.policy().on_unsafe_store == OnUnsafeStore::Refuse
    }

    fn with_custom_scope(&self) -> PyResult<Self> {
        let mut policy = self.0.policy().clone();
        policy.scope = Some(ScopeRule::Custom);
        Self::of(policy, self.0.namespace())
    }

    fn to_json(&self) -> String {
        self.0.policy().to_json()
    }

    #[pyo3(signature = (http_version = "1.1"))]
    fn without_execution(&self, http_version: &str) -> Option<Refusal> {
        let rejection = Rejection::without_execution(Bypass::NoKey, self.0.policy());
        rejection.map(|rejection| Refusal::new(&rejection, http_lines::version(http_version), None))
    }

    #[pyo3(signature = (method, path, query, headers, scope = None, accepts = None))]
    fn begin(
        &self,
        method: &str,
        path: &[u8],
        query: &[u8],
        headers: &Bound<'_, PyAny>,
        scope: Option<&str>,
        accepts: Option<Py<PyAny>>,
    ) -> PyResult<Option<PyExchange>> {
        let uri = http_lines::target(path, query)?;
        let headers = http_lines::headers(headers)?;
        // No key is for a method that is none.
        let Ok(method) = Method::from_bytes(method.as_bytes()) else { return Ok(None) };
        let raised = Mutex::new(None);
        let asked = accepts.map(|accepts| {
            let raised = &raised;
            move |key: &Key| {
                Python::attach(|py| accepts.call1(py, (key.as_str(),))?.is_truthy(py))
                    .unwrap_or_else(|error| {
                        *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        false
                    })
            }
        });
        let head = Head::new(&method, &uri, &headers)
            .in_scope(scope.map(Scope::new))
            .accepting(asked.as_ref().map(|asked| asked as &(dyn Fn(&Key) -> bool + Sync)));
        let (machine, action) = Exchange::begin(self.0.rules(), &head);
        if let Some(error) = raised.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        Ok(PyExchange::begun(&self.0, machine, action, &head))
    }
}
