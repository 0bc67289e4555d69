//! The cached records, in shards with a lock each.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idemptx_core::key::RecordId;
use idemptx_core::record::{Record, State};
use idemptx_core::time::{Clock, Timestamp};

use crate::store::memory::Seeded;

/// Records that a store was asked for not long ago.
pub(super) struct Cache {
    shards: [Mutex<CacheShard>; SHARDS],
    seeded: Seeded,
    hold: Duration,
    clock: Arc<dyn Clock>,
}

struct CacheShard {
    held: HashMap<RecordId, Held, Seeded>,
    /// The oldest first; what is no longer held under its number counts for nothing.
    order: VecDeque<(RecordId, u64)>,
    inserted: u64,
    bytes: usize,
    bytes_max: usize,
    /// Counts what was dropped; each record has its place here, with some others.
    dropped: [u64; PLACES],
}

struct Held {
    record: Record,
    until: Timestamp,
    number: u64,
}

/// A question to the store, whose answer may be [placed](Shelf::place).
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    id: RecordId,
    dropped: u64,
    asked: Timestamp,
}

impl Cache {
    pub(super) fn new(bytes_max: usize, hold: Duration, clock: Arc<dyn Clock>) -> Self {
        let seeded = Seeded::new();
        let shard = || CacheShard {
            held: HashMap::with_hasher(seeded),
            order: VecDeque::new(),
            inserted: 0,
            bytes: 0,
            bytes_max: bytes_max / SHARDS,
            dropped: [0; PLACES],
        };
        Self { shards: std::array::from_fn(|_| Mutex::new(shard())), seeded, hold, clock }
    }

    /// The record, if it is held and its time is not over.
    pub(super) fn recall(&self, id: &RecordId) -> Option<Record> {
        let (shard, _) = self.shard(id);
        let held = shard.held.get(id)?;
        (self.clock.now() < held.until).then(|| held.record.clone())
    }

    /// To be called before the store is asked.
    pub(super) fn ticket(&self, id: &RecordId) -> Ticket {
        let asked = self.clock.now();
        let (shard, insert) = self.shard(id);
        Ticket { id: *id, dropped: shard.dropped_at(insert), asked }
    }

    /// Holds what the store said, unless the record was dropped after the store was asked, and no
    /// longer than `retain` from then.
    pub(super) fn insert(&self, ticket: Ticket, record: Record, retain: Option<Duration>) {
        if matches!(record.state, State::Running | State::Unknown) {
            return;
        }
        let until = ticket.asked.after(retain.map_or(self.hold, |retain| retain.min(self.hold)));
        let now = self.clock.now();
        let (mut shard, insert) = self.shard(&ticket.id);
        if shard.dropped_at(insert) == ticket.dropped && now < until {
            shard.insert(record, until, now);
        }
    }

    /// Forgets a record, also what is still on its way here.
    pub(super) fn forget(&self, id: &RecordId) {
        let (mut shard, insert) = self.shard(id);
        shard.remove(id);
        if let Some(dropped) = shard.dropped.get_mut(insert) {
            *dropped += 1;
        }
    }

    /// Forgets everything, also what is still on its way here.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.held.clear();
            shard.order.clear();
            shard.bytes = 0;
            shard.dropped.iter_mut().for_each(|dropped| *dropped += 1);
        }
    }

    /// Gives the memory back of what is over.
    pub(super) fn sweep(&self) {
        let now = self.clock.now();
        self.shards.iter().for_each(|shard| lock(shard).trim(now, 0));
    }

    /// Returns the size of the cached records in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).bytes).sum()
    }

    /// The part of a record, and its place among those that are counted there.
    fn shard(&self, id: &RecordId) -> (MutexGuard<'_, CacheShard>, usize) {
        // A map takes the lowest bits for itself, and the highest.
        let middle = (self.seeded.hash_one(id) >> 24) as usize;
        #[expect(clippy::indexing_slicing, reason = "the remainder is a valid position")]
        let shard = &self.shards[middle % SHARDS];
        (lock(shard), middle / SHARDS % PLACES)
    }
}

impl CacheShard {
    fn dropped_at(&self, insert: usize) -> u64 {
        self.dropped.get(insert).copied().unwrap_or_default()
    }

    fn insert(&mut self, record: Record, until: Timestamp, now: Timestamp) {
        // A later answer about the same claim says nothing new, and may know less of its end; an
        // earlier claim's was overtaken on its way.
        let stays =
            |held: &Held| held.record.fence > record.fence || held.record.token == record.token;
        if self.held.get(&record.id).is_some_and(|held| now < held.until && stays(held)) {
            return;
        }
        self.remove(&record.id);
        let bytes = weight(&record);
        if bytes > self.bytes_max {
            return;
        }
        self.trim(now, bytes);
        self.inserted += 1;
        self.bytes += bytes;
        self.order.push_back((record.id, self.inserted));
        self.held.insert(record.id, Held { record, until, number: self.inserted });
    }

    /// Removes what is over, and the oldest until there is room.
    fn trim(&mut self, now: Timestamp, room: usize) {
        while let Some((id, number)) = self.order.front().copied() {
            let held = self.held.get(&id).filter(|held| held.number == number);
            if held.is_some_and(|held| now < held.until)
                && self.bytes.saturating_add(room) <= self.bytes_max
            {
                break;
            }
            if held.is_some() {
                self.remove(&id);
            }
            self.order.pop_front();
        }
        // What was dropped leaves its number behind.
        if self.order.len() > 2 * self.held.len() + ORDER_SLACK {
            let held = &self.held;
            self.order.retain(|(id, number)| held.get(id).is_some_and(|it| it.number == *number));
        }
    }

    fn remove(&mut self, id: &RecordId) {
        if let Some(held) = self.held.remove(id) {
            self.bytes = self.bytes.saturating_sub(weight(&held.record));
        }
    }
}

/// Returns the approximate size of a cached record.
fn weight(record: &Record) -> usize {
    record.payload.len() + OVERHEAD_BYTES
}

/// No code of ours panics while it holds a part.
fn lock(shard: &Mutex<CacheShard>) -> MutexGuard<'_, CacheShard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Enough that requests of different records rarely meet, few enough that a part holds a large one.
const SHARDS: usize = 16;
/// Records that share a counter by chance lose their place with each other, and nothing else.
const PLACES: usize = 256;
/// An entry in a map that is two thirds full, its place in the order, and the payload's own head.
const OVERHEAD_BYTES: usize =
    (size_of::<Held>() + size_of::<RecordId>()) * 3 / 2 + 2 * size_of::<(RecordId, u64)>() + 160;
const ORDER_SLACK: usize = 64;
