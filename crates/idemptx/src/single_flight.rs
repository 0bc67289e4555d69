//! Single flight: a claim and a wake-up for all duplicates within a process.
//!
//! The first request for a record becomes its [`Leader`]: it alone asks the store.
//! Others with the same record get the leader's answer, and wait for it to [complete].
//! For a record that another process holds, one watcher looks at the store on behalf of all who
//! wait.
//!
//! Nothing here decides: an [`Update`] is fed to each request's [`Exchange`] as if it came from the
//! store.
//!
//! [complete]: Leader::complete
//! [`Exchange`]: idemptx_core::exchange::Exchange

use std::collections::{HashMap, hash_map};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use idemptx_core::key::RecordId;
use idemptx_core::policy::Policy;
use idemptx_core::record::Record;
use idemptx_core::store::{ClaimInfo, StoreFailure};
use tokio::sync::oneshot;

/// The records that this process claims, executes or watches.
#[derive(Debug)]
pub(crate) struct SingleFlight {
    shards: Box<[Mutex<HashMap<RecordId, InFlight>>]>,
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct InFlight {
    phase: Phase,
    waiters: Vec<oneshot::Sender<Update>>,
}

#[derive(Debug)]
enum Phase {
    /// The leader has asked the store; these followers get its answer.
    Claiming(Vec<oneshot::Sender<Update>>),
    /// A claim is in force: the leader's, or one that a watcher looks at.
    Held(ClaimInfo),
}

/// A change of a record.
#[derive(Clone, Debug)]
pub(crate) enum Update {
    Held(ClaimInfo),
    Settled(Record),
    Failed(StoreFailure),
    /// The record may be free: ask the store again.
    Changed,
}

/// The state in which a request finds its record in this process.
#[derive(Debug)]
pub(crate) enum Entry {
    /// No other request asks for it: ask the store.
    Lead(Leader),
    /// The record is being claimed; the answer will come.
    Follow(oneshot::Receiver<Update>),
    /// The record is held, as this process knows without asking.
    Held(ClaimInfo),
}

/// A place among the requests that wait.
#[derive(Debug)]
pub(crate) enum WaitSlot {
    /// The limit is reached.
    Full,
    /// An update will come.
    Joined(Waiter),
    /// An update will come, if the caller watches the store for all who wait.
    Watcher(Waiter, Leader),
}

/// The most requests that may wait, by a policy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitLimits {
    /// For one record.
    pub(crate) waiters_max: usize,
    /// In the process.
    pub(crate) waiters_total_max: usize,
}

impl WaitLimits {
    pub(crate) const fn of(policy: &Policy) -> Self {
        Self { waiters_max: policy.waiters_max, waiters_total_max: policy.waiters_total_max }
    }
}

/// Counts as waiting until dropped.
#[derive(Debug)]
pub(crate) struct Waiter {
    single_flight: Arc<SingleFlight>,
    pub(crate) update: oneshot::Receiver<Update>,
}

impl SingleFlight {
    pub(crate) fn new() -> Arc<Self> {
        let shards = std::iter::repeat_with(Mutex::default).take(SHARDS).collect();
        Arc::new(Self { shards, waiting: AtomicUsize::new(0) })
    }

