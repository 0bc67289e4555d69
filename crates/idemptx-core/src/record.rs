//! The record that a store keeps for one key, and its byte format.
//!
//! A record is one byte string, the same in every store and every language:
//!
//! | bytes | content |
//! |---|---|
//! | 0 | the format that a reader must know at least, 2 |
//! | 1 | state: `R` running, `D` completed, `N` not replayable, `U` unknown, `S` response expired |
//! | 2 | flags: bit 0, a process waits; bit 1, the payload is stored separately |
//! | 3..35 | the record's id: a record found under another id is refused |
//! | 35..51 | token |
//! | 51..59 | fence |
//! | 59..63 | attempt |
//! | 63..67 | fingerprint: configuration |
//! | 67..99 | fingerprint: digest |
//! | 99..115 | fingerprint: binding |
//! | 115..119 | lease term, milliseconds |
//! | 119..127 | retention of the claim or the key, milliseconds |
//! | 127..143 | fingerprint: operation |
//! | 143.. | payload: a [`Description`] or nothing, then, once settled, a [`StoredResponse`](crate::response::StoredResponse) |
//!
//! Integers are big-endian.
//! What a reader of format 2 may ignore leaves the first byte as it is; a later number says that an
//! older release cannot read the record, must not execute, and is to be upgraded.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::description::{self, Description};
use crate::fingerprint::Fingerprint;
use crate::key::RecordId;
use crate::lease::{Lease, Token};
use crate::store::{ErrorKind, Settlement};
use crate::time::millis;

/// The state of an operation in its record.
///
/// An absent record has no state.
/// An *orphan* is a [`Running`](Self::Running) record whose lease has lapsed by the store's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Claimed, not settled.
    Running,
    /// Settled with a response that can be replayed.
    Completed,
    /// Settled; only the head of the response was stored, so it cannot be replayed.
    NotReplayable,
    /// Settled without knowledge of whether the operation happened; the application's hook or an
    /// operator decides.
    Unknown,
    /// Was [`Completed`](Self::Completed); the response has expired, the key is still kept.
    ResponseExpired,
}

impl State {
    /// Returns the letter that encodes the state in a record's bytes.
    #[must_use]
    pub const fn letter(self) -> u8 {
        match self {
            Self::Running => b'R',
            Self::Completed => b'D',
            Self::NotReplayable => b'N',
            Self::Unknown => b'U',
            Self::ResponseExpired => b'S',
        }
    }
}

/// A record as it is stored.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The record's id, stored inside to detect a record under another id.
    pub id: RecordId,
    /// The state of the operation.
    pub state: State,
    /// The token of the claim that runs or has settled.
    pub token: Token,
    /// The fencing token of that claim.
    pub fence: u64,
    /// The number of that claim's execution, from 1.
    pub attempt: u32,
    /// The fingerprint of the request that claimed.
    pub fingerprint: Fingerprint,
    /// The term of the lease.
    pub term: Duration,
    /// The retention of the record, counted from its last write.
    pub retain: Duration,
    /// True if another process waits for the end of this claim.
    pub awaited: bool,
    /// True if the payload is stored beside the record, because it expires earlier.
    pub apart: bool,
    /// The description of the request, if there is one, and once settled the response.
    pub payload: Bytes,
}

/// Shows the size of the payload, never its content.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("id", &self.id)
            .field("state", &self.state)
            .field("token", &self.token)
            .field("fence", &self.fence)
            .field("attempt", &self.attempt)
            .field("fingerprint", &self.fingerprint)
            .field("term", &self.term)
            .field("retain", &self.retain)
            .field("awaited", &self.awaited)
            .field("apart", &self.apart)
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

impl Record {
    /// Creates the record of a claim in force.
    #[must_use]
    pub fn running(lease: &Lease) -> Self {
        Self {
            id: lease.id,
            state: State::Running,
            token: lease.token,
            fence: lease.fence,
            attempt: lease.attempt,
            fingerprint: lease.fingerprint,
            term: lease.term,
            retain: lease.retain,
            awaited: false,
            apart: false,
            payload: lease.description.clone(),
        }
    }

    /// Creates the record that settles a lease.
    #[must_use]
    pub fn settled(lease: &Lease, done: &Settlement) -> Self {
        Self {
            state: done.state,
            retain: done.key_retain,
            payload: done.payload.clone(),
            ..Self::running(lease)
        }
    }

    /// Removes the response from the record, because it has expired.
    #[must_use]
    pub fn with_response_expired(self) -> Self {
        Self { state: State::ResponseExpired, payload: Bytes::new(), ..self }
    }

    /// Returns the lease of the record's claim.
    #[must_use]
    pub fn lease(&self) -> Lease {
        Lease {
            id: self.id,
            token: self.token,
            fence: self.fence,
            attempt: self.attempt,
            fingerprint: self.fingerprint,
            term: self.term,
            retain: self.retain,
            description: description::encoded(&self.payload),
        }
    }

