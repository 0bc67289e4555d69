//! Who waits for the end of which claim.

use std::collections::HashMap;
use std::sync::Arc;

use idemptx_core::key::RecordId;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// What the watchers of one claim listen to; rung once.
#[derive(Clone)]
pub(super) struct Bell(Arc<Notify>);

/// A bell that is to be rung once the lock is given back, since a waker may be any code.
#[derive(Default)]
#[must_use = "whoever waits is not woken otherwise"]
pub(super) struct Ringing(Option<Bell>);

impl Ringing {
    pub(super) fn ring(self) {
        if let Some(Bell(notify)) = self.0 {
            notify.notify_waiters();
        }
    }
}

/// The bells of a shard, each with the number of those who hold it.
#[derive(Default)]
pub(super) struct Waiters(HashMap<RecordId, (Bell, usize)>);

impl Waiters {
    /// Adds a watcher, with what resolves once the bell rings, even if nobody has polled it by then.
    pub(super) fn watch(&mut self, id: &RecordId) -> (Bell, OwnedNotified) {
        let (bell, watchers) =
            self.0.entry(*id).or_insert_with(|| (Bell(Arc::new(Notify::new())), 0));
        *watchers += 1;
        // Here, under the lock: only who listens by the time that the bell is taken down hears it.
        (bell.clone(), Arc::clone(&bell.0).notified_owned())
    }

    /// Forgets a watcher, and with the last one the bell, unless it has been taken down meanwhile.
    pub(super) fn unwatch(&mut self, id: &RecordId, bell: &Bell) {
        if let Some((hung, watchers)) = self.0.get_mut(id)
            && Arc::ptr_eq(&hung.0, &bell.0)
        {
            *watchers -= 1;
            if *watchers == 0 {
                self.0.remove(id);
            }
        }
    }

    /// Takes the bell down for ringing.
    pub(super) fn call(&mut self, id: &RecordId) -> Ringing {
        // Most claims are watched by nobody: no hashing for them.
        if self.0.is_empty() {
            return Ringing::default();
        }
        Ringing(self.0.remove(id).map(|(bell, _)| bell))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
