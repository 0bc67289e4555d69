//! What is kept of a response, its byte format, and what of it is replayed.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

/// A response as it is stored and replayed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StoredResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its header lines: order and repeats kept, values as bytes.
    pub headers: HeaderMap,
    /// Its content.
    pub body: Bytes,
    /// Its trailer lines.
    pub trailers: HeaderMap,
}
