//! Values of which each runtime has one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Values that belong to runtimes, such as connections: a task of the runtime drives each.
///
/// An entry is removed when its runtime ends, and never before: to evict one that is in use would
/// make a process with many runtimes reconnect all the time.
pub(super) struct PerRuntime<T>(Arc<Mutex<Vec<Entry<T>>>>);

struct Entry<T> {
    runtime: Id,
    value: Arc<T>,
    /// Dropped with the entry, which ends the task that waits for the runtime's end.
    _removed: oneshot::Sender<()>,
}

impl<T: Send + Sync + 'static> PerRuntime<T> {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// Returns the value of the current runtime, created if need be; `None` outside of a runtime.
    pub(super) fn current(&self, create: impl FnOnce() -> Arc<T>) -> Option<Arc<T>> {
        let handle = Handle::try_current().ok()?;
        let runtime = handle.id();
        let mut entries = lock(&self.0);
        if let Some(entry) = entries.iter().find(|entry| entry.runtime == runtime) {
            return Some(entry.value.clone());
        }
        let value = create();
        let (sender, mut removed) = oneshot::channel();
        entries.push(Entry { runtime, value: value.clone(), _removed: sender });
        drop(entries);
        // A runtime drops its tasks when it ends, and this one's guard removes the entry.
        let guard = EndOfRuntime { entries: Arc::downgrade(&self.0), runtime };
        handle.spawn(async move {
            let _guard = guard;
            // A runtime wakes itself, by a call of the system, for each timer that is due before all
            // others. With this one, the time limit of a store's step never is.
            while timeout(TICK, &mut removed).await.is_err() {}
        });
        Some(value)
    }
}

struct EndOfRuntime<T> {
    entries: Weak<Mutex<Vec<Entry<T>>>>,
    runtime: Id,
}

impl<T> Drop for EndOfRuntime<T> {
    fn drop(&mut self) {
        let Some(entries) = self.entries.upgrade() else { return };
        let mut entries = lock(&entries);
        let position = entries.iter().position(|entry| entry.runtime == self.runtime);
        let ended = position.map(|position| entries.swap_remove(position));
        drop(entries);
        // Outside of the lock: it may close connections.
        drop(ended);
    }
}

/// Poisoning is ignored: no code in this file panics while it holds the lock.
fn lock<T>(entries: &Mutex<Vec<Entry<T>>>) -> MutexGuard<'_, Vec<Entry<T>>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shorter than the time limits of steps.
const TICK: Duration = Duration::from_millis(500);
