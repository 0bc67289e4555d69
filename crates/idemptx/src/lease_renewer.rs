//! The engine's background thread: it renews leases, and repeats operations that the store has not
//! confirmed.
//!
//! It is a thread with its own runtime because a handler may block all worker threads of the
//! application: its lease must not lapse for that.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
// Not tokio's clock: leases begin on the application's runtime, whose clock may be paused.
use std::time::{Duration, Instant};

use idemptx_core::lease::{Lease, Token};
use idemptx_core::store::{ErrorKind, Store};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use crate::time_limit::limited;

mod background;

pub(crate) use self::background::BackgroundTask;
use self::background::Journal;

/// Renews leases and runs [background tasks](BackgroundTask); its thread starts with the first.
pub(crate) struct LeaseRenewer<S> {
    shared: Arc<Shared<S>>,
    tasks: mpsc::UnboundedSender<BackgroundTask>,
    /// Taken by the thread when it starts.
    inbox: Mutex<Option<mpsc::UnboundedReceiver<BackgroundTask>>>,
    started: OnceLock<bool>,
}

struct Shared<S> {
    store: Arc<S>,
    renewals: Mutex<Renewals>,
    /// Wakes the thread when a lease is due earlier than it planned to look.
    earlier: Notify,
    journal: Journal,
}

/// The leases in force, under one lock: no lease comes in between the search for the next one and
/// the plan.
#[derive(Default)]
struct Renewals {
    running: HashMap<Token, Renewal>,
    /// The time at which the thread looks next; `None` while there is no lease.
    planned: Option<Instant>,
}

struct Renewal {
    lease: Lease,
    due: Instant,
    loss: Arc<LossSignal>,
}

/// Reports that a running handler has lost its lease.
#[derive(Debug, Default)]
pub(crate) struct LossSignal {
    is_lost: AtomicBool,
    notify: Notify,
}

impl LossSignal {
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    /// Resolves once the lease is lost.
    pub(crate) async fn wait(&self) {
        let notified = self.notify.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if !self.is_lost() {
            notified.await;
        }
    }

    fn set(&self) {
        self.is_lost.store(true, Ordering::Release);
        self.notify.notify_waiters();
    }
}

/// Keeps a lease alive until dropped.
pub(crate) struct Heartbeat {
    token: Token,
    loss: Arc<LossSignal>,
    renewer: Arc<dyn StopRenewal>,
}

/// Ends the renewal of a lease; without the store's type, so that a [`Heartbeat`] has none either.
trait StopRenewal: Send + Sync {
    fn stop(&self, token: Token);
}

impl<S: Store> StopRenewal for Shared<S> {
    fn stop(&self, token: Token) {
        self.renewals().running.remove(&token);
    }
}

impl fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heartbeat").field("token", &self.token).finish_non_exhaustive()
    }
}

impl Heartbeat {
    pub(crate) fn loss(&self) -> &Arc<LossSignal> {
        &self.loss
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.renewer.stop(self.token);
    }
}

impl<S: Store> LeaseRenewer<S> {
    pub(crate) fn new(store: Arc<S>) -> Self {
        let (tasks, inbox) = mpsc::unbounded_channel();
        let shared = Shared {
            store,
            renewals: Mutex::default(),
            earlier: Notify::new(),
            journal: Journal::default(),
        };
        Self {
            shared: Arc::new(shared),
            tasks,
            inbox: Mutex::new(Some(inbox)),
            started: OnceLock::new(),
        }
    }

    /// Renews `lease` at a third of its term until the heartbeat is dropped.
    pub(crate) fn keep_alive(&self, lease: &Lease) -> Heartbeat {
        self.start();
        let loss = Arc::new(LossSignal::default());
        let due = Instant::now() + lease.term / HEARTBEATS_PER_TERM;
        let renewal = Renewal { lease: lease.clone(), due, loss: Arc::clone(&loss) };
        let mut renewals = self.shared.renewals();
        renewals.running.insert(lease.token, renewal);
        if renewals.planned.is_none_or(|planned| due < planned) {
            self.shared.earlier.notify_one();
        }
        drop(renewals);
        let renewer = Arc::clone(&self.shared) as Arc<dyn StopRenewal>;
        Heartbeat { token: lease.token, loss, renewer }
    }

    /// Returns `true` while so many results are unconfirmed that no new claim may be made.
    pub(crate) fn is_full(&self) -> bool {
        self.shared.journal.is_full()
    }

