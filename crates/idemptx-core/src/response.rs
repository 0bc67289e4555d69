//! Stored responses: their parts, their byte format, and the headers that are replayed.
//!
//! The format is a known-length response of Binary HTTP (RFC 9292), which any language can read.

pub(crate) mod binary;
mod live;

use std::fmt;

use bytes::Bytes;
use http::header::{CONNECTION, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

pub use self::live::is_live;
use crate::field_names::{is_of_connection, is_of_trace};

/// A response as it is stored and replayed.
///
/// There is no `Content-Length`; the server computes one from the body.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct StoredResponse {
    /// The status.
    pub status: StatusCode,
    /// The header lines, with their order and repeats, values as bytes.
    pub headers: HeaderMap,
    /// The content.
    pub body: Bytes,
    /// The trailer lines.
    pub trailers: HeaderMap,
}

/// Shows sizes, and no content: responses are personal data, and `Debug` ends up in logs.
impl fmt::Debug for StoredResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredResponse")
            .field("status", &self.status)
            .field("headers", &self.headers.len())
            .field("body_bytes", &self.body.len())
            .field("trailers", &self.trailers.len())
            .finish()
    }
}

/// The choice of response headers that are stored and replayed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplayRules {
    /// The only headers to store, if given (`Content-Type` must be named too).
    ///
    /// A policy that names a header here which is never stored is refused.
    pub allow: Option<Vec<HeaderName>>,
    /// More headers that are not stored.
    pub deny: Vec<HeaderName>,
    /// Stores `Set-Cookie` too, so that every client that sends the key again receives it.
    pub set_cookie: bool,
    /// Stores `Access-Control-*` too, where no layer outside adds them to every response.
    ///
    /// They may name the origin of the first request: the adapter replays them to that one only.
    pub cors: bool,
}

impl StoredResponse {
    /// Copies the [storable parts](StorableParts) of a response.
    #[must_use]
    pub fn capture(
        status: StatusCode,
        headers: &HeaderMap,
        body: Bytes,
        trailers: Option<&HeaderMap>,
        rules: &ReplayRules,
    ) -> Self {
        let body = if may_have_content(status) { body } else { Bytes::new() };
        let parts = StorableParts::of(status, headers, &body, trailers, rules);
        let copied = |lines: Vec<FieldLine<'_>>| -> HeaderMap {
            lines.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect()
        };
        let (headers, trailers) = (copied(parts.headers), copied(parts.trailers));
        Self { status, headers, body, trailers }
    }

    /// Copies what is stored of a response whose body cannot be: its head.
    ///
    /// With more field lines than a record may have, only the one that a retry gets is kept.
    #[must_use]
    pub fn capture_head(status: StatusCode, headers: &HeaderMap, rules: &ReplayRules) -> Self {
        let mut head = Self::capture(status, headers, Bytes::new(), None, rules);
        if !head.is_storable() {
            let location = head.headers.remove(LOCATION);
            head.headers = location.map(|value| (LOCATION, value)).into_iter().collect();
        }
        head
    }

    /// Returns true if the response can be decoded again: it is final, and neither section has more
    /// than [`FIELD_LINES_MAX`] lines.
    #[must_use]
    pub fn is_storable(&self) -> bool {
        is_storable(self.status, self.headers.len(), self.trailers.len())
    }

    /// Encodes the response as a known-length response of RFC 9292.
    ///
    /// The bytes of a response that is not [storable](Self::is_storable) cannot be decoded.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        self.encode_after(&[])
    }

    /// Encodes the response after the encoded [`Description`](crate::description::Description) of
    /// its request, as a settled record has it.
    #[must_use]
    pub fn encode_after(&self, description: &[u8]) -> Bytes {
        let Self { status, headers, body, trailers } = self;
        let (headers, trailers) = (headers.iter().collect(), trailers.iter().collect());
        StorableParts { status: *status, headers, body, trailers }.encode_after(description)
    }

    /// Decodes a response; body and header values share `bytes`.
    ///
    /// Accepts every known-length response of RFC 9292, truncated (§3.8) or padded, and skips
    /// informational responses before it.
    ///
    /// # Errors
    ///
    /// Returns [`MalformedResponse`], which names the fault.
    ///
    /// # Security
    ///
    /// Accepts arbitrary bytes, in time and memory proportional to their number.
    pub fn decode(bytes: &Bytes) -> Result<Self, MalformedResponse> {
        binary::decode(bytes)
    }
}

/// The parts of a response that may be stored, borrowed from it; the same rules hold for headers
/// and trailers.
///
/// Never stored are: headers of the connection and those that `Connection` names,
/// `Content-Length`, headers of the moment or the hop (such as `Date`, `Via`, ids of requests
/// and traces, and rate limits), challenges and credentials, CORS headers, which the outer
/// layer adds to every response, the markers of this library, and the body of a status that
/// [has none](may_have_content).
pub struct StorableParts<'a> {
    status: StatusCode,
    headers: Vec<FieldLine<'a>>,
    body: &'a [u8],
    trailers: Vec<FieldLine<'a>>,
}

type FieldLine<'a> = (&'a HeaderName, &'a HeaderValue);

