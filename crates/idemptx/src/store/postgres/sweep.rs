//! Removal of what has expired.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::postgres_failure::PostgresFailure;
use super::runtime_pool::RuntimePool;
use super::statement::Sql;

/// Sweeps of one store, one at a time.
///
/// A sweep begins where the one before it ended.
/// The index entries of removed rows stay as long as any transaction of the server could still see
/// the rows, which may be hours, and a sweep from the beginning passes all of them.
/// From time to time one does, because a row may come to be due behind the place where a sweep
/// ended, or was skipped there because another transaction had locked it.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    is_sweeping: AtomicBool,
    progress: Mutex<Progress>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Due time of the last row that was looked at, in microseconds since the Unix epoch.
    from: i64,
    /// Time of the next sweep from the beginning; `None` before the first.
    restart_at: Option<Instant>,
}

impl Sweeper {
    /// Starts a sweep in the background, unless one is running.
    pub(super) fn start(self: &Arc<Self>, pool: Arc<RuntimePool>) {
        if self.is_sweeping.swap(true, Ordering::Acquire) {
            return;
        }
        let sweeping = Sweeping(self.clone());
        tokio::spawn(async move { sweeping.0.sweep(&pool).await });
    }

    async fn sweep(&self, pool: &RuntimePool) {
        let Progress { from, restart_at } = *self.progress();
        let is_restart = restart_at.is_none_or(|at| at <= Instant::now());
        if is_restart {
            self.progress().restart_at = Some(Instant::now() + RESTART_INTERVAL);
        }
        let mut next = if is_restart { 0 } else { from };
        for _ in 0..STEPS_MAX {
            let step = match step(pool, next).await {
                Ok(step) => step,
                // What cannot be swept now is swept later. But where even the way to the first row
                // takes too long, what expires from now on must be kept up with.
                Err(_) if is_restart => return self.skip_to(shortly_before_now()),
                Err(_) => return,
            };
            next = step.last_due.unwrap_or(next);
            self.skip_to(next);
            if step.count < BATCH {
                return;
            }
        }
    }

    /// Records where the next sweep begins, which never goes back.
    fn skip_to(&self, from: i64) {
        let mut progress = self.progress();
        progress.from = progress.from.max(from);
    }

    /// Poisoning is ignored: no code in this file panics while it holds the lock.
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sweeps from the beginning, and returns how many rows were looked at.
pub(super) async fn sweep_all(pool: &RuntimePool) -> Result<u64, PostgresFailure> {
    let (mut swept, mut next) = (0, 0);
    for _ in 0..STEPS_MAX {
        let step = step(pool, next).await?;
        next = step.last_due.unwrap_or(next);
        swept += u64::try_from(step.count).unwrap_or(0);
        if step.count < BATCH {
            break;
        }
    }
    Ok(swept)
}

struct Step {
    /// Number of rows that were looked at.
    count: i64,
    last_due: Option<i64>,
}

async fn step(pool: &RuntimePool, from: i64) -> Result<Step, PostgresFailure> {
    let rows = pool.ask(Sql::Sweep, &[&BATCH, &from]).await?;
    let read = || {
        let row = rows.first()?;
        Some(Step { count: row.try_get("count").ok()?, last_due: row.try_get("last_due").ok()? })
    };
    Ok(read().unwrap_or(Step { count: 0, last_due: None }))
}

/// Returns a time that a server whose clock is about right has passed a while ago, in microseconds
/// since the Unix epoch.
fn shortly_before_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.saturating_sub(RESTART_INTERVAL).as_micros()).unwrap_or(0)
}

/// Ends a sweep, also when its runtime does.
struct Sweeping(Arc<Sweeper>);

impl Drop for Sweeping {
    fn drop(&mut self) {
        self.0.is_sweeping.store(false, Ordering::Release);
    }
}

const BATCH: i64 = 500;
const STEPS_MAX: u32 = 100;
const RESTART_INTERVAL: Duration = Duration::from_secs(600);
