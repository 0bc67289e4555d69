use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Backoff, Update};
use crate::lease::Lease;
use crate::record::Record;
use crate::store::{ErrorKind, Settlement};
use crate::time::Timestamp;

/// An operation that the store has not confirmed.
///
/// It is kept in memory only: if the process dies before the store is back, the claim lapses into
/// an orphan, which the policy deals with.
/// A journal on disk would have to survive the same crash.
#[derive(Clone, Debug)]
pub enum Unconfirmed {
    /// The release of a claim by its token.
    ///
    /// A fence of zero stands for a claim that may not have been granted, or not yet.
    Release(Lease),
    /// The settlement of a record.
    Settle(Lease, Settlement),
}

impl Unconfirmed {
    fn payload_bytes(&self) -> usize {
        match self {
            Self::Release(_) => 0,
            Self::Settle(_, done) => done.payload.len(),
        }
    }

    /// Returns `true` for the release of a claim that may never have been granted.
    const fn is_unacknowledged(&self) -> bool {
        matches!(self, Self::Release(lease) if lease.fence == 0)
    }

    /// The time for which the operation is repeated.
    fn patience(&self) -> Duration {
        match self {
            Self::Release(lease) if lease.fence == 0 => lease.term.max(RELEASE_FOR_MIN) * 2,
            // As long as a settlement: a claim that is not released is an orphan in the end, whose
            // key some policies refuse for months.
            Self::Release(_) => SETTLE_FOR_MAX,
            Self::Settle(_, done) => done.key_retain.min(SETTLE_FOR_MAX),
        }
    }
}

/// Counts the operations of a process that the store has not confirmed.
#[derive(Debug, Default)]
pub struct Journal {
    /// Results, and releases of granted claims.
    entries: AtomicUsize,
    payload_bytes: AtomicUsize,
    /// Releases of claims that may never have been granted, until confirmed.
    unacknowledged: AtomicUsize,
    /// Releases of such claims, until the last one is over.
    lingering: AtomicUsize,
}

impl Journal {
    /// Beyond these many unconfirmed operations new claims are refused.
    pub const ENTRIES_MAX: usize = 10_000;
    /// Beyond these many bytes of unconfirmed results new claims are refused.
    pub const PAYLOAD_BYTES_MAX: usize = 256 << 20;
    /// Beyond these many, releases of claims that may never have been granted are not kept.
    pub const UNACKNOWLEDGED_MAX: usize = 10_000;

    /// Returns `true` while so much is unconfirmed that no new claim may be made.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries.load(Ordering::Relaxed) >= Self::ENTRIES_MAX
            || self.payload_bytes.load(Ordering::Relaxed) >= Self::PAYLOAD_BYTES_MAX
    }

    /// Returns the number of operations that a drain waits for.
    #[must_use]
    pub fn unconfirmed(&self) -> usize {
        self.entries.load(Ordering::Acquire) + self.unacknowledged.load(Ordering::Acquire)
    }

    /// Admits an operation, to be performed at once and then as its [`Confirmation`] says.
    ///
    /// Results are never refused: a handler that runs must be able to end, which is why
    /// [`is_full`](Self::is_full) is asked before a claim.
    /// `None` for a claim that may never have been granted, beyond a limit: clients that leave could
    /// stop all others, and such a claim lapses with its lease.
    pub fn admit(&self, operation: Unconfirmed, now: Timestamp) -> Option<Confirmation> {
        if operation.is_unacknowledged() {
            if self.lingering.fetch_add(1, Ordering::Relaxed) >= Self::UNACKNOWLEDGED_MAX {
                self.lingering.fetch_sub(1, Ordering::Relaxed);
                return None;
            }
            self.unacknowledged.fetch_add(1, Ordering::Relaxed);
        } else {
            self.entries.fetch_add(1, Ordering::Relaxed);
            self.payload_bytes.fetch_add(operation.payload_bytes(), Ordering::Relaxed);
        }
        let deadline = now.after(operation.patience());
        Some(Confirmation { operation, deadline, backoff: BACKOFF, lingers: false })
    }
}

/// The repetition of an operation until the store confirms or refuses it.
#[derive(Debug)]
pub struct Confirmation {
    operation: Unconfirmed,
    deadline: Timestamp,
    backoff: Backoff,
    /// A release that is confirmed, and repeated because the claim may be granted after it.
    lingers: bool,
}

/// The consequence of an attempt.
#[derive(Debug)]
pub enum Next {
    /// The operation is to be performed again after a pause.
    Repeat(Duration),
    /// It is over; those who wait for the record get the update.
    Over(Update),
}

impl Confirmation {
    /// The time within which an attempt is answered, or counts as failed.
    pub const TIME_LIMIT: Duration = Duration::from_secs(2);
    /// The number of operations that are with the store at a time; the others wait.
    pub const AT_ONCE_MAX: usize = 64;

    /// The operation to perform.
    #[must_use]
    pub const fn operation(&self) -> &Unconfirmed {
        &self.operation
    }

    /// Takes the outcome of an attempt.
    ///
    /// A claim that may not have been granted may still be on its way to the store, in the buffer of
    /// a connection that was given up for example, and be carried out after a release that found
    /// nothing.
    /// So it is released again, ever more rarely, until its lease would have lapsed.
    /// A drain does not wait for that, since the first release is confirmed.
    #[must_use]
    pub fn attempted(
        &mut self,
        outcome: Result<(), ErrorKind>,
        now: Timestamp,
        journal: &Journal,
    ) -> Next {
        let is_final = matches!(outcome, Ok(()) | Err(ErrorKind::Fenced | ErrorKind::Corrupt));
        let pause = self.backoff.next_pause();
        if !is_final && !self.lingers && pause < self.deadline.since(now) {
            return Next::Repeat(pause);
        }
        match &self.operation {
            Unconfirmed::Release(lease) if lease.fence == 0 && outcome.is_ok() && !self.lingers => {
                journal.unacknowledged.fetch_sub(1, Ordering::Release);
                self.lingers = true;
                self.deadline = now.after(lease.term);
                self.backoff = Backoff::new(PAUSE_MIN, lease.term);
                Next::Repeat(self.backoff.next_pause().min(lease.term))
            }
            Unconfirmed::Settle(lease, done) if outcome.is_ok() => {
                Next::Over(Update::Settled(Record::settled(lease, done)))
            }
            _ => {
                let left = self.deadline.since(now);
                if self.lingers && !left.is_zero() && (outcome.is_ok() || !is_final) {
                    return Next::Repeat(pause.min(left));
                }
                Next::Over(Update::Changed)
            }
        }
    }

    /// Counts an operation that is over out of the journal.
    ///
    /// Called once those who wait for the record have their update: who has waited until nothing is
    /// unconfirmed must not find the record held.
    pub fn close(self, journal: &Journal) {
        if self.operation.is_unacknowledged() {
            if !self.lingers {
                journal.unacknowledged.fetch_sub(1, Ordering::Release);
            }
            journal.lingering.fetch_sub(1, Ordering::Relaxed);
        } else {
            journal.payload_bytes.fetch_sub(self.operation.payload_bytes(), Ordering::Relaxed);
            journal.entries.fetch_sub(1, Ordering::Release);
        }
    }
}

const PAUSE_MIN: Duration = Duration::from_millis(50);
const BACKOFF: Backoff = Backoff::new(PAUSE_MIN, Duration::from_secs(1));
const RELEASE_FOR_MIN: Duration = Duration::from_secs(30);
/// After an hour without an answer an operation is given up; the claim lapses into an orphan.
const SETTLE_FOR_MAX: Duration = Duration::from_secs(3600);
