//! Fingerprints of requests, to tell a retry from another request.
//!
//! A [`FingerprintConfig`] is made once per policy; a [`Fingerprinter`] hashes each request into a
//! [`Fingerprint`], which is kept in the record and [compared](Fingerprint::compare) with that of
//! every retry.
//!
//! The input of the hash is a version byte and then, every part prefixed with its length or its
//! number of parts: method, raw path, query, chosen headers, and, if the body counts, the type and
//! subtype of `Content-Type` and the body, decompressed where its `Content-Encoding` is known.
//! No two different requests give the same bytes, wherever one part ends and the next begins.

mod body;
mod content_coding;
mod form;
mod json_value;
mod multipart;
mod rule;

use std::fmt;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use crate::digest::{Absorb, Digest, Purpose, first};
use crate::key::FieldLines;
use crate::secret::Secret;
use body::Body;
use form::Field;
use json_value::Pointer;

pub use content_coding::DecompressionBomb;
pub use rule::{BodyRule, FingerprintRule, HeaderRule, QueryRule};

/// The digest of a request, as it is kept in a record.
///
/// Judge a retry with [`compare`](Self::compare): `==` gives no reason and does not take constant
/// time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// The digest of the rule and of the secret's id; fingerprints of different configurations
    /// cannot be compared.
    pub config: u32,
    /// The digest of method, target, chosen headers and body; all zero when the policy compares
    /// nothing.
    pub digest: [u8; 32],
    /// The digest of the headers to which a key is bound; all zero when there are none.
    pub binding: [u8; 16],
    /// The digest of the kind of work, the method, and the path as the client sent it.
    ///
    /// It is always compared, also where the policy compares nothing else, and its secret never
    /// rotates.
    pub operation: [u8; 16],
}

impl Fingerprint {
    /// Returns the fingerprint of work whose requests are never compared.
    #[must_use]
    pub const fn unchecked() -> Self {
        Self { config: 0, digest: [0; 32], binding: [0; 16], operation: [0; 16] }
    }

    /// Computes the fingerprint of work that is not an HTTP request, from these parts in order.
    #[must_use]
    pub fn of(parts: &[&[u8]], secret: Option<&Secret>) -> Self {
        let mut hasher = Purpose::new(WORK_CONTEXT, secret).begin();
        hasher.update(&[VERSION]);
        for part in parts {
            hasher.part(part);
        }
        Self {
            config: config_id(&config_hasher(KIND_WORK, secret)),
            digest: hasher.finalize(),
            binding: [0; 16],
            operation: [0; 16],
        }
    }

    /// Compares a request's fingerprint with that of the record which its key names.
    ///
    /// The binding is always compared first, so a stranger learns nothing about a request, not even
    /// that the policy has changed since.
    /// The digests are compared if both have the same configuration.
    ///
    /// # Security
    ///
    /// Takes the same time wherever bytes differ.
    #[must_use]
    pub fn compare(&self, recorded: &Self) -> Match {
        if !constant_time_eq(&self.binding, &recorded.binding) {
            Match::DifferentPrincipal
        } else if !constant_time_eq(&self.operation, &recorded.operation) {
            Match::DifferentOperation
        } else if self.config != recorded.config {
            Match::Incomparable
        } else if self.same_request(recorded) {
            Match::Same
        } else {
            Match::DifferentRequest
        }
    }

    /// Returns true if both are of one request, regardless of its sender; `false` for different
    /// configurations.
    ///
    /// # Security
    ///
    /// Takes the same time wherever bytes differ.
    #[must_use]
    pub fn same_request(&self, other: &Self) -> bool {
        self.config == other.config
            && constant_time_eq(&self.operation, &other.operation)
            && constant_time_eq(&self.digest, &other.digest)
    }

    /// Returns the digest in hexadecimal, for the header that exposes it.
    ///
    /// # Security
    ///
    /// Without a [`Secret`] anyone who sees it can test guesses of the request.
    #[must_use]
    pub fn signature(&self) -> String {
        blake3::Hash::from_bytes(self.digest).to_hex().as_str().to_owned()
    }
}

