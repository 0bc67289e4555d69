//! How an execution ends in the store.

use std::time::Duration;

use bytes::Bytes;
use idemptx_core::exchange::Event;
use idemptx_core::lease::Lease;
use idemptx_core::record::{Record, State};
use idemptx_core::store::{ErrorKind, RecordSnapshot, Settlement, Store, StoreError};
use tokio::time::{Instant, sleep};

use super::{Driver, within};
use crate::flight::News;

impl<S: Store> Driver<S> {
    pub(super) async fn release(&mut self, lease: &Lease) -> Event {
        self.left.roll_back().await;
        self.heartbeat = None;
        let limit = self.engine.policy().claim_timeout;
        let released = within(limit, self.engine.store().release(lease)).await;
        self.land(&News::Changed);
        Event::Released(released.map_err(ErrorKind::from))
    }

    pub(super) async fn settle(
        &mut self,
        lease: &Lease,
        state: State,
        payload: Bytes,
        commits: bool,
    ) -> Event {
        let policy = self.engine.policy();
        let retain = if state == State::Completed { policy.retain } else { policy.key_retain };
        let done = Settlement::new(state, payload, retain, policy.key_retain);
        let Some(settled) = self.settle_by(lease, &done, commits).await else {
            return Event::Uncommitted;
        };
        match settled {
            Ok(()) => {
                self.heartbeat = None;
                self.land(&News::Settled(Record::settled(lease, &done)));
            }
            Err(ErrorKind::Fenced | ErrorKind::Corrupt) => {
                self.heartbeat = None;
                self.land(&News::Changed);
            }
            // Neither the heartbeat nor the flight may end before the result is in the store.
            Err(_) => self.unsettled = Some(done),
        }
        Event::Settled(settled)
    }

    /// Settles along with what the handler did in a transaction, or alone; `None` if it is not
    /// known what became of the transaction.
    async fn settle_by(
        &mut self,
        lease: &Lease,
        done: &Settlement,
        commits: bool,
    ) -> Option<Result<(), ErrorKind>> {
        let is_kept = matches!(done.state, State::Completed | State::NotReplayable);
        let certain = |settled: Result<(), ErrorKind>| {
            matches!(settled, Ok(()) | Err(ErrorKind::Fenced)).then_some(settled)
        };
        if self.left.is_settled_by_hand() && is_kept {
            self.left.roll_back().await;
            // Rare, and large: apart from the future of those that settle here.
            return certain(Box::pin(self.confirm(lease, done)).await);
        }
        if commits && let Some(committed) = self.left.commit(lease, done).await {
            return certain(committed);
        }
        self.left.roll_back().await;
        let store = self.engine.store();
        Some(self.in_time(|| store.settle(lease, done)).await)
    }

    /// Whether the handler's own transaction was committed: its settlement is there, or it is not.
    ///
    /// With another response than the handler's, which it gave after all, that one counts.
    async fn confirm(&self, lease: &Lease, done: &Settlement) -> Result<(), ErrorKind> {
        let store = self.engine.store();
        match self.in_time(|| store.lookup(&lease.id)).await? {
            Some(RecordSnapshot::Settled(record))
                if record.token == lease.token
                    && record.state == done.state
                    && record.payload == done.payload =>
            {
                Ok(())
            }
            Some(RecordSnapshot::Held(holder)) if holder.token == lease.token => {
                Err(ErrorKind::Unavailable)
            }
            _ => Err(ErrorKind::Fenced),
        }
    }

    /// Takes a step that may be taken twice, again and again within the time to settle in.
    async fn in_time<T, F>(&self, step: impl Fn() -> F) -> Result<T, ErrorKind>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut left = self.engine.policy().settle_timeout;
        let deadline = Instant::now() + left;
        let mut pause = SETTLE_AGAIN_MIN;
        loop {
            match within(left.min(SETTLE_STEP_MAX), step()).await.map_err(ErrorKind::from) {
                Err(kind) if kind.is_transient() && !left.is_zero() => {}
                taken => return taken,
            }
            sleep(pause.min(deadline.saturating_duration_since(Instant::now()))).await;
            pause = (pause * 2).min(SETTLE_AGAIN_MAX);
            left = deadline.saturating_duration_since(Instant::now());
        }
    }
}

const SETTLE_STEP_MAX: Duration = Duration::from_secs(1);
const SETTLE_AGAIN_MIN: Duration = Duration::from_millis(20);
const SETTLE_AGAIN_MAX: Duration = Duration::from_millis(500);
