//! The transactions of a handler, to be ended with its execution.

#[cfg(feature = "postgres")]
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use idemptx_core::lease::Lease;
use idemptx_core::store::{ErrorKind, Settlement};

#[cfg(any(feature = "postgres", feature = "sqlite"))]
use super::SettleError;
#[cfg(feature = "postgres")]
use super::TransactionError;
#[cfg(feature = "postgres")]
use crate::store::Transactional;
#[cfg(feature = "postgres")]
use crate::store::postgres::OpenTransaction;

/// The transactions of one execution.
#[derive(Debug, Default)]
pub(crate) struct Effects(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    left: PendingEffects,
    /// The handler has ended.
    is_over: bool,
}

impl Effects {
    /// Begins a transaction, unless there is one, or the handler has ended.
    #[cfg(feature = "postgres")]
    pub(crate) async fn begin(
        &self,
        store: &Arc<dyn Transactional>,
    ) -> Result<Arc<OpenTransaction>, TransactionError> {
        drop(self.vacant()?);
        let open = store.begin().await.map_err(TransactionError::Store)?;
        let open = Arc::new(open);
        // What was begun in vain is rolled back by being dropped.
        self.vacant()?.left.open = Some(Open { transaction: open.clone(), store: store.clone() });
        Ok(open)
    }

    #[cfg(feature = "postgres")]
    fn vacant(&self) -> Result<MutexGuard<'_, State>, TransactionError> {
        let state = self.state();
        match &*state {
            State { is_over: true, .. } => Err(TransactionError::Finished),
            State { left: PendingEffects { open: Some(_), .. }, .. } => {
                Err(TransactionError::Begun)
            }
            _ => Ok(state),
        }
    }

    /// The handler has no transaction any more.
    #[cfg(feature = "postgres")]
    pub(crate) fn rolled_back(&self) {
        self.state().left.open = None;
    }

    /// Records that the operation is settled in the application's transaction, which that commits;
    /// returns whether it was before.
    ///
    /// It counts even if the settlement's future is dropped.
    ///
    /// Not once the handler has ended: from then on the operation is settled with its answer.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn begin_manual_settlement(&self) -> Result<bool, SettleError> {
        let mut state = self.state();
        if state.is_over {
            return Err(SettleError::Finished);
        }
        Ok(std::mem::replace(&mut state.left.is_settled_manually, true))
    }

    /// Records that the settlement failed: the state is what it was before.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn restore_manual_settlement(&self, was: bool) {
        self.state().left.is_settled_manually = was;
    }

    /// The handler has ended: what it left, and nothing from now on.
    pub(crate) fn end(&self) -> PendingEffects {
        let mut state = self.state();
        state.is_over = true;
        std::mem::take(&mut state.left)
    }

    /// No code of ours panics while it holds the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The transactions that a handler has left.
#[derive(Debug, Default)]
pub(crate) struct PendingEffects {
    #[cfg(feature = "postgres")]
    open: Option<Open>,
    is_settled_manually: bool,
}

#[cfg(feature = "postgres")]
struct Open {
    transaction: Arc<OpenTransaction>,
    store: Arc<dyn Transactional>,
}

impl PendingEffects {
    /// Returns `true` if the handler's own transaction has settled, and is committed, as it says.
    pub(crate) const fn is_settled_manually(&self) -> bool {
        self.is_settled_manually
    }

    /// Settles in the transaction and commits it; `None` if there is none.
    ///
    /// After [`ErrorKind::Fenced`] it is rolled back for certain; after anything else that is unknown.
    #[cfg_attr(
        not(feature = "postgres"),
        allow(clippy::unused_async, reason = "there are no such transactions")
    )]
    pub(crate) async fn commit(
        &mut self,
        lease: &Lease,
        done: &Settlement,
    ) -> Option<Result<(), ErrorKind>> {
        #[cfg(feature = "postgres")]
        if let Some(Open { transaction, store }) = self.open.take() {
            let committed = transaction.commit(&*store, lease, done).await;
            return Some(committed.map_err(|error| error.kind()));
        }
        let _ = (lease, done);
        None
    }

    /// Rolls the transaction back, if there is one.
    #[cfg_attr(
        not(feature = "postgres"),
        allow(clippy::unused_async, reason = "there are no such transactions")
    )]
    pub(crate) async fn roll_back(&mut self) {
        #[cfg(feature = "postgres")]
        if let Some(Open { transaction, .. }) = self.open.take() {
            transaction.roll_back().await;
        }
    }
}

#[cfg(feature = "postgres")]
impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.transaction.fmt(f)
    }
}
