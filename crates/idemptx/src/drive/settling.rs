//! The end of an execution in the store.

use std::time::Duration;

use bytes::Bytes;
use idemptx_core::exchange::{Event, confirmed};
use idemptx_core::lease::Lease;
use idemptx_core::record::{Record, State};
use idemptx_core::store::{ErrorKind, Settlement, Store, StoreError};

use super::Driver;
use crate::retry::{Backoff, retry_within};
use crate::single_flight::Update;
use crate::time_limit::limited;

impl<S: Store> Driver<S> {
    pub(super) async fn release(&mut self, lease: &Lease) -> Event {
        self.pending.roll_back().await;
        let limit = self.engine.policy().claim_timeout;
        let released = limited(limit, self.engine.store().release(lease)).await;
        let released = released.map_err(|error| error.kind());
        if matches!(released, Ok(()) | Err(ErrorKind::Fenced | ErrorKind::Corrupt)) {
            self.heartbeat = None;
        }
        self.complete(&Update::Changed);
        Event::Released(released)
    }

    pub(super) async fn settle(
        &mut self,
        lease: &Lease,
        state: State,
        payload: Bytes,
        commits: bool,
    ) -> Event {
        let done = Settlement::by(self.engine.policy(), state, payload);
        let Some(settled) = self.settle_with_effects(lease, &done, commits).await else {
            return Event::Uncommitted;
        };
        match settled {
            Ok(()) => {
                self.heartbeat = None;
                if let Some(leader) = self.leader.take() {
                    leader.complete_with(|| Update::Settled(Record::settled(lease, &done)));
                }
            }
            Err(ErrorKind::Fenced | ErrorKind::Corrupt) => {
                self.heartbeat = None;
                self.complete(&Update::Changed);
            }
            // Heartbeat and leadership last until the result is in the store.
            Err(_) => self.unsettled = Some(done),
        }
        Event::Settled(settled)
    }

    /// Settles in the handler's transaction, or alone; `None` if it is not known how the transaction
    /// ended.
    async fn settle_with_effects(
        &mut self,
        lease: &Lease,
        done: &Settlement,
        commits: bool,
    ) -> Option<Result<(), ErrorKind>> {
        let is_kept = matches!(done.state, State::Completed | State::NotReplayable);
        let certain = |settled: Result<(), ErrorKind>| {
            matches!(settled, Ok(()) | Err(ErrorKind::Fenced)).then_some(settled)
        };
        if self.pending.is_settled_manually() && is_kept {
            self.pending.roll_back().await;
            // Rare, and large: apart from the future of those that settle here.
            return Box::pin(self.confirm(lease, done)).await;
        }
        if commits && let Some(committed) = self.pending.commit(lease, done).await {
            return certain(committed);
        }
        self.pending.roll_back().await;
        let store = self.engine.store();
        Some(self.repeat(|| store.settle(lease, done)).await)
    }

    /// Looks whether the handler's own transaction was committed, with its settlement.
    async fn confirm(&self, lease: &Lease, done: &Settlement) -> Option<Result<(), ErrorKind>> {
        let store = self.engine.store();
        confirmed(lease, done, &self.repeat(|| store.lookup(&lease.id)).await)
    }

    /// Repeats an operation that may be sent twice, within the policy's `settle_timeout`.
    async fn repeat<T, F>(&self, operation: impl Fn() -> F) -> Result<T, ErrorKind>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let limit = self.engine.policy().settle_timeout;
        let attempt = |left: Duration| limited(left.min(ATTEMPT_TIMEOUT), operation());
        let outcome = retry_within(limit, BACKOFF, ErrorKind::is_transient, attempt).await;
        outcome.map_err(|error| error.kind())
    }
}

const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
