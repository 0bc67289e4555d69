//! A task that is run from time to time.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::store::BoxFuture;

/// A task that is run again and again, once it is set.
#[derive(Default)]
pub(super) struct PeriodicTask {
    task: OnceLock<(Duration, TaskFn)>,
    is_set: Notify,
}

impl PeriodicTask {
    /// Sets the task, unless there is one.
    pub(super) fn set(&self, every: Duration, task: TaskFn) {
        if self.task.set((every, task)).is_ok() {
            self.is_set.notify_one();
        }
    }

    /// Runs the task for as long as this is polled, first after a pause.
    pub(super) async fn run(&self) {
        loop {
            match self.task.get() {
                None => self.is_set.notified().await,
                Some((every, task)) => {
                    sleep(jittered(*every)).await;
                    task().await;
                }
            }
        }
    }
}

impl fmt::Debug for PeriodicTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeriodicTask").field("every", &self.task.get().map(|it| it.0)).finish()
    }
}

/// Returns a pause that is up to a quarter longer or shorter, so that the processes of a service,
/// which start together, do not ask together.
fn jittered(every: Duration) -> Duration {
    let random = f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX);
    every.mul_f64(0.75 + random / 2.0)
}

type TaskFn = Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;
