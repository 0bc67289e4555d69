//! The async driver: one [`Exchange`] on one store, from the request's body to its answer.
//!
//! It runs in the client's task, the handler included.
//! Once a claim was sent, a client that leaves no longer cancels it: the [`Detachable`] around it
//! moves it to a task of the runtime, where the claim is released, or the handler and the record of
//! its result are finished.
//!
//! [`Detachable`]: crate::detachable::Detachable

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use idemptx_core::coordination::{Unconfirmed, WaitLimits};
use idemptx_core::exchange::{Action, Answer, Deferred, Directive, Event, Exchange, Handled};
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::outcome::{Bypass, Code, Rejection};
use idemptx_core::record::State;
use idemptx_core::store::{
    Claim, ClaimInfo, ClaimRequest, ErrorKind, RecordSnapshot, Settlement, Store, StoreFailure,
};
use idemptx_core::time::{Clock, Timestamp};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::detachable::Attachment;
use crate::engine::Inner;
use crate::execution::Execution;
use crate::lease_renewer::Heartbeat;
use crate::single_flight::{Entry, Leader, Update, WaitSlot};
use crate::time_limit::limited;
use crate::transaction::PendingEffects;

mod catch_panic;
mod driven;
mod flowing;
mod permits;
mod settling;
mod watcher;

use self::catch_panic::CatchPanic;
use self::driven::PanicPayload;
pub(crate) use self::driven::{Driven, Failure, Reply};
pub(crate) use self::flowing::{BodyFlow, BodyWatch, body_flow};
use self::permits::acquire;

/// The operation that is executed under a key.
pub(crate) trait Work: Send + 'static {
    /// The value for the caller.
    type Product: Send + 'static;

    /// Runs it; a panic counts as [`Handled::Failed`].
    fn run(self, execution: Execution) -> impl Future<Output = WorkResult<Self::Product>> + Send;
}

/// The end of an execution.
pub(crate) struct WorkResult<P> {
    pub(crate) handled: Handled,
    /// `None` if it broke down without a value.
    pub(crate) product: Option<P>,
    /// The payload for the store: the request's description, and then a response, or the head of
    /// one that cannot be replayed; `None` if there is no response.
    pub(crate) payload: Option<Bytes>,
    /// The end of the body after [`Handled::Flowing`].
    pub(crate) flow: Option<BodyWatch>,
}

impl<P> WorkResult<P> {
    /// An execution that failed without a value, after it may have decided about its record.
    pub(crate) const fn failed(directive: Option<Directive>) -> Self {
        Self { handled: Handled::Failed { directive }, product: None, payload: None, flow: None }
    }
}

/// Drives an exchange whose request is known to its end.
///
/// # Cancel safety
///
/// It is to be polled inside of a `Detachable` with the driver's [`Attachment`].
/// Dropped before a claim was sent, with its driver, it leaves nothing; dropped later, it goes on: a
/// claim that the store grants after that is released, and a handler that has started ends, with its
/// result stored.
#[expect(
    clippy::manual_async_fn,
    reason = "an `async fn` keeps its arguments twice, and this is part of every request's future"
)]
pub(crate) fn drive<S: Store, W: Work>(
    driver: &mut Driver<S>,
    mut action: Action,
    work: W,
) -> impl Future<Output = Driven<W>> + Send {
    async move {
        let mut work = Some(work);
        let mut result = WorkResult::failed(None);
        loop {
            let event = match action {
                Action::Claim { id, claim_request: ref request } => {
                    let verdict = driver.claim(id, request).await;
                    if driver.attachment.is_detached()
                        && let Ok(claim) = verdict
                    {
                        // Rare, so apart.
                        Box::pin(driver.give_up(claim)).await;
                        return driver.abandoned();
                    }
                    Event::Claimed(verdict)
                }
                // The start rule holds because nothing is awaited between the step that compared the
                // age of the lease, and the first poll of the handler.
                Action::Execute(ref lease) => {
                    result = match work.take() {
                        Some(work) => driver.run(lease, work).await,
                        None => WorkResult::failed(None),
                    };
                    Event::Handled(result.handled)
                }
                Action::Settle { ref lease, state, ref response, commits } => {
                    let payload = match response {
                        _ if state == State::Unknown => lease.description.clone(),
                        Some(response) => response.encode_after(&lease.description),
                        None => result.payload.take().unwrap_or_else(|| lease.description.clone()),
                    };
                    driver.settle(lease, state, payload, commits).await
                }
                Action::Answer { answer, deferred } => {
                    driver.defer(deferred, result.flow.take());
                    return driver.answer(answer, work, result.product);
                }
                action => driver.perform_rare(action).await,
            };
            action = driver.step(event);
        }
    }
}

