//! The lease that a request holds while its handler runs.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::digest::first;
use crate::fingerprint::Fingerprint;
use crate::key::RecordId;

/// The 128 random bits that name one claim.
///
/// Every write compares the token, so a former owner changes nothing.
/// Drivers draw it from the system's random source; the core only passes it on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token([u8; Token::BYTES]);

impl Token {
    /// The length of a token.
    pub const BYTES: usize = 16;

    /// Creates a token of random bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Derives the token with a number from a secret random seed and the time of the draw.
    ///
    /// The token is as unguessable as the seed, and different for every number and time.
    #[must_use]
    pub fn drawn(seed: &[u8; 32], number: u64, moment: Duration) -> Self {
        let (number, moment) = (number.to_be_bytes(), moment.as_nanos().to_be_bytes());
        let mut drawn = [0; 24];
        let (first_bytes, others) = drawn.split_at_mut(number.len());
        first_bytes.copy_from_slice(&number);
        others.copy_from_slice(&moment);
        Self(first(&blake3::keyed_hash(seed, &drawn).into()))
    }

    /// Returns the token's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// Derives another token, as unguessable as this one, for an exchange that claims again.
    #[must_use]
    pub fn next(&self) -> Self {
        Self(first(&blake3::derive_key(NEXT_CONTEXT, &self.0)))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({self})")
    }
}

/// The right to execute one operation, held until it is settled, released, or taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// The record that the lease is on.
    pub id: RecordId,
    /// The token of the claim, compared by every write.
    pub token: Token,
    /// The fencing token, greater than that of any earlier owner that could still be running.
    ///
    /// Pass it to downstream systems that can refuse a stale writer.
    pub fence: u64,
    /// The number of the execution: 1 for the first, 2 after one orphan or rebind, and so on.
    pub attempt: u32,
    /// The fingerprint of the request that claimed.
    pub fingerprint: Fingerprint,
    /// The duration of the lease from the claim and from each renewal, by the store's clock.
    pub term: Duration,
    /// The retention of the claim in the store, unless renewed or settled.
    pub retain: Duration,
    /// The encoded [`Description`](crate::description::Description) of the request; may be empty.
    pub description: Bytes,
}

impl Lease {
    /// Creates the lease that a store grants for a claim request.
    #[must_use]
    pub fn granted(
        id: RecordId,
        claim_request: &crate::store::ClaimRequest,
        fence: u64,
        attempt: u32,
    ) -> Self {
        Self {
            id,
            token: claim_request.token,
            fence,
            attempt,
            fingerprint: claim_request.fingerprint,
            term: claim_request.term,
            retain: claim_request.retain,
            description: claim_request.description.clone(),
        }
    }
}

const NEXT_CONTEXT: &str = "idemptx 2026-11 v1 next token";
