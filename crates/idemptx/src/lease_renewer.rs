//! What must go on whatever handlers and clients do: heartbeats, and steps that the store has not
//! confirmed yet.
//!
//! It runs on a thread and a runtime of its own, so that a handler that blocks its worker threads
//! cannot starve the renewal of its own lease.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
// Leases begin on the application's runtime, whose clock may be a paused one.
use std::time::{Duration, Instant};

use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::Record;
use idemptx_core::store::{ErrorKind, Settlement, Store};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use crate::flight::{News, Pilot};

/// The engine's background; started by the first lease.
pub(crate) struct Keeper<S> {
    shared: Arc<Shared<S>>,
    jobs: mpsc::UnboundedSender<Job>,
    /// Taken by the thread when it starts.
    inbox: Mutex<Option<mpsc::UnboundedReceiver<Job>>>,
    started: OnceLock<bool>,
}

struct Shared<S> {
    store: Arc<S>,
    /// For the steps that are with the store at a time.
    turns: Semaphore,
    beats: Mutex<Beats>,
    /// Wakes the thread when a lease is due earlier than it planned to look.
    earlier: Notify,
    /// Bytes and number of unconfirmed steps.
    journal_entries: AtomicUsize,
    journal_bytes: AtomicUsize,
    /// How many of the steps release claims that nobody heard of.
    unheard: AtomicUsize,
    idle: Notify,
}

/// Under one lock, so that no lease comes in between the look for the next one and the plan.
#[derive(Default)]
struct Beats {
    running: HashMap<Token, Beat>,
    /// When the thread looks next; `None` while there is nothing to look at.
    planned: Option<Instant>,
}

struct Beat {
    lease: Lease,
    due: Instant,
    lost: Arc<Lost>,
}

/// Whether a running handler still holds its lease.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    flag: AtomicBool,
    told: Notify,
}

impl Lost {
    pub(crate) fn is_lost(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    pub(crate) async fn wait(&self) {
        let told = self.told.notified();
        tokio::pin!(told);
        told.as_mut().enable();
        if !self.is_lost() {
            told.await;
        }
    }

    fn set(&self) {
        self.flag.store(true, Ordering::Release);
        self.told.notify_waiters();
    }
}

/// Keeps a lease alive until dropped.
pub(crate) struct Heartbeat {
    token: Token,
    lost: Arc<Lost>,
    keeper: Arc<dyn Stop>,
}

/// Ends a heartbeat, whatever the store is.
trait Stop: Send + Sync {
    fn stop(&self, token: Token);
}

impl<S: Store> Stop for Shared<S> {
    fn stop(&self, token: Token) {
        self.beats().running.remove(&token);
    }
}

impl fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heartbeat").field("token", &self.token).finish_non_exhaustive()
    }
}

impl Heartbeat {
    pub(crate) fn lost(&self) -> &Arc<Lost> {
        &self.lost
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.keeper.stop(self.token);
    }
}

/// A step to repeat until the store confirms it.
#[derive(Debug)]
pub(crate) enum Job {
    /// Release by token, also a claim that the store may yet execute.
    Release(Lease),
    /// Settle; lease and flight are kept until then.
    Settle { lease: Lease, done: Settlement, heartbeat: Option<Heartbeat>, pilot: Option<Pilot> },
}

impl<S: Store> Keeper<S> {
    pub(crate) fn new(store: Arc<S>) -> Self {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let shared = Shared {
            store,
            turns: Semaphore::new(STEPS_AT_ONCE_MAX),
            beats: Mutex::default(),
            earlier: Notify::new(),
            journal_entries: AtomicUsize::new(0),
            journal_bytes: AtomicUsize::new(0),
            unheard: AtomicUsize::new(0),
            idle: Notify::new(),
        };
        Self {
            shared: Arc::new(shared),
            jobs,
            inbox: Mutex::new(Some(inbox)),
            started: OnceLock::new(),
        }
    }

    /// Renews `lease` at a third of its term until the heartbeat is dropped.
    pub(crate) fn beat(&self, lease: &Lease) -> Heartbeat {
        self.start();
        let lost = Arc::new(Lost::default());
        let due = Instant::now() + lease.term / HEARTBEATS_PER_TERM;
        let beat = Beat { lease: lease.clone(), due, lost: Arc::clone(&lost) };
        let mut beats = self.shared.beats();
        beats.running.insert(lease.token, beat);
        if beats.planned.is_none_or(|planned| due < planned) {
            self.shared.earlier.notify_one();
        }
        drop(beats);
        Heartbeat { token: lease.token, lost, keeper: Arc::clone(&self.shared) as Arc<dyn Stop> }
    }