/// An exchange with what it holds in this process.
pub(crate) struct Driver<S: Store> {
    engine: Arc<Inner<S>>,
    exchange: Exchange,
    attachment: Attachment,
    /// The time of the exchange's last step.
    stepped: Timestamp,
    leader: Option<Leader>,
    permit: Option<OwnedSemaphorePermit>,
    /// The permit of the operation's principal, where their number is limited.
    scope_permit: Option<OwnedSemaphorePermit>,
    /// A claim is in force, or may be: there is something to release.
    may_be_claimed: bool,
    heartbeat: Option<Heartbeat>,
    /// The transaction that the handler left open.
    pending: PendingEffects,
    /// The result that could not be settled in time, for the background.
    unsettled: Option<Settlement>,
    /// The payload of the handler's panic.
    ///
    /// The mutex makes the driver `Sync`, and is never contended.
    panic: Mutex<Option<PanicPayload>>,
}

impl<S: Store> Driver<S> {
    pub(crate) fn new(engine: &Arc<Inner<S>>, exchange: Exchange) -> Self {
        Self {
            engine: Arc::clone(engine),
            exchange,
            attachment: Attachment::default(),
            stepped: Timestamp::default(),
            leader: None,
            permit: None,
            scope_permit: None,
            may_be_claimed: false,
            heartbeat: None,
            pending: PendingEffects::default(),
            unsettled: None,
            panic: Mutex::default(),
        }
    }

    pub(crate) fn engine(&self) -> &Arc<Inner<S>> {
        &self.engine
    }

    pub(crate) fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Returns the switch that says whether a client that leaves cancels the exchange.
    pub(crate) fn attachment(&self) -> Attachment {
        self.attachment.clone()
    }

    pub(crate) fn step(&mut self, event: Event) -> Action {
        let now = self.engine.clock().now();
        let last = std::mem::replace(&mut self.stepped, now);
        if let Event::Handled(_) = event {
            self.engine.typical().took(now.since(last));
        }
        self.exchange.step(event, now)
    }

