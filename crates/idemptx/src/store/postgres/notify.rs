//! Wake-ups: who waits in this process for the end of somebody's claim.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use idemptx_core::key::RecordId;
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

    /// What a session that listens hands its notifications to.
    pub(super) fn ear(self: &Arc<Self>) -> Ear {
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
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }
}

/// The receiving end of one session, which the session owns.
pub(super) struct Ear(Arc<Waiters>);

impl Ear {
    /// Wakes whoever waits for the record that a notification names.
    pub(super) fn hear(&self, payload: &str) {
        drop(id_in(payload).and_then(|id| self.0.lock().remove(&id)));
    }
}

impl Drop for Ear {
    /// However the session ended, it may have swallowed any wake-up.
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

/// The id that a payload spells in hexadecimal digits.
fn id_in(payload: &str) -> Option<RecordId> {
    let mut bytes = [0; RecordId::BYTES];
    if payload.len() != 2 * bytes.len() {
        return None;
    }
    for (place, byte) in bytes.iter_mut().enumerate() {
        let digits = payload.get(2 * place..2 * place + 2)?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(RecordId::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> RecordId {
        RecordId::from_bytes([0xA7; RecordId::BYTES])
    }

    #[tokio::test]
    async fn a_notification_wakes_whoever_waits_for_its_record() {
        let waiters = Arc::new(Waiters::default());
        let ear = waiters.ear();
        let (woken, other) =
            (waiters.wait(id()), waiters.wait(RecordId::from_bytes([1; RecordId::BYTES])));
        for nonsense in ["", "a7", &"x".repeat(64), &"ä".repeat(32)] {
            ear.hear(nonsense);
        }
        assert_eq!(waiters.len(), 2);
        ear.hear(&"a7".repeat(32));
        woken.await;
        assert_eq!(waiters.len(), 1);
        drop(other);
        assert_eq!(waiters.len(), 0);
    }

    #[tokio::test]
    async fn the_end_of_a_session_wakes_everybody() {
        let waiters = Arc::new(Waiters::default());
        let waiting = waiters.wait(id());
        drop(waiters.ear());
        waiting.await;
    }
}
