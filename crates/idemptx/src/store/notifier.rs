//! Wakes the tasks of this process that wait for the end of a claim.

use std::collections::HashMap;

use idemptx_core::key::RecordId;
#[cfg(feature = "sqlite")]
use idemptx_core::lease::Token;
use idemptx_core::store::Watch;

#[cfg(feature = "sqlite")]
use super::sync::Condvar;
use super::sync::atomic::{AtomicUsize, Ordering};
use super::sync::{Arc, Mutex, MutexGuard, PoisonError};
use super::tasks::{Notify, futures::OwnedNotified};

/// Registry of the waiting tasks of one store.
#[derive(Debug, Default)]
pub(super) struct Notifier {
    entries: Mutex<Entries>,
    /// Number of the watched records, so that a step on an unwatched one takes no lock.
    watched: AtomicUsize,
    #[cfg(feature = "sqlite")]
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Entries {
    by_id: HashMap<RecordId, Entry>,
    #[cfg(feature = "sqlite")]
    is_closed: bool,
}

/// Waiting tasks of one record, woken once and together.
#[derive(Debug)]
struct Entry {
    notify: Arc<Notify>,
    handles: usize,
    /// Token of the claim whose end they wait for, once it is known.
    #[cfg(feature = "sqlite")]
    token: Option<Token>,
}

impl Notifier {
    /// Registers a waiting task, which is woken even if it is polled after the notification.
    pub(super) fn watch(self: &Arc<Self>, id: RecordId) -> WakeHandle {
        let mut entries = self.lock();
        let entry = entries.by_id.entry(id).or_insert_with(|| Entry {
            notify: Arc::new(Notify::new()),
            handles: 0,
            #[cfg(feature = "sqlite")]
            token: None,
        });
        entry.handles += 1;
        let notify = entry.notify.clone();
        // Created under the lock: `notify_waiters` reaches only futures that exist when the entry
        // is removed.
        let woken = notify.clone().notified_owned();
        self.count(&entries);
        drop(entries);
        #[cfg(feature = "sqlite")]
        self.changed.notify_one();
        WakeHandle { registration: Registration { notifier: self.clone(), id, notify }, woken }
    }

    /// Wakes the tasks that wait for this record.
    ///
    /// Must not be called under a lock that a waker could need: wakers run arbitrary code.
    pub(super) fn notify(&self, id: &RecordId) {
        // Pairs with the store in `count`. A task registers before it looks at the record, so one
        // that saw the record unchanged is counted by the time that the change gets here.
        if self.watched.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut entries = self.lock();
        let entry = entries.by_id.remove(id);
        self.count(&entries);
        drop(entries);
        if let Some(entry) = entry {
            entry.notify.notify_waiters();
        }
    }

    /// Wakes all waiting tasks.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(super) fn notify_all(&self) {
        let mut entries = self.lock();
        let removed = std::mem::take(&mut entries.by_id);
        self.count(&entries);
        drop(entries);
        removed.into_values().for_each(|entry| entry.notify.notify_waiters());
    }

    /// Returns a source of notifications for a connection to own.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(super) fn source(self: &Arc<Self>) -> NotificationSource {
        NotificationSource(self.clone())
    }

    /// Number of watched records, which is what [`notify`](Self::notify) reads without the lock.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let entries = self.lock();
        assert_eq!(self.watched.load(Ordering::SeqCst), entries.by_id.len());
        entries.by_id.len()
    }

    fn count(&self, entries: &Entries) {
        self.watched.store(entries.by_id.len(), Ordering::SeqCst);
    }

    /// Poisoning is ignored: no code in this file panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Support for a thread that polls the watched records.
#[cfg(feature = "sqlite")]
impl Notifier {
    /// Blocks until a record is watched and returns all of them; `None` once closed.
    pub(super) fn wait_for_watched(&self) -> Option<Vec<(RecordId, Option<Token>)>> {
        let is_idle = |entries: &mut Entries| entries.by_id.is_empty() && !entries.is_closed;
        let entries = self.changed.wait_while(self.lock(), is_idle);
        let entries = entries.unwrap_or_else(PoisonError::into_inner);
        let watched = || entries.by_id.iter().map(|(id, entry)| (*id, entry.token)).collect();
        (!entries.is_closed).then(watched)
    }

    /// Ends the polling thread.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Records the claim that is waited for; tasks that wait for another one are woken.
    fn expect(&self, id: &RecordId, token: Token) {
        let mut entries = self.lock();
        let Some(entry) = entries.by_id.get_mut(id) else { return };
        if *entry.token.get_or_insert(token) != token {
            drop(entries);
            self.notify(id);
        }
    }
}

/// Notifications of one connection.
///
/// Dropping it wakes all tasks, because a connection that ends may have lost any notification.
#[cfg(any(feature = "postgres", feature = "redis"))]
#[derive(Debug)]
pub(super) struct NotificationSource(Arc<Notifier>);

#[cfg(any(feature = "postgres", feature = "redis"))]
impl NotificationSource {
    /// Wakes the tasks that wait for a record.
    pub(super) fn notify(&self, id: &RecordId) {
        self.0.notify(id);
    }

    /// Wakes all waiting tasks, because notifications may be lost.
    #[cfg(feature = "redis")]
    pub(super) fn notify_all(&self) {
        self.0.notify_all();
    }
}

#[cfg(any(feature = "postgres", feature = "redis"))]
impl Drop for NotificationSource {
    fn drop(&mut self) {
        self.0.notify_all();
    }
}

/// Registration of one waiting task, until dropped.
#[derive(Debug)]
pub(super) struct WakeHandle {
    registration: Registration,
    woken: OwnedNotified,
}

impl WakeHandle {
    /// Returns the future that the notification resolves.
    pub(super) fn into_watch(self) -> Watch {
        let Self { registration, woken } = self;
        Box::pin(async move {
            let _registration = registration;
            woken.await;
        })
    }

    /// Records the claim that was found; the wait is over if there is none.
    #[cfg(feature = "sqlite")]
    pub(super) fn expect(&self, token: Option<Token>) {
        let Registration { notifier, id, .. } = &self.registration;
        match token {
            Some(token) => notifier.expect(id, token),
            None => notifier.notify(id),
        }
    }
}

#[derive(Debug)]
struct Registration {
    notifier: Arc<Notifier>,
    id: RecordId,
    notify: Arc<Notify>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut entries = self.notifier.lock();
        // After a notification the entry under this id belongs to later tasks.
        if let Some(entry) = entries.by_id.get_mut(&self.id)
            && Arc::ptr_eq(&entry.notify, &self.notify)
        {
            entry.handles -= 1;
            if entry.handles == 0 {
                entries.by_id.remove(&self.id);
                self.notifier.count(&entries);
            }
        }
    }
}
