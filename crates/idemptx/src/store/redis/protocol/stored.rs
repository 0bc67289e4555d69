//! Stored values, and their meaning as of now.

use std::time::Duration;

use bytes::Bytes;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::{Record, State};
use idemptx_core::store::{Claim, ClaimInfo, RecordSnapshot, StoreError};
use idemptx_core::time::millis;

use super::layout::Layout;
use super::reply::Reply;

/// Meaning of a record as a script returns it.
#[derive(Debug)]
pub(super) enum ScriptVerdict {
    Granted(Lease),
    RecordState(RecordState),
    /// Its response is under a key of its own, which the call has to name.
    Apart,
}

impl ScriptVerdict {
    /// Reads the answer of a script that looked at a record.
    pub(super) fn read(layout: &Layout, id: &RecordId, reply: Reply) -> Result<Self, StoreError> {
        let unexpected = || layout.unexpected("EVALSHA");
        let Reply::Array(parts) = reply else { return Err(unexpected()) };
        let Ok([Reply::Bytes(meaning), Reply::Bytes(record), detail]) =
            <[Reply; 3]>::try_from(parts)
        else {
            return Err(unexpected());
        };
        let record = decode(id, &record)?;
        Ok(match (&*meaning, detail) {
            (b"granted", _) => Self::Granted(record.lease()),
            (b"held", Reply::Integer(remaining)) => {
                let remaining = Duration::from_millis(u64::try_from(remaining).unwrap_or(0));
                Self::RecordState(RecordState::Held(ClaimInfo::new(&record, remaining)))
            }
            (b"settled", Reply::Bytes(response)) => {
                Self::RecordState(settled(record, Some(response)))
            }
            (b"settled", _) => Self::RecordState(settled(record, None)),
            (b"apart", _) => Self::Apart,
            _ => return Err(unexpected()),
        })
    }
}

/// Record that a claim or a lookup finds.
#[derive(Debug)]
pub(super) enum RecordState {
    Held(ClaimInfo),
    Settled(Record),
}

impl From<RecordState> for Claim {
    fn from(found: RecordState) -> Self {
        Self::Found(found.into())
    }
}

impl From<RecordState> for RecordSnapshot {
    fn from(found: RecordState) -> Self {
        match found {
            RecordState::Held(holder) => Self::Held(holder),
            RecordState::Settled(record) => Self::Settled(record),
        }
    }
}

/// Interprets a record by its time to live and its separate response, as `see.lua` does.
pub(super) fn see(record: Record, pttl: i64, response: Option<Bytes>) -> RecordState {
    if record.state == State::Running {
        RecordState::Held(ClaimInfo::new(&record, remaining(&record, pttl)))
    } else {
        settled(record, response)
    }
}

pub(super) fn decode(id: &RecordId, record: &Bytes) -> Result<Record, StoreError> {
    Record::decode(id, record)
        .map_err(|reason| StoreError::with_source(reason.error_kind(), reason))
}

fn settled(mut record: Record, response: Option<Bytes>) -> RecordState {
    match response {
        _ if !record.apart => RecordState::Settled(record),
        None => RecordState::Settled(record.with_response_expired()),
        Some(response) => {
            record.payload = response;
            RecordState::Settled(record)
        }
    }
}

/// Returns the rest of a lease, whose age is what is missing from its retention.
pub(super) fn remaining(record: &Record, pttl: i64) -> Duration {
    let retain = i128::from(millis(record.retain));
    // Without an expiry its age is unknown, so it must not count as lapsed; and more time to live
    // than it was given says that the server's clock has gone back.
    let age = if pttl < 0 { 0 } else { (retain - i128::from(pttl)).max(0) };
    let left = i128::from(millis(record.term)) - age;
    Duration::from_millis(u64::try_from(left.max(0)).unwrap_or(u64::MAX))
}

/// Head of a stored value, compared in place as the scripts do: see `record.lua`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head<'a>(&'a [u8]);

impl<'a> Head<'a> {
    pub(super) fn of(record: Option<&'a Bytes>) -> Self {
        Self::new(record.map_or(&[], |record| record))
    }

    pub(super) const fn new(record: &'a [u8]) -> Self {
        Self(record)
    }

    /// Returns true if there is no value.
    pub(super) fn is_absent(self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn is_running(self) -> bool {
        self.state() == Some(b'R')
    }

    /// Returns true if both have the same state.
    pub(super) fn is_in_the_state_of(self, other: Self) -> bool {
        self.state() == other.state()
    }

    pub(super) fn is_claim_of(self, lease: &Lease) -> bool {
        self.0.get(ID_AT..Record::TOKEN_AT) == Some(lease.id.as_bytes())
            && self.0.get(Record::TOKEN_AT..).and_then(<[u8]>::first_chunk)
                == Some(lease.token.as_bytes())
    }

    pub(super) fn is_awaited(self) -> bool {
        self.0.get(Record::FLAGS_AT).is_some_and(|flags| flags % 2 == 1)
    }

    /// Returns the retention in milliseconds, if the head is complete.
    pub(super) fn retention(self) -> Option<u64> {
        let from = self.0.get(..Record::HEAD_BYTES)?.get(Record::RETENTION_AT..)?;
        from.first_chunk().map(|retention| u64::from_be_bytes(*retention))
    }

    fn state(self) -> Option<u8> {
        self.0.get(STATE_AT).copied()
    }
}

/// Returns the record's id and the token in the order of a record, as the scripts compare them.
pub(super) fn claim_of(lease: &Lease) -> [&[u8]; 2] {
    [lease.id.as_bytes(), lease.token.as_bytes()]
}

const STATE_AT: usize = 1;
const ID_AT: usize = Record::TOKEN_AT - RecordId::BYTES;
