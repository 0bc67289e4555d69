//! The outcome of a gRPC call, which its HTTP status does not show.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};

/// Returns the HTTP status that a response is classified by.
///
/// A gRPC response (`application/grpc`, `application/grpc-web`) has 200 even for a call that
/// failed; its `grpc-status` counts instead, which stands in the trailers, in the head of a
/// response without messages, or in the last frame of a gRPC-Web body
/// ([gRPC over HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md),
/// [gRPC-Web](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md)):
///
/// | `grpc-status` | classified as |
/// |---|---|
/// | OK | 200 |
/// | INVALID_ARGUMENT | 400 |
/// | NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION, OUT_OF_RANGE, UNIMPLEMENTED | 410: a final error |
/// | PERMISSION_DENIED, RESOURCE_EXHAUSTED, ABORTED, UNAVAILABLE, UNAUTHENTICATED | 429: not this time |
/// | CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, DATA_LOSS, any other, none | 500 |
///
/// The frames of `application/grpc-web-text` are in base64.
/// Any other response is classified by its own `status`.
///
/// # Security
///
/// The body is the handler's; frames are skipped by their length, and no more is allocated than the
/// content of base64.
#[must_use]
pub fn classified_status(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    trailers: Option<&HeaderMap>,
) -> StatusCode {
    let Some(kind) = headers.get(CONTENT_TYPE).and_then(|value| Kind::of(value.as_bytes())) else {
        return status;
    };
    if status != StatusCode::OK {
        return status;
    }
    let field = |map: &HeaderMap| number(map.get(GRPC_STATUS)?.as_bytes());
    let code = trailers.and_then(field).or_else(|| field(headers)).or_else(|| match kind {
        Kind::Grpc => None,
        Kind::Web => in_trailer_frame(body),
        Kind::WebText => in_trailer_frame(&base64(body)?),
    });
    match code {
        Some(0) => StatusCode::OK,
        Some(3) => StatusCode::BAD_REQUEST,
        Some(5 | 6 | 9 | 11 | 12) => StatusCode::GONE,
        Some(7 | 8 | 10 | 14 | 16) => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Returns the content type of a gRPC or gRPC-Web call, which a refusal has too; `None` for any
/// other request.
#[must_use]
pub fn grpc_content_type(headers: &HeaderMap) -> Option<&HeaderValue> {
    let value = headers.get(CONTENT_TYPE)?;
    Kind::of(value.as_bytes()).map(|_| value)
}

#[derive(Clone, Copy)]
enum Kind {
    Grpc,
    Web,
    WebText,
}

impl Kind {
    /// Reads a content type; a suffix such as `+proto`, and parameters, do not matter.
    fn of(content_type: &[u8]) -> Option<Self> {
        match variant(content_type)? {
            b"" => Some(Self::Grpc),
            variant if variant.eq_ignore_ascii_case(WEB) => Some(Self::Web),
            variant if variant.eq_ignore_ascii_case(WEB_TEXT) => Some(Self::WebText),
            _ => None,
        }
    }
}

/// Returns what follows `application/grpc` in a content type, without suffix and parameters.
fn variant(content_type: &[u8]) -> Option<&[u8]> {
    let (prefix, rest) = content_type.split_at_checked(GRPC.len())?;
    if !prefix.eq_ignore_ascii_case(GRPC) {
        return None;
    }
    rest.split(|byte| matches!(byte, b'+' | b';' | b' ')).next()
}

const GRPC: &[u8] = b"application/grpc";
const WEB: &[u8] = b"-web";
const WEB_TEXT: &[u8] = b"-web-text";

/// Finds the status in the frame of trailers, the one whose flags have the highest bit.
fn in_trailer_frame(mut body: &[u8]) -> Option<u32> {
    while let Some((prefix, rest)) = body.split_first_chunk::<5>() {
        let [flags, length @ ..] = *prefix;
        let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
        let (frame, next) = rest.split_at_checked(length)?;
        if flags & 0x80 != 0 {
            return frame.split(|byte| *byte == b'\n').find_map(|line| {
                let colon = line.iter().position(|byte| *byte == b':')?;
                let (name, value) = line.split_at_checked(colon)?;
                let is_status = name.trim_ascii().eq_ignore_ascii_case(GRPC_STATUS.as_bytes());
                is_status.then(|| number(value.get(1..)?)).flatten()
            });
        }
        body = next;
    }
    None
}

/// Decodes base64 (RFC 4648 §4) that may be padded anywhere: each frame may be encoded by itself.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3);
    for group in text.chunks(4) {
        let padding = group.iter().rev().take_while(|byte| **byte == b'=').count();
        if group.len() != 4 || padding > 2 {
            return None;
        }
        let digits = group.iter().take(4 - padding);
        let bits = digits.copied().try_fold(0_u32, |bits, digit| Some(bits << 6 | sextet(digit)?));
        let [_, bytes @ ..] = (bits? << (6 * padding)).to_be_bytes();
        decoded.extend(bytes.iter().take(3 - padding));
    }
    Some(decoded)
}

fn sextet(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
}

const GRPC_STATUS: &str = "grpc-status";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_classified_by_its_grpc_status() {
        for (code, status) in [
            ("0", 200),
            ("3", 400),
            ("5", 410),
            ("6", 410),
            ("9", 410),
            ("11", 410),
            ("12", 410),
            ("7", 429),
            ("8", 429),
            ("10", 429),
            ("14", 429),
            ("16", 429),
            ("1", 500),
            ("2", 500),
            ("4", 500),
            ("13", 500),
            ("15", 500),
            ("99", 500),
            ("x", 500),
        ] {
            let trailers = fields(&[("grpc-status", code)]);
            let head = fields(&[("content-type", "application/grpc+proto")]);
            assert_eq!(classified(&head, b"", Some(&trailers)), status, "in trailers: {code}");
            let head = fields(&[("content-type", "application/grpc"), ("grpc-status", code)]);
            assert_eq!(classified(&head, b"", None), status, "in the head: {code}");
            let head = fields(&[("content-type", "application/grpc-web")]);
            let frames = web_frames(&format!("grpc-message: m\r\nGrpc-Status: {code}\r\n"));
            assert_eq!(classified(&head, &frames, None), status, "in a frame: {code}");
            let head = fields(&[("content-type", "application/grpc-web-text+proto")]);
            let (message, trailers) = frames.split_at(8);
            let texts = [encoded(message), encoded(trailers)].concat();
            assert_eq!(classified(&head, &texts, None), status, "in base64: {code}");
            assert_eq!(classified(&head, &encoded(&frames), None), status, "at once: {code}");
        }
    }

    #[test]
    fn a_call_without_a_status_has_failed() {
        for kind in ["application/grpc", "Application/gRPC; x=y", "application/grpc-web+proto"] {
            assert_eq!(classified(&fields(&[("content-type", kind)]), b"", None), 500, "{kind}");
        }
    }

    #[test]
    fn other_responses_keep_their_status() {
        for kind in ["application/json", "application/grpcs", "application/grpc-web-texts"] {
            let head = fields(&[("content-type", kind), ("grpc-status", "14")]);
            assert_eq!(classified(&head, b"", None), 200, "{kind}");
        }
        let head = fields(&[("content-type", "application/grpc"), ("grpc-status", "0")]);
        let status = classified_status(StatusCode::NOT_FOUND, &head, b"", None);
        assert_eq!(status, StatusCode::NOT_FOUND);
    }

    #[test]
    fn a_frame_that_is_cut_off_has_no_status() {
        let frames = web_frames("grpc-status: 0\r\n");
        for end in 0..frames.len() {
            let head = fields(&[("content-type", "application/grpc-web")]);
            assert_eq!(classified(&head, &frames[..end], None), 500, "{end}");
            let head = fields(&[("content-type", "application/grpc-web-text")]);
            assert_eq!(classified(&head, &encoded(&frames)[..end], None), 500, "{end}");
        }
    }

    fn classified(head: &HeaderMap, body: &[u8], trailers: Option<&HeaderMap>) -> u16 {
        classified_status(StatusCode::OK, head, body, trailers).as_u16()
    }

    fn fields(of: &[(&'static str, &str)]) -> HeaderMap {
        of.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    /// Encodes in base64, with padding.
    fn encoded(bytes: &[u8]) -> Vec<u8> {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let group = |bytes: &[u8]| {
            let mut padded = [0; 4];
            padded[1..=bytes.len()].copy_from_slice(bytes);
            let bits = u32::from_be_bytes(padded);
            [18, 12, 6, 0].map(|shift| DIGITS[(bits >> shift & 63) as usize]).into_iter()
        };
        let padded = |bytes: &[u8]| {
            let digits = group(bytes).take(bytes.len() + 1).chain([b'='; 2]);
            digits.take(4).collect::<Vec<_>>()
        };
        bytes.chunks(3).flat_map(padded).collect()
    }

    fn web_frames(trailers: &str) -> Vec<u8> {
        let mut frames = vec![0, 0, 0, 0, 3, 1, 2, 3, 0x80];
        frames.extend(u32::try_from(trailers.len()).unwrap().to_be_bytes());
        frames.extend(trailers.as_bytes());
        frames
    }
}
