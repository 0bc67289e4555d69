//! The description of a request in its record, for the operator who has to find out what happened.
//!
//! A record is named by digests, so without it no operator could tell which operation is in doubt.
//!
//! # Format
//!
//! It is a response message of RFC 9292 that begins with an informational response: the status 102
//! and the description's parts as its field lines.
//! A claim has nothing but that as its payload, and the payload of a settled record begins with it.
//! A reader that does not know it skips informational responses, as §3.5.1 demands, so that the
//! format of records need not change.

use std::fmt;

use bytes::Bytes;

use crate::lease::Lease;
use crate::response::binary::{
    KNOWN_LENGTH_RESPONSE, Reader, prefixed_length, put_prefixed, put_varint, varint_length,
};
use crate::store::{ClaimRequest, Settlement};

/// The request that made a claim, as an operator sees it.
///
/// # Security
///
/// It has neither the query nor header values nor content.
/// A path may contain personal data all the same: like responses it is stored in the clear, unless
/// the store is sealed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Description {
    /// The method.
    pub method: String,
    /// The path as the client sent it, cut to [`PATH_BYTES_MAX`](Self::PATH_BYTES_MAX).
    pub path: String,
    /// The name of the route; empty if the front door has none.
    pub route: String,
    /// The namespace of the service, which is the upstream of a gateway; empty without one.
    pub service: String,
}

impl Description {
    /// The most bytes of a path that are kept.
    pub const PATH_BYTES_MAX: usize = 256;
    /// The most bytes of each other part that are kept.
    pub const PART_BYTES_MAX: usize = 64;
    /// The most bytes that an encoded description has, sealed or not: a listing reads no more of a
    /// payload.
    pub const BYTES_MAX: usize = 640;

    /// Encodes the description, with its parts cut to their limits.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        DescribedRoute::new(&self.route, &self.service).describe(&self.method, &self.path)
    }

    /// Returns the description with which a payload begins, if it has one.
    ///
    /// # Security
    ///
    /// Total over arbitrary bytes.
    #[must_use]
    pub fn of(payload: &Bytes) -> Option<Self> {
        let mut lines = parts(payload)?.0;
        let mut description = Self::default();
        while !lines.rest.is_empty() {
            let name = lines.prefixed().ok()?.rest;
            let part = String::from_utf8_lossy(lines.prefixed().ok()?.rest).into_owned();
            match name {
                METHOD => description.method = part,
                PATH => description.path = part,
                ROUTE => description.route = part,
                SERVICE => description.service = part,
                // Of a later release.
                _ => {}
            }
        }
        Some(description)
    }
}

impl fmt::Display for Description {
    /// Writes the method and the path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl ClaimRequest {
    /// Describes the request, for operators, by an encoded [`Description`].
    #[must_use]
    pub fn described(self, description: Bytes) -> Self {
        Self { description, ..self }
    }
}

impl Settlement {
    /// Keeps the description of the claim that is settled, before the response.
    #[must_use]
    pub fn describing(mut self, lease: &Lease) -> Self {
        self.payload = described(&lease.description, self.payload);
        self
    }
}

/// The description of all requests on a route, except for method and path.
///
/// Encoded once: every request under a key is described.
pub(crate) struct DescribedRoute {
    lines: Vec<u8>,
}

impl DescribedRoute {
    pub(crate) fn new(route: &str, service: &str) -> Self {
        let mut lines = Vec::new();
        put_line(&mut lines, ROUTE, &cut(route, Description::PART_BYTES_MAX));
        put_line(&mut lines, SERVICE, &cut(service, Description::PART_BYTES_MAX));
        Self { lines }
    }

    /// Encodes the description of a request, in one allocation.
    pub(crate) fn describe(&self, method: &str, path: &str) -> Bytes {
        let method = cut(method, Description::PART_BYTES_MAX);
        let path = cut(path, Description::PATH_BYTES_MAX);
        let length = line_length(METHOD, &method) + line_length(PATH, &path) + self.lines.len();
        let head = varint_length(KNOWN_LENGTH_RESPONSE) + varint_length(STATUS);
        let mut bytes = Vec::with_capacity(head + varint_length(length as u64) + length);
        put_varint(&mut bytes, KNOWN_LENGTH_RESPONSE);
        put_varint(&mut bytes, STATUS);
        put_varint(&mut bytes, length as u64);
        put_line(&mut bytes, METHOD, &method);
        put_line(&mut bytes, PATH, &path);
        bytes.extend_from_slice(&self.lines);
        debug_assert!(bytes.len() <= Description::BYTES_MAX, "the limits add up to less");
        bytes.into()
    }
}

/// Returns the length of a part; one that is empty has no line.
fn line_length(name: &[u8], part: &str) -> usize {
    if part.is_empty() { 0 } else { prefixed_length(name.len()) + prefixed_length(part.len()) }
}

fn put_line(bytes: &mut Vec<u8>, name: &[u8], part: &str) {
    if !part.is_empty() {
        put_prefixed(bytes, name);
        put_prefixed(bytes, part.as_bytes());
    }
}

/// Returns the part of a payload that is an encoded description; empty if there is none.
#[must_use]
pub(crate) fn encoded(payload: &Bytes) -> Bytes {
    let end = parts(payload).map_or(0, |(_, end)| end);
    payload.slice(..end)
}

/// Puts an encoded description before an encoded response.
#[must_use]
pub(crate) fn described(description: &Bytes, response: Bytes) -> Bytes {
    match response.split_first() {
        _ if description.is_empty() => response,
        None => description.clone(),
        Some((_, message)) => [description, message].concat().into(),
    }
}

/// Returns the field lines, and where the payload goes on after them.
fn parts(payload: &Bytes) -> Option<(Reader<'_>, usize)> {
    let mut message = Reader::new(payload);
    let is_described =
        message.varint() == Ok(KNOWN_LENGTH_RESPONSE) && message.varint() == Ok(STATUS);
    let lines = is_described.then(|| message.prefixed().ok())??;
    Some((lines, payload.len() - message.rest.len()))
}

/// Cuts a text, and says so at its end.
fn cut(text: &str, bytes_max: usize) -> std::borrow::Cow<'_, str> {
    if text.len() <= bytes_max {
        return text.into();
    }
    let kept = (0..=bytes_max - CUT.len()).rev().find_map(|end| text.get(..end));
    format!("{}{CUT}", kept.unwrap_or_default()).into()
}

const CUT: &str = "...";
/// Processing (RFC 2518 §10.1): what is known before there is a result.
const STATUS: u64 = 102;
const METHOD: &[u8] = b"method";
const PATH: &[u8] = b"path";
const ROUTE: &[u8] = b"route";
const SERVICE: &[u8] = b"service";

#[cfg(test)]
mod tests;
