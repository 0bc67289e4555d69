//! A reply.

use bytes::Bytes;

/// A reply of the server, in what the two versions of its protocol have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// Nothing.
    Nil,
    /// A whole number.
    Integer(i64),
    /// A bulk string, or a simple one such as `OK`.
    Bytes(Bytes),
    /// Several replies in one.
    Array(Vec<Reply>),
    /// An error, its code first.
    Error(Bytes),
}
