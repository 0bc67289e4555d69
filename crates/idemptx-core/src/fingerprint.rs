//! Whether two requests are the same.

/// What tells one request from another, as it is kept in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// How it was made: a digest of the rule and the secret's id; fingerprints made in different
    /// ways cannot be compared.
    pub config: u32,
    /// Of method, target, chosen headers and body; all zero when the policy compares nothing.
    pub digest: [u8; 32],
    /// Of the headers a key is bound to; all zero when it is bound to none.
    pub binding: [u8; 16],
}

/// What makes two requests the same.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FingerprintRule {
    /// What counts of the body.
    pub body: BodyRule,
    /// What counts of the query.
    pub query: QueryRule,
    /// Which headers count.
    pub headers: HeaderRule,
}

/// What counts of a request's body.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BodyRule {
    /// Its bytes.
    Raw,
    /// The JSON value: white space, key order and string escapes do not count, the text of numbers
    /// does. What is not JSON, or has duplicate names, counts by its bytes.
    Json,
    /// The fields of a form, in order.
    Form,
    /// The parts of a multipart body, in order, whatever the boundary.
    Multipart,
    /// The values at these JSON pointers (RFC 6901).
    Fields(Vec<String>),
    /// Nothing.
    None,
}

/// What counts of a request's query.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueryRule {
    /// Its bytes.
    Raw,
    /// Its fields in any order.
    Sorted,
    /// These fields only, in any order.
    Only(Vec<String>),
    /// Nothing.
    None,
}

/// Which of a request's headers count.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderRule {
    /// These.
    Only(Vec<http::HeaderName>),
    /// All of them, as the original package did.
    All,
}
