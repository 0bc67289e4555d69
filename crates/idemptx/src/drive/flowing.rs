//! Bodies that flow on after the answer, while the claim holds.

use std::sync::Arc;

use idemptx_core::coordination::Unconfirmed;
use idemptx_core::lease::Lease;
use idemptx_core::record::State;
use idemptx_core::store::{Settlement, Store};
use tokio::sync::oneshot;

use super::Driver;
use crate::single_flight::Update;

/// The end of a body, for its driver; it resolves to false, or to an error, if the body broke off.
pub(crate) type BodyWatch = oneshot::Receiver<bool>;

/// Reports the end of a body; dropped before, the body counts as broken off.
#[derive(Debug)]
pub(crate) struct BodyFlow(Option<oneshot::Sender<bool>>);

/// Returns both ends of the report of a body's end.
pub(crate) fn body_flow() -> (BodyFlow, BodyWatch) {
    let (sender, receiver) = oneshot::channel();
    (BodyFlow(Some(sender)), receiver)
}

impl BodyFlow {
    /// Reports that the body has ended.
    pub(crate) fn end(&mut self, is_whole: bool) {
        if let Some(sender) = self.0.take() {
            // Most bodies were settled before they flowed: nobody waits for their end.
            let _ = sender.send(is_whole);
        }
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
            let ended = async {
                match flow {
                    Some(flow) => flow.await.unwrap_or(false),
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
            engine.lease_renewer().enqueue(operation, heartbeat, leader);
            drop(open);
        });
    }
}
