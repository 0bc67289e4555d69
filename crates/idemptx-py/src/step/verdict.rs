//! Verdicts of steps, and their meaning to the state machine.

use idemptx_core::lease::Lease;
use idemptx_core::record::Record;
use idemptx_core::store::{Claim, ClaimInfo, ErrorKind, RecordSnapshot, StoreFailure};

/// The result of a step.
#[derive(Clone)]
pub(crate) enum Verdict {
    Pending,
    Done,
    Granted(Lease),
    Held(ClaimInfo),
    Settled(Record),
    Absent,
    Failed(StoreFailure),
}

impl From<Claim> for Verdict {
    fn from(claim: Claim) -> Self {
        match claim {
            Claim::Granted(lease) => Self::Granted(lease),
            Claim::Found(RecordSnapshot::Held(holder)) => Self::Held(holder),
            Claim::Found(RecordSnapshot::Settled(record)) => Self::Settled(record),
            _ => Self::Failed(ErrorKind::Internal.into()),
        }
    }
}

impl From<Option<RecordSnapshot>> for Verdict {
    fn from(seen: Option<RecordSnapshot>) -> Self {
        match seen {
            None => Self::Absent,
            Some(RecordSnapshot::Held(holder)) => Self::Held(holder),
            Some(RecordSnapshot::Settled(record)) => Self::Settled(record),
            Some(_) => Self::Failed(ErrorKind::Internal.into()),
        }
    }
}

impl Verdict {
    /// The verdict's number for Python.
    pub(crate) const fn number(&self) -> i32 {
        match self {
            Self::Pending => number::PENDING,
            Self::Done => number::OK,
            Self::Granted(_) => number::GRANTED,
            Self::Held(_) => number::HELD,
            Self::Settled(_) => number::SETTLED,
            Self::Absent => number::ABSENT,
            Self::Failed(failure) => match failure.kind {
                ErrorKind::Unavailable => number::UNAVAILABLE,
                ErrorKind::Fenced => number::FENCED,
                ErrorKind::Corrupt => number::CORRUPT,
                ErrorKind::Full => number::FULL,
                ErrorKind::Invalid => number::INVALID,
                ErrorKind::Refused => number::REFUSED,
                _ => number::INTERNAL,
            },
        }
    }

    /// Returns the result of a claim.
    pub(crate) fn claimed(self) -> Result<Claim, StoreFailure> {
        match self {
            Self::Granted(lease) => Ok(Claim::Granted(lease)),
            Self::Held(holder) => Ok(Claim::Found(RecordSnapshot::Held(holder))),
            Self::Settled(record) => Ok(Claim::Found(RecordSnapshot::Settled(record))),
            other => Err(other.failure()),
        }
    }

    /// Returns the result of a lookup.
    pub(crate) fn looked(self) -> Result<Option<RecordSnapshot>, ErrorKind> {
        match self {
            Self::Absent => Ok(None),
            Self::Held(holder) => Ok(Some(RecordSnapshot::Held(holder))),
            Self::Settled(record) => Ok(Some(RecordSnapshot::Settled(record))),
            other => Err(other.failure().kind),
        }
    }

    /// Returns the result of any other step.
    pub(crate) fn confirmed(&self) -> Result<(), ErrorKind> {
        match self {
            Self::Done => Ok(()),
            other => Err(other.failure().kind),
        }
    }

    /// A verdict that does not belong to its step counts as a fault of the store.
    fn failure(&self) -> StoreFailure {
        match self {
            Self::Failed(failure) => *failure,
            _ => ErrorKind::Internal.into(),
        }
    }
}

/// `Step.verdict`.
pub(crate) mod number {
    pub(crate) const PENDING: i32 = -1;
    pub(crate) const OK: i32 = 0;
    pub(crate) const GRANTED: i32 = 1;
    pub(crate) const HELD: i32 = 2;
    pub(crate) const SETTLED: i32 = 3;
    pub(crate) const ABSENT: i32 = 4;
    pub(crate) const UNAVAILABLE: i32 = 5;
    pub(crate) const FENCED: i32 = 6;
    pub(crate) const CORRUPT: i32 = 7;
    pub(crate) const FULL: i32 = 8;
    pub(crate) const INVALID: i32 = 9;
    pub(crate) const INTERNAL: i32 = 10;
    pub(crate) const REFUSED: i32 = 11;
    pub(crate) const ALL: [(&str, i32); 13] = [
        ("PENDING", PENDING),
        ("OK", OK),
        ("GRANTED", GRANTED),
        ("HELD", HELD),
        ("SETTLED", SETTLED),
        ("ABSENT", ABSENT),
        ("UNAVAILABLE", UNAVAILABLE),
        ("FENCED", FENCED),
        ("CORRUPT", CORRUPT),
        ("FULL", FULL),
        ("INVALID", INVALID),
        ("INTERNAL", INTERNAL),
        ("REFUSED", REFUSED),
    ];
}
