//! What this process saw happen to each record: a bounded ring of events, for the inspector.
//!
//! It tells of this process only, since its start, and forgets the oldest event first.
//! Records go by their ids; no key is ever in it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use idemptx::Code;
use idemptx_core::key::RecordId;
use idemptx_core::record::State;
use idemptx_core::store::ErrorKind;

/// The last events of all records.
#[derive(Debug)]
pub(crate) struct Story {
    shards: Box<[Mutex<Ring>]>,
    events_max: usize,
}

/// What happened to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A claim was granted to this process.
    Claimed { attempt: u32 },
    /// The lease was renewed.
    Renewed,
    /// A request found the record claimed by somebody.
    MetHolder,
    /// A request found a claim whose owner had vanished.
    MetOrphan,
    /// What became of it was stored.
    Settled(State),
    /// The claim was given up.
    Released,
    /// Somebody else has taken the record over, or it is gone.
    Fenced,
    /// The store gave no verdict, or one that says that something is wrong.
    Failed(ErrorKind),
    /// A request was executed, and its client got the answer.
    Executed { stored: bool },
    /// A request got the stored answer, at once or after it had waited for it.
    Replayed { waited: bool },
    /// A request was refused.
    Refused(Code),
    /// An operator gave the key up.
    OperatorReleased,
    /// An operator stored an answer.
    OperatorAnswered,
    /// An operator removed the record.
    OperatorForgot,
}

/// One event, or several of the same kind after each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) event: Event,
    /// When it happened first.
    pub(crate) first: Instant,
    /// When it happened last.
    pub(crate) last: Instant,
    pub(crate) times: u64,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<(RecordId, Told)>,
    /// How many events have been forgotten: the number of the first that is left.
    forgotten: u64,
    /// The number of each record's last event.
    last: HashMap<RecordId, u64>,
}

impl Story {
    pub(crate) fn new() -> Self {
        Self::of(EVENTS_MAX)
    }

    fn of(events_max: usize) -> Self {
        let shards = std::iter::repeat_with(Mutex::default).take(SHARDS).collect();
        Self { shards, events_max: (events_max / SHARDS).max(1) }
    }

    /// Takes down what happened just now.
    pub(crate) fn tell(&self, id: &RecordId, event: Event) {
        self.tell_at(id, event, Instant::now());
    }

    fn tell_at(&self, id: &RecordId, event: Event, now: Instant) {
        let mut ring = self.ring(id);
        if let Some(told) = ring.last_of(id)
            && told.event == event
        {
            told.last = now;
            told.times = told.times.saturating_add(1);
            return;
        }
        if ring.events.len() >= self.events_max {
            ring.forget_first();
        }
        let number = ring.forgotten + ring.events.len() as u64;
        ring.events.push_back((*id, Told { event, first: now, last: now, times: 1 }));
        ring.last.insert(*id, number);
    }

    /// Takes down that a request got the stored answer, which may have come while it was here.
    pub(crate) fn tell_replayed(&self, id: &RecordId, began: Instant) {
        self.tell_replayed_at(id, began, Instant::now());
    }

    fn tell_replayed_at(&self, id: &RecordId, began: Instant, now: Instant) {
        let waited = self.of_record(id).iter().any(|told| {
            matches!(told.event, Event::Settled(_) | Event::MetHolder) && told.last >= began
        });
        self.tell_at(id, Event::Replayed { waited }, now);
    }

    /// What is known of a record, oldest first.
    pub(crate) fn of_record(&self, id: &RecordId) -> Vec<Told> {
        let ring = self.ring(id);
        if !ring.last.contains_key(id) {
            return Vec::new();
        }
        ring.events.iter().filter(|(of, _)| of == id).map(|(_, told)| *told).collect()
    }

    fn ring(&self, id: &RecordId) -> MutexGuard<'_, Ring> {
        let [.., last] = id.as_bytes();
        let position = usize::from(*last) % SHARDS;
        #[expect(clippy::indexing_slicing, reason = "the position is taken modulo the length")]
        self.shards[position].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn last_of(&mut self, id: &RecordId) -> Option<&mut Told> {
        let number = self.last.get(id)?;
        let position = usize::try_from(number.checked_sub(self.forgotten)?).ok()?;
        self.events.get_mut(position).map(|(_, told)| told)
    }

    fn forget_first(&mut self) {
        let Some((id, _)) = self.events.pop_front() else { return };
        if self.last.get(&id) == Some(&self.forgotten) {
            self.last.remove(&id);
        }
        self.forgotten += 1;
    }
}

/// About four megabytes with the index.
const EVENTS_MAX: usize = 16_384;
/// Divides 256, so that one byte of an id picks a shard evenly.
const SHARDS: usize = 16;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DONE: Event = Event::Settled(State::Completed);

    fn id(number: u8) -> RecordId {
        // All in one shard.
        let mut bytes = [0; RecordId::BYTES];
        bytes[0] = number;
        RecordId::from_bytes(bytes)
    }

    fn events(story: &Story, number: u8) -> Vec<(Event, u64)> {
        story.of_record(&id(number)).iter().map(|told| (told.event, told.times)).collect()
    }

    #[test]
    fn a_records_story_is_told_in_order_and_repeats_are_counted() {
        let story = Story::new();
        story.tell(&id(1), Event::Claimed { attempt: 1 });
        story.tell(&id(1), Event::Renewed);
        story.tell(&id(2), Event::Claimed { attempt: 1 });
        story.tell(&id(1), Event::Renewed);
        story.tell(&id(1), DONE);
        let told = [(Event::Claimed { attempt: 1 }, 1), (Event::Renewed, 2), (DONE, 1)];
        assert_eq!(events(&story, 1), told);
        assert_eq!(events(&story, 2), [(Event::Claimed { attempt: 1 }, 1)]);
        assert_eq!(events(&story, 3), []);
    }

    #[test]
    fn the_oldest_event_is_forgotten_first() {
        let story = Story::of(SHARDS * 2);
        story.tell(&id(1), Event::Claimed { attempt: 1 });
        story.tell(&id(2), Event::Claimed { attempt: 1 });
        story.tell(&id(1), DONE);
        assert_eq!(events(&story, 1), [(DONE, 1)]);
        story.tell(&id(3), DONE);
        story.tell(&id(3), Event::Released);
        assert_eq!(events(&story, 1), []);
        assert_eq!(events(&story, 2), []);
        assert_eq!(story.ring(&id(1)).last.len(), 1, "the index forgets with the ring");
    }

    #[test]
    fn a_request_that_was_here_before_the_answer_has_waited_for_it() {
        let (story, began) = (Story::new(), Instant::now());
        let at = |millis| began + Duration::from_millis(millis);
        story.tell_at(&id(1), DONE, at(10));
        story.tell_replayed_at(&id(1), at(11), at(12));
        story.tell_replayed_at(&id(1), at(9), at(13));
        let told = [
            (DONE, 1),
            (Event::Replayed { waited: false }, 1),
            (Event::Replayed { waited: true }, 1),
        ];
        assert_eq!(events(&story, 1), told);
    }
}
