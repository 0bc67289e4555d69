//! The engine's background thread: it renews leases, repeats operations that the store has not
//! confirmed, and checks the store from time to time.
//!
//! It is a thread with its own runtime because a handler may block all worker threads of the
//! application: its lease must not lapse for that.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
// Not tokio's clock: leases begin on the application's runtime, whose clock may be paused.
use std::time::{Duration, Instant};

use idemptx_core::coordination::{Journal, LeaseSchedule, Unconfirmed};
use idemptx_core::lease::{Lease, Token};
use idemptx_core::store::Store;
use idemptx_core::time::{Timestamp, millis};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;

use crate::single_flight::Leader;
use crate::store::BoxFuture;
use crate::time_limit::limited;

mod background;
mod periodic;

use self::background::BackgroundTask;
use self::periodic::PeriodicTask;

/// Renews leases and repeats unconfirmed operations; its thread starts with the first of either.
pub(crate) struct LeaseRenewer<S> {
    shared: Arc<Shared<S>>,
    tasks: mpsc::UnboundedSender<BackgroundTask>,
    /// Taken by the thread when it starts.
    inbox: Mutex<Option<mpsc::UnboundedReceiver<BackgroundTask>>>,
    started: OnceLock<bool>,
}

struct Shared<S> {
    store: Arc<S>,
    /// The leases in force, under one lock: no lease comes in between the search for the next one
    /// and the plan.
    leases: Mutex<LeaseSchedule<Arc<LossSignal>>>,
    /// The origin of the schedule's times.
    made: Instant,
    /// Wakes the thread when a lease is due earlier than it planned to look.
    earlier: Notify,
    journal: Journal,
    /// Wakes those who wait until nothing is unconfirmed.
    confirmed: Notify,
    periodic: PeriodicTask,
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
        self.leases().remove(&token);
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
        Self {
            shared: Arc::new(Shared::new(store)),
            tasks,
            inbox: Mutex::new(Some(inbox)),
            started: OnceLock::new(),
        }
    }

    /// Renews `lease` at a third of its term until the heartbeat is dropped.
    pub(crate) fn keep_alive(&self, lease: &Lease) -> Heartbeat {
        self.start();
        let loss = Arc::new(LossSignal::default());
        let mut leases = self.shared.leases();
        if leases.add(lease.clone(), Arc::clone(&loss), self.shared.now()) {
            self.shared.earlier.notify_one();
        }
        drop(leases);
        let renewer = Arc::clone(&self.shared) as Arc<dyn StopRenewal>;
        Heartbeat { token: lease.token, loss, renewer }
    }

    /// Returns `true` while so many results are unconfirmed that no new claim may be made.
    pub(crate) fn is_full(&self) -> bool {
        self.shared.journal.is_full()
    }

    /// Performs an operation in the background until the store confirms it, or gives it up.
    ///
    /// Heartbeat and leadership last until then, and what is returned resolves, to an error.
    pub(crate) fn enqueue(
        &self,
        operation: Unconfirmed,
        heartbeat: Option<Heartbeat>,
        leader: Option<Leader>,
    ) -> oneshot::Receiver<()> {
        self.start();
        let (over, resolves) = oneshot::channel();
        if let Some(confirmation) = self.shared.journal.admit(operation, self.shared.now()) {
            // The receiver lives as long as the thread, which ends with the sender.
            drop(self.tasks.send(BackgroundTask { confirmation, heartbeat, leader, over }));
        }
        resolves
    }

    /// Returns the number of operations that the store has not confirmed.
    pub(crate) fn unconfirmed(&self) -> usize {
        self.shared.journal.unconfirmed()
    }

    /// Resolves when every operation is confirmed or given up.
    pub(crate) async fn idle(&self) {
        loop {
            let confirmed = self.shared.confirmed.notified();
            if self.unconfirmed() == 0 {
                return;
            }
            confirmed.await;
        }
    }

    /// Runs a task from time to time until the engine is gone; a second task is ignored.
    pub(crate) fn repeat(
        &self,
        every: Duration,
        task: impl Fn() -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) {
        self.start();
        self.shared.periodic.set(every, Box::new(task));
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
    fn new(store: Arc<S>) -> Self {
        Self {
            store,
            leases: Mutex::default(),
            made: Instant::now(),
            earlier: Notify::new(),
            journal: Journal::default(),
            confirmed: Notify::new(),
            periodic: PeriodicTask::default(),
        }
    }

    fn leases(&self) -> MutexGuard<'_, LeaseSchedule<Arc<LossSignal>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes those who wait until nothing is unconfirmed, if that is so.
    fn note_confirmed(&self) {
        if self.journal.unconfirmed() == 0 {
            self.confirmed.notify_waiters();
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millis(millis(self.made.elapsed()))
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
    tasks.spawn_local({
        let shared = Arc::clone(&shared);
        async move { shared.periodic.run().await }
    });
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
        let next = shared.leases().plan();
        let earlier = shared.earlier.notified();
        match next {
            None => earlier.await,
            Some(due) => {
                if timeout(due.since(shared.now()), earlier).await.is_ok() {
                    continue;
                }
            }
        }
        let now = shared.now();
        for (lease, _) in shared.leases().take_due(now) {
            tokio::task::spawn_local(renew(Arc::clone(&shared), lease.clone()));
        }
    }
}

async fn renew<S: Store>(shared: Arc<Shared<S>>, lease: Lease) {
    let limit = LeaseSchedule::<()>::time_limit(&lease);
    let renewed = limited(limit, shared.store.renew(&lease)).await;
    let renewed = renewed.map(drop).map_err(|error| error.kind());
    let is_known = renewed.is_ok();
    let lost = shared.leases().renewed(&lease.token, renewed, shared.now());
    if let Some(loss) = lost {
        loss.set();
    } else if !is_known {
        shared.earlier.notify_one();
    }
}

const MAINTAIN_EVERY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
