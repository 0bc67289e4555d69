//! Binary HTTP (RFC 9292): known-length responses.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{FIELD_LINES_MAX, FieldLine, MalformedResponse, StorableParts, StoredResponse};

/// Encodes a response after an encoded description, in one allocation of the exact size.
///
/// A description is an informational response, which the message begins with: only one of them has
/// the framing indicator.
pub(super) fn encode(description: &[u8], response: &StorableParts<'_>) -> Bytes {
    let StorableParts { status, headers, body, trailers } = response;
    let indicator = &[KNOWN_LENGTH_RESPONSE as u8][..];
    let before = if description.is_empty() { indicator } else { description };
    let (headers_length, trailers_length) = (section_length(headers), section_length(trailers));
    let length = before.len()
        + varint_length(status.as_u16().into())
        + prefixed_length(headers_length)
        + prefixed_length(body.len())
        + prefixed_length(trailers_length);
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(before);
    put_varint(&mut bytes, status.as_u16().into());
    put_section(&mut bytes, headers, headers_length);
    put_prefixed(&mut bytes, body);
    put_section(&mut bytes, trailers, trailers_length);
    debug_assert_eq!(bytes.len(), length, "the length was computed by the same rules");
    bytes.into()
}

/// Decodes a response whose parts share `bytes`.
pub(super) fn decode(bytes: &Bytes) -> Result<StoredResponse, MalformedResponse> {
    let mut message = Reader::new(bytes);
    if message.varint()? != KNOWN_LENGTH_RESPONSE {
        return Err(MalformedResponse::Framing);
    }
    let status = loop {
        match message.varint()? {
            // An informational response (§3.5.1): a status and a header section.
            100..=199 => _ = message.prefixed()?,
            status => break u16::try_from(status).map_err(|_| MalformedResponse::Status)?,
        }
    };
    let status = StatusCode::from_u16(status).map_err(|_| MalformedResponse::Status)?;
    let headers = message.trailing()?.field_lines()?;
    let body = message.trailing()?.share();
    let trailers = message.trailing()?.field_lines()?;
    if message.rest.iter().any(|byte| *byte != 0) {
        return Err(MalformedResponse::Padding);
    }
    Ok(StoredResponse { status, headers, body, trailers })
}

/// A cursor over the parts of a message.
pub(crate) struct Reader<'a> {
    /// The whole message, whose storage the parts share.
    bytes: &'a Bytes,
    pub(crate) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a Bytes) -> Self {
        Self { bytes, rest: bytes }
    }

    /// Reads a length-prefixed part; an encoder may omit it, with everything that follows, if it is
    /// empty (§3.8).
    fn trailing(&mut self) -> Result<Self, MalformedResponse> {
        if self.rest.is_empty() { Ok(Self { ..*self }) } else { self.prefixed() }
    }

    /// Reads a length-prefixed part.
    pub(crate) fn prefixed(&mut self) -> Result<Self, MalformedResponse> {
        let length = usize::try_from(self.varint()?).map_err(|_| MalformedResponse::Truncated)?;
        let (part, rest) =
            self.rest.split_at_checked(length).ok_or(MalformedResponse::Truncated)?;
        self.rest = rest;
        Ok(Self { bytes: self.bytes, rest: part })
    }

    /// Reads a variable-length integer (RFC 9000 §16).
    pub(crate) fn varint(&mut self) -> Result<u64, MalformedResponse> {
        let (first, mut rest) = self.rest.split_first().ok_or(MalformedResponse::Truncated)?;
        let mut value = u64::from(first & 0x3F);
        for _ in 1..1_u8 << (first >> 6) {
            let (byte, after) = rest.split_first().ok_or(MalformedResponse::Truncated)?;
            value = value << 8 | u64::from(*byte);
            rest = after;
        }
        self.rest = rest;
        Ok(value)
    }

    fn field_lines(mut self) -> Result<HeaderMap, MalformedResponse> {
        let mut lines = HeaderMap::new();
        while !self.rest.is_empty() {
            if lines.len() == FIELD_LINES_MAX {
                return Err(MalformedResponse::TooManyFieldLines);
            }
            let name = HeaderName::from_lowercase(self.prefixed()?.rest)
                .map_err(|_| MalformedResponse::FieldLine)?;
            let value = HeaderValue::from_maybe_shared(self.prefixed()?.share())
                .map_err(|_| MalformedResponse::FieldLine)?;
            lines.try_append(name, value).map_err(|_| MalformedResponse::TooManyFieldLines)?;
        }
        Ok(lines)
    }

    fn share(&self) -> Bytes {
        self.bytes.slice_ref(self.rest)
    }
}

fn section_length(lines: &[FieldLine<'_>]) -> usize {
    lines
        .iter()
        .map(|(name, value)| prefixed_length(name.as_str().len()) + prefixed_length(value.len()))
        .sum()
}

pub(crate) fn prefixed_length(length: usize) -> usize {
    varint_length(length as u64) + length
}

pub(crate) const fn varint_length(value: u64) -> usize {
    match value {
        ..0x40 => 1,
        0x40..0x4000 => 2,
        0x4000..0x4000_0000 => 4,
        _ => 8,
    }
}

fn put_section(bytes: &mut Vec<u8>, lines: &[FieldLine<'_>], length: usize) {
    put_varint(bytes, length as u64);
    for (name, value) in lines {
        put_prefixed(bytes, name.as_str().as_bytes());
        put_prefixed(bytes, value.as_bytes());
    }
}

pub(crate) fn put_prefixed(bytes: &mut Vec<u8>, part: &[u8]) {
    put_varint(bytes, part.len() as u64);
    bytes.extend_from_slice(part);
}

pub(crate) fn put_varint(bytes: &mut Vec<u8>, value: u64) {
    // The logarithm of the length stands in the two highest bits.
    match varint_length(value) {
        1 => bytes.push(value as u8),
        length => {
            let marked = value | u64::from(length.ilog2()) << (8 * length - 2);
            let all = marked.to_be_bytes();
            bytes.extend_from_slice(all.get(8 - length..).unwrap_or_default());
        }
    }
}

pub(crate) const KNOWN_LENGTH_RESPONSE: u64 = 1;
