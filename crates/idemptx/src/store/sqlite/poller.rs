//! Who waits for the end of which claim, and how they hear of it.
//!
//! The writer rings for what this process ends.
//! For what other processes end, a thread asks the file whether anybody has written, every
//! [`LOOK_EVERY`] for as long as somebody waits: that costs a few microseconds, and only after a
//! write are the claims in question looked at.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use idemptx_core::key::RecordId;
use idemptx_core::lease::Token;
use idemptx_core::store::RecordSnapshot;
use rusqlite::Connection;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::boot_clock::StoreClock;
use super::file::DatabaseFile;
use super::reader;
use super::records::RecordReader;

/// The bells of this process.
#[derive(Debug, Default)]
pub(super) struct Watched {
    bells: Mutex<Bells>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Bells {
    hung: HashMap<RecordId, Bell>,
    is_closed: bool,
}

/// What the watchers of one claim listen to; rung once.
#[derive(Debug)]
struct Bell {
    notify: Arc<Notify>,
    watchers: usize,
    /// The claim they wait for, once somebody has looked.
    token: Option<Token>,
}

impl Watched {
    /// Adds a watcher, with what resolves once the bell rings, even if nobody has polled it by then.
    pub(super) fn watch(self: &Arc<Self>, id: RecordId) -> (Watching, OwnedNotified) {
        let mut bells = self.lock();
        let bell = bells.hung.entry(id).or_insert_with(|| Bell {
            notify: Arc::new(Notify::new()),
            watchers: 0,
            token: None,
        });
        bell.watchers += 1;
        let notify = bell.notify.clone();
        // Under the lock: only who listens by the time that the bell is taken down hears it.
        let rung = notify.clone().notified_owned();
        drop(bells);
        self.changed.notify_one();
        (Watching { watched: self.clone(), id, notify }, rung)
    }

    /// Wakes everybody who waits for the end of a claim on this record.
    pub(super) fn ring(&self, id: &RecordId) {
        let bell = self.lock().hung.remove(id);
        if let Some(bell) = bell {
            bell.notify.notify_waiters();
        }
    }

    /// Says which claim is waited for; whoever waits for another one is woken.
    fn expect(&self, id: &RecordId, token: Token) {
        let mut bells = self.lock();
        let Some(bell) = bells.hung.get_mut(id) else { return };
        if *bell.token.get_or_insert(token) != token {
            drop(bells);
            self.ring(id);
        }
    }

    /// Ends the thread.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Waits until there is somebody to look out for; `None` at the end.
    fn claims(&self) -> Option<Vec<(RecordId, Option<Token>)>> {
        let idle = |bells: &mut Bells| bells.hung.is_empty() && !bells.is_closed;
        let waited = self.changed.wait_while(self.lock(), idle);
        let bells = waited.unwrap_or_else(PoisonError::into_inner);
        let claims = || bells.hung.iter().map(|(id, bell)| (*id, bell.token)).collect();
        (!bells.is_closed).then(claims)
    }

    /// No code of ours panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Bells> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().hung.len()
    }
}

/// Somebody who waits, until dropped.
#[derive(Debug)]
pub(super) struct Watching {
    watched: Arc<Watched>,
    id: RecordId,
    notify: Arc<Notify>,
}

impl Watching {
    /// Says what is there now; if that is no claim, the wait is over.
    pub(super) fn begin(&self, seen: Option<&RecordSnapshot>) {
        match seen {
            Some(RecordSnapshot::Held(holder)) => self.watched.expect(&self.id, holder.token),
            _ => self.watched.ring(&self.id),
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut bells = self.watched.lock();
        if let Some(bell) = bells.hung.get_mut(&self.id)
            && Arc::ptr_eq(&bell.notify, &self.notify)
        {
            bell.watchers -= 1;
            if bell.watchers == 0 {
                bells.hung.remove(&self.id);
            }
        }
    }
}

/// What the thread that looks out works with.
#[derive(Debug)]
pub(super) struct Poller {
    pub(super) file: Arc<DatabaseFile>,
    pub(super) clock: Arc<StoreClock>,
    pub(super) watched: Arc<Watched>,
}

impl Poller {
    /// Looks out until the store is closed.
    pub(super) fn run(self, connection: &Connection) {
        let Ok(mut reader) = RecordReader::new(connection) else { return };
        let Ok(mut version) = connection.prepare("PRAGMA data_version") else { return };
        let mut last = None;
        while let Some(claims) = self.watched.claims() {
            let began = Instant::now();
            // Without an answer everything is looked at.
            let now = version.query_row([], |row| row.get::<_, i64>(0)).ok();
            if now.is_none() || now != last {
                claims.iter().for_each(|(id, token)| self.look(&mut reader, id, *token));
                last = now;
            }
            // Many claims on a busy file take longer to look at: no more than a tenth of the time.
            std::thread::sleep(LOOK_EVERY.max(began.elapsed() * 10).min(LOOK_EVERY_MAX));
        }
    }

    fn look(&self, reader: &mut RecordReader<'_>, id: &RecordId, token: Option<Token>) {
        match reader::look(reader, id, &self.file, &self.clock) {
            Ok(Some(RecordSnapshot::Held(holder)))
                if token.is_none_or(|token| token == holder.token) => {}
            // Whoever watches finds out what it is, or that it cannot be read.
            _ => self.watched.ring(id),
        }
    }
}

/// How soon the end of a claim in another process is heard of, at the latest.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// The same where there is very much to look at.
const LOOK_EVERY_MAX: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_bell_that_another_thread_rings_at_once_is_heard() {
        let (watched, id) = (Arc::new(Watched::default()), RecordId::from_bytes([1; 32]));
        let is_over = Arc::new(AtomicBool::new(false));
        let ringing = std::thread::spawn({
            let (watched, is_over) = (Arc::clone(&watched), Arc::clone(&is_over));
            move || {
                while !is_over.load(Ordering::Relaxed) {
                    watched.ring(&id);
                }
            }
        });
        for _ in 0..20_000 {
            let (watching, rung) = watched.watch(id);
            watching.begin(None);
            timeout(Duration::from_secs(30), rung).await.expect("it has rung");
        }
        is_over.store(true, Ordering::Relaxed);
        ringing.join().expect("it rings");
    }
}
