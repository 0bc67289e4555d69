//! Queue of the jobs for a thread of the store.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Things that wait, in the order in which they came.
#[derive(Debug)]
pub(super) struct JobQueue<T> {
    waiting: Mutex<Waiting<T>>,
    arrived: Condvar,
    count_max: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    things: VecDeque<T>,
    is_closed: bool,
}

/// Reason for which a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotTaken {
    Crowded,
    Closed,
}

/// Next jobs of a queue.
#[derive(Debug)]
pub(super) enum NextJobs<T> {
    Things(Vec<T>),
    /// Nothing came in the time given.
    Nothing,
    /// Nothing will ever come.
    End,
}

impl<T> JobQueue<T> {
    pub(super) fn new(count_max: usize) -> Self {
        let waiting = Waiting { things: VecDeque::new(), is_closed: false };
        Self { waiting: Mutex::new(waiting), arrived: Condvar::new(), count_max }
    }

    /// Adds a job, unless there are too many that are still wanted.
    pub(super) fn push(&self, thing: T, is_wanted: impl Fn(&T) -> bool) -> Result<(), NotTaken> {
        let mut waiting = self.lock();
        if waiting.is_closed {
            return Err(NotTaken::Closed);
        }
        if waiting.things.len() >= self.count_max {
            waiting.things.retain(is_wanted);
            if waiting.things.len() >= self.count_max {
                return Err(NotTaken::Crowded);
            }
        }
        waiting.things.push_back(thing);
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    /// Takes up to `count` things, for the first of which it waits.
    pub(super) fn next(&self, count: usize, patience: Option<Duration>) -> NextJobs<T> {
        let waiting = self.lock();
        let is_idle = |waiting: &mut Waiting<T>| waiting.things.is_empty() && !waiting.is_closed;
        let mut waiting = match patience {
            Some(patience) => {
                let waited = self.arrived.wait_timeout_while(waiting, patience, is_idle);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => {
                let waited = self.arrived.wait_while(waiting, is_idle);
                waited.unwrap_or_else(PoisonError::into_inner)
            }
        };
        if waiting.things.is_empty() {
            return if waiting.is_closed { NextJobs::End } else { NextJobs::Nothing };
        }
        let count = count.min(waiting.things.len());
        NextJobs::Things(waiting.things.drain(..count).collect())
    }

    /// Takes nothing any more; what waits is still served.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_all();
    }

    /// Takes nothing any more, and drops what waits.
    pub(super) fn abandon(&self) {
        let mut waiting = self.lock();
        waiting.is_closed = true;
        let abandoned = std::mem::take(&mut waiting.things);
        drop(waiting);
        drop(abandoned);
        self.arrived.notify_all();
    }

    /// No code of ours panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Abandons a queue when its thread ends in any way, so that no task waits for that thread.
#[derive(Debug)]
pub(super) struct Drain<'a, T>(pub(super) &'a JobQueue<T>);

impl<T> Drop for Drain<'_, T> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}
