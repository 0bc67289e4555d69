//! Wake-ups: who waits in this process for the end of somebody's claim, in a store that tells of it
//! over a connection.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use idemptx_core::key::RecordId;
use tokio::sync::oneshot;

/// Everybody in this process who waits for the end of a claim.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<HashMap<RecordId, Vec<oneshot::Sender<()>>>>);

impl Waiters {
    /// Begins to wait for a record.
    pub(crate) fn wait(self: &Arc<Self>, id: RecordId) -> Waiting {
        let (sender, receiver) = oneshot::channel();
        self.lock().entry(id).or_default().push(sender);
        Waiting { waiters: self.clone(), id, receiver }
    }

    /// What a connection that listens hands its notifications to.
    pub(crate) fn ear(self: &Arc<Self>) -> Ear {
        Ear(self.clone())
    }

    fn forget_the_gone(&self, id: &RecordId) {
        let mut waiters = self.lock();
        if let Some(senders) = waiters.get_mut(id) {
            senders.retain(|sender| !sender.is_closed());
            if senders.is_empty() {
                waiters.remove(id);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RecordId, Vec<oneshot::Sender<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }
}

/// The receiving end of one connection, which the connection owns.
pub(crate) struct Ear(Arc<Waiters>);

impl Ear {
    /// Wakes whoever waits for a record.
    pub(crate) fn hear(&self, id: &RecordId) {
        drop(self.0.lock().remove(id));
    }
}

impl Drop for Ear {
    /// However the connection ended, it may have swallowed any wake-up.
    fn drop(&mut self) {
        self.0.lock().clear();
    }
}

/// Resolves when the record may have changed; its sender is dropped to wake it.
#[derive(Debug)]
pub(crate) struct Waiting {
    waiters: Arc<Waiters>,
    id: RecordId,
    receiver: oneshot::Receiver<()>,
}

impl Future for Waiting {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.receiver).poll(cx).map(drop)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.receiver.close();
        self.waiters.forget_the_gone(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> RecordId {
        RecordId::from_bytes([0xA7; RecordId::BYTES])
    }

    #[tokio::test]
    async fn whoever_waits_for_a_record_is_woken_and_nobody_else() {
        let waiters = Arc::new(Waiters::default());
        let other = waiters.wait(RecordId::from_bytes([1; RecordId::BYTES]));
        let woken = waiters.wait(id());
        waiters.ear().hear(&id());
        woken.await;
        drop(other);
        assert_eq!(waiters.len(), 0);
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_is_forgotten() {
        let waiters = Arc::new(Waiters::default());
        let (stays, leaves) = (waiters.wait(id()), waiters.wait(id()));
        drop(leaves);
        assert_eq!(waiters.len(), 1);
        drop(stays);
        assert_eq!(waiters.len(), 0);
    }

    #[tokio::test]
    async fn the_end_of_a_connection_wakes_everybody() {
        let waiters = Arc::new(Waiters::default());
        let waiting = waiters.wait(id());
        drop(waiters.ear());
        waiting.await;
    }
}