    /// Whether so many results are unconfirmed that no new claim may be made.
    pub(crate) fn is_full(&self) -> bool {
        let unheard = self.shared.unheard.load(Ordering::Relaxed);
        let entries = self.shared.journal_entries.load(Ordering::Relaxed);
        entries.saturating_sub(unheard) >= RESULTS_MAX
            || self.shared.journal_bytes.load(Ordering::Relaxed) >= JOURNAL_BYTES_MAX
    }

    /// Repeats a step behind.
    ///
    /// Results are never refused: what runs already must be able to end, so
    /// [`is_full`](Self::is_full) is asked before a claim, and the number of executions is limited.
    /// Releases of claims that nobody heard of are not taken beyond their limit, or clients that
    /// leave could stop everybody: such a claim lapses with its lease.
    pub(crate) fn deferred(&self, job: Job) {
        self.start();
        if job.is_unheard() && self.shared.unheard.fetch_add(1, Ordering::Relaxed) >= UNHEARD_MAX {
            self.shared.unheard.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.shared.journal_entries.fetch_add(1, Ordering::Relaxed);
        self.shared.journal_bytes.fetch_add(job.bytes(), Ordering::Relaxed);
        // The receiver lives as long as the thread, which ends with the sender.
        drop(self.jobs.send(job));
    }

    /// How many steps the store has not confirmed.
    pub(crate) fn unconfirmed(&self) -> usize {
        self.shared.journal_entries.load(Ordering::Relaxed)
    }

    /// Resolves when every step is confirmed or given up.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.shared.idle.notified();
            if self.shared.journal_entries.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }

    fn start(&self) {
        self.started.get_or_init(|| {
            let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(inbox) = inbox else { return false };
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("idemptx-keeper".into());
            thread.spawn(move || keep(shared, inbox)).is_ok()
        });
    }
}

impl<S> fmt::Debug for Keeper<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper")
            .field("journal_entries", &self.shared.journal_entries)
            .field("journal_bytes", &self.shared.journal_bytes)
            .finish_non_exhaustive()
    }
}

impl<S> Shared<S> {
    fn beats(&self) -> MutexGuard<'_, Beats> {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a step when it is its turn; `Err` if it takes too long.
    async fn in_turn<T>(&self, step: impl Future<Output = T>) -> Result<T, Elapsed> {
        // Never closed; and without a turn the step may be taken all the same.
        let _turn = self.turns.acquire().await;
        timeout(STEP_TIMEOUT, step).await
    }
}

impl Beats {
    /// When to look next, which is also the plan from now on.
    fn plan(&mut self) -> Option<Instant> {
        self.planned = self.running.values().map(|beat| beat.due).min();
        self.planned
    }

    /// The leases to renew now; each is due again before the answer can be late.
    fn take_due(&mut self) -> Vec<Lease> {
        let now = Instant::now();
        let due = self.running.values_mut().filter(|beat| beat.due <= now);
        due.map(|beat| {
            beat.due = now + beat.lease.term / HEARTBEATS_PER_TERM;
            beat.lease.clone()
        })
        .collect()
    }
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Self::Release(_) => 0,
            Self::Settle { done, .. } => done.payload.len(),
        }
    }

    /// Whether it is about a claim that may never have been granted.
    fn is_unheard(&self) -> bool {
        matches!(self, Self::Release(lease) if lease.fence == 0)
    }
}

fn keep<S: Store>(shared: Arc<Shared<S>>, inbox: mpsc::UnboundedReceiver<Job>) {
    // Without a runtime leases lapse, which every part of the protocol is prepared for.
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return;
    };
    let tasks = tokio::task::LocalSet::new();
    tasks.spawn_local(renew_when_due(Arc::clone(&shared)));
    tasks.spawn_local(maintain(Arc::clone(&shared)));
    tasks.block_on(&runtime, work(shared, inbox));
}

