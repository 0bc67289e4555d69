//! `multipart/form-data` (RFC 7578) as far as a fingerprint needs it.
//!
//! Clients often encode a retry with another boundary, so only the parts count.
//! Unusual bodies count as malformed, so that two bodies which a handler's parser distinguishes are
//! never taken for one.

use crate::digest::{Absorb, Digest};

/// The parts of a part that count; quoted parameters without their quotes, otherwise as written.
#[derive(Default)]
pub(super) struct Part<'a> {
    name: Option<&'a [u8]>,
    file_name: Option<&'a [u8]>,
    extended_file_name: Option<&'a [u8]>,
    content_type: Option<&'a [u8]>,
    transfer_encoding: Option<&'a [u8]>,
    content_encoding: Option<&'a [u8]>,
    content: &'a [u8],
}

impl<'a> Part<'a> {
    /// Returns the place of a header that changes the meaning of the content.
    fn header(&mut self, name: &[u8]) -> Option<&mut Option<&'a [u8]>> {
        Some(match name.to_ascii_lowercase().as_slice() {
            b"content-type" => &mut self.content_type,
            b"content-transfer-encoding" => &mut self.transfer_encoding,
            b"content-encoding" => &mut self.content_encoding,
            _ => return None,
        })
    }

    pub(super) fn hash(&self, hasher: &mut Digest) {
        for text in [
            self.name,
            self.file_name,
            self.extended_file_name,
            self.content_type,
            self.transfer_encoding,
            self.content_encoding,
        ] {
            hasher.update(&[u8::from(text.is_some())]);
            hasher.part(text.unwrap_or_default());
        }
        hasher.part(self.content);
    }
}

/// Returns true for this media type.
pub(super) fn is_type(essence: &[u8]) -> bool {
    essence.eq_ignore_ascii_case(b"multipart/form-data")
}

/// Returns the boundary that a `Content-Type` names.
pub(super) fn boundary(content_type: &[u8]) -> Option<&[u8]> {
    let boundary = Parameters::parse(content_type)?.find("boundary")?;
    (1..=BOUNDARY_BYTES_MAX).contains(&boundary.len()).then_some(boundary)
}

/// Parses the parts of a whole body.
///
/// Returns `None` if it is malformed, has text around its parts, or more than [`PARTS_MAX`] of
/// them.
pub(super) fn parts<'a>(body: &'a [u8], boundary: &[u8]) -> Option<Vec<Part<'a>>> {
    let delimiter = [b"\r\n--", boundary].concat();
    let mut parts = Vec::new();
    let mut rest = body.strip_prefix(delimiter.get(LINE_END.len()..)?)?;
    loop {
        if let Some(epilogue) = rest.strip_prefix(b"--") {
            return (epilogue.is_empty() || epilogue == LINE_END).then_some(parts);
        }
        if parts.len() == PARTS_MAX {
            return None;
        }
        let (part, after) = split_once(rest.strip_prefix(LINE_END)?, &delimiter)?;
        parts.push(read_part(part)?);
        rest = after;
    }
}

fn read_part(part: &[u8]) -> Option<Part<'_>> {
    let (mut lines, content) = split_once(part, b"\r\n\r\n")?;
    let mut read = Part { content, ..Part::default() };
    let mut disposed = false;
    while !lines.is_empty() {
        let (line, after) = split_once(lines, LINE_END).unwrap_or((lines, b""));
        let (name, value) = split_once(line, b":")?;
        if name.eq_ignore_ascii_case(b"content-disposition") {
            let parameters = Parameters::parse(value)?;
            read.name = parameters.find("name");
            read.file_name = parameters.find("filename");
            read.extended_file_name = parameters.find("filename*");
            if std::mem::replace(&mut disposed, true) {
                return None;
            }
        } else if let Some(header) = read.header(name) {
            if header.replace(value.trim_ascii()).is_some() {
                return None;
            }
        } else if !is_token(name) {
            return None;
        }
        lines = after;
    }
    disposed.then_some(read)
}

/// The parameters after a header's value, each name at most once.
struct Parameters<'a>(Vec<(&'a [u8], &'a [u8])>);

impl<'a> Parameters<'a> {
    fn parse(value: &'a [u8]) -> Option<Self> {
        let mut parameters = Self(Vec::new());
        let start = value.iter().position(|byte| *byte == b';').unwrap_or(value.len());
        let mut rest = value.get(start..)?;
        while let Some(after) = rest.strip_prefix(b";") {
            let after = after.trim_ascii_start();
            if after.is_empty() {
                return Some(parameters);
            }
            let (name, after) = split_once(after, b"=")?;
            let (text, after) = match after.strip_prefix(b"\"") {
                Some(quoted) => split_quoted(quoted)?,
                None => {
                    let end = after.iter().position(|byte| *byte == b';').unwrap_or(after.len());
                    let (text, after) = after.split_at_checked(end)?;
                    if text.contains(&b'"') {
                        return None;
                    }
                    (text.trim_ascii_end(), after)
                }
            };
            let known = parameters.position(name).is_some();
            if known || !is_token(name) || parameters.0.len() == PARAMETERS_MAX {
                return None;
            }
            parameters.0.push((name, text));
            rest = after.trim_ascii_start();
        }
        rest.is_empty().then_some(parameters)
    }

    fn find(&self, name: &str) -> Option<&'a [u8]> {
        self.0.get(self.position(name.as_bytes())?).map(|(_, text)| *text)
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        self.0.iter().position(|(known, _)| known.eq_ignore_ascii_case(name))
    }
}

/// Returns true for a token (RFC 9110 §5.6.2).
fn is_token(text: &[u8]) -> bool {
    let part = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(part)
}

/// Splits a quoted string, escapes as written, from the text after it.
fn split_quoted(quoted: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut escaped = false;
    let end = quoted.iter().position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    })?;
    Some((quoted.get(..end)?, quoted.get(end + 1..)?))
}

fn split_once<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = text.windows(separator.len()).position(|window| window == separator)?;
    Some((text.get(..at)?, text.get(at + separator.len()..)?))
}

const LINE_END: &[u8] = b"\r\n";
/// RFC 2046 §5.1.1.
const BOUNDARY_BYTES_MAX: usize = 70;
const PARTS_MAX: usize = 1_024;
const PARAMETERS_MAX: usize = 16;

#[cfg(test)]
mod tests;
