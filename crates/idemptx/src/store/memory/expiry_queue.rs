//! Queue of the times at which records change without a step.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use idemptx_core::key::RecordId;
use idemptx_core::time::Timestamp;

use super::slot::Slot;

/// The earliest first.
///
/// An entry counts if its record is [`queued`](Slot::queued) for that very moment.
/// What is due later than its entry says is queued again when that comes up, so renewing and
/// settling cost nothing here; what is due earlier gets a second entry, and the first is void.
#[derive(Default)]
pub(super) struct ExpiryQueue(BinaryHeap<Reverse<(Timestamp, RecordId)>>);

impl ExpiryQueue {
    /// Sees to it that the record is looked at when it is due.
    pub(super) fn add(&mut self, id: &RecordId, slot: &mut Slot) {
        let due = slot.due();
        if due < slot.queued {
            slot.queued = due;
            self.0.push(Reverse((due, *id)));
        }
    }

    /// Takes the next entry that is due.
    pub(super) fn next(&mut self, now: Timestamp) -> Option<(Timestamp, RecordId)> {
        let Reverse((due, _)) = self.0.peek()?;
        if *due > now {
            return None;
        }
        self.0.pop().map(|Reverse(entry)| entry)
    }

    /// Drops void entries once they are the majority, and memory that is not needed.
    pub(super) fn trim(
        &mut self,
        records: usize,
        mut counts: impl FnMut(Timestamp, &RecordId) -> bool,
    ) {
        if self.0.len() > 2 * records + SLACK {
            self.0.retain(|Reverse((due, id))| counts(*due, id));
        }
        if self.0.capacity() > SLACK && self.0.len() < self.0.capacity() / 4 {
            self.0.shrink_to(2 * self.0.len());
        }
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

/// Below this it is not worth the while.
const SLACK: usize = 16;
