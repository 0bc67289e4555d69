//! Problem documents (RFC 9457) for refused requests, made from a [`Rejection`].
//!
//! Every [`Code`] has one page under `docs/problems/`, to which the document's `type` links.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LINK, LOCATION, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use http::{Response, StatusCode, Version};

use crate::outcome::{Bypass, Code, Rejection};
use crate::policy::{OnPanic, Policy, ProblemFormat};

mod grpc_refusal;

pub use self::grpc_refusal::GrpcError;

impl Rejection {
    /// Creates the refusal for `code` under `policy`, with its status and advice.
    ///
    /// `in-progress`, `store-unavailable` and `too-many-keys` have a default time to retry, which
    /// [`retry_after`](Self::retry_after()) replaces.
    /// Set the other fields where more is known.
    #[must_use]
    pub fn new(code: Code, policy: &Policy) -> Self {
        let Terms { status, retryable, safe_new_key, retry_after_secs } = terms(code, policy);
        Self {
            code,
            status,
            retryable,
            safe_new_key,
            retry_after: retry_after_secs.map(Duration::from_secs),
            header_names: match code {
                Code::MissingKey => policy.header_names.clone(),
                _ => Vec::new(),
            },
            invalid_key: None,
            original_status: None,
            location: None,
            challenge: None,
            credential_differs: false,
            problem: Box::new(policy.problem.clone()),
            unstored: false,
        }
    }

    /// Creates the refusal of a request that passed without protection, by a handler that cannot do
    /// without its execution; `None` where no key is meant to be.
    #[must_use]
    pub fn without_execution(bypass: Bypass, policy: &Policy) -> Option<Self> {
        let code = match bypass {
            Bypass::NoKey | Bypass::WouldRefuse(Code::MissingKey) => Code::MissingKey,
            Bypass::LargeBody => Code::BodyTooLarge,
            Bypass::Unprotected => Code::StoreUnavailable,
            Bypass::NotHttp
            | Bypass::Method { .. }
            | Bypass::WouldRefuse(_)
            | Bypass::WouldReplay => return None,
        };
        Some(Self::new(code, policy))
    }

    /// Returns true if the connection of a request in this version cannot be used again, because
    /// the rest of the body is not read: the response has `Connection: close` (RFC 9112 §9.6).
    ///
    /// Without it a client that pools connections sends its next request on this one.
    #[must_use]
    pub fn closes_connection(&self, version: Version) -> bool {
        self.code == Code::BodyTooLarge && version <= Version::HTTP_11
    }

    /// Sets the wait before a retry, rounded up to whole seconds, at least one.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        let rest = u64::from(wait.subsec_nanos() > 0);
        self.retry_after = Some(Duration::from_secs(wait.as_secs().saturating_add(rest).max(1)));
        self
    }
}

/// The format of refusals.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProblemRules {
    /// The format of the document.
    pub format: ProblemFormat,
    /// The address to which a code is appended: the page that explains it.
    pub base: Cow<'static, str>,
    /// The API's own names of codes, where it has others: what clients read as `code`.
    pub codes: BTreeMap<Code, Cow<'static, str>>,
    /// Adds `x-should-retry`, which the HTTP clients of many SDKs obey where they would otherwise
    /// retry every 409.
    pub should_retry: bool,
}

impl ProblemRules {
    /// Returns true if the address fits into a `Link` header.
    pub(crate) fn has_valid_base(&self) -> bool {
        (1..=BASE_BYTES_MAX).contains(&self.base.len())
            && self.base.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>\"".contains(&byte))
    }

    /// Returns true if each name of a code is short and visible.
    pub(crate) fn has_valid_codes(&self) -> bool {
        self.codes.values().all(|name| {
            (1..=CODE_BYTES_MAX).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_graphic())
        })
    }
}

impl Default for ProblemRules {
    /// Problem documents that link to the pages of this project, with `x-should-retry`.
    fn default() -> Self {
        Self {
            format: ProblemFormat::Rfc9457,
            base: Cow::Borrowed(PROBLEM_BASE),
            codes: BTreeMap::new(),
            should_retry: true,
        }
    }
}

/// A problem document (RFC 9457) for a [`Rejection`].
///
/// ```
/// use idemptx_core::outcome::{Code, Rejection};
/// use idemptx_core::policy::Policy;
/// use idemptx_core::problem::Problem;
///
/// let rejection = Rejection::new(Code::InProgress, &Policy::draft());
/// let response = Problem::from(&rejection).into_response();
/// assert_eq!(response.status(), 409);
/// assert_eq!(response.headers()["retry-after"], "1");
/// ```
///
/// # Security
///
/// The document repeats nothing of the request, and never the key.
/// Only [`Rejection::location`] comes from outside: it is part of the application's response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    rejection: Rejection,
}

impl Problem {
    /// Returns the address of the page that explains the problem: the document's `type`.
    #[must_use]
    pub fn type_url(&self) -> String {
        let base = &self.rejection.problem.base;
        let suffix = if base == PROBLEM_BASE { ".md" } else { "" };
        format!("{base}{}{suffix}", self.rejection.code)
    }