    /// Performs an action of few exchanges, in a box: the futures of the others have no room for it.
    fn perform_rare(&mut self, action: Action) -> Pin<Box<impl Future<Output = Event> + '_>> {
        Box::pin(self.perform(action))
    }

    async fn perform(&mut self, action: Action) -> Event {
        let limit = self.engine.policy().claim_timeout;
        match action {
            Action::Lookup(id) => {
                let found = limited(limit, self.engine.store().lookup(&id)).await;
                Event::Looked(found.map_err(|error| error.kind()))
            }
            Action::Meter => Event::Metered { within: self.meter() },
            Action::Renew(lease) => {
                self.pending.roll_back().await;
                let renewed = limited(limit, self.engine.store().renew(&lease)).await;
                Event::Renewed(renewed.map(drop).map_err(|error| error.kind()))
            }
            Action::Probe { attempt } => {
                Event::Probed(self.engine.probe(&self.exchange, attempt).await)
            }
            Action::Wait { id, holder, until } => self.wait(id, holder, until).await,
            Action::Release(lease) => self.release(&lease).await,
            // The caller performs these itself.
            _ => Event::WaitOver,
        }
    }

    /// Claims, or takes the answer that another request of this process got.
    async fn claim(&mut self, id: RecordId, request: &ClaimRequest) -> Result<Claim, StoreFailure> {
        while self.leader.is_none() {
            match self.engine.single_flight().enter(id) {
                Entry::Lead(leader) => self.leader = Some(leader),
                Entry::Held(holder) => return Ok(Claim::Found(RecordSnapshot::Held(holder))),
                Entry::Follow(update) => {
                    // Without an update its leader is gone.
                    let update = update.await.unwrap_or(Update::Changed);
                    if let Some(verdict) = update.claimed() {
                        return verdict;
                    }
                }
            }
        }
        let verdict = self.claim_alone(&id, request).await;
        let update = match &verdict {
            // Given up at once: the others ask for themselves, not wait for it.
            Ok(Claim::Granted(_)) if self.attachment.is_detached() => return verdict,
            Ok(Claim::Granted(lease)) => {
                if let Some(leader) = &self.leader {
                    leader.announce(ClaimInfo::of(lease));
                }
                return verdict;
            }
            Ok(Claim::Found(RecordSnapshot::Held(holder))) => Update::Held(*holder),
            Ok(Claim::Found(RecordSnapshot::Settled(record))) => Update::Settled(record.clone()),
            Ok(_) => Update::Changed,
            // The others have clients that still wait: each may try for itself.
            Err(_) if self.attachment.is_detached() => Update::Changed,
            Err(failure) => Update::Failed(*failure),
        };
        (self.permit, self.scope_permit) = (None, None);
        self.complete(&update);
        verdict
    }

    async fn claim_alone(
        &mut self,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Claim, StoreFailure> {
        let limit = self.engine.policy().claim_timeout;
        if self.engine.is_closed_to_claims() {
            return Err(ErrorKind::Full.into());
        }
        // The principal's own first: while it waits for that, it takes nothing from others.
        if self.scope_permit.is_none()
            && let Some(operation) = self.exchange.operation()
            && let Some(permits) = self.engine.scope_permits(operation)
        {
            self.scope_permit = Some(acquire(permits, limit).await?);
        }
        if self.permit.is_none() {
            self.permit = Some(acquire(self.engine.permits(), limit).await?);
        }
        self.may_be_claimed = true;
        // From here on the answer is waited for, client or not: only it says whether there is a
        // claim to release, and a release that is sent on suspicion would have to be sent again.
        self.attachment.hold();
        let verdict = limited(limit, self.engine.store().claim(id, request)).await;
        let verdict = verdict.map_err(|error| error.failure());
        self.may_be_claimed = match &verdict {
            Ok(claim) => matches!(claim, Claim::Granted(_)),
            Err(failure) => failure.kind.is_unknown(),
        };
        if !self.may_be_claimed {
            self.attachment.loosen();
        }
        verdict
    }

    /// Releases what was claimed for a client that has left meanwhile.
    async fn give_up(&mut self, claim: Claim) {
        if let Claim::Granted(lease) = claim {
            let limit = self.engine.policy().claim_timeout;
            let released = limited(limit, self.engine.store().release(&lease)).await;
            // Not before: dropped in the middle of it, the claim is released in the background.
            self.may_be_claimed = false;
            if released.is_err() {
                self.engine.lease_renewer().enqueue(Unconfirmed::Release(lease), None, None);
            }
            self.complete(&Update::Changed);
        }
    }

    /// Returns the end of the exchange with what the work, if it was run, has made.
    fn answer<W: Work>(
        &mut self,
        answer: Answer,
        work: Option<W>,
        product: Option<W::Product>,
    ) -> Driven<W> {
        let outcome = self.exchange.outcome(&answer);
        let panic = self.panic.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let reply = match (answer, work, product) {
            (Answer::Pass(bypass), Some(work), _) => return self.pass(bypass, work),
            (Answer::Own { .. }, _, Some(product)) => Reply::Own(product),
            (Answer::Replay(response), ..) => Reply::Replay(response),
            (Answer::Refuse(rejection), _, product) => Reply::Refuse { rejection, product },
            (Answer::Broken { .. }, _, product) => {
                let value = product.map(Failure::Value);
                match panic.map(Failure::Panic).or(value) {
                    Some(failure) => Reply::Broken(failure),
                    None => return self.impossible(),
                }
            }
            _ => return self.impossible(),
        };
        Driven::Reply(reply, outcome)
    }

    /// Lets the caller run the work as if there were no engine, if there is still a client for it.
    fn pass<W: Work>(&self, bypass: Bypass, work: W) -> Driven<W> {
        if self.attachment.is_detached() {
            return self.abandoned();
        }
        self.attachment.loosen();
        Driven::Pass(bypass, work)
    }

    /// The answer to a client that has left.
    fn abandoned<W: Work>(&self) -> Driven<W> {
        let rejection = Rejection::new(Code::InProgress, self.engine.policy());
        Driven::refuse(rejection)
    }

    fn meter(&self) -> bool {
        self.exchange.operation().is_none_or(|operation| self.engine.meter(operation))
    }

    /// Runs the handler with a heartbeat; a panic ends as one that broke down.
    async fn run<W: Work>(&mut self, lease: &Lease, work: W) -> WorkResult<W::Product> {
        let Some(operation) = self.exchange.operation() else { return WorkResult::failed(None) };
        let heartbeat = self.engine.lease_renewer().keep_alive(lease);
        let loss = Arc::clone(heartbeat.loss());
        let execution = Execution::new(operation.clone(), lease, Arc::clone(&loss), &self.engine);
        self.heartbeat = Some(heartbeat);
        let running = work.run(execution.clone());
        // Unlike spans of the layers outside, this one stays when the client leaves.
        #[cfg(feature = "tracing")]
        let running = tracing::Instrument::instrument(
            running,
            tracing::debug_span!(
                target: "idemptx",
                "execution",
                record = %lease.id,
                attempt = lease.attempt,
                fence = lease.fence
            ),
        );
        let mut work = pin!(CatchPanic::new(running));
        let result = tokio::select! {
            biased;
            result = &mut work => result,
            () = loss.wait() => {
                // Another process has the record: its duplicates here must not wait for this one.
                self.complete(&Update::Changed);
                work.await
            }
        };
        let result = result.unwrap_or_else(|payload| {
            self.panic = Mutex::new(Some(payload));
            WorkResult::failed(execution.outcome())
        });
        self.pending = execution.pending().end();
        result
    }

    /// Waits for the end of a claim, together with all other requests of this process.
    async fn wait(&mut self, id: RecordId, holder: ClaimInfo, until: Timestamp) -> Event {
        let (token, limits) = (holder.token, WaitLimits::of(self.engine.policy()));
        let mut waiter = match self.engine.single_flight().wait(id, holder, limits) {
            WaitSlot::Full => return Event::WaitersFull,
            WaitSlot::Joined(waiter) => waiter,
            WaitSlot::Watcher(waiter, leader) => {
                let engine = Arc::clone(&self.engine);
                tokio::spawn(watcher::watch_record(engine, id, token, leader));
                waiter
            }
        };
        let left = until.since(self.engine.clock().now());
        match timeout(left, &mut waiter.update).await {
            Err(_) => Event::WaitOver,
            Ok(update) => Event::Woken(update.ok().and_then(Update::awaited)),
        }
    }

    /// Hands over to the background what goes on after the answer.
    fn defer(&mut self, deferred: Option<Deferred>, flow: Option<BodyWatch>) {
        match deferred {
            Some(Deferred::AfterBody { lease, broken }) => self.after_body(lease, broken, flow),
            // A request that never sent a claim, or followed another one, left nothing to release.
            Some(Deferred::Release(lease)) if self.may_be_claimed => {
                let heartbeat = self.heartbeat.take();
                self.engine.lease_renewer().enqueue(Unconfirmed::Release(lease), heartbeat, None);
            }
            Some(Deferred::Settle(lease, _)) => {
                if let Some(done) = self.unsettled.take() {
                    let (heartbeat, leader) = (self.heartbeat.take(), self.leader.take());
                    let operation = Unconfirmed::Settle(lease, done);
                    self.engine.lease_renewer().enqueue(operation, heartbeat, leader);
                }
            }
            _ => {}
        }
    }

    fn complete(&mut self, update: &Update) {
        if let Some(leader) = self.leader.take() {
            leader.complete(update);
        }
    }

    /// Refuses where the exchange gives an answer that is impossible at this point.
    fn impossible<W: Work>(&self) -> Driven<W> {
        debug_assert!(false, "an own answer without an execution");
        Driven::refuse(Rejection::new(Code::StoreUnavailable, self.engine.policy()))
    }
}

impl<S: Store> Drop for Driver<S> {
    fn drop(&mut self) {
        let deferred = self.exchange.abandon();
        self.defer(deferred, None);
    }
}
