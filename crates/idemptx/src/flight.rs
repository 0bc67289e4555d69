//! One claim and one wake-up for all duplicates within a process.
//!
//! The first request for a record becomes its [`Pilot`]: it alone asks the store.
//! Others with the same record are told what the pilot was told, and wait for it to land.
//! For a record held by another process, one *vigil* watches the store on behalf of all who wait.
//!
//! Nothing here decides: news is fed to each request's own
//! [`Exchange`](idemptx_core::exchange::Exchange), as if it came from the store.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use idemptx_core::key::RecordId;
use idemptx_core::record::Record;
use idemptx_core::store::{ClaimInfo, StoreFailure};
use tokio::sync::oneshot;

/// All records that this process claims, executes or watches.
#[derive(Debug)]
pub(crate) struct Flights {
    shards: Box<[Mutex<HashMap<RecordId, Flight>>]>,
    waiting: AtomicUsize,
    waiters_max: usize,
    waiters_total_max: usize,
}

#[derive(Debug)]
struct Flight {
    phase: Phase,
    waiters: Vec<oneshot::Sender<News>>,
}

#[derive(Debug)]
enum Phase {
    /// The pilot has asked the store; these will be told its verdict.
    Claiming(Vec<oneshot::Sender<News>>),
    /// A claim is in force: our own pilot's, or one that a vigil watches.
    Held(ClaimInfo),
}

/// What became of a record.
#[derive(Clone, Debug)]
pub(crate) enum News {
    Held(ClaimInfo),
    Settled(Record),
    Failed(StoreFailure),
    /// Ask the store again.
    Changed,
}

/// How a request finds the record in this process.
#[derive(Debug)]
pub(crate) enum Entrance {
    /// Nobody is at it: ask the store.
    Lead(Pilot),
    /// It is being claimed; the verdict will come.
    Follow(oneshot::Receiver<News>),
    /// It is held, as this process knows without asking.
    Held(ClaimInfo),
}

/// A place among those who wait.
#[derive(Debug)]
pub(crate) enum Seat {
    /// No place left.
    Full,
    /// News will come.
    Taken(Waiter),
    /// News will come, if the caller keeps watch in the store for everybody.
    Vigil(Waiter, Pilot),
}

/// Counts as waiting until dropped.
#[derive(Debug)]
pub(crate) struct Waiter {
    flights: Arc<Flights>,
    pub(crate) news: oneshot::Receiver<News>,
}

impl Flights {
    pub(crate) fn new(waiters_max: usize, waiters_total_max: usize) -> Arc<Self> {
        let shards = std::iter::repeat_with(Mutex::default).take(SHARDS).collect();
        Arc::new(Self { shards, waiting: AtomicUsize::new(0), waiters_max, waiters_total_max })
    }

    /// Enters with a request for `id`.
    pub(crate) fn enter(self: &Arc<Self>, id: RecordId) -> Entrance {
        match self.shard(&id).entry(id) {
            Entry::Vacant(vacant) => {
                vacant.insert(Flight { phase: Phase::Claiming(Vec::new()), waiters: Vec::new() });
                Entrance::Lead(Pilot { flights: Arc::clone(self), id, landed: false })
            }
            Entry::Occupied(mut flight) => match &mut flight.get_mut().phase {
                Phase::Held(holder) => Entrance::Held(holder.clone()),
                Phase::Claiming(followers) => {
                    let (follower, news) = oneshot::channel();
                    followers.push(follower);
                    Entrance::Follow(news)
                }
            },
        }
    }

    /// Takes a place among those who wait for the end of `holder`'s claim.
    pub(crate) fn wait(self: &Arc<Self>, id: RecordId, holder: ClaimInfo) -> Seat {
        let mut shard = self.shard(&id);
        let mut flight = shard.get_mut(&id);
        if let Some(flight) = &mut flight
            && flight.waiters.len() >= self.waiters_max
        {
            // Those who left have freed their places.
            flight.waiters.retain(|it| !it.is_closed());
            if flight.waiters.len() >= self.waiters_max {
                return Seat::Full;
            }
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.waiters_total_max {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Seat::Full;
        }
        let (sender, news) = oneshot::channel();
        let waiter = Waiter { flights: Arc::clone(self), news };
        match flight {
            Some(flight) => {
                flight.waiters.push(sender);
                Seat::Taken(waiter)
            }
            None => {
                // Not ours: another process holds it.
                shard.insert(id, Flight { phase: Phase::Held(holder), waiters: vec![sender] });
                Seat::Vigil(waiter, Pilot { flights: Arc::clone(self), id, landed: false })
            }
        }
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn shard(&self, id: &RecordId) -> MutexGuard<'_, HashMap<RecordId, Flight>> {
        let [.., last] = id.as_bytes();
        let position = usize::from(*last) % SHARDS;
        // SHARDS divides 256 and the slice has SHARDS elements.
        #[expect(clippy::indexing_slicing, reason = "the position is taken modulo the length")]
        self.shards[position].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever asks the store about a record on behalf of everybody in this process.
///
/// Dropped without having landed, it sends the others to ask for themselves.
#[derive(Debug)]
pub(crate) struct Pilot {
    flights: Arc<Flights>,
    id: RecordId,
    landed: bool,
}

impl Pilot {
    /// A claim is in force: tells those who asked meanwhile, and whoever asks from now on.
    pub(crate) fn held(&self, holder: ClaimInfo) {
        let mut shard = self.flights.shard(&self.id);
        let Some(flight) = shard.get_mut(&self.id) else { return };
        let before = std::mem::replace(&mut flight.phase, Phase::Held(holder.clone()));
        let Phase::Claiming(followers) = before else { return };
        // Those who waited for another claim have to judge this one for themselves.
        let waiters = std::mem::take(&mut flight.waiters);
        drop(shard);
        let news = News::Held(holder);
        tell(followers, &news);
        tell(waiters, &news);
    }

    /// Whether anybody still waits.
    pub(crate) fn is_awaited(&self) -> bool {
        let shard = self.flights.shard(&self.id);
        shard.get(&self.id).is_some_and(|it| it.waiters.iter().any(|one| !one.is_closed()))
    }

    /// It is over: tells everybody, and forgets the record.
    pub(crate) fn land(mut self, news: &News) {
        self.landed = true;
        self.leave(news);
    }

    fn leave(&self, news: &News) {
        let Some(flight) = self.flights.shard(&self.id).remove(&self.id) else { return };
        if let Phase::Claiming(followers) = flight.phase {
            tell(followers, news);
        }
        tell(flight.waiters, news);
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        if !self.landed {
            self.leave(&News::Changed);
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.flights.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

fn tell(listeners: Vec<oneshot::Sender<News>>, news: &News) {
    for listener in listeners {
        // Whoever left does not want to know.
        drop(listener.send(news.clone()));
    }
}

/// Divides 256, so that one byte of an id picks a shard evenly.
const SHARDS: usize = 64;

#[cfg(test)]
mod tests;