/// Takes jobs until the engine is gone and the last one is done.
async fn work<S: Store>(shared: Arc<Shared<S>>, mut inbox: mpsc::UnboundedReceiver<Job>) {
    let mut running = tokio::task::JoinSet::new();
    while let Some(job) = inbox.recv().await {
        while running.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        running.spawn_local(async move {
            let (bytes, unheard) = (job.bytes(), usize::from(job.is_unheard()));
            match job {
                Job::Release(lease) => release(&shared, &lease).await,
                Job::Settle { lease, done, heartbeat, pilot } => {
                    let news = settle(&shared, &lease, &done).await;
                    drop(heartbeat);
                    if let Some(pilot) = pilot {
                        pilot.land(&news);
                    }
                }
            }
            shared.journal_bytes.fetch_sub(bytes, Ordering::Relaxed);
            shared.unheard.fetch_sub(unheard, Ordering::Relaxed);
            shared.journal_entries.fetch_sub(1, Ordering::Release);
            shared.idle.notify_waiters();
        });
    }
    while running.join_next().await.is_some() {}
}

/// Releases until confirmed, and then once more when a term has passed.
///
/// A claim that was given up may still be on its way to the store and be granted after a release
/// that found nothing.
async fn release<S: Store>(shared: &Shared<S>, lease: &Lease) {
    let began = Instant::now();
    let mut pause = RETRY_MIN;
    loop {
        let verdict = shared.in_turn(shared.store.release(lease)).await;
        let certain = match &verdict {
            Ok(Err(error)) => matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Corrupt),
            // A lease with a fence was granted for certain: once released, it is gone for good.
            Ok(Ok(())) => lease.fence != 0,
            Err(_) => false,
        };
        let confirmed = matches!(verdict, Ok(Ok(())));
        if certain || (confirmed && began.elapsed() > lease.term) {
            return;
        }
        if began.elapsed() > lease.term.max(RELEASE_FOR_MIN) * 2 {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// Settles until confirmed, and tells what became of the record.
async fn settle<S: Store>(shared: &Shared<S>, lease: &Lease, done: &Settlement) -> News {
    let began = Instant::now();
    let mut pause = RETRY_MIN;
    loop {
        match shared.in_turn(shared.store.settle(lease, done)).await {
            Ok(Ok(())) => return News::Settled(Record::settled(lease, done)),
            Ok(Err(error)) if matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Corrupt) => {
                return News::Changed;
            }
            _ if began.elapsed() > done.key_retain.min(SETTLE_FOR_MAX) => return News::Changed,
            _ => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// Lets the store give back what has expired, traffic or not.
async fn maintain<S: Store>(shared: Arc<Shared<S>>) {
    loop {
        tokio::time::sleep(TEND_EVERY).await;
        shared.store.maintain();
    }
}

/// Renews each lease when it is due.
async fn renew_when_due<S: Store>(shared: Arc<Shared<S>>) {
    loop {
        let next = shared.beats().plan();
        let earlier = shared.earlier.notified();
        match next {
            None => earlier.await,
            Some(due) => {
                if timeout(due.saturating_duration_since(Instant::now()), earlier).await.is_ok() {
                    continue;
                }
            }
        }
        let due = shared.beats().take_due();
        for lease in due {
            tokio::task::spawn_local(renew(Arc::clone(&shared), lease));
        }
    }
}

async fn renew<S: Store>(shared: Arc<Shared<S>>, lease: Lease) {
    let verdict = timeout(lease.term / HEARTBEATS_PER_TERM, shared.store.renew(&lease)).await;
    let mut beats = shared.beats();
    match verdict {
        Ok(Ok(_)) => {}
        Ok(Err(error)) if error.kind() == ErrorKind::Fenced => {
            if let Some(beat) = beats.running.remove(&lease.token) {
                beat.lost.set();
            }
        }
        // No verdict: again soon, while the lease may still be alive.
        _ => {
            if let Some(beat) = beats.running.get_mut(&lease.token) {
                beat.due = beat.due.min(Instant::now() + (lease.term / 10).min(RETRY_MAX));
                shared.earlier.notify_one();
            }
        }
    }
}

const HEARTBEATS_PER_TERM: u32 = 3;
const TEND_EVERY: Duration = Duration::from_secs(5);
/// Beyond these many unconfirmed steps, or bytes of them, new claims are refused.
const RESULTS_MAX: usize = 10_000;
/// Releases of claims that nobody heard of, at a time.
const UNHEARD_MAX: usize = 10_000;
const JOURNAL_BYTES_MAX: usize = 256 << 20;
/// How many unconfirmed steps are with the store at a time; the others pause or wait.
const STEPS_AT_ONCE_MAX: usize = 64;
const STEP_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
const RELEASE_FOR_MIN: Duration = Duration::from_secs(30);
/// After an hour without a verdict the result is given up; the claim lapses into an orphan.
const SETTLE_FOR_MAX: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;
