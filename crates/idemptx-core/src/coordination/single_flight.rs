use std::collections::BTreeMap;
use std::collections::btree_map;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::key::RecordId;
use crate::policy::Policy;
use crate::record::Record;
use crate::store::{Claim, ClaimInfo, RecordSnapshot, StoreFailure};

/// The records that a process claims, executes or watches, with the requests that wait for each.
///
/// The first request for a record leads: it alone asks the store.
/// Others get its answer, and wait until it [completes](Self::complete).
/// For a record that another process holds, the first who waits watches the store for all.
///
/// `L` is what an [`Update`] is sent to: the sender of a channel, a future.
/// The request that leads must complete the record, or those who wait do so for ever.
#[derive(Debug)]
pub struct SingleFlight<L> {
    in_flight: BTreeMap<RecordId, InFlight<L>>,
    /// The number of requests that wait, here and in the other parts of a divided one.
    waiting: Arc<AtomicUsize>,
    places: u64,
}

#[derive(Debug)]
struct InFlight<L> {
    phase: Phase<L>,
    waiters: Vec<(Place, L)>,
}

#[derive(Debug)]
enum Phase<L> {
    /// The leader has asked the store; these followers get its answer.
    Claiming(Vec<L>),
    /// A claim is in force: the leader's, or one that a watcher looks at.
    Held(ClaimInfo),
}

/// A change of a record.
#[derive(Clone, Debug)]
pub enum Update {
    /// A claim on it is in force.
    Held(ClaimInfo),
    /// A result was stored.
    Settled(Record),
    /// The store failed when it was asked.
    Failed(StoreFailure),
    /// The record may be free: ask the store again.
    Changed,
}

impl Update {
    /// Returns the answer to a claim that was made for another request of the process; `None` if
    /// this one has to ask for itself.
    #[must_use]
    pub fn claimed(self) -> Option<Result<Claim, StoreFailure>> {
        match self {
            Self::Held(holder) => Some(Ok(Claim::Found(RecordSnapshot::Held(holder)))),
            Self::Settled(record) => Some(Ok(Claim::Found(RecordSnapshot::Settled(record)))),
            Self::Failed(failure) => Some(Err(failure)),
            Self::Changed => None,
        }
    }

    /// Returns what a request learns that has waited for the end of a claim; `None` if it has to
    /// ask the store.
    #[must_use]
    pub fn awaited(self) -> Option<RecordSnapshot> {
        match self {
            Self::Settled(record) => Some(RecordSnapshot::Settled(record)),
            _ => None,
        }
    }
}

/// The state in which a request finds its record in this process.
#[derive(Clone, Copy, Debug)]
pub enum Entry {
    /// No other request asks for it: ask the store, and complete.
    Lead,
    /// The record is being claimed; the listener gets the answer.
    Follow,
    /// The record is held, as this process knows without asking.
    Held(ClaimInfo),
}

/// The result of asking for a place among those who wait.
#[derive(Clone, Copy, Debug)]
pub enum Waiting {
    /// A limit is reached.
    Full,
    /// The listener gets an update.
    Joined(Place),
    /// The same, if the caller watches the store for all who wait, and completes.
    Watch(Place),
}

/// A place among the requests that wait, to be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u64);

/// The most requests that may wait, by a policy.
#[derive(Clone, Copy, Debug)]
pub struct WaitLimits {
    /// The limit for one record.
    pub waiters_max: usize,
    /// The limit in the process.
    pub waiters_total_max: usize,
}

impl WaitLimits {
    /// The limits of a policy.
    #[must_use]
    pub const fn of(policy: &Policy) -> Self {
        Self { waiters_max: policy.waiters_max, waiters_total_max: policy.waiters_total_max }
    }
}

impl<L> SingleFlight<L> {
    /// Creates one, or a part of one that is divided by record: all parts count in `waiting`.
    #[must_use]
    pub const fn new(waiting: Arc<AtomicUsize>) -> Self {
        Self { in_flight: BTreeMap::new(), waiting, places: 0 }
    }

