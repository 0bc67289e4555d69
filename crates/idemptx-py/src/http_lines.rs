//! Requests and responses as ASGI has them, from and to the types of the crate `http`.

use http::header::{HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, StatusCode, Uri, Version};
use idemptx_core::response_headers::IDEMPOTENCY_OUTCOME;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

/// Reads header lines; those that HTTP forbids are left out.
pub(crate) fn headers(lines: &Bound<'_, PyAny>) -> PyResult<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in lines.try_iter()? {
        let line = line?;
        let (name, value) = name_and_value(&line)?;
        let name = HeaderName::from_bytes(name.as_bytes());
        let value = HeaderValue::from_bytes(value.as_bytes());
        if let (Ok(name), Ok(value)) = (name, value)
            && headers.try_append(name, value).is_err()
        {
            return Err(PyValueError::new_err("there are too many header lines"));
        }
    }
    Ok(headers)
}

/// Replaces lines that have the names of `marks` and removes the handler's `Idempotency-Outcome`.
pub(crate) fn marked<'py>(
    lines: &Bound<'py, PyAny>,
    marks: &HeaderMap,
) -> PyResult<Bound<'py, PyList>> {
    let py = lines.py();
    let replaced = |name: &[u8]| {
        let is = |mark: &HeaderName| name.eq_ignore_ascii_case(mark.as_str().as_bytes());
        is(&IDEMPOTENCY_OUTCOME) || marks.keys().any(is)
    };
    let mut kept = Vec::new();
    for line in lines.try_iter()? {
        let line = line?;
        let (name, _) = name_and_value(&line)?;
        if !replaced(name.as_bytes()) {
            kept.push(line);
        }
    }
    for mark in pairs(py, marks) {
        kept.push(mark?.into_any());
    }
    PyList::new(py, kept)
}

/// Header lines for Python, with the length of the body unless that status has none.
pub(crate) fn with_length<'py>(
    py: Python<'py>,
    headers: &HeaderMap,
    status: StatusCode,
    length: usize,
) -> PyResult<Bound<'py, PyList>> {
    let mut lines = Vec::with_capacity(headers.len() + 1);
    for line in pairs(py, headers) {
        lines.push(line?);
    }
    // RFC 9110 §8.6: the length in a 304 would be that of a body which is not sent.
    if status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED {
        let digits = PyBytes::new(py, length.to_string().as_bytes());
        lines.push(PyTuple::new(py, [PyBytes::new(py, b"content-length"), digits])?);
    }
    PyList::new(py, lines)
}

fn pairs<'py>(
    py: Python<'py>,
    headers: &HeaderMap,
) -> impl Iterator<Item = PyResult<Bound<'py, PyTuple>>> {
    headers.iter().map(move |(name, value)| {
        let name = PyBytes::new(py, name.as_str().as_bytes());
        PyTuple::new(py, [name, PyBytes::new(py, value.as_bytes())])
    })
}

/// A request's target as a server gave it, in two parts.
pub(crate) fn target(path: &[u8], query: &[u8]) -> PyResult<Uri> {
    let mut text = Vec::with_capacity(path.len() + query.len() + 2);
    let is_asterisk = path == b"*" && query.is_empty();
    if !is_asterisk && path.first() != Some(&b'/') {
        text.push(b'/');
    }
    // The first question mark ends the path, and a hash ends the target: escape both.
    escape(path, |byte| matches!(byte, b'?' | b'#'), &mut text);
    if !query.is_empty() {
        text.push(b'?');
        escape(query, |byte| byte == b'#', &mut text);
    }
    let text = match PathAndQuery::try_from(text.as_slice()) {
        Ok(target) => return Ok(Uri::from(target)),
        Err(_) => {
            let mut plain = Vec::with_capacity(text.len());
            let foreign = |byte: u8| !byte.is_ascii_graphic() || b"\"<>\\^`{|}".contains(&byte);
            escape(&text, foreign, &mut plain);
            plain
        }
    };
    PathAndQuery::try_from(text.as_slice())
        .map(Uri::from)
        .map_err(|_| PyValueError::new_err("the request's target is too long"))
}

/// A status as an integer.
pub(crate) fn status(number: u16) -> PyResult<StatusCode> {
    StatusCode::from_u16(number)
        .map_err(|_| PyValueError::new_err(format!("{number} is no HTTP status")))
}

/// A version as ASGI names it; one that is not known yet has streams, as HTTP/2 has.
pub(crate) fn version(name: &str) -> Version {
    match name {
        "1.0" => Version::HTTP_10,
        "1.1" => Version::HTTP_11,
        _ => Version::HTTP_2,
    }
}

fn escape(bytes: &[u8], is_foreign: impl Fn(u8) -> bool, text: &mut Vec<u8>) {
    for byte in bytes {
        if is_foreign(*byte) {
            text.extend_from_slice(format!("%{byte:02X}").as_bytes());
        } else {
            text.push(*byte);
        }
    }
}

fn name_and_value<'py>(
    line: &Bound<'py, PyAny>,
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let pair = match line.cast::<PyTuple>() {
        Ok(pair) => pair.extract(),
        // The ASGI specification allows any pair.
        Err(_) => line
            .try_iter()?
            .collect::<PyResult<Vec<_>>>()
            .and_then(|parts| PyTuple::new(line.py(), parts).and_then(|pair| pair.extract())),
    };
    pair.map_err(|_| PyTypeError::new_err("a header line is a tuple of two bytes objects"))
}