    /// Returns the code as the policy names it to clients.
    #[must_use]
    pub fn code(&self) -> &str {
        let Rejection { code, problem, .. } = &self.rejection;
        problem.codes.get(code).map_or(code.as_str(), |name| &**name)
    }

    /// Returns the title, the same for every occurrence of the code.
    #[must_use]
    pub const fn title(&self) -> &'static str {
        title(self.rejection.code)
    }

    /// Returns the advice to the client.
    #[must_use]
    pub fn detail(&self) -> String {
        match (self.rejection.invalid_key, self.rejection.code) {
            (Some(reason), _) => sentence(&reason.to_string()),
            (None, Code::MissingKey) => missing_key_detail(&self.rejection.header_names),
            (None, _) => detail(&self.rejection).to_owned(),
        }
    }

    /// Encodes the document in the policy's format.
    #[must_use]
    pub fn body(&self) -> Bytes {
        let rejection = &self.rejection;
        let mut json = Object::default();
        if rejection.problem.format == ProblemFormat::Flat {
            json.text("type", flat_type(rejection.code));
            json.text("code", self.code());
            json.text("message", &self.detail());
            return Bytes::from(json.finish());
        }
        json.text("type", &self.type_url());
        json.text("title", self.title());
        json.literal("status", rejection.status.as_u16());
        json.text("detail", &self.detail());
        json.text("code", self.code());
        json.literal("retryable", rejection.retryable);
        json.literal("safe_new_key", rejection.safe_new_key);
        if let Some(wait) = rejection.retry_after {
            json.literal("retry_after", wait.as_secs());
        }
        if let Some(status) = rejection.original_status {
            json.literal("original_status", status.as_u16());
        }
        if let Some(Ok(location)) = rejection.location.as_ref().map(HeaderValue::to_str) {
            json.text("location", location);
        }
        Bytes::from(json.finish())
    }

    /// Returns the headers that go with the document.
    #[must_use]
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        self.apply(&mut headers);
        headers
    }

    /// Adds the headers that go with the document to those of a response.
    pub fn apply(&self, headers: &mut HeaderMap) {
        let content_type = match self.rejection.problem.format {
            ProblemFormat::Flat => "application/json",
            ProblemFormat::Rfc9457 => "application/problem+json",
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let link = format!("<{}>; rel=\"describedby\"", self.type_url());
        if let Ok(link) = HeaderValue::try_from(link) {
            headers.append(LINK, link);
        }
        if let Some(wait) = self.rejection.retry_after {
            headers.insert(RETRY_AFTER, wait.as_secs().into());
        }
        if let Some(location) = &self.rejection.location {
            headers.insert(LOCATION, location.clone());
        }
        if let Some(challenge) = &self.rejection.challenge {
            headers.insert(WWW_AUTHENTICATE, challenge.clone());
        }
        if self.rejection.problem.should_retry {
            let retry = if self.rejection.retryable { "true" } else { "false" };
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(retry));
        }
        if self.rejection.unstored {
            headers.insert(STORED, HeaderValue::from_static("false"));
        }
    }

    /// Builds the whole response.
    #[must_use]
    pub fn into_response(self) -> Response<Bytes> {
        let mut response = Response::new(self.body());
        *response.status_mut() = self.rejection.status;
        self.apply(response.headers_mut());
        response
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Self {
        Self { rejection }
    }
}

impl From<&Rejection> for Problem {
    fn from(rejection: &Rejection) -> Self {
        Self::from(rejection.clone())
    }
}

/// The status and the advice of a code.
struct Terms {
    status: StatusCode,
    retryable: bool,
    safe_new_key: bool,
    retry_after_secs: Option<u64>,
}

fn terms(code: Code, policy: &Policy) -> Terms {
    let (status, retryable, safe_new_key, retry_after_secs) = match code {
        Code::MissingKey => (policy.missing_status, false, true, None),
        Code::InvalidKey | Code::ScopeUnresolved => (StatusCode::BAD_REQUEST, false, true, None),
        Code::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, false, true, None),
        Code::BodyUnreadable => (StatusCode::BAD_REQUEST, true, true, None),
        Code::InProgress => (policy.in_flight_status, true, false, Some(SOON_SECS)),
        Code::KeyReused => (policy.mismatch_status, false, true, None),
        Code::OutcomeUnknown | Code::ResultUnavailable | Code::KeyExpired => {
            (StatusCode::CONFLICT, false, false, None)
        }
        Code::StoreUnavailable => (StatusCode::SERVICE_UNAVAILABLE, true, false, Some(SOON_SECS)),
        Code::TooManyKeys => (StatusCode::TOO_MANY_REQUESTS, true, false, Some(WINDOW_SECS)),
        Code::HandlerFailed => {
            let released = policy.on_panic == OnPanic::Release;
            (StatusCode::INTERNAL_SERVER_ERROR, released, false, None)
        }
    };
    Terms { status, retryable, safe_new_key, retry_after_secs }
}

