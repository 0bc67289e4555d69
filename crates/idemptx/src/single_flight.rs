//! Single flight, as [`coordination::SingleFlight`] describes it, with channels and locks.
//!
//! The first request for a record becomes its [`Leader`]; dropping that completes the record.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use idemptx_core::coordination::Update;
use idemptx_core::coordination::{self, Place, WaitLimits, Waiting};
use idemptx_core::key::RecordId;
use idemptx_core::store::ClaimInfo;
use tokio::sync::oneshot;

type Part = coordination::SingleFlight<oneshot::Sender<Update>>;

/// The records that this process claims, executes or watches, in parts that are locked apart.
#[derive(Debug)]
pub(crate) struct SingleFlight {
    parts: Box<[Mutex<Part>]>,
    waiting: Arc<AtomicUsize>,
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

/// Counts as waiting until dropped.
#[derive(Debug)]
pub(crate) struct Waiter {
    single_flight: Arc<SingleFlight>,
    id: RecordId,
    place: Place,
    pub(crate) update: oneshot::Receiver<Update>,
}

impl SingleFlight {
    pub(crate) fn new() -> Arc<Self> {
        let waiting = Arc::new(AtomicUsize::new(0));
        let part = || Mutex::new(Part::new(Arc::clone(&waiting)));
        Arc::new(Self { parts: std::iter::repeat_with(part).take(PARTS).collect(), waiting })
    }

    /// Enters with a request for `id`.
    pub(crate) fn enter(self: &Arc<Self>, id: RecordId) -> Entry {
        let mut update = None;
        match self.part(&id).enter(id, || sender(&mut update)) {
            coordination::Entry::Lead => Entry::Lead(self.leader(id)),
            coordination::Entry::Held(claim) => Entry::Held(claim),
            coordination::Entry::Follow => Entry::Follow(receiver(update)),
        }
    }

    /// Takes a place among those who wait for the end of a claim.
    pub(crate) fn wait(
        self: &Arc<Self>,
        id: RecordId,
        claim: ClaimInfo,
        limits: WaitLimits,
    ) -> WaitSlot {
        let mut update = None;
        let waiting = self.part(&id).wait(id, claim, limits, || sender(&mut update));
        let waiter =
            |place| Waiter { single_flight: Arc::clone(self), id, place, update: receiver(update) };
        match waiting {
            Waiting::Full => WaitSlot::Full,
            Waiting::Joined(place) => WaitSlot::Joined(waiter(place)),
            Waiting::Watch(place) => WaitSlot::Watcher(waiter(place), self.leader(id)),
        }
    }

    /// Returns the number of requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn leader(self: &Arc<Self>, id: RecordId) -> Leader {
        Leader { single_flight: Arc::clone(self), id, is_completed: false }
    }

    fn part(&self, id: &RecordId) -> MutexGuard<'_, Part> {
        let [.., last] = id.as_bytes();
        let position = usize::from(*last) % PARTS;
        // PARTS divides 256 and the slice has PARTS elements.
        #[expect(clippy::indexing_slicing, reason = "the position is taken modulo the length")]
        self.parts[position].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a channel, and leaves its receiving end in `update`.
fn sender(update: &mut Option<oneshot::Receiver<Update>>) -> oneshot::Sender<Update> {
    let (sender, receiver) = oneshot::channel();
    *update = Some(receiver);
    sender
}

/// Returns the receiving end; one that gets nothing sends its request to ask the store.
fn receiver(update: Option<oneshot::Receiver<Update>>) -> oneshot::Receiver<Update> {
    update.unwrap_or_else(|| oneshot::channel().1)
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
        let listeners = self.single_flight.part(&self.id).announce(&self.id, claim);
        send_all(listeners, &Update::Held(claim));
    }

    /// Returns `true` while any request waits.
    pub(crate) fn is_awaited(&self) -> bool {
        self.single_flight.part(&self.id).is_awaited(&self.id)
    }

    /// Sends the last update to all, and forgets the record.
    pub(crate) fn complete(self, update: &Update) {
        self.complete_with(|| update.clone());
    }

    /// Completes with an update that is made only if anybody waits for it.
    pub(crate) fn complete_with(mut self, update: impl FnOnce() -> Update) {
        self.is_completed = true;
        self.leave(update);
    }

    fn leave(&self, update: impl FnOnce() -> Update) {
        let listeners = self.single_flight.part(&self.id).complete(&self.id);
        if !listeners.is_empty() {
            send_all(listeners, &update());
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if !self.is_completed {
            self.leave(|| Update::Changed);
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.single_flight.part(&self.id).leave(&self.id, self.place);
    }
}

fn send_all(listeners: Vec<oneshot::Sender<Update>>, update: &Update) {
    for listener in listeners {
        // Fails for a request whose client has left.
        drop(listener.send(update.clone()));
    }
}

/// Divides 256, so that one byte of an id picks a shard evenly.
const PARTS: usize = 64;

#[cfg(test)]
mod tests;