impl<'a> StorableParts<'a> {
    /// Chooses the parts of a response by the rules.
    #[must_use]
    pub fn of(
        status: StatusCode,
        headers: &'a HeaderMap,
        body: &'a [u8],
        trailers: Option<&'a HeaderMap>,
        rules: &ReplayRules,
    ) -> Self {
        let nominates = headers.contains_key(CONNECTION);
        let kept = |lines: &'a HeaderMap| -> Vec<FieldLine<'a>> {
            let is_kept = |(name, _): &FieldLine<'a>| {
                rules.keep(name) && !(nominates && nominated(headers, name))
            };
            lines.iter().filter(is_kept).collect()
        };
        let trailers = trailers.map(kept).unwrap_or_default();
        // Servers refuse to send what the status says is not there.
        let body = if may_have_content(status) { body } else { &[] };
        Self { status, headers: kept(headers), body, trailers }
    }

    /// Returns true if they can be decoded again; see [`StoredResponse::is_storable`].
    #[must_use]
    pub fn is_storable(&self) -> bool {
        is_storable(self.status, self.headers.len(), self.trailers.len())
    }

    /// Encodes them as [`StoredResponse::encode_after`] does, without copying them before.
    #[must_use]
    pub fn encode_after(&self, description: &[u8]) -> Bytes {
        binary::encode(description, self)
    }
}

/// Shows sizes, and no content.
impl fmt::Debug for StorableParts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StorableParts")
            .field("status", &self.status)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Returns whether a response with a status may have content (RFC 9110 §6.4.1).
///
/// The body of another one is not stored.
#[must_use]
pub fn may_have_content(status: StatusCode) -> bool {
    !status.is_informational()
        && status != StatusCode::NO_CONTENT
        && status != StatusCode::NOT_MODIFIED
}

fn is_storable(status: StatusCode, headers: usize, trailers: usize) -> bool {
    !status.is_informational() && headers <= FIELD_LINES_MAX && trailers <= FIELD_LINES_MAX
}

impl ReplayRules {
    fn keep(&self, name: &HeaderName) -> bool {
        self.may_keep(name)
            && !self.deny.contains(name)
            && self.allow.as_ref().is_none_or(|allow| allow.contains(name))
    }

    fn may_keep(&self, name: &HeaderName) -> bool {
        match name.as_str() {
            "set-cookie" => self.set_cookie,
            cors if cors.starts_with(CORS) => self.cors,
            other => !is_never_kept(other),
        }
    }

    /// Returns the first header of `allow` that is not stored all the same.
    pub(crate) fn allowed_in_vain(&self) -> Option<&HeaderName> {
        self.allow.iter().flatten().find(|name| !self.may_keep(name))
    }
}

/// The fault in bytes that are not a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MalformedResponse {
    /// The bytes end within a part.
    Truncated,
    /// The bytes are not a known-length response.
    Framing,
    /// The status is not a valid HTTP status.
    Status,
    /// A field line has a bad name or value.
    FieldLine,
    /// A section has more than [`FIELD_LINES_MAX`] lines.
    TooManyFieldLines,
    /// The bytes after the response are not padding.
    Padding,
}

impl fmt::Display for MalformedResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("the stored response is cut short"),
            Self::Framing => f.write_str(
                "the stored bytes are not a known-length response (RFC 9292 framing indicator 1)",
            ),
            Self::Status => f.write_str("the stored response has an impossible status"),
            Self::FieldLine => f.write_str("the stored response has a malformed field line"),
            Self::TooManyFieldLines => write!(
                f,
                "the stored response has more than {FIELD_LINES_MAX} field lines in a section"
            ),
            Self::Padding => f.write_str("the stored response is followed by other bytes"),
        }
    }
}

impl std::error::Error for MalformedResponse {}

/// Returns true if `Connection` limits `name` to this connection (RFC 9110 §7.6.1).
fn nominated(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.get_all(CONNECTION).iter().any(|line| {
        let mut options = line.as_bytes().split(|byte| *byte == b',');
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
    })
}

/// Returns true for a header that is not part of the operation's result, or must not reach another
/// client.
fn is_never_kept(name: &str) -> bool {
    // Envoy acts upon those of its own, such as `x-envoy-immediate-health-check-fail`.
    let families = ["ratelimit-", "x-ratelimit-", "x-envoy-"];
    let singles = matches!(
        name,
        // The moment and the hop.
        "age" | "alt-svc" | "date" | "server" | "server-timing" | "via"
            | "nel" | "report-to" | "ratelimit" | "x-runtime"
            // The client, and credentials.
            | "www-authenticate" | "authentication-info" | "authorization" | "cookie"
            | "set-cookie2"
            // Ourselves.
            | "idempotency-outcome" | "idempotency-stored" | "idempotency-status"
            | "idempotent-replayed"
    );
    singles
        || families.iter().any(|family| name.starts_with(family))
        || is_of_connection(name)
        || is_of_trace(name)
}

/// The beginning of the names of CORS headers.
const CORS: &str = "access-control-";

/// The most lines in the header or the trailer section of a stored response.
///
/// Servers and clients refuse far fewer; the limit bounds the memory that a damaged record takes.
pub const FIELD_LINES_MAX: usize = 4_096;

#[cfg(test)]
mod tests;