    /// Encodes the record in the byte format of the [module](self).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::HEAD_BYTES + self.payload.len());
        bytes.push(VERSION);
        bytes.push(self.state.letter());
        bytes.push((u8::from(self.awaited) * AWAITED) | (u8::from(self.apart) * APART));
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(self.token.as_bytes());
        bytes.extend_from_slice(&self.fence.to_be_bytes());
        bytes.extend_from_slice(&self.attempt.to_be_bytes());
        bytes.extend_from_slice(&self.fingerprint.config.to_be_bytes());
        bytes.extend_from_slice(&self.fingerprint.digest);
        bytes.extend_from_slice(&self.fingerprint.binding);
        let term = u32::try_from(millis(self.term)).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&term.to_be_bytes());
        bytes.extend_from_slice(&millis(self.retain).to_be_bytes());
        bytes.extend_from_slice(&self.fingerprint.operation);
        debug_assert_eq!(bytes.len(), Self::HEAD_BYTES, "the head has one length");
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Decodes the record stored under `id`; the payload shares `bytes`.
    ///
    /// # Errors
    ///
    /// [`Undecodable`] for a shorter string, another version, an unknown state or flag, or a record
    /// that names another id.
    ///
    /// # Security
    ///
    /// Total over arbitrary bytes.
    /// A record moved to another id is refused, so a store or driver that mixes up its answers
    /// cannot hand one client's response to another.
    pub fn decode(id: &RecordId, bytes: &Bytes) -> Result<Self, Undecodable> {
        let mut head = Head(bytes.get(..Self::HEAD_BYTES).ok_or(Undecodable::Short)?);
        let [version, state, flags] = head.take();
        if version != VERSION {
            return Err(Undecodable::Version(version));
        }
        let state = match state {
            b'R' => State::Running,
            b'D' => State::Completed,
            b'N' => State::NotReplayable,
            b'U' => State::Unknown,
            b'S' => State::ResponseExpired,
            _ => return Err(Undecodable::Malformed),
        };
        if flags & !(AWAITED | APART) != 0 {
            return Err(Undecodable::Malformed);
        }
        if head.take::<{ RecordId::BYTES }>() != *id.as_bytes() {
            return Err(Undecodable::Foreign);
        }
        let mut record = Self {
            id: *id,
            state,
            token: Token::from_bytes(head.take()),
            fence: u64::from_be_bytes(head.take()),
            attempt: u32::from_be_bytes(head.take()),
            fingerprint: Fingerprint {
                config: u32::from_be_bytes(head.take()),
                digest: head.take(),
                binding: head.take(),
                operation: [0; 16],
            },
            term: Duration::from_millis(u32::from_be_bytes(head.take()).into()),
            retain: Duration::from_millis(u64::from_be_bytes(head.take())),
            awaited: flags & AWAITED != 0,
            apart: flags & APART != 0,
            payload: bytes.slice(Self::HEAD_BYTES..),
        };
        record.fingerprint.operation = head.take();
        Ok(record)
    }

    /// The length of the head with what may be a [`Description`] after it, which is what a listing
    /// reads of a record.
    pub const LISTED_BYTES: usize = Self::HEAD_BYTES + Description::BYTES_MAX;
    /// The length of the head, which precedes the payload.
    pub const HEAD_BYTES: usize = 143;
    /// The offset of the flags, for stores that set [`awaited`](Self::awaited) in place.
    pub const FLAGS_AT: usize = 2;
    /// The offset of the token, for stores that compare it in place.
    pub const TOKEN_AT: usize = 35;
    /// The position of the retention, for stores that read it in place.
    pub const RETENTION_AT: usize = 119;
}

/// The error of decoding bytes that are no record of their id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Undecodable {
    /// The bytes are shorter than a record's head.
    Short,
    /// The record has a format that this release does not know.
    Version(u8),
    /// The record has an impossible state or flag.
    Malformed,
    /// The record names another id.
    Foreign,
}

impl Undecodable {
    /// Returns true for a record of a later release: it is sound, and this process too old for it.
    #[must_use]
    pub const fn is_newer(self) -> bool {
        matches!(self, Self::Version(version) if version > VERSION)
    }

    /// Returns the kind of the error with which a store answers a step on such a record.
    ///
    /// A newer record is beyond a limit of this process, until that is upgraded, and must not be
    /// executed by passing the store over; anything else is damaged.
    #[must_use]
    pub const fn error_kind(self) -> ErrorKind {
        if self.is_newer() { ErrorKind::Full } else { ErrorKind::Corrupt }
    }
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("too short for a record"),
            Self::Version(version) => {
                write!(f, "record format {version}, but this release reads {VERSION}; upgrade it")
            }
            Self::Malformed => f.write_str("malformed record"),
            Self::Foreign => f.write_str("the record belongs to another id"),
        }
    }
}

impl std::error::Error for Undecodable {}

/// A reader of fixed-size fields from a head whose length was checked.
struct Head<'a>(&'a [u8]);

impl Head<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (part, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *part
    }
}

const VERSION: u8 = 2;
const AWAITED: u8 = 1;
const APART: u8 = 2;

#[cfg(test)]
mod tests;
