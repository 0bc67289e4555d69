//! The rules by which a policy compares requests.

use http::{HeaderMap, HeaderName};

use super::json_value::Pointer;
use super::{form, hash_count, hash_fields, hash_headers, sorted};
use crate::digest::{Absorb, Digest};
use crate::field_names::is_of_attempt;

/// The parts of a request that count when two are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FingerprintRule {
    /// The parts of the body that count.
    pub body: BodyRule,
    /// The parts of the query that count.
    pub query: QueryRule,
    /// The headers that count.
    pub headers: HeaderRule,
}

impl Default for FingerprintRule {
    /// Body by its content, query by its bytes, and no header.
    fn default() -> Self {
        Self { body: BodyRule::Auto, query: QueryRule::Raw, headers: HeaderRule::Only(Vec::new()) }
    }
}

/// The parts of a request's body that count, and with it the type and subtype of `Content-Type`.
///
/// The rules that parse a body apply to bodies of their `Content-Type` only, and hold them in
/// memory until they are complete; any other body, and one that is malformed, counts by its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BodyRule {
    /// [`Multipart`](Self::Multipart) for a `multipart/form-data` body of at most
    /// [`AUTO_BYTES_MAX`](crate::fingerprint::AUTO_BYTES_MAX), because clients draw a new boundary
    /// for each try, and [`Raw`](Self::Raw) for any other.
    Auto,
    /// The bytes of the body.
    Raw,
    /// The JSON value: white space, key order, string escapes and the notation of numbers do not
    /// count, so `1.0` is `1`; numbers are exact at any length.
    /// A body that is not JSON, has duplicate names, or nests too deep, counts by its bytes.
    Json,
    /// The decoded fields of an `application/x-www-form-urlencoded` body, in order.
    Form,
    /// The parts of a `multipart/form-data` body, in order, for any boundary: name, file name,
    /// type, encoding and content of each.
    Multipart,
    /// The values at these JSON pointers (RFC 6901), absent ones included.
    ///
    /// A malformed pointer names the whole document, which is the strict reading.
    Fields(Vec<String>),
    /// The JSON value without the values at these JSON pointers (RFC 6901).
    ///
    /// A malformed pointer excludes nothing.
    Exclude(Vec<String>),
    /// Neither the body nor its `Content-Type` counts.
    None,
}

impl BodyRule {
    /// Returns the first JSON pointer that is malformed, for the check of a policy.
    #[must_use]
    pub fn malformed_pointer(&self) -> Option<&str> {
        let (Self::Fields(pointers) | Self::Exclude(pointers)) = self else { return None };
        pointers.iter().map(String::as_str).find(|text| Pointer::parse(text).is_none())
    }
}

/// The parts of a request's query that count.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueryRule {
    /// The bytes of the query.
    Raw,
    /// The decoded fields in any order; repeats of a name keep theirs.
    Sorted,
    /// Only these decoded fields, in any order; repeats of a name keep theirs.
    Only(Vec<String>),
    /// The query does not count.
    None,
}

/// The headers of a request that count.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderRule {
    /// Only these headers.
    Only(Vec<HeaderName>),
    /// Every header, as in the original package, but for those to which a client or a proxy gives
    /// another value in each try: of the connection, the hops, the client's address, traces and
    /// retries.
    All,
}

impl FingerprintRule {
    /// Returns the rule with its sets in one order.
    pub(super) fn normalised(&self) -> Self {
        Self {
            body: self.body.clone(),
            query: match &self.query {
                QueryRule::Only(names) => QueryRule::Only(sorted(names, String::as_str)),
                query => query.clone(),
            },
            headers: match &self.headers {
                HeaderRule::Only(names) => HeaderRule::Only(sorted(names, HeaderName::as_str)),
                HeaderRule::All => HeaderRule::All,
            },
        }
    }

    /// Hashes the rule.
    pub(super) fn describe(&self, hasher: &mut Digest) {
        match &self.body {
            BodyRule::Auto => hash_tagged(hasher, b'a', &[]),
            BodyRule::Raw => hash_tagged(hasher, b'r', &[]),
            BodyRule::Json => hash_tagged(hasher, b'j', &[]),
            BodyRule::Form => hash_tagged(hasher, b'f', &[]),
            BodyRule::Multipart => hash_tagged(hasher, b'm', &[]),
            BodyRule::Fields(pointers) => hash_tagged(hasher, b'p', pointers),
            BodyRule::Exclude(pointers) => hash_tagged(hasher, b'x', pointers),
            BodyRule::None => hash_tagged(hasher, b'n', &[]),
        }
        match &self.query {
            QueryRule::Raw => hash_tagged(hasher, b'r', &[]),
            QueryRule::Sorted => hash_tagged(hasher, b's', &[]),
            QueryRule::Only(names) => hash_tagged(hasher, b'o', names),
            QueryRule::None => hash_tagged(hasher, b'n', &[]),
        }
        match &self.headers {
            HeaderRule::Only(names) => {
                let names: Vec<_> = names.iter().map(|name| name.as_str().to_owned()).collect();
                hash_tagged(hasher, b'o', &names);
            }
            // `a` counted those of one try, too.
            HeaderRule::All => hash_tagged(hasher, b'e', &[]),
        }
    }
}

impl QueryRule {
    pub(super) fn hash(&self, query: Option<&str>, hasher: &mut Digest) {
        let fields = form::fields(query.unwrap_or_default().as_bytes());
        let mut fields: Vec<_> = match self {
            Self::None => return,
            Self::Raw => {
                hasher.update(&[u8::from(query.is_some())]);
                return hasher.part(query.unwrap_or_default().as_bytes());
            }
            Self::Sorted => fields.collect(),
            Self::Only(names) => fields
                .filter(|field| names.iter().any(|wanted| wanted.as_bytes() == &*field.name))
                .collect(),
        };
        // A stable sort: which of several values of one name comes first may mean something.
        fields.sort_by(|one, other| one.name.cmp(&other.name));
        hash_fields(hasher, &fields);
    }
}

impl HeaderRule {
    pub(super) fn hash(&self, headers: &HeaderMap, hasher: &mut Digest) {
        match self {
            Self::Only(names) => hash_headers(hasher, names.iter(), headers),
            Self::All => {
                let names = headers.keys().filter(|name| !is_of_attempt(name.as_str()));
                let mut names: Vec<_> = names.collect();
                names.sort_unstable_by_key(|name| name.as_str());
                hash_headers(hasher, names.into_iter(), headers);
            }
        }
    }
}

fn hash_tagged(hasher: &mut Digest, tag: u8, texts: &[String]) {
    hasher.update(&[tag]);
    hash_count(hasher, texts.len());
    texts.iter().for_each(|text| hasher.part(text.as_bytes()));
}
