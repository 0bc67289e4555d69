//! What names an operation: the client's [`Key`], the [`Scope`] it counts in, and the
//! [`RecordId`] both become in a store.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::digest::{Purpose, first};
use crate::policy::KeySyntax;
use crate::secret::Secret;

/// An idempotency key as a client meant it: quotes and escapes undone.
///
/// `Idempotency-Key: "8e03978e"` (the Structured Field String that
/// [draft-ietf-httpapi-idempotency-key-header §2.1] asks for) and `Idempotency-Key: 8e03978e`
/// (what most clients send) are one key.
///
/// `Debug` shows its length only: keys are secrets of the client.
///
/// [draft-ietf-httpapi-idempotency-key-header §2.1]:
///     https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header#section-2.1
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(Box<str>);

impl Key {
    /// Takes a key that did not come in a header field, such as a message's id.
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
    /// Returns `None` when there is no line.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] for more than one line, a list, a malformed string, an empty key, a key of
    /// more than `bytes_max` bytes once unquoted, or a character outside 0x20–0x7E
    /// (bare text: 0x21–0x7E without `"`, `\`, `,` and `;`).
    ///
    /// # Security
    ///
    /// The lines are the client's: nothing is allocated for an oversized one, and no error repeats
    /// any of their bytes.
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

    /// The key's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(line: &[u8], syntax: KeySyntax, bytes_max: usize) -> Result<Self, InvalidKey> {
        // Escapes at most double a key; parameters get as much room again.
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
            Some(_) => bare(line).and_then(|text| Self::bounded(text, bytes_max)),
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

/// Why a header field's value is no key; its text is for the client and repeats nothing of theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidKey {
    /// The field stands on several lines, or several of its aliases are present.
    SeveralLines,
    /// There is nothing in it.
    Empty,
    /// It is longer than the policy's `key_bytes_max`.
    TooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// It holds a character that a key may not have.
    Character,
    /// It begins with a quote but is not one well-formed string.
    Malformed,
    /// It is bare text where the policy asks for a quoted string.
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

/// Whose keys these are: one key in two scopes names two operations.
///
/// `Debug` shows its length only: a scope may be a credential.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Scope(Box<[u8]>);

impl Scope {
    /// The one scope of an application that has no tenants, or binds keys to credentials instead.
    #[must_use]
    pub fn shared() -> Self {
        Self(Box::default())
    }

    /// A tenant, account or principal.
    #[must_use]
    pub fn new(name: impl AsRef<[u8]>) -> Self {
        Self(name.as_ref().into())
    }

    /// Its bytes.
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

/// The name of a record in a store: a digest of scope and key, keyed when there is a secret.
///
/// It tells neither of them, and no two pairs share one.
/// Its text is 32 hexadecimal digits for the scope, a colon, and 32 for the key within it, so that
/// an operator can find all records of a scope.
///
/// # Security
///
/// With a [`Secret`] nobody who reads the store can test a guess of a key, and nobody who chooses
/// keys can choose where they land.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId([u8; RecordId::BYTES]);

impl RecordId {
    /// How long an id is.
    pub const BYTES: usize = 32;

    /// Names the record of `key` in `scope`.
    ///
    /// `route` is the method and the raw path when the policy's `key_space` is `route`.
    #[must_use]
    pub fn new(scope: &Scope, key: &Key, route: Option<(&str, &str)>, names: &Names) -> Self {
        let space = match route {
            None if scope.as_bytes().is_empty() => names.shared_space,
            _ => names.space(scope, route),
        };
        let mut name = names.key.begin();
        name.part(&space);
        name.part(key.as_str().as_bytes());
        let name: [u8; 16] = first(&name.finalize());
        let space: [u8; 16] = first(&space);
        Self::of_halves(space, name)
    }

    /// Names the record of a step of the operation that this id names, by the step's label; in the
    /// same scope.
    ///
    /// No operation has such an id, nor has another step.
    #[must_use]
    pub fn step(&self, label: &str) -> Self {
        let mut digest = Purpose::new(STEP_CONTEXT, None).begin();
        digest.part(&self.0);
        digest.part(label.as_bytes());
        let name: [u8; 16] = first(&digest.finalize());
        Self::of_halves(first(&self.0), name)
    }

    fn of_halves(space: [u8; 16], name: [u8; 16]) -> Self {
        let mut id = [0; Self::BYTES];
        let (first, second) = id.split_at_mut(space.len());
        first.copy_from_slice(&space);
        second.copy_from_slice(&name);
        Self(id)
    }

    /// An id read back from a store.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// The half that names the scope.
    #[must_use]
    pub fn scope_bytes(&self) -> [u8; 16] {
        let mut half = [0; 16];
        for (to, from) in half.iter_mut().zip(&self.0) {
            *to = *from;
        }
        half
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, byte) in self.0.iter().enumerate() {
            if position == 16 {
                f.write_str(":")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordId({self})")
    }
}

impl std::str::FromStr for RecordId {
    type Err = InvalidRecordId;

    fn from_str(text: &str) -> Result<Self, InvalidRecordId> {
        let (scope, key) = text.split_once(':').ok_or(InvalidRecordId)?;
        let mut id = [0; Self::BYTES];
        if scope.len() != 32 || key.len() != 32 {
            return Err(InvalidRecordId);
        }
        let digits = scope.bytes().chain(key.bytes()).map(|digit| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(InvalidRecordId),
        });
        for (position, digit) in digits.enumerate() {
            if let Some(byte) = id.get_mut(position / 2) {
                *byte = *byte << 4 | digit?;
            }
        }
        Ok(Self(id))
    }
}

/// A text that is no [`RecordId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidRecordId;

impl fmt::Display for InvalidRecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a record id is 32 lower-case hexadecimal digits, a colon, and 32 more")
    }
}