    /// Enters with a request for a record; `listener` is called if there is something to hear.
    pub fn enter(&mut self, id: RecordId, listener: impl FnOnce() -> L) -> Entry {
        match self.in_flight.entry(id) {
            btree_map::Entry::Vacant(vacant) => {
                vacant.insert(InFlight { phase: Phase::Claiming(Vec::new()), waiters: Vec::new() });
                Entry::Lead
            }
            btree_map::Entry::Occupied(mut in_flight) => match &mut in_flight.get_mut().phase {
                Phase::Held(claim) => Entry::Held(*claim),
                Phase::Claiming(followers) => {
                    followers.push(listener());
                    Entry::Follow
                }
            },
        }
    }

    /// Takes a place among those who wait for the end of a claim, to be [left](Self::leave).
    pub fn wait(
        &mut self,
        id: RecordId,
        claim: ClaimInfo,
        limits: WaitLimits,
        listener: impl FnOnce() -> L,
    ) -> Waiting {
        let in_flight = self.in_flight.get_mut(&id);
        if in_flight.as_ref().is_some_and(|it| it.waiters.len() >= limits.waiters_max) {
            return Waiting::Full;
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= limits.waiters_total_max {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Waiting::Full;
        }
        self.places = self.places.wrapping_add(1);
        let place = Place(self.places);
        if let Some(in_flight) = in_flight {
            in_flight.waiters.push((place, listener()));
            return Waiting::Joined(place);
        }
        // This process has no claim on it: another one holds it.
        let waiters = vec![(place, listener())];
        self.in_flight.insert(id, InFlight { phase: Phase::Held(claim), waiters });
        Waiting::Watch(place)
    }

    /// Gives a place back, whether an update came or not.
    pub fn leave(&mut self, id: &RecordId, place: Place) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let Some(in_flight) = self.in_flight.get_mut(id) else { return };
        if let Some(position) = in_flight.waiters.iter().position(|(it, _)| *it == place) {
            in_flight.waiters.swap_remove(position);
        }
    }

    /// Notes that the leader's claim is in force.
    ///
    /// Returns those to send [`Update::Held`] to: the followers, and those who waited for the end of
    /// another claim, since each has to judge this one for itself.
    #[must_use]
    pub fn announce(&mut self, id: &RecordId, claim: ClaimInfo) -> Vec<L> {
        let Some(in_flight) = self.in_flight.get_mut(id) else { return Vec::new() };
        match std::mem::replace(&mut in_flight.phase, Phase::Held(claim)) {
            Phase::Held(_) => Vec::new(),
            Phase::Claiming(followers) => listeners(followers, &mut in_flight.waiters),
        }
    }

    /// Returns `true` while any request waits for the record.
    #[must_use]
    pub fn is_awaited(&self, id: &RecordId) -> bool {
        self.in_flight.get(id).is_some_and(|in_flight| !in_flight.waiters.is_empty())
    }

    /// Forgets a record; returns those to send the last update to.
    #[must_use]
    pub fn complete(&mut self, id: &RecordId) -> Vec<L> {
        let Some(mut in_flight) = self.in_flight.remove(id) else { return Vec::new() };
        match in_flight.phase {
            Phase::Held(_) => listeners(Vec::new(), &mut in_flight.waiters),
            Phase::Claiming(followers) => listeners(followers, &mut in_flight.waiters),
        }
    }

    /// Calls `see` with every listener.
    pub fn for_each_listener(&self, mut see: impl FnMut(&L)) {
        for InFlight { phase, waiters } in self.in_flight.values() {
            if let Phase::Claiming(followers) = phase {
                followers.iter().for_each(&mut see);
            }
            waiters.iter().for_each(|(_, listener)| see(listener));
        }
    }

    /// Returns the number of requests that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

fn listeners<L>(mut followers: Vec<L>, waiters: &mut Vec<(Place, L)>) -> Vec<L> {
    followers.extend(waiters.drain(..).map(|(_, listener)| listener));
    followers
}