/// The kind of error in the flat format.
const fn flat_type(code: Code) -> &'static str {
    match code {
        Code::StoreUnavailable => "service_unavailable",
        Code::TooManyKeys => "rate_limit_exceeded",
        Code::HandlerFailed => "processing_error",
        _ => "invalid_request",
    }
}

const fn title(code: Code) -> &'static str {
    match code {
        Code::MissingKey => "Missing idempotency key",
        Code::InvalidKey => "Invalid idempotency key",
        Code::ScopeUnresolved => "Cannot identify the caller",
        Code::BodyTooLarge => "Request body too large",
        Code::BodyUnreadable => "Incomplete request body",
        Code::InProgress => "A request with this idempotency key is being processed",
        Code::KeyReused => "The idempotency key was used for another request",
        Code::OutcomeUnknown => "The outcome of the operation is unknown",
        Code::ResultUnavailable => "The operation completed, but its response was not stored",
        Code::KeyExpired => "The operation completed, but its response has expired",
        Code::StoreUnavailable => "The idempotency store is unavailable",
        Code::TooManyKeys => "Too many new idempotency keys",
        Code::HandlerFailed => "The operation failed before it had a response",
    }
}

const fn detail(rejection: &Rejection) -> &'static str {
    match rejection.code {
        Code::MissingKey | Code::InvalidKey => {
            "Send exactly one key in the form that this API documents."
        }
        Code::ScopeUnresolved => "Send the credential or account header that this API documents.",
        Code::BodyTooLarge => "Send a smaller body; nothing was executed.",
        Code::BodyUnreadable => "Send the whole request again; nothing was executed.",
        Code::InProgress => {
            "Send the same request with the same key again after the time in Retry-After; with a \
             new key it could be executed twice."
        }
        Code::KeyReused if rejection.credential_differs => {
            "The request is the one that its key was first used for, but its credential is another: \
             retry with the same credential. An API whose clients sign each request again must take \
             the key's scope from the account instead."
        }
        Code::KeyReused => {
            "For another operation choose a new key; to retry an operation send exactly the \
             request that its key was first used for."
        }
        Code::OutcomeUnknown => {
            "Check if the operation happened before you repeat it; with a new key it could be \
             executed twice."
        }
        Code::ResultUnavailable => {
            "Look the result up instead of repeating the operation; with a new key it would be \
             executed twice."
        }
        Code::KeyExpired => {
            "Look the result up instead of repeating the operation; for another operation choose \
             a new key."
        }
        Code::StoreUnavailable | Code::TooManyKeys => {
            "Send the same request with the same key again after the time in Retry-After."
        }
        Code::HandlerFailed if rejection.retryable => {
            "Send the same request with the same key again."
        }
        Code::HandlerFailed => {
            "Check if the operation happened before you repeat it; with a new key it could be \
             executed twice."
        }
    }
}

fn missing_key_detail(names: &[HeaderName]) -> String {
    let names: Vec<_> = names.iter().map(header_case).collect();
    format!(
        "Send a unique key for this operation, such as a UUID, in the header {}, and the same key \
         with every retry.",
        names.join(" or ")
    )
}

/// Writes a header name as documentation does, such as `Idempotency-Key`.
fn header_case(name: &HeaderName) -> String {
    let mut starts_word = true;
    let letters = name.as_str().chars().map(|letter| {
        let capital = std::mem::replace(&mut starts_word, letter == '-');
        if capital { letter.to_ascii_uppercase() } else { letter }
    });
    letters.collect()
}

fn sentence(clause: &str) -> String {
    let mut letters = clause.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    first.into_iter().chain(letters).chain(['.']).collect()
}

/// A flat JSON object, as it is written.
#[derive(Default)]
struct Object(String);

impl Object {
    fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        self.0.push('"');
        for character in text.chars() {
            match character {
                '"' | '\\' => self.0.extend(['\\', character]),
                '\0'..='\x1F' => {
                    // Writing to a String does not fail.
                    let _ = write!(self.0, "\\u{:04x}", u32::from(character));
                }
                _ => self.0.push(character),
            }
        }
        self.0.push('"');
    }

    /// Adds a number, true or false.
    fn literal(&mut self, name: &str, value: impl Display) {
        self.name(name);
        let _ = write!(self.0, "{value}");
    }

    fn name(&mut self, name: &str) {
        self.0.push_str(if self.0.is_empty() { "{\"" } else { ",\"" });
        self.0.push_str(name);
        self.0.push_str("\":");
    }

    fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

const PROBLEM_BASE: &str = "https://github.com/idemptx/idemptx/blob/main/docs/problems/";
const BASE_BYTES_MAX: usize = 2_048;
const CODE_BYTES_MAX: usize = 64;
const STORED: HeaderName = HeaderName::from_static("idempotency-stored");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// The wait before a retry when nothing better is known.
const SOON_SECS: u64 = 1;
/// New keys are counted by the minute.
const WINDOW_SECS: u64 = 60;

#[cfg(test)]
mod tests;