/// The result of a comparison of two fingerprints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Match {
    /// Both are of one request, or the policy compares none.
    Same,
    /// The principal and the operation are the same, the request is another.
    DifferentRequest,
    /// The principal is the same, the operation is another: another method, path or kind of work.
    DifferentOperation,
    /// The headers to which the key is bound differ, or were hashed with another secret; nothing
    /// else was compared.
    DifferentPrincipal,
    /// Principal and operation are the same, but the fingerprints have different rules or secrets
    /// and cannot be compared.
    Incomparable,
}

/// The configuration of a policy's fingerprints; it is costly, so build it once.
#[derive(Clone, Debug)]
pub struct FingerprintConfig {
    id: u32,
    rule: Option<FingerprintRule>,
    pointers: Arc<[Pointer]>,
    bind: Vec<HeaderName>,
    request: Purpose,
    binding: Purpose,
    /// The digest of a request with none of the headers in `bind`.
    unbound: [u8; 16],
}

impl FingerprintConfig {
    /// Creates a configuration that compares requests by `rule`, if given, and principals by the
    /// headers in `bind`.
    #[must_use]
    pub fn new(
        rule: Option<&FingerprintRule>,
        bind: &[HeaderName],
        secret: Option<&Secret>,
    ) -> Self {
        let rule = rule.map(FingerprintRule::normalised);
        let mut id = config_hasher(KIND_REQUEST, secret);
        if let Some(rule) = &rule {
            rule.describe(&mut id);
        }
        let pointers = match rule.as_ref().map(|rule| &rule.body) {
            Some(BodyRule::Fields(texts)) => {
                texts.iter().map(|text| Pointer::parse(text).unwrap_or_default()).collect()
            }
            Some(BodyRule::Exclude(texts)) => {
                texts.iter().filter_map(|text| Pointer::parse(text)).collect()
            }
            _ => Arc::default(),
        };
        let mut config = Self {
            id: config_id(&id),
            rule,
            pointers,
            bind: sorted(bind, HeaderName::as_str),
            request: Purpose::new(REQUEST_CONTEXT, secret),
            binding: Purpose::new(BINDING_CONTEXT, secret),
            unbound: [0; 16],
        };
        if !config.bind.is_empty() {
            config.unbound = config.binding_to(&FieldLines::default());
        }
        config
    }

    /// Returns the id of this configuration: another for another rule, secret or format.
    #[must_use]
    pub const fn config_id(&self) -> u32 {
        self.id
    }

    /// Begins the fingerprint of a request, before its body is read.
    ///
    /// # Security
    ///
    /// Everything in the request may come from an attacker.
    /// Under the rule `raw` no more than a kilobyte and the state of the hash are allocated.
    #[must_use]
    pub fn start(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Fingerprinter {
        self.start_bound(method, uri, headers, &lines_of(&self.bind, headers))
    }

    /// Does the same as [`start`](Self::start), with the lines of the headers in `bind`, which have
    /// been looked up.
    pub(crate) fn start_bound(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        lines: &FieldLines,
    ) -> Fingerprinter {
        let mut hasher = self.request.begin();
        hasher.update(&[VERSION]);
        let body = match &self.rule {
            None => Body::Unchecked,
            Some(rule) => {
                hasher.part(method.as_str().as_bytes());
                hasher.part(uri.path().as_bytes());
                rule.query.hash(uri.query(), &mut hasher);
                rule.headers.hash(headers, &mut hasher);
                // The type says how to read a body, so it counts only where one does.
                if rule.body == BodyRule::None {
                    Body::ignored(&mut hasher)
                } else {
                    let types = headers.get_all(CONTENT_TYPE);
                    let mut count = 0;
                    types.iter().for_each(|_| count += 1);
                    hash_count(&mut hasher, count);
                    types.iter().for_each(|line| hash_lowercase(&mut hasher, essence(line)));
                    let content_type = types.iter().next().filter(|_| count == 1);
                    Body::new(rule, &self.pointers, content_type, headers, &mut hasher)
                }
            }
        };
        let binding = if lines.is_empty() { self.unbound } else { self.binding_to(lines) };
        let operation = [0; 16];
        Fingerprinter { config: self.id, binding, operation, hasher, body }
    }

    fn binding_to(&self, lines: &FieldLines) -> [u8; 16] {
        let mut hasher = self.binding.begin_short();
        hash_count(&mut hasher, self.bind.len());
        for name in &self.bind {
            let values = || lines.iter().filter(|(of, _)| of == name).map(|(_, value)| value);
            hash_lines(&mut hasher, name, values);
        }
        first(&hasher.finalize())
    }
}

/// A fingerprint that is being computed; it takes the body in pieces of any size.
pub struct Fingerprinter {
    config: u32,
    binding: [u8; 16],
    operation: [u8; 16],
    hasher: Digest,
    body: Body,
}

impl Fingerprinter {
    /// Adds the next piece of the body.
    ///
    /// # Security
    ///
    /// A rule that parses the body keeps it until [`finish`](Self::finish): stop at the policy's
    /// `request_bytes_max`.
    pub fn update(&mut self, chunk: &[u8]) {
        self.body.update(chunk, &mut self.hasher);
    }

