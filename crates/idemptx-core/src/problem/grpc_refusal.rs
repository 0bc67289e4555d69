//! Refusals as gRPC has them: a response without messages, whose head has the status.

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{HeaderName, Response, StatusCode};

use super::Problem;
use crate::outcome::{Code, Rejection};

/// A failed call of gRPC, without messages.
///
/// It is a
/// [trailers-only response](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md) with
/// `grpc-status`, `grpc-message`, and a `google.rpc.ErrorInfo` in `grpc-status-details-bin`, whose
/// reason is the code in capitals and whose metadata has `code`, `retryable` and `safe_new_key`.
#[derive(Clone, Copy, Debug)]
pub struct GrpcError<'a> {
    /// The number of the status, which tells gRPC clients what to do.
    pub status: u16,
    /// The stable name of the problem.
    pub reason: &'a str,
    /// The API's own name of it.
    pub code: &'a str,
    /// The advice to the client.
    pub message: &'a str,
    /// True if the same request with the same key may succeed later.
    pub retryable: bool,
    /// True if the same request with a new key cannot execute the operation a second time.
    pub safe_new_key: bool,
}

impl GrpcError<'_> {
    /// Adds the status to the headers of a response, which gets the content type of the call.
    pub fn apply(&self, content_type: HeaderValue, headers: &mut HeaderMap) {
        headers.insert(CONTENT_TYPE, content_type);
        headers.insert(GRPC_STATUS, HeaderValue::from(self.status));
        let fields = [
            (GRPC_MESSAGE, percent_encoded(self.message)),
            (GRPC_STATUS_DETAILS, base64(&self.details())),
        ];
        for (name, text) in fields {
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(name, value);
            }
        }
    }

    /// Encodes a `google.rpc.Status` with a `google.rpc.ErrorInfo` (protocol buffers).
    fn details(&self) -> Vec<u8> {
        let mut info = Vec::new();
        field(&mut info, 1, self.reason.to_ascii_uppercase().replace('-', "_").as_bytes());
        field(&mut info, 2, ERROR_DOMAIN.as_bytes());
        for (name, value) in [
            ("code", self.code),
            ("retryable", if self.retryable { "true" } else { "false" }),
            ("safe_new_key", if self.safe_new_key { "true" } else { "false" }),
        ] {
            let mut entry = Vec::new();
            field(&mut entry, 1, name.as_bytes());
            field(&mut entry, 2, value.as_bytes());
            field(&mut info, 3, &entry);
        }
        let mut any = Vec::new();
        field(&mut any, 1, ERROR_INFO.as_bytes());
        field(&mut any, 2, &info);
        let mut details = vec![1 << 3];
        varint(&mut details, self.status.into());
        field(&mut details, 2, self.message.as_bytes());
        field(&mut details, 3, &any);
        details
    }
}

impl Problem {
    /// Builds the response to a gRPC or gRPC-Web call, whose `content_type` it has: a
    /// [`GrpcError`].
    #[must_use]
    pub fn into_grpc_response(self, content_type: HeaderValue) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::OK;
        let headers = response.headers_mut();
        self.grpc_error(&self.detail()).apply(content_type, headers);
        if let Some(wait) = self.rejection.retry_after {
            headers.insert(RETRY_AFTER, wait.as_secs().into());
        }
        if self.rejection.unstored {
            headers.insert(super::STORED, HeaderValue::from_static("false"));
        }
        response
    }

    /// Returns the number of the status that tells gRPC clients what to do.
    fn grpc_status(&self) -> u16 {
        match self.rejection.code {
            Code::MissingKey | Code::InvalidKey | Code::BodyUnreadable => INVALID_ARGUMENT,
            Code::ScopeUnresolved if self.rejection.status == StatusCode::UNAUTHORIZED => {
                UNAUTHENTICATED
            }
            Code::ScopeUnresolved => INVALID_ARGUMENT,
            Code::BodyTooLarge | Code::TooManyKeys => RESOURCE_EXHAUSTED,
            Code::InProgress => ABORTED,
            Code::KeyReused => FAILED_PRECONDITION,
            Code::OutcomeUnknown => UNKNOWN,
            Code::ResultUnavailable | Code::KeyExpired => ALREADY_EXISTS,
            Code::StoreUnavailable => UNAVAILABLE,
            Code::HandlerFailed => INTERNAL,
        }
    }

    fn grpc_error<'a>(&'a self, message: &'a str) -> GrpcError<'a> {
        let Rejection { code, retryable, safe_new_key, .. } = self.rejection;
        let (status, reason, code) = (self.grpc_status(), code.as_str(), self.code());
        GrpcError { status, reason, code, message, retryable, safe_new_key }
    }
}

