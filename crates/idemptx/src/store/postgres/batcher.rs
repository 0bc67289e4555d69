//! Batches: steps that wait at the same time go in one statement, and none waits for company.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use idemptx_core::key::RecordId;

/// A step that can go in a batch.
pub(super) trait BatchJob: Send + 'static {
    /// Returns the record of the job; a statement takes at most one job for each.
    fn id(&self) -> &RecordId;

    /// Returns the number of bytes to send.
    fn bytes(&self) -> usize;

    /// Returns true if no task waits for the answer any more.
    fn is_abandoned(&self) -> bool;
}

/// Jobs of one kind that wait for a statement.
///
/// A job starts a statement at once if fewer than the maximum are running; otherwise it goes with
/// the next one, together with the jobs that arrived meanwhile.
pub(super) struct Batcher<J>(Mutex<WaitingJobs<J>>);

struct WaitingJobs<J> {
    waiting: VecDeque<J>,
    under_way: usize,
    under_way_max: usize,
}

impl<J: BatchJob> Batcher<J> {
    pub(super) fn new(under_way_max: usize) -> Self {
        Self(Mutex::new(WaitingJobs { waiting: VecDeque::new(), under_way: 0, under_way_max }))
    }

    /// Takes a job, whose batch `run` will be given; gives it back if there are too many.
    pub(super) fn submit<F>(
        self: &Arc<Self>,
        job: J,
        run: impl Fn(Vec<J>) -> F + Send + 'static,
    ) -> Result<(), J>
    where
        F: Future<Output = ()> + Send,
    {
        let mut queue = self.lock();
        if queue.waiting.len() >= WAITING_MAX {
            return Err(job);
        }
        queue.waiting.push_back(job);
        if queue.under_way == queue.under_way_max {
            return Ok(());
        }
        let Some(first) = queue.next() else { return Ok(()) };
        queue.under_way += 1;
        drop(queue);
        let batcher = self.clone();
        tokio::spawn(async move {
            let mut batch = Some(first);
            while let Some(jobs) = batch {
                run(jobs).await;
                batch = batcher.lock().next_or_rest();
            }
        });
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, WaitingJobs<J>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J: BatchJob> WaitingJobs<J> {
    fn next_or_rest(&mut self) -> Option<Vec<J>> {
        let next = self.next();
        if next.is_none() {
            self.under_way -= 1;
        }
        next
    }

    /// The next batch, in the order of the ids, in which every batch locks its rows.
    fn next(&mut self) -> Option<Vec<J>> {
        let (mut batch, mut left) = (Vec::new(), VecDeque::new());
        let (mut ids, mut bytes) = (HashSet::new(), 0);
        while let Some(job) = self.waiting.pop_front() {
            if job.is_abandoned() {
                continue;
            }
            if !ids.insert(*job.id()) {
                left.push_back(job);
                continue;
            }
            bytes += job.bytes();
            batch.push(job);
            if batch.len() == BATCH_MAX || bytes >= BATCH_BYTES_MAX {
                break;
            }
        }
        left.append(&mut self.waiting);
        self.waiting = left;
        batch.sort_unstable_by(|one, other| one.id().as_bytes().cmp(other.id().as_bytes()));
        (!batch.is_empty()).then_some(batch)
    }
}

const WAITING_MAX: usize = 1 << 16;
const BATCH_MAX: usize = 256;
/// A batch may exceed it by its last job.
const BATCH_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::{mpsc, oneshot};

    struct Numbered {
        id: RecordId,
        bytes: usize,
        waits: oneshot::Sender<()>,
    }

    impl BatchJob for Numbered {
        fn id(&self) -> &RecordId {
            &self.id
        }

        fn bytes(&self) -> usize {
            self.bytes
        }

        fn is_abandoned(&self) -> bool {
            self.waits.is_closed()
        }
    }

    struct Harness {
        batcher: Arc<Batcher<Numbered>>,
        batches: mpsc::UnboundedReceiver<Vec<u8>>,
        told: mpsc::UnboundedSender<Vec<u8>>,
        gate: Arc<tokio::sync::Semaphore>,
    }

    impl Harness {
        fn new(under_way_max: usize) -> Self {
            let (told, batches) = mpsc::unbounded_channel();
            let gate = Arc::new(tokio::sync::Semaphore::new(0));
            Self { batcher: Arc::new(Batcher::new(under_way_max)), batches, told, gate }
        }

        fn submit(&self, number: u8, bytes: usize) -> oneshot::Receiver<()> {
            let (waits, waiting) = oneshot::channel();
            let id = RecordId::from_bytes([number; RecordId::BYTES]);
            let (told, gate) = (self.told.clone(), self.gate.clone());
            let run = move |jobs: Vec<Numbered>| {
                let (told, gate) = (told.clone(), gate.clone());
                async move {
                    let numbers = jobs.iter().map(|job| job.id.as_bytes()[0]).collect();
                    told.send(numbers).unwrap();
                    gate.acquire().await.unwrap().forget();
                }
            };
            assert!(self.batcher.submit(Numbered { id, bytes, waits }, run).is_ok());
            waiting
        }

        async fn next(&mut self) -> Vec<u8> {
            self.batches.recv().await.unwrap()
        }
    }

    #[tokio::test]
    async fn a_lonely_job_goes_at_once_and_what_comes_meanwhile_goes_together() {
        let mut trial = Harness::new(1);
        let _waiting: Vec<_> = [5, 4, 9, 2].map(|number| trial.submit(number, 1)).into();
        assert_eq!(trial.next().await, [5]);
        trial.gate.add_permits(1);
        assert_eq!(trial.next().await, [2, 4, 9]);
        trial.gate.add_permits(1);
        let _waiting = trial.submit(7, 1);
        assert_eq!(trial.next().await, [7]);
    }

    #[tokio::test]
    async fn a_batch_holds_no_two_jobs_about_one_record_and_none_that_nobody_waits_for() {
        let mut trial = Harness::new(1);
        let _first = trial.submit(1, 1);
        let _waiting: Vec<_> = [3, 3, 2, 3].map(|number| trial.submit(number, 1)).into();
        drop(trial.submit(4, 1));
        trial.gate.add_permits(3);
        let batches =
            [trial.next().await, trial.next().await, trial.next().await, trial.next().await];
        assert_eq!(batches, [vec![1], vec![2, 3], vec![3], vec![3]]);
    }

    #[tokio::test]
    async fn a_batch_ends_where_it_would_grow_too_large() {
        let mut trial = Harness::new(1);
        let _first = trial.submit(0, 1);
        let _waiting: Vec<_> = (1..=3).map(|number| trial.submit(number, 600 << 10)).collect();
        trial.gate.add_permits(2);
        let batches = [trial.next().await, trial.next().await, trial.next().await];
        assert_eq!(batches, [vec![0], vec![1, 2], vec![3]]);
    }

    #[tokio::test]
    async fn as_many_statements_as_allowed_are_under_way_at_once() {
        let mut trial = Harness::new(2);
        let _waiting: Vec<_> = (1..=4).map(|number| trial.submit(number, 1)).collect();
        assert_eq!([trial.next().await, trial.next().await], [[1], [2]]);
        trial.gate.add_permits(1);
        assert_eq!(trial.next().await, [3, 4]);
    }
}
