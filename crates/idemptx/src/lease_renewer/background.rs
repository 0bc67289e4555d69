//! Operations that the store has not confirmed, repeated as [`Confirmation`] says.

use std::rc::Rc;
use std::sync::Arc;

use idemptx_core::coordination::{Confirmation, Next, Unconfirmed};
use idemptx_core::store::Store;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::sleep;

use super::{Heartbeat, Shared};
use crate::single_flight::Leader;
use crate::time_limit::limited;

/// An operation to repeat until the store confirms it.
#[derive(Debug)]
pub(super) struct BackgroundTask {
    pub(super) confirmation: Confirmation,
    /// Lasts until the operation is over.
    pub(super) heartbeat: Option<Heartbeat>,
    /// Completes the record when the operation is over.
    pub(super) leader: Option<Leader>,
    /// Dropped when the operation is over.
    pub(super) over: oneshot::Sender<()>,
}

/// Runs tasks until the engine is gone and the last one is done.
pub(super) async fn run<S: Store>(
    shared: Arc<Shared<S>>,
    mut inbox: mpsc::UnboundedReceiver<BackgroundTask>,
) {
    let turns = Rc::new(Semaphore::new(Confirmation::AT_ONCE_MAX));
    let mut running = tokio::task::JoinSet::new();
    while let Some(task) = inbox.recv().await {
        while running.try_join_next().is_some() {}
        let (shared, turns) = (Arc::clone(&shared), Rc::clone(&turns));
        running.spawn_local(async move { confirm(&shared, &turns, task).await });
    }
    while running.join_next().await.is_some() {}
}

async fn confirm<S: Store>(shared: &Shared<S>, turns: &Semaphore, task: BackgroundTask) {
    let BackgroundTask { mut confirmation, heartbeat, leader, over } = task;
    let update = loop {
        let outcome = {
            // Never closed; and without a turn the operation may be sent all the same.
            let _turn = turns.acquire().await;
            let attempt = async {
                match confirmation.operation() {
                    Unconfirmed::Release(lease) => shared.store.release(lease).await,
                    Unconfirmed::Settle(lease, done) => shared.store.settle(lease, done).await,
                }
            };
            limited(Confirmation::TIME_LIMIT, attempt).await
        };
        let outcome = outcome.map_err(|error| error.kind());
        match confirmation.attempted(outcome, shared.now(), &shared.journal) {
            Next::Repeat(pause) => {
                shared.note_confirmed();
                sleep(pause).await;
            }
            Next::Over(update) => break update,
        }
    };
    drop(heartbeat);
    if let Some(leader) = leader {
        leader.complete(&update);
    }
    confirmation.close(&shared.journal);
    drop(over);
    shared.note_confirmed();
}