    /// Enters with a request for `id`.
    pub(crate) fn enter(self: &Arc<Self>, id: RecordId) -> Entry {
        match self.shard(&id).entry(id) {
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(InFlight { phase: Phase::Claiming(Vec::new()), waiters: Vec::new() });
                Entry::Lead(self.leader(id))
            }
            hash_map::Entry::Occupied(mut in_flight) => match &mut in_flight.get_mut().phase {
                Phase::Held(claim) => Entry::Held(*claim),
                Phase::Claiming(followers) => {
                    let (follower, update) = oneshot::channel();
                    followers.push(follower);
                    Entry::Follow(update)
                }
            },
        }
    }

    /// Takes a place among those who wait for the end of a claim.
    pub(crate) fn wait(
        self: &Arc<Self>,
        id: RecordId,
        claim: ClaimInfo,
        limits: WaitLimits,
    ) -> WaitSlot {
        let mut shard = self.shard(&id);
        let mut in_flight = shard.get_mut(&id);
        if let Some(in_flight) = &mut in_flight
            && in_flight.waiters.len() >= limits.waiters_max
        {
            // Requests whose clients have left give their places back.
            in_flight.waiters.retain(|it| !it.is_closed());
            if in_flight.waiters.len() >= limits.waiters_max {
                return WaitSlot::Full;
            }
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= limits.waiters_total_max {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return WaitSlot::Full;
        }
        let (sender, update) = oneshot::channel();
        let waiter = Waiter { single_flight: Arc::clone(self), update };
        match in_flight {
            Some(in_flight) => {
                in_flight.waiters.push(sender);
                WaitSlot::Joined(waiter)
            }
            None => {
                // This process has no claim on it: another one holds it.
                shard.insert(id, InFlight { phase: Phase::Held(claim), waiters: vec![sender] });
                WaitSlot::Watcher(waiter, self.leader(id))
            }
        }
    }

    /// Returns the number of requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn leader(self: &Arc<Self>, id: RecordId) -> Leader {
        Leader { single_flight: Arc::clone(self), id, is_completed: false }
    }

    fn shard(&self, id: &RecordId) -> MutexGuard<'_, HashMap<RecordId, InFlight>> {
        let [.., last] = id.as_bytes();
        let position = usize::from(*last) % SHARDS;
        // SHARDS divides 256 and the slice has SHARDS elements.
        #[expect(clippy::indexing_slicing, reason = "the position is taken modulo the length")]
        self.shards[position].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The request that asks the store about a record on behalf of all in this process.
///
/// Dropped before it is completed, it sends the others to ask for themselves.
#[derive(Debug)]
pub(crate) struct Leader {
    single_flight: Arc<SingleFlight>,
    id: RecordId,
    is_completed: bool,
}

impl Leader {
    /// Announces a claim that is in force to the requests that follow, wait, or come later.
    pub(crate) fn announce(&self, claim: ClaimInfo) {
        let mut shard = self.single_flight.shard(&self.id);
        let Some(in_flight) = shard.get_mut(&self.id) else { return };
        let before = std::mem::replace(&mut in_flight.phase, Phase::Held(claim));
        let Phase::Claiming(followers) = before else { return };
        // They waited for the end of another claim: each has to judge this one for itself.
        let waiters = std::mem::take(&mut in_flight.waiters);
        drop(shard);
        let update = Update::Held(claim);
        send_all(followers, &update);
        send_all(waiters, &update);
    }

    /// Returns `true` while any request waits.
    pub(crate) fn is_awaited(&self) -> bool {
        let shard = self.single_flight.shard(&self.id);
        shard.get(&self.id).is_some_and(|it| it.waiters.iter().any(|one| !one.is_closed()))
    }

    /// Sends the last update to all, and forgets the record.
    pub(crate) fn complete(mut self, update: &Update) {
        self.is_completed = true;
        self.leave(update);
    }

    fn leave(&self, update: &Update) {
        let Some(in_flight) = self.single_flight.shard(&self.id).remove(&self.id) else { return };
        if let Phase::Claiming(followers) = in_flight.phase {
            send_all(followers, update);
        }
        send_all(in_flight.waiters, update);
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if !self.is_completed {
            self.leave(&Update::Changed);
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.single_flight.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

fn send_all(listeners: Vec<oneshot::Sender<Update>>, update: &Update) {
    for listener in listeners {
        // Fails for a request whose client has left.
        drop(listener.send(update.clone()));
    }
}

/// Divides 256, so that one byte of an id picks a shard evenly.
const SHARDS: usize = 64;

#[cfg(test)]
mod tests;