    /// Returns true if the whole body is kept until [`finish`](Self::finish), because the rule
    /// parses it.
    #[must_use]
    pub const fn keeps_body(&self) -> bool {
        self.body.is_kept_whole()
    }

    /// Returns the fingerprint of the request, whose body is complete.
    ///
    /// A body that [`try_finish`](Self::try_finish) refuses counts by its bytes.
    #[must_use]
    pub fn finish(self) -> Fingerprint {
        let Self { config, binding, operation, hasher, body } = self;
        let digest = body.digest_of_any(hasher);
        Fingerprint { config, digest, binding, operation }
    }

    /// Returns the fingerprint of the request, whose body is complete.
    ///
    /// # Errors
    ///
    /// Returns [`DecompressionBomb`] for a body that is compressed further than honest content is.
    pub fn try_finish(self) -> Result<Fingerprint, DecompressionBomb> {
        let Self { config, binding, operation, hasher, body } = self;
        let digest = body.digest(hasher)?;
        Ok(Fingerprint { config, digest, binding, operation })
    }

    /// Adds the digest of the operation that the request is for.
    pub(crate) fn of_operation(mut self, operation: [u8; 16]) -> Self {
        self.operation = operation;
        self
    }
}

impl fmt::Debug for Fingerprinter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fingerprinter").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The fingerprints of one request that are being computed: one for each secret.
#[derive(Debug)]
pub struct Fingerprinters {
    /// Apart from the others, because most policies have one secret at most.
    first: Fingerprinter,
    others: Vec<Fingerprinter>,
}

impl Fingerprinters {
    pub(crate) const fn new(first: Fingerprinter, others: Vec<Fingerprinter>) -> Self {
        Self { first, others }
    }

    /// Adds the next piece of the body.
    ///
    /// # Security
    ///
    /// As [`Fingerprinter::update`].
    pub fn update(&mut self, chunk: &[u8]) {
        self.first.update(chunk);
        self.others.iter_mut().for_each(|other| other.update(chunk));
    }

    /// Returns true if the whole body is kept until the end, because the rule parses it.
    #[must_use]
    pub const fn keeps_body(&self) -> bool {
        // All have one rule.
        self.first.keeps_body()
    }

