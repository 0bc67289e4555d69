//! The names of an operation: the client's [`Key`], its [`Scope`], and the [`RecordId`] derived
//! from both.

use std::fmt;

use http::HeaderValue;

use crate::policy::KeySyntax;

mod field_lines;
mod record_id;

pub(crate) use self::field_lines::FieldLines;
pub use self::record_id::{InvalidRecordId, Names, RecordId};

/// An idempotency key, with quotes and escapes removed.
///
/// `Idempotency-Key: "8e03978e"` (the Structured Field String that
/// [draft-ietf-httpapi-idempotency-key-header §2.1] asks for) and `Idempotency-Key: 8e03978e`
/// (what most clients send) are one key.
///
/// `Debug` shows only the length: keys are secrets of the client.
///
/// [draft-ietf-httpapi-idempotency-key-header §2.1]:
///     https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header#section-2.1
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(Box<str>);

impl Key {
    /// Creates a key from a source other than a header field, such as a message's id.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] if it is empty, longer than `bytes_max`, or holds anything but visible ASCII
    /// and spaces.
    pub fn new(text: &str, bytes_max: usize) -> Result<Self, InvalidKey> {
        Self::bounded(text.as_bytes().to_vec(), bytes_max)
    }

    /// Reads the key from the field lines that carry it.
    ///
    /// Returns `None` without any line.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] for more than one line, a list, a malformed string, an empty key, a key of
    /// more than `bytes_max` bytes once unquoted, or a character outside 0x20–0x7E
    /// (bare text: 0x21–0x7E without `"`, `\`, `,` and `;`).
    ///
    /// # Security
    ///
    /// The client controls the lines: nothing is allocated for an oversized one, and no error
    /// repeats any of their bytes.
    pub fn from_lines<'a>(
        lines: impl IntoIterator<Item = &'a HeaderValue>,
        syntax: KeySyntax,
        bytes_max: usize,
    ) -> Result<Option<Self>, InvalidKey> {
        let mut lines = lines.into_iter();
        let Some(line) = lines.next() else { return Ok(None) };
        if lines.next().is_some() {
            return Err(InvalidKey::SeveralLines);
        }
        Self::parse(line.as_bytes(), syntax, bytes_max).map(Some)
    }

    /// Returns the key's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(line: &[u8], syntax: KeySyntax, bytes_max: usize) -> Result<Self, InvalidKey> {
        // Escapes at most double the length of a key; parameters may take as much again.
        if line.len() > bytes_max.saturating_mul(4).saturating_add(LINE_SLACK_BYTES) {
            return Err(InvalidKey::TooLong { bytes_max });
        }
        let line = trim_spaces(line);
        match line.first() {
            None => Err(InvalidKey::Empty),
            Some(b'"') => {
                let (text, rest) = sf_string(line)?;
                parameters(rest, syntax)?;
                Self::bounded(text, bytes_max)
            }
            Some(_) if syntax == KeySyntax::StrictSf => Err(InvalidKey::NotQuoted),
            Some(_) => bare(line, bytes_max),
        }
    }

    fn bounded(text: Vec<u8>, bytes_max: usize) -> Result<Self, InvalidKey> {
        if text.is_empty() {
            return Err(InvalidKey::Empty);
        }
        if text.len() > bytes_max {
            return Err(InvalidKey::TooLong { bytes_max });
        }
        if !text.iter().all(|byte| matches!(byte, 0x20..=0x7E)) {
            return Err(InvalidKey::Character);
        }
        let text = String::from_utf8(text).map_err(|_| InvalidKey::Character)?;
        Ok(Self(text.into_boxed_str()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes)", self.0.len())
    }
}

/// The error of a header field value that is no key.
///
/// Its text is meant for the client, and repeats nothing that the client sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidKey {
    /// The field stands on several lines, or several of its aliases are present.
    SeveralLines,
    /// The value is empty.
    Empty,
    /// The key is longer than the policy's `key_bytes_max`.
    TooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// The key holds a character that is not allowed.
    Character,
    /// The value begins with a quote but is not one well-formed string.
    Malformed,
    /// The value is bare text, but the policy requires a quoted string.
    NotQuoted,
    /// The policy's own check refused it.
    Refused,
    /// The policy refuses values that stand for a missing key, such as `undefined`.
    Placeholder,
    /// The key does not match the policy's `key_pattern`.
    Pattern,
}

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SeveralLines => f.write_str("send exactly one key, on one field line"),
            Self::Empty => f.write_str("the key is empty; send a unique one, such as a UUID"),
            Self::TooLong { bytes_max } => {
                write!(f, "the key is longer than {bytes_max} bytes; send a shorter one")
            }
            Self::Character => f.write_str(
                "the key may hold visible ASCII only (spaces, commas, semicolons and backslashes \
                 need the quoted form)",
            ),
            Self::Malformed => f.write_str(
                "the key is not one well-formed string: close the quotes, and escape only \
                 quotes and backslashes",
            ),
            Self::NotQuoted => f.write_str("put the key in double quotes (RFC 8941 section 3.3.3)"),
            Self::Refused | Self::Pattern => {
                f.write_str("the key does not have the form this API asks for")
            }
            Self::Placeholder => f.write_str(
                "the key is the placeholder of a template or script that was not filled in; send a \
                 unique one, such as a UUID",
            ),
        }
    }
}

