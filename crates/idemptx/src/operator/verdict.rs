//! The results of operators' calls.

use std::fmt;
use std::time::Duration;

use idemptx_core::description::Description;
use idemptx_core::key::RecordId;
use idemptx_core::record::{Record, State};
use idemptx_core::response::StoredResponse;
use idemptx_core::store::{ClaimInfo, ErrorKind, RecordStatus, RecordSummary, StoreError};

/// A record, as a lookup finds it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RecordView {
    /// The record's id.
    pub id: RecordId,
    /// The record's status.
    pub status: RecordStatus,
    /// The claim that runs or has settled.
    pub claim: ClaimInfo,
    /// The size of the payload.
    pub payload_bytes: usize,
    /// The description of the request, if it was read; a lookup of a claim does not.
    pub description: Option<Description>,
    /// The response, or the head of one that cannot be replayed; `None` if there is none, or none
    /// that can be read.
    pub response: Option<StoredResponse>,
}

impl RecordView {
    /// Describes a claim.
    pub(super) fn held(id: RecordId, holder: &ClaimInfo) -> Self {
        Self {
            id,
            status: RecordStatus::of(State::Running, holder.remaining),
            claim: *holder,
            payload_bytes: 0,
            description: None,
            response: None,
        }
    }

    /// Describes a record as a listing has it, without its response.
    pub(super) fn listed(entry: &RecordSummary) -> Self {
        Self {
            id: entry.id,
            status: entry.status,
            claim: entry.claim,
            payload_bytes: usize::try_from(entry.payload_bytes).unwrap_or(usize::MAX),
            description: entry.description(),
            response: None,
        }
    }

    /// Describes a final record.
    pub(super) fn settled(record: &Record) -> Self {
        Self {
            id: record.id,
            status: RecordStatus::of(record.state, Duration::ZERO),
            claim: ClaimInfo::new(record, Duration::ZERO),
            payload_bytes: record.payload.len(),
            description: Description::of(&record.payload),
            response: StoredResponse::decode(&record.payload).ok(),
        }
    }
}

/// The decision about an operation in doubt.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Resolution {
    /// The operation happened, and this is its answer.
    Answer(Box<StoredResponse>),
    /// The operation did not happen: the next request with the key executes it.
    Release,
}

impl From<StoredResponse> for Resolution {
    fn from(answer: StoredResponse) -> Self {
        Self::Answer(Box::new(answer))
    }
}

/// A doubt that was resolved.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Resolved {
    /// The record as it was.
    pub was: RecordView,
    /// The record as it is now; nothing after a release.
    pub now: Option<RecordView>,
}

/// A record that was forgotten.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Forgotten {
    /// The record as it was.
    pub was: RecordView,
}

/// A call that left its record as it was.
#[derive(Debug)]
#[non_exhaustive]
pub enum OperatorError {
    /// There is nothing under this id: it was never there, was released, or has expired.
    Absent,
    /// The owner is alive, and its lease lasts so much longer unless renewed.
    InFlight(Duration),
    /// The record has a final result, which no resolution replaces; it can be
    /// [forgotten](super::Operator::forget).
    AlreadySettled(Box<RecordView>),
    /// The record was changed meanwhile, to this if it is known: look again.
    Changed(Option<Box<RecordView>>),
    /// The answer could not be read back: an informational response, one with too many header
    /// lines, or one larger than the policy's `response_bytes_max`.
    Unstorable,
    /// The record cannot be read, as the source says: it is damaged, or was sealed under keys that
    /// were not given. A sealed one can be [forgotten](super::Operator::forget).
    Unreadable(StoreError),
    /// The store failed; unless it says otherwise, whether anything was changed is not known.
    Store(StoreError),
}

impl OperatorError {
    /// Changed to this.
    pub(super) fn changed(now: RecordView) -> Self {
        Self::Changed(Some(Box::new(now)))
    }
}

impl From<StoreError> for OperatorError {
    fn from(error: StoreError) -> Self {
        match error.kind() {
            ErrorKind::Corrupt => Self::Unreadable(error),
            _ => Self::Store(error),
        }
    }
}

impl fmt::Display for OperatorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is no record under this id"),
            Self::InFlight(remaining) => {
                let seconds = remaining.as_secs() + u64::from(remaining.subsec_nanos() > 0);
                write!(f, "its owner is alive; try again in {seconds} s")
            }
            Self::AlreadySettled(was) => {
                write!(
                    f,
                    "it is settled already, as {}; forget it to have it executed",
                    was.status
                )
            }
            Self::Changed(_) => f.write_str("it was changed meanwhile; look again"),
            Self::Unstorable => f.write_str(
                "the answer cannot be stored: it is informational, too large, or has too many \
                 header lines",
            ),
            Self::Unreadable(_) => f.write_str(
                "what is there cannot be read: give the keys that it was sealed under, or forget it",
            ),
            Self::Store(_) => f.write_str("the store failed; look again before you repeat it"),
        }
    }
}

impl std::error::Error for OperatorError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable(error) | Self::Store(error) => Some(error),
            _ => None,
        }
    }
}
