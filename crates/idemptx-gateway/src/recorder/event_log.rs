//! The events that this process saw, by record: a bounded ring buffer for the inspector.
//!
//! It covers this process since its start, and drops the oldest events first: the store keeps states,
//! not histories, since a log in it would cost every request a write.
//! Events are filed by record id; keys are never stored in it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use idemptx::Code;
use idemptx_core::key::RecordId;
use idemptx_core::record::State;
use idemptx_core::store::ErrorKind;

/// The latest events of all records.
#[derive(Debug)]
pub(crate) struct EventLog {
    shards: Box<[Mutex<EventBuffer>]>,
    events_max: usize,
}

/// An event in the life of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// This process acquired a claim.
    Claimed { attempt: u32 },
    /// The lease was renewed.
    Renewed,
    /// A request found the record claimed.
    MetHolder,
    /// A request found a claim whose lease had lapsed.
    MetOrphan,
    /// A result was stored.
    Settled(State),
    /// The claim was released.
    Released,
    /// The record was taken over by another owner, or is gone.
    Fenced,
    /// The store failed or returned an error.
    Failed(ErrorKind),
    /// A request was executed and its response sent.
    Executed { stored: bool },
    /// A request got the stored response, at once or after waiting for it.
    Replayed { waited: bool },
    /// A request was refused.
    Refused(Code),
    /// An operator released the key.
    OperatorReleased,
    /// An operator stored a response.
    OperatorAnswered,
    /// An operator removed the record.
    OperatorForgot,
}

/// An event, or several equal ones in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoggedEvent {
    pub(crate) event: Event,
    /// The time of the first occurrence.
    pub(crate) first: Instant,
    /// The time of the latest occurrence.
    pub(crate) last: Instant,
    pub(crate) times: u64,
}

#[derive(Debug, Default)]
struct EventBuffer {
    events: VecDeque<(RecordId, LoggedEvent)>,
    /// The number of dropped events, which is the number of the first event in the buffer.
    dropped: u64,
    /// The number of each record's latest event.
    last: HashMap<RecordId, u64>,
}

impl EventLog {
    pub(crate) fn new() -> Self {
        Self::of(EVENTS_MAX)
    }

    fn of(events_max: usize) -> Self {
        let shards = std::iter::repeat_with(Mutex::default).take(SHARDS).collect();
        Self { shards, events_max: (events_max / SHARDS).max(1) }
    }

    /// Records an event at the current time.
    pub(crate) fn record(&self, id: &RecordId, event: Event) {
        self.record_at(id, event, Instant::now());
    }

    fn record_at(&self, id: &RecordId, event: Event, now: Instant) {
        let mut shard = self.shard(id);
        if let Some(logged) = shard.last_event(id)
            && logged.event == event
        {
            logged.last = now;
            logged.times = logged.times.saturating_add(1);
            return;
        }
        if shard.events.len() >= self.events_max {
            shard.drop_oldest();
        }
        let number = shard.dropped + shard.events.len() as u64;
        shard.events.push_back((*id, LoggedEvent { event, first: now, last: now, times: 1 }));
        shard.last.insert(*id, number);
    }

    /// Records a replay, which waited if the response was stored after the request began.
    pub(crate) fn record_replayed(&self, id: &RecordId, began: Instant) {
        self.record_replayed_at(id, began, Instant::now());
    }

    fn record_replayed_at(&self, id: &RecordId, began: Instant, now: Instant) {
        let waited = self.events_of(id).iter().any(|logged| {
            matches!(logged.event, Event::Settled(_) | Event::MetHolder) && logged.last >= began
        });
        self.record_at(id, Event::Replayed { waited }, now);
    }

    /// Returns the events of a record, oldest first.
    pub(crate) fn events_of(&self, id: &RecordId) -> Vec<LoggedEvent> {
        let shard = self.shard(id);
        if !shard.last.contains_key(id) {
            return Vec::new();
        }
        shard.events.iter().filter(|(of, _)| of == id).map(|(_, logged)| *logged).collect()
    }

    fn shard(&self, id: &RecordId) -> MutexGuard<'_, EventBuffer> {
        let [.., last] = id.as_bytes();
        let position = usize::from(*last) % SHARDS;
        #[expect(clippy::indexing_slicing, reason = "the position is taken modulo the length")]
        self.shards[position].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventBuffer {
    fn last_event(&mut self, id: &RecordId) -> Option<&mut LoggedEvent> {
        let number = self.last.get(id)?;
        let position = usize::try_from(number.checked_sub(self.dropped)?).ok()?;
        self.events.get_mut(position).map(|(_, logged)| logged)
    }

    fn drop_oldest(&mut self) {
        let Some((id, _)) = self.events.pop_front() else { return };
        if self.last.get(&id) == Some(&self.dropped) {
            self.last.remove(&id);
        }
        self.dropped += 1;
    }
}

/// About four megabytes, index included.
const EVENTS_MAX: usize = 16_384;
/// Divides 256, so that one byte of an id selects a shard evenly.
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

    fn events(log: &EventLog, number: u8) -> Vec<(Event, u64)> {
        log.events_of(&id(number)).iter().map(|logged| (logged.event, logged.times)).collect()
    }

    #[test]
    fn a_records_story_is_told_in_order_and_repeats_are_counted() {
        let log = EventLog::new();
        log.record(&id(1), Event::Claimed { attempt: 1 });
        log.record(&id(1), Event::Renewed);
        log.record(&id(2), Event::Claimed { attempt: 1 });
        log.record(&id(1), Event::Renewed);
        log.record(&id(1), DONE);
        let logged = [(Event::Claimed { attempt: 1 }, 1), (Event::Renewed, 2), (DONE, 1)];
        assert_eq!(events(&log, 1), logged);
        assert_eq!(events(&log, 2), [(Event::Claimed { attempt: 1 }, 1)]);
        assert_eq!(events(&log, 3), []);
    }

    #[test]
    fn the_oldest_event_is_forgotten_first() {
        let log = EventLog::of(SHARDS * 2);
        log.record(&id(1), Event::Claimed { attempt: 1 });
        log.record(&id(2), Event::Claimed { attempt: 1 });
        log.record(&id(1), DONE);
        assert_eq!(events(&log, 1), [(DONE, 1)]);
        log.record(&id(3), DONE);
        log.record(&id(3), Event::Released);
        assert_eq!(events(&log, 1), []);
        assert_eq!(events(&log, 2), []);
        assert_eq!(log.shard(&id(1)).last.len(), 1, "the index forgets with the ring");
    }

    #[test]
    fn a_request_that_was_here_before_the_answer_has_waited_for_it() {
        let (log, began) = (EventLog::new(), Instant::now());
        let at = |millis| began + Duration::from_millis(millis);
        log.record_at(&id(1), DONE, at(10));
        log.record_replayed_at(&id(1), at(11), at(12));
        log.record_replayed_at(&id(1), at(9), at(13));
        let logged = [
            (DONE, 1),
            (Event::Replayed { waited: false }, 1),
            (Event::Replayed { waited: true }, 1),
        ];
        assert_eq!(events(&log, 1), logged);
    }
}