    /// Returns the fingerprints of the request, whose body is complete.
    ///
    /// # Errors
    ///
    /// Returns [`DecompressionBomb`] for a body that is compressed further than honest content is.
    pub fn try_finish(self) -> Result<Vec<Fingerprint>, DecompressionBomb> {
        let mut finished = Vec::with_capacity(1 + self.others.len());
        finished.push(self.first.try_finish()?);
        for other in self.others {
            finished.push(other.try_finish()?);
        }
        Ok(finished)
    }
}

/// Begins a digest of everything that decides how fingerprints of one kind are made.
fn config_hasher(kind: u8, secret: Option<&Secret>) -> Digest {
    let mut hasher = Purpose::new(CONFIG_CONTEXT, None).begin();
    hasher.update(&[VERSION, kind, u8::from(secret.is_some()), secret.map_or(0, Secret::id)]);
    hasher
}

fn config_id(hasher: &Digest) -> u32 {
    let digest: [u8; 32] = hasher.finalize();
    u32::from_be_bytes(first(&digest))
}

fn constant_time_eq<const N: usize>(one: &[u8; N], other: &[u8; N]) -> bool {
    // The library's comparison is of 32 bytes and hidden from the optimiser.
    let padded = |bytes: &[u8; N]| {
        let mut hash = [0; 32];
        hash.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        blake3::Hash::from_bytes(hash)
    };
    padded(one) == padded(other)
}

fn sorted<T: Clone>(names: &[T], text: impl Fn(&T) -> &str) -> Vec<T> {
    let mut names = names.to_vec();
    names.sort_by(|one, other| text(one).cmp(text(other)));
    names.dedup_by(|one, other| text(one) == text(other));
    names
}

/// Type and subtype, without parameters (RFC 9110 §8.3.1).
fn essence(content_type: &HeaderValue) -> &[u8] {
    let line = content_type.as_bytes();
    line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

fn hash_count(hasher: &mut impl Absorb, count: usize) {
    hasher.absorb(&(count as u64).to_be_bytes());
}

fn hash_fields(hasher: &mut Digest, fields: &[Field<'_>]) {
    hash_count(hasher, fields.len());
    for field in fields {
        hasher.part(&field.name);
        hasher.part(&field.value);
    }
}

/// Hashes all lines of these headers; one without lines is not one with an empty line.
fn hash_headers<'a>(
    hasher: &mut Digest,
    names: impl ExactSizeIterator<Item = &'a HeaderName>,
    headers: &HeaderMap,
) {
    hash_count(hasher, names.len());
    for name in names {
        hash_lines(hasher, name, || headers.get_all(name).iter());
    }
}

fn hash_lines<'a, I: Iterator<Item = &'a HeaderValue>>(
    hasher: &mut impl Absorb,
    name: &HeaderName,
    lines: impl Fn() -> I,
) {
    hasher.part(name.as_str().as_bytes());
    hash_count(hasher, lines().count());
    lines().for_each(|line| hasher.part(line.as_bytes()));
}

/// Returns the lines of the headers of these names; those of one name are in their order.
pub(crate) fn lines_of(names: &[HeaderName], headers: &HeaderMap) -> FieldLines {
    let mut lines = FieldLines::default();
    if names.is_empty() {
        return lines;
    }
    for (name, line) in headers {
        if names.contains(name) {
            lines.push(name.clone(), line.clone());
        }
    }
    lines
}

/// Hashes a text in lower case, without allocating.
fn hash_lowercase(hasher: &mut Digest, text: &[u8]) {
    hash_count(hasher, text.len());
    for piece in text.chunks(LOWERCASE_BYTES) {
        let mut lower = [0; LOWERCASE_BYTES];
        for (to, from) in lower.iter_mut().zip(piece) {
            *to = from.to_ascii_lowercase();
        }
        hasher.update(lower.get(..piece.len()).unwrap_or_default());
    }
}

/// The version of the format; raise it when the same request would get another digest.
const VERSION: u8 = 3;
/// The largest body that [`BodyRule::Auto`] parses or decompresses; a larger one counts by its bytes.
pub const AUTO_BYTES_MAX: usize = 1 << 20;
const REQUEST_CONTEXT: &str = "idemptx 2026-11 v1 fingerprint: request";
const BINDING_CONTEXT: &str = "idemptx 2026-11 v1 fingerprint: binding";
const WORK_CONTEXT: &str = "idemptx 2026-11 v1 fingerprint: work";
const CONFIG_CONTEXT: &str = "idemptx 2026-11 v1 fingerprint: configuration";
const KIND_REQUEST: u8 = b'r';
const KIND_WORK: u8 = b'w';
const LOWERCASE_BYTES: usize = 32;

#[cfg(test)]
mod tests;
