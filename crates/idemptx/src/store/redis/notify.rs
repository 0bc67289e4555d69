//! Wake-ups: who waits in this process for the end of somebody's claim.
//!
//! Subscriptions have a connection of their own.
//! Redis bounds what may queue up for a subscriber far more narrowly than for a client that asks,
//! so a burst of large answers on a shared connection would have it closed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use idemptx_core::key::RecordId;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::oneshot;

/// Everybody in this process who waits for the end of a claim.
#[derive(Debug, Default)]
pub(super) struct Waiters(Mutex<HashMap<RecordId, Vec<oneshot::Sender<()>>>>);

impl Waiters {
    /// Begins to wait for a record.
    pub(super) fn wait(self: &Arc<Self>, id: RecordId) -> Waiting {
        let (sender, receiver) = oneshot::channel();
        self.lock().entry(id).or_default().push(sender);
        Waiting { waiters: self.clone(), id, receiver }
    }

    /// What a connection with a subscription calls for everything that comes in.
    pub(super) fn listener(
        self: &Arc<Self>,
    ) -> impl Fn(PushInfo) -> Result<(), Infallible> + Send + Sync + 'static {
        let ear = Ear(self.clone());
        move |push| {
            ear.hear(&push);
            Ok(())
        }
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
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }
}

/// The receiving end of one connection, which the connection owns.
struct Ear(Arc<Waiters>);

impl Ear {
    fn hear(&self, push: &PushInfo) {
        if let (PushKind::Message, Some(Value::BulkString(id))) = (&push.kind, push.data.last()) {
            let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
            drop(id.and_then(|id: RecordId| self.0.lock().remove(&id)));
        }
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
pub(super) struct Waiting {
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
