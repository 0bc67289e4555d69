//! The records of one shard: every step of the contract, given the time and exclusive access.

use std::collections::HashMap;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::State;
use idemptx_core::store::{
    Claim, ClaimRequest, ErrorKind, Query, RecordSnapshot, RecordSummary, Settlement,
};
use idemptx_core::time::Timestamp;

use super::digest::Seeded;
use super::expiry_queue::ExpiryQueue;
use super::slot::{RECORD_BYTES, Slot};

/// Records of one shard, with the times at which they change.
pub(super) struct Shard {
    /// Boxed, because a map that has just grown is half empty.
    slots: HashMap<RecordId, Box<Slot>, Seeded>,
    queue: ExpiryQueue,
    /// The greatest fence so far, so that none is given twice even if the clock goes back.
    fence_last: u64,
    bytes: usize,
}

impl Shard {
    pub(super) fn new(seeded: Seeded) -> Self {
        Self {
            slots: HashMap::with_hasher(seeded),
            queue: ExpiryQueue::default(),
            fence_last: 0,
            bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns the size of the records in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Claims; a new record may take `room` bytes.
    pub(super) fn claim(
        &mut self,
        id: &RecordId,
        request: &ClaimRequest,
        now: Timestamp,
        room: usize,
    ) -> Result<Claim, ErrorKind> {
        self.refresh(id, now);
        let fence = (now.as_millis().saturating_mul(1000)).max(self.fence_last.saturating_add(1));
        let slot = match self.slots.get_mut(id) {
            None if room < RECORD_BYTES + request.description.len() => return Err(ErrorKind::Full),
            None => {
                self.bytes += RECORD_BYTES + request.description.len();
                let slot = Box::new(Slot::claimed(request, fence, 1, now));
                self.slots.entry(*id).insert_entry(slot).into_mut()
            }
            Some(slot) if slot.is_running() && slot.token() == request.token => {
                slot.renew(now);
                return Ok(Claim::Granted(slot.lease(id)));
            }
            Some(slot) if slot.is_over(request.expected, now) => {
                self.bytes -= slot.payload_bytes();
                slot.replace(request, fence, now);
                self.bytes += slot.payload_bytes();
                slot
            }
            Some(slot) => {
                return Ok(match slot.holder(id, now) {
                    Some(holder) => Claim::Found(RecordSnapshot::Held(holder)),
                    None => Claim::Found(RecordSnapshot::Settled(slot.record(id))),
                });
            }
        };
        self.fence_last = fence;
        self.queue.add(id, slot);
        Ok(Claim::Granted(slot.lease(id)))
    }

    /// Settles; the caller notifies the waiting tasks afterwards.
    pub(super) fn settle(
        &mut self,
        lease: &Lease,
        done: &Settlement,
        now: Timestamp,
    ) -> Result<(), ErrorKind> {
        if matches!(done.state, State::Running | State::ResponseExpired) {
            return Err(ErrorKind::Invalid);
        }
        let slot = self.owned(lease, now)?;
        if !slot.is_running() {
            return if slot.was_settled_as(done.state) { Ok(()) } else { Err(ErrorKind::Fenced) };
        }
        let before = slot.payload_bytes();
        slot.settle(done, now);
        self.enqueue(&lease.id);
        self.bytes = self.bytes - before + done.payload.len();
        Ok(())
    }

    /// Releases; the caller notifies the waiting tasks afterwards.
    pub(super) fn release(&mut self, lease: &Lease, now: Timestamp) -> Result<(), ErrorKind> {
        let is_running = self.owned(lease, now).map(|slot| slot.is_running());
        match is_running {
            Ok(true) => {
                self.remove(&lease.id);
                Ok(())
            }
            Err(_) if !self.slots.contains_key(&lease.id) => Ok(()),
            _ => Err(ErrorKind::Fenced),
        }
    }

    /// Renews.
    pub(super) fn renew(&mut self, lease: &Lease, now: Timestamp) -> Result<Lease, ErrorKind> {
        let slot = self.owned(lease, now)?;
        if !slot.is_running() {
            return Err(ErrorKind::Fenced);
        }
        slot.renew(now);
        Ok(slot.lease(&lease.id))
    }

    /// Looks up.
    pub(super) fn lookup(&mut self, id: &RecordId, now: Timestamp) -> Option<RecordSnapshot> {
        self.refresh(id, now);
        let slot = self.slots.get(id)?;
        Some(match slot.holder(id, now) {
            Some(holder) => RecordSnapshot::Held(holder),
            None => RecordSnapshot::Settled(slot.record(id)),
        })
    }

    /// A record as an operator sees it.
    pub(super) fn entry(&self, id: &RecordId, now: Timestamp) -> Option<RecordSummary> {
        self.slots.get(id)?.entry(id, now)
    }

    /// The first `count` records that are asked for, of those after an id.
    pub(super) fn list(
        &self,
        query: &Query,
        after: Option<RecordId>,
        now: Timestamp,
        count: usize,
    ) -> Vec<RecordSummary> {
        let mut found: Vec<(&RecordId, &Slot)> = self
            .slots
            .iter()
            .map(|(id, slot)| (id, &**slot))
            .filter(|(id, _)| after.is_none_or(|after| **id > after))
            .filter(|(id, slot)| slot.entry(id, now).is_some_and(|entry| query.admits(&entry)))
            .collect();
        if found.len() > count {
            found.select_nth_unstable_by_key(count, |(id, _)| **id);
            found.truncate(count);
        }
        found.sort_unstable_by_key(|(id, _)| **id);
        found.into_iter().filter_map(|(id, slot)| slot.entry(id, now)).collect()
    }

    /// Looks at up to `count` records that are due, and says whether there may be more.
    pub(super) fn sweep(&mut self, now: Timestamp, count: usize) -> bool {
        for _ in 0..count {
            let Some((due, id)) = self.queue.next(now) else { return false };
            match self.slots.get_mut(&id) {
                Some(slot) if slot.queued == due => {
                    slot.queued = Slot::NEVER;
                    self.refresh(&id, now);
                    self.enqueue(&id);
                }
                _ => {}
            }
        }
        true
    }

    /// Gives back what map and queue do not need any more.
    pub(super) fn trim(&mut self) {
        let slots = &mut self.slots;
        if slots.capacity() > SLACK && slots.len() < slots.capacity() / 4 {
            slots.shrink_to(2 * slots.len());
        }
        let counts = |due, id: &RecordId| slots.get(id).is_some_and(|slot| slot.queued == due);
        self.queue.trim(slots.len(), counts);
    }

    /// Returns the capacity of the map and of the queue.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.slots.capacity() + self.queue.capacity()
    }

    /// Lets the record be what it is by now: without its response, or gone.
    fn refresh(&mut self, id: &RecordId, now: Timestamp) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        if slot.has_expired(now) {
            self.remove(id);
        } else {
            let before = slot.payload_bytes();
            slot.turn(now);
            self.bytes -= before - slot.payload_bytes();
        }
    }

    /// The record if it has the lease's token.
    fn owned(&mut self, lease: &Lease, now: Timestamp) -> Result<&mut Slot, ErrorKind> {
        self.refresh(&lease.id, now);
        match self.slots.get_mut(&lease.id) {
            Some(slot) if slot.token() == lease.token => Ok(slot),
            _ => Err(ErrorKind::Fenced),
        }
    }

    fn enqueue(&mut self, id: &RecordId) {
        if let Some(slot) = self.slots.get_mut(id) {
            self.queue.add(id, slot);
        }
    }

    fn remove(&mut self, id: &RecordId) {
        if let Some(slot) = self.slots.remove(id) {
            self.bytes -= RECORD_BYTES + slot.payload_bytes();
        }
    }
}

/// Below this capacity it is not worth the while.
const SLACK: usize = 16;