impl std::error::Error for InvalidKey {}

/// The tenant, account or principal that a key belongs to.
///
/// The same key in two scopes names two operations.
/// `Debug` shows only the length: a scope may be a credential.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Scope(Box<[u8]>);

impl Scope {
    /// Creates the single scope of an application without tenants, or that binds keys to
    /// credentials instead.
    #[must_use]
    pub fn shared() -> Self {
        Self(Box::default())
    }

    /// Creates the scope of a tenant, account or principal.
    #[must_use]
    pub fn new(name: impl AsRef<[u8]>) -> Self {
        Self(name.as_ref().into())
    }

    /// Returns the scope's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({} bytes)", self.0.len())
    }
}

/// Parses an RFC 8941 §4.2.5 string, and returns it with the rest of the line.
fn sf_string(line: &[u8]) -> Result<(Vec<u8>, &[u8]), InvalidKey> {
    let mut text = Vec::with_capacity(line.len());
    let mut bytes = line.iter().enumerate().skip(1);
    while let Some((position, byte)) = bytes.next() {
        match byte {
            b'"' => return Ok((text, line.get(position + 1..).unwrap_or_default())),
            b'\\' => match bytes.next() {
                Some((_, escaped @ (b'"' | b'\\'))) => text.push(*escaped),
                _ => return Err(InvalidKey::Malformed),
            },
            0x20..=0x7E => text.push(*byte),
            _ => return Err(InvalidKey::Character),
        }
    }
    Err(InvalidKey::Malformed)
}

/// Checks the rest of a line after a string: parameters, but never a second item.
///
/// Parameters are ignored, as RFC 9651 §2.1 asks for unknown ones.
fn parameters(rest: &[u8], syntax: KeySyntax) -> Result<(), InvalidKey> {
    match rest.first() {
        None => Ok(()),
        Some(b';') if syntax == KeySyntax::Lenient => {
            let mut quoted = false;
            let mut bytes = rest.iter();
            while let Some(byte) = bytes.next() {
                match byte {
                    b'\\' if quoted => drop(bytes.next()),
                    b'"' => quoted = !quoted,
                    b',' if !quoted => return Err(InvalidKey::SeveralLines),
                    0x20..=0x7E => {}
                    _ => return Err(InvalidKey::Character),
                }
            }
            if quoted { Err(InvalidKey::Malformed) } else { Ok(()) }
        }
        Some(b',') => Err(InvalidKey::SeveralLines),
        Some(_) => Err(InvalidKey::Malformed),
    }
}

/// Reads a key that stands there without quotes.
fn bare(line: &[u8], bytes_max: usize) -> Result<Key, InvalidKey> {
    match std::str::from_utf8(line) {
        // All at once: the lines are short, and a loop that does not end early is vectorised.
        Ok(text) if line.iter().fold(true, |all, byte| all & is_bare(*byte)) => match text.len() {
            ..=0 => Err(InvalidKey::Empty),
            bytes if bytes > bytes_max => Err(InvalidKey::TooLong { bytes_max }),
            _ => Ok(Key(text.into())),
        },
        _ if line.contains(&b',') => Err(InvalidKey::SeveralLines),
        _ => Err(InvalidKey::Character),
    }
}

/// Returns true for what may stand in a key without quotes: visible, and none of `"`, `,`, `;` and `\`.
const fn is_bare(byte: u8) -> bool {
    matches!(byte, b'!' | b'#'..=b'+' | b'-'..=b':' | b'<'..=b'[' | b']'..=b'~')
}

/// Removes the spaces around an item (RFC 8941 §4.2).
fn trim_spaces(mut line: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] | [rest @ .., b' '] = line {
        line = rest;
    }
    line
}

/// The room for short parameters and spaces beside a key of any length.
const LINE_SLACK_BYTES: usize = 64;

#[cfg(test)]
mod tests;