impl std::error::Error for InvalidRecordId {}

/// Names records and operations, and derives keys, in one namespace; build it once.
///
/// The secret of a namer never rotates: an operation has one record id, one operation digest and
/// one derived key per label for as long as its record lives.
#[derive(Clone)]
pub struct Names {
    namespace: Box<str>,
    scope: Purpose,
    key: Purpose,
    derive: Purpose,
    operation: Purpose,
    binding: Purpose,
    /// The digest of the shared scope, where most records are.
    shared_space: [u8; 32],
}

impl Names {
    /// Creates the names of a namespace under the naming secret.
    ///
    /// # Security
    ///
    /// Without a secret, a reader of the store can test guesses of keys.
    #[must_use]
    pub fn new(namespace: &str, secret: Option<&Secret>) -> Self {
        let mut names = Self {
            namespace: namespace.into(),
            scope: Purpose::new(SCOPE_CONTEXT, secret),
            key: Purpose::new(KEY_CONTEXT, secret),
            derive: Purpose::new(DERIVE_CONTEXT, secret),
            operation: Purpose::new(OPERATION_CONTEXT, secret),
            binding: Purpose::new(BINDING_CONTEXT, secret),
            shared_space: [0; 32],
        };
        names.shared_space = names.space(&Scope::shared(), None);
        names
    }

    /// Derives a key for a call to another system, named by `label`.
    ///
    /// The key depends on the namespace, naming secret, scope, binding, key and label alone, so
    /// that every attempt of an operation derives the same one.
    /// The binding is the [digest](Self::binding) of the headers to which the client's key is
    /// bound, empty if there are none: two principals who chose one key derive two.
    #[must_use]
    pub fn derive(&self, scope: &Scope, binding: &[u8], key: &Key, label: &str) -> String {
        let mut digest = self.derive.begin();
        digest.part(self.namespace.as_bytes());
        digest.part(scope.as_bytes());
        digest.part(binding);
        digest.part(key.as_str().as_bytes());
        digest.part(label.as_bytes());
        let derived: [u8; DERIVED_BYTES] = first(&digest.finalize());
        derived.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns the digest of the headers to which a key is bound: empty when there are none.
    pub(crate) fn binding(&self, bind: &[HeaderName], headers: &HeaderMap) -> Vec<u8> {
        if bind.is_empty() {
            return Vec::new();
        }
        let mut names: Vec<_> = bind.iter().collect();
        names.sort_unstable_by_key(|name| name.as_str());
        names.dedup();
        let mut digest = self.binding.begin();
        for name in names {
            let lines = headers.get_all(name);
            digest.part(name.as_str().as_bytes());
            digest.update(&(lines.iter().count() as u64).to_be_bytes());
            lines.iter().for_each(|line| digest.part(line.as_bytes()));
        }
        digest.finalize().to_vec()
    }

    /// Returns the digest of an HTTP operation: its method and its path as the client sent it.
    pub(crate) fn http_operation(&self, method: &str, path: &str) -> [u8; 16] {
        self.operation_digest(KIND_HTTP, &[method, path])
    }

    /// Returns the digest of all work that is not an HTTP request.
    pub(crate) fn work_operation(&self) -> [u8; 16] {
        self.operation_digest(KIND_WORK, &[])
    }

    fn operation_digest(&self, kind: u8, parts: &[&str]) -> [u8; 16] {
        let mut digest = self.operation.begin();
        digest.update(&[kind]);
        parts.iter().for_each(|part| digest.part(part.as_bytes()));
        first(&digest.finalize())
    }

    fn space(&self, scope: &Scope, route: Option<(&str, &str)>) -> [u8; 32] {
        let mut space = self.scope.begin();
        space.part(self.namespace.as_bytes());
        space.part(scope.as_bytes());
        if let Some((method, path)) = route {
            space.part(method.as_bytes());
            space.part(path.as_bytes());
        }
        space.finalize()
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

/// An RFC 8941 §4.2.5 string, and what stands behind it.
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

/// What may follow a string: parameters, which mean nothing to us (RFC 9651 §2.1: ignore unknown
/// ones), and never a second item.
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

fn bare(line: &[u8]) -> Result<Vec<u8>, InvalidKey> {
    if line.contains(&b',') {
        return Err(InvalidKey::SeveralLines);
    }
    let allowed = |byte: &u8| matches!(byte, 0x21..=0x7E) && !matches!(byte, b'"' | b'\\' | b';');
    if line.iter().all(allowed) { Ok(line.to_vec()) } else { Err(InvalidKey::Character) }
}

/// RFC 8941 §4.2: spaces around an item are not part of it.
fn trim_spaces(mut line: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] | [rest @ .., b' '] = line {
        line = rest;
    }
    line
}

const SCOPE_CONTEXT: &str = "idemptx 2026-11 v1 record: scope";
const KEY_CONTEXT: &str = "idemptx 2026-11 v1 record: key in scope";
const STEP_CONTEXT: &str = "idemptx 2026-11 v1 record: step";
const DERIVE_CONTEXT: &str = "idemptx 2026-11 v1 derived key";
const OPERATION_CONTEXT: &str = "idemptx 2026-11 v1 operation";
const BINDING_CONTEXT: &str = "idemptx 2026-11 v1 derived key: binding";
const KIND_HTTP: u8 = b'h';
const KIND_WORK: u8 = b'w';
/// 160 bits: unguessable, and within the 45 bytes that the strictest peers accept.
const DERIVED_BYTES: usize = 20;
const LINE_SLACK_BYTES: usize = 64;

#[cfg(test)]
mod tests;
