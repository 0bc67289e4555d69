//! What is kept of a response, its byte format, and what of it is replayed.
//!
//! The format is that of a known-length response in Binary HTTP (RFC 9292), so that any language
//! can read what a store holds.

mod binary;

use std::fmt;

use bytes::Bytes;
use http::header::{CONNECTION, SET_COOKIE};
use http::{HeaderMap, HeaderName, StatusCode};

/// A response as it is stored and replayed.
///
/// It has no `Content-Length`: whoever sends it lets the server compute one from the body.
#[derive(Clone, PartialEq)]
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

/// Which headers of a response are replayed, beyond those that never are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplayRules {
    /// If there is such a list, only headers in it are kept (`Content-Type` too must be named).
    ///
    /// It brings nothing back that is never kept.
    pub allow: Option<Vec<HeaderName>>,
    /// Headers that are not kept either.
    pub deny: Vec<HeaderName>,
    /// Whether `Set-Cookie` is kept, and so handed to whoever sends the key again.
    pub set_cookie: bool,
}

impl StoredResponse {
    /// Takes of a response what may be stored, headers and trailers by the same rules.
    ///
    /// Never kept are: headers of the connection and those that `Connection` names,
    /// `Content-Length`, what tells of the moment or the hop (such as `Date`, `Via`, trace ids and
    /// rate limits), challenges, CORS answers, which the layer outside gives afresh, and our own
    /// markers.
    #[must_use]
    pub fn capture(
        status: StatusCode,
        headers: &HeaderMap,
        body: Bytes,
        trailers: Option<&HeaderMap>,
        rules: &ReplayRules,
    ) -> Self {
        let keep = |lines: &HeaderMap| {
            let mut kept = HeaderMap::new();
            for (name, value) in lines {
                if rules.keep(name) && !nominated(headers, name) {
                    kept.append(name.clone(), value.clone());
                }
            }
            kept
        };
        Self {
            status,
            headers: keep(headers),
            body,
            trailers: trailers.map(keep).unwrap_or_default(),
        }
    }

    /// The same response without body and trailers, for one whose body cannot be kept.
    #[must_use]
    pub fn head_only(self) -> Self {
        Self { body: Bytes::new(), trailers: HeaderMap::new(), ..self }
    }

    /// Whether it can be read back once encoded: it is a final response, and has no more than
    /// [`FIELD_LINES_MAX`] lines in either section.
    #[must_use]
    pub fn is_storable(&self) -> bool {
        !self.status.is_informational()
            && self.headers.len() <= FIELD_LINES_MAX
            && self.trailers.len() <= FIELD_LINES_MAX
    }

    /// Its bytes: a known-length response of RFC 9292.
    ///
    /// What is not [storable](Self::is_storable) gives bytes that are refused when read.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        binary::encode(self)
    }

    /// Reads an encoded response; body and header values share `bytes`.
    ///
    /// Takes every known-length response of RFC 9292, truncated (§3.8) or padded; informational
    /// responses before it are passed over.
    ///
    /// # Errors
    ///
    /// [`MalformedResponse`] tells what is wrong with it.
    ///
    /// # Security
    ///
    /// Total over arbitrary bytes, in time and memory proportional to their number.
    pub fn decode(bytes: &Bytes) -> Result<Self, MalformedResponse> {
        binary::decode(bytes)
    }
}

impl ReplayRules {
    fn keep(&self, name: &HeaderName) -> bool {
        !is_never_kept(name.as_str())
            && (self.set_cookie || name != SET_COOKIE)
            && !self.deny.contains(name)
            && self.allow.as_ref().is_none_or(|allow| allow.contains(name))
    }
}

/// Why bytes are no stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MalformedResponse {
    /// They end within a part.
    Truncated,
    /// They are another kind of message than a known-length response.
    Framing,
    /// The status is none.
    Status,
    /// A field line has a bad name or value.
    FieldLine,
    /// A section has more than [`FIELD_LINES_MAX`] lines.
    TooManyFieldLines,
    /// What follows the response is not padding.
    Padding,
}

impl fmt::Display for MalformedResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("the stored response is cut short"),
            Self::Framing => f.write_str(
                "the stored bytes are no known-length response (RFC 9292 framing indicator 1)",
            ),
            Self::Status => f.write_str("the stored response has an impossible status"),
            Self::FieldLine => f.write_str("the stored response has a malformed field line"),
            Self::TooManyFieldLines => write!(
                f,
                "the stored response has more than {FIELD_LINES_MAX} field lines in a section"
            ),
            Self::Padding => f.write_str("something follows the stored response"),
        }
    }
}

impl std::error::Error for MalformedResponse {}

/// Whether a `Connection` header says that `name` is for this connection only (RFC 9110 §7.6.1).
fn nominated(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.get_all(CONNECTION).iter().any(|line| {
        let mut options = line.as_bytes().split(|byte| *byte == b',');
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
    })
}

/// Whether a header says nothing about the operation, or must not reach another client.
fn is_never_kept(name: &str) -> bool {
    let families = ["access-control-", "proxy-", "ratelimit-", "x-ratelimit-"];
    let singles = matches!(
        name,
        // The connection and the framing.
        "connection" | "keep-alive" | "te" | "trailer" | "transfer-encoding" | "upgrade"
            | "content-length"
            // The moment and the hop.
            | "age" | "alt-svc" | "date" | "server" | "server-timing" | "via"
            | "traceparent" | "tracestate" | "x-request-id" | "nel" | "report-to" | "ratelimit"
            // The client.
            | "www-authenticate" | "authentication-info"
            // Ourselves.
            | "idempotency-outcome" | "idempotency-stored" | "idempotency-status"
            | "idempotent-replayed"
    );
    singles || families.iter().any(|family| name.starts_with(family))
}

/// Most lines in the header or the trailer section of a stored response.
///
/// Servers and clients refuse far fewer; it keeps the memory for a damaged record within reason.
pub const FIELD_LINES_MAX: usize = 4_096;

#[cfg(test)]
mod tests;