/// Writes a field of bytes with their length.
fn field(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    message.push(number << 3 | 2);
    varint(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

fn varint(message: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        message.push((number & 0x7F) as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

/// Encodes `grpc-message`: visible ASCII and spaces, without `%`.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte.into()),
            // Writing to a String does not fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

/// Encodes in base64 without padding, as fields whose names end in `-bin` are.
fn base64(bytes: &[u8]) -> String {
    let digit = |bits: u32| match (bits & 0x3F) as u8 {
        sextet @ 0..=25 => b'A' + sextet,
        sextet @ 26..=51 => b'a' + (sextet - 26),
        sextet @ 52..=61 => b'0' + (sextet - 52),
        62 => b'+',
        _ => b'/',
    };
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let octet = |at: usize| u32::from(chunk.get(at).copied().unwrap_or_default());
        let bits = octet(0) << 16 | octet(1) << 8 | octet(2);
        let digits = [18, 12, 6, 0].into_iter().take(chunk.len() + 1);
        text.extend(digits.map(|shift| char::from(digit(bits >> shift))));
    }
    text
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_STATUS_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";
/// The `domain` of an `ErrorInfo`, which says whose reasons these are.
const ERROR_DOMAIN: &str = "idemptx";
const UNKNOWN: u16 = 2;
const INVALID_ARGUMENT: u16 = 3;
const ALREADY_EXISTS: u16 = 6;
const RESOURCE_EXHAUSTED: u16 = 8;
const FAILED_PRECONDITION: u16 = 9;
const ABORTED: u16 = 10;
const INTERNAL: u16 = 13;
const UNAVAILABLE: u16 = 14;
const UNAUTHENTICATED: u16 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    #[test]
    fn every_code_has_a_status_that_says_what_to_do() {
        let statuses = Code::ALL.map(|code| {
            let problem = Problem::from(Rejection::new(code, &Policy::draft()));
            let response = problem.into_grpc_response(HeaderValue::from_static("application/grpc"));
            assert_eq!((response.status(), response.body().len()), (StatusCode::OK, 0));
            assert_eq!(response.headers()[CONTENT_TYPE], "application/grpc");
            let message = response.headers()[GRPC_MESSAGE].to_str().unwrap();
            assert!(!message.is_empty(), "{code}");
            response.headers()[GRPC_STATUS].to_str().unwrap().parse::<u16>().unwrap()
        });
        assert_eq!(statuses, [3, 3, 3, 8, 3, 10, 9, 2, 6, 6, 14, 8, 13]);
        let mut rejection = Rejection::new(Code::ScopeUnresolved, &Policy::draft());
        rejection.status = StatusCode::UNAUTHORIZED;
        assert_eq!(Problem::from(rejection).grpc_status(), UNAUTHENTICATED);
    }

    #[test]
    fn the_details_are_an_error_info() {
        let problem = Problem::from(Rejection::new(Code::InProgress, &Policy::draft()));
        let detail = problem.detail();
        let mut expected = vec![0x08, 10, 0x12];
        varint(&mut expected, detail.len() as u64);
        expected.extend(detail.as_bytes());
        let info = [
            &b"\x0a\x0bIN_PROGRESS\x12\x07idemptx"[..],
            b"\x1a\x13\x0a\x04code\x12\x0bin-progress",
            b"\x1a\x11\x0a\x09retryable\x12\x04true",
            b"\x1a\x15\x0a\x0csafe_new_key\x12\x05false",
        ]
        .concat();
        let mut any = b"\x0a\x28type.googleapis.com/google.rpc.ErrorInfo\x12".to_vec();
        varint(&mut any, info.len() as u64);
        any.extend(info);
        expected.push(0x1a);
        varint(&mut expected, any.len() as u64);
        expected.extend(any);
        assert_eq!(problem.grpc_error(&detail).details(), expected);
    }

    #[test]
    fn texts_are_encoded_as_header_fields_need_it() {
        assert_eq!(percent_encoded("50 % – a\n"), "50 %25 %E2%80%93 a%0A");
        for (bytes, text) in
            [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xFB, 0xFF, 0xBF]), "+/+/");
    }
}
