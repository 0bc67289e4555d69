//! Bodies that flow on after the answer, while the claim holds.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use idemptx_core::coordination::Unconfirmed;
use idemptx_core::lease::Lease;
use idemptx_core::record::State;
use idemptx_core::store::{Settlement, Store};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Driver;
use crate::single_flight::Update;

/// The end of a body, for its driver; dropped, it lets the client have that end.
pub(crate) struct BodyWatch {
    /// Resolves to false, or to an error, if the body broke off.
    ended: oneshot::Receiver<bool>,
    freed: oneshot::Sender<()>,
}

/// Reports the end of a body; dropped before, the body counts as broken off.
#[derive(Debug)]
pub(crate) struct BodyFlow {
    ended: Option<oneshot::Sender<bool>>,
    /// Ends once nothing holds the key for this body's sake any more.
    freed: oneshot::Receiver<()>,
}

/// Returns both ends of the report of a body's end.
pub(crate) fn body_flow() -> (BodyFlow, BodyWatch) {
    let ((ending, ended), (freeing, freed)) = (oneshot::channel(), oneshot::channel());
    (BodyFlow { ended: Some(ending), freed }, BodyWatch { ended, freed: freeing })
}

impl BodyFlow {
    /// Reports that the body has ended.
    pub(crate) fn end(&mut self, is_whole: bool) {
        if let Some(sender) = self.ended.take() {
            // Most bodies were settled before they flowed: nobody waits for their end.
            let _ = sender.send(is_whole);
        }
    }

    /// Resolves once the client may have the end of the body: a request that it sends then finds
    /// the key as this one has left it.
    pub(crate) fn poll_freed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Its other end is never sent to, but dropped.
        Pin::new(&mut self.freed).poll(cx).map(drop)
    }
}

impl<S: Store> Driver<S> {
    /// Gives the claim up once the body has ended; the lease is renewed until then.
    pub(super) fn after_body(
        &mut self,
        lease: Lease,
        broken: Option<State>,
        flow: Option<BodyWatch>,
    ) {
        let engine = Arc::clone(&self.engine);
        let (heartbeat, mut leader) = (self.heartbeat.take(), self.leader.take());
        // `Engine::drain` waits for it until the release is with the renewer, for which it waits too.
        let open = engine.open_body();
        tokio::spawn(async move {
            let (ended, freed) = flow.map(|it| (it.ended, it.freed)).unzip();
            let ended = async {
                match ended {
                    Some(ended) => ended.await.unwrap_or(false),
                    None => true,
                }
            };
            tokio::pin!(ended);
            let loss = heartbeat.as_ref().map(|it| Arc::clone(it.loss()));
            let lost = async {
                match loss {
                    Some(loss) => loss.wait().await,
                    None => std::future::pending().await,
                }
            };
            let is_whole = tokio::select! {
                is_whole = &mut ended => is_whole,
                () = lost => {
                    // Another process has the record: duplicates here must not wait for this body.
                    if let Some(leader) = leader.take() {
                        leader.complete(&Update::Changed);
                    }
                    ended.await
                }
            };
            let operation = match broken.filter(|_| !is_whole) {
                None => Unconfirmed::Release(lease),
                Some(state) => {
                    let payload = lease.description.clone();
                    Unconfirmed::Settle(lease, Settlement::by(engine.policy(), state, payload))
                }
            };
            let confirmed = engine.lease_renewer().enqueue(operation, heartbeat, leader);
            drop(open);
            // The client waits for no store that is away.
            let _ = timeout(engine.policy().settle_timeout, confirmed).await;
            drop(freed);
        });
    }
}
