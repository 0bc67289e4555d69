//! The history of a server's data, as this process has seen it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use super::client::{packed, reply};
use super::protocol::{Layout, epoch};
use super::redis_connection::send;

/// History of a server's data, compared whenever a connection is opened.
pub(super) struct DataHistory {
    layout: Layout,
    grace: Duration,
    state: Mutex<State>,
    /// Connections of earlier generations are to be opened again.
    generation: AtomicU64,
    has_begun: AtomicBool,
}

struct State {
    /// A slot of the server; `None` within a cluster until the map of the slots is known.
    slot: Option<Option<u16>>,
    known: String,
    /// Time at which a server of that history answered last.
    answered_at: Instant,
    is_verified: bool,
    checked_at: Instant,
    grace_ends: Option<Instant>,
}

impl DataHistory {
    /// The history of a server, which belongs to no cluster if `slot` is `Some(None)`.
    pub(super) fn new(layout: Layout, grace: Duration, slot: Option<Option<u16>>) -> Self {
        let state = State {
            slot,
            known: String::new(),
            answered_at: Instant::now(),
            is_verified: false,
            checked_at: Instant::now(),
            grace_ends: None,
        };
        let (generation, has_begun) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { layout, grace, state: Mutex::new(state), generation, has_begun }
    }

    /// Names a slot that the server has now.
    pub(super) fn set_slot(&self, slot: u16) {
        let mut state = self.state();
        if state.slot.is_none() {
            state.slot = Some(Some(slot));
            drop(state);
            self.distrust();
        }
    }

    /// Has the history compared again: the server may have been a replica meanwhile.
    pub(super) fn distrust(&self) {
        self.state().is_verified = false;
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Number that changes when connections are to be opened again.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Compares the history on a connection that was just opened, to a server of this promotion.
    pub(super) async fn compare(&self, connection: &MultiplexedConnection, promotion: u64) {
        let (slot, known, unheard) = {
            let state = self.state();
            (state.slot, state.known.clone(), state.answered_at.elapsed())
        };
        let Some(slot) = slot else { return };
        let question = epoch::question(&self.layout, slot, &known, unheard, promotion, self.grace);
        let question = packed(&question);
        let answer = send(connection.clone(), &question).await.ok().and_then(reply);
        let history = answer.as_ref().and_then(epoch::history);
        let mut state = self.state();
        state.checked_at = Instant::now();
        state.is_verified = history.is_some();
        let Some((history, left)) = history else {
            // Perhaps the slot has gone elsewhere: the next map of the slots names another.
            state.slot = state.slot.filter(Option::is_none);
            return;
        };
        state.known = history;
        state.answered_at = Instant::now();
        if left.is_zero() {
            state.grace_ends = None;
        } else {
            state.grace_ends = Some(Instant::now() + left);
            drop(state);
            self.has_begun.store(true, Ordering::Release);
        }
    }

    /// Notes that the server has answered.
    pub(super) fn note_answer(&self) {
        self.state().answered_at = Instant::now();
    }

    /// Returns what is left of the grace period, if this is one.
    ///
    /// A server whose history is not known may have begun one.
    pub(super) fn left(&self) -> Option<Duration> {
        let state = self.state();
        if state.is_verified {
            return state.grace_left();
        }
        if state.checked_at.elapsed() > CHECK_AGAIN {
            drop(state);
            self.distrust();
        }
        Some(CHECK_AGAIN)
    }

    /// Returns true during a grace period that the server has confirmed.
    pub(super) fn is_grace(&self) -> bool {
        let state = self.state();
        state.is_verified && state.grace_left().is_some()
    }

    /// Returns true once for each grace period that was found.
    pub(super) fn take_beginning(&self) -> bool {
        self.has_begun.load(Ordering::Acquire) && self.has_begun.swap(false, Ordering::AcqRel)
    }

    /// Poisoning is ignored: no code in this file panics while it holds the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn grace_left(&self) -> Option<Duration> {
        let left = self.grace_ends?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
}

/// Pause before a server that would not show its history is asked again.
const CHECK_AGAIN: Duration = Duration::from_millis(500);