    /// Runs a task in the background until the store confirms it.
    ///
    /// Results are never refused: a handler that runs must be able to end.
    /// So [`is_full`](Self::is_full) is asked before a claim, and executions are limited.
    /// The release of a claim that may never have been granted is refused beyond a limit, or
    /// clients that leave could stop all others: such a claim lapses with its lease.
    pub(crate) fn enqueue(&self, task: BackgroundTask) {
        self.start();
        if self.shared.journal.admit(&task) {
            // The receiver lives as long as the thread, which ends with the sender.
            drop(self.tasks.send(task));
        }
    }

    /// Returns the number of operations that the store has not confirmed.
    pub(crate) fn unconfirmed(&self) -> usize {
        self.shared.journal.unconfirmed()
    }

    /// Resolves when every operation is confirmed or given up.
    pub(crate) async fn idle(&self) {
        self.shared.journal.idle().await;
    }

    fn start(&self) {
        self.started.get_or_init(|| {
            let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(inbox) = inbox else { return false };
            let shared = Arc::clone(&self.shared);
            // Without a thread leases lapse, which every part of the protocol is prepared for.
            std::thread::Builder::new()
                .name("idemptx-renewer".into())
                .spawn(move || run_thread(shared, inbox))
                .is_ok()
        });
    }
}

impl<S> fmt::Debug for LeaseRenewer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseRenewer")
            .field("journal", &self.shared.journal)
            .finish_non_exhaustive()
    }
}

impl<S> Shared<S> {
    fn renewals(&self) -> MutexGuard<'_, Renewals> {
        self.renewals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Renewals {
    /// Returns when to look next, which is also the plan from now on.
    fn plan(&mut self) -> Option<Instant> {
        self.planned = self.running.values().map(|renewal| renewal.due).min();
        self.planned
    }

    /// Returns the leases to renew now; each is due again before the answer can be late.
    fn take_due(&mut self) -> Vec<Lease> {
        let now = Instant::now();
        let due = self.running.values_mut().filter(|renewal| renewal.due <= now);
        due.map(|renewal| {
            renewal.due = now + renewal.lease.term / HEARTBEATS_PER_TERM;
            renewal.lease.clone()
        })
        .collect()
    }
}

fn run_thread<S: Store>(shared: Arc<Shared<S>>, inbox: mpsc::UnboundedReceiver<BackgroundTask>) {
    // Without a runtime leases lapse, which every part of the protocol is prepared for.
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return;
    };
    let tasks = tokio::task::LocalSet::new();
    tasks.spawn_local(renew_when_due(Arc::clone(&shared)));
    tasks.spawn_local(maintain(Arc::clone(&shared)));
    tasks.block_on(&runtime, background::run(shared, inbox));
}

/// Lets the store remove what has expired, with traffic or without.
async fn maintain<S: Store>(shared: Arc<Shared<S>>) {
    loop {
        tokio::time::sleep(MAINTAIN_EVERY).await;
        shared.store.maintain();
    }
}

/// Renews each lease when it is due.
async fn renew_when_due<S: Store>(shared: Arc<Shared<S>>) {
    loop {
        let next = shared.renewals().plan();
        let earlier = shared.earlier.notified();
        match next {
            None => earlier.await,
            Some(due) => {
                if timeout(due.saturating_duration_since(Instant::now()), earlier).await.is_ok() {
                    continue;
                }
            }
        }
        let due = shared.renewals().take_due();
        for lease in due {
            tokio::task::spawn_local(renew(Arc::clone(&shared), lease));
        }
    }
}

async fn renew<S: Store>(shared: Arc<Shared<S>>, lease: Lease) {
    let limit = lease.term / HEARTBEATS_PER_TERM;
    let renewed = limited(limit, shared.store.renew(&lease)).await;
    let mut renewals = shared.renewals();
    match renewed.map_err(|error| error.kind()) {
        Ok(_) => {}
        Err(ErrorKind::Fenced) => {
            if let Some(renewal) = renewals.running.remove(&lease.token) {
                renewal.loss.set();
            }
        }
        // Unknown: again soon, while the lease may still be alive.
        Err(_) => {
            if let Some(renewal) = renewals.running.get_mut(&lease.token) {
                let soon = Instant::now() + (lease.term / 10).min(RENEW_AGAIN_MAX);
                renewal.due = renewal.due.min(soon);
                shared.earlier.notify_one();
            }
        }
    }
}

const HEARTBEATS_PER_TERM: u32 = 3;
const MAINTAIN_EVERY: Duration = Duration::from_secs(5);
const RENEW_AGAIN_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
