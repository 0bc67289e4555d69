//! The async driver: one [`Exchange`] on one store, from the request's body to its answer.
//!
//! What comes before the handler runs in the client's own task and ends with it.
//! From the granted claim on everything runs in a task of its own, so that a client that leaves
//! cancels neither the handler nor the record of what it did.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use idemptx_core::exchange::{Action, Answer, Deferred, Event, Exchange, Handled};
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::outcome::{Bypass, Code, Rejection};
use idemptx_core::record::{Record, State};
use idemptx_core::response::StoredResponse;
use idemptx_core::store::{
    Claim, ClaimInfo, ClaimRequest, ErrorKind, RecordSnapshot, Settlement, Store, StoreError,
    StoreFailure,
};
use idemptx_core::time::{Clock, Timestamp};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};

use crate::engine::Inner;
use crate::execution::Execution;
use crate::flight::{Entrance, News, Pilot, Seat};
use crate::keeper::{Heartbeat, Job};
use crate::transaction::PendingEffects;

mod settling;

/// What is executed under a key.
pub(crate) trait Work: Send + 'static {
    /// What it makes.
    type Product: Send + 'static;

    /// Runs it; a panic counts as [`Handled::Broken`].
    fn run(self, execution: Execution) -> impl Future<Output = Done<Self::Product>> + Send;
}

/// How an execution ended.
pub(crate) struct Done<P> {
    pub(crate) handled: Handled,
    /// `None` if it broke down without anything to show.
    pub(crate) product: Option<P>,
    /// What a store keeps of it: a response, or the head of one that cannot be replayed.
    pub(crate) kept: Bytes,
    /// What remains to be done once the client has its answer, such as the rest of a stream.
    pub(crate) rest: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<P> Done<P> {
    /// Without anything to show.
    pub(crate) const fn broken() -> Self {
        Self { handled: Handled::Broken, product: None, kept: Bytes::new(), rest: None }
    }
}

/// How a request under a key ended.
pub(crate) enum Ended<W: Work> {
    /// To be run unprotected, by the caller.
    Pass(Bypass, W),
    Answered(Answered<W::Product>),
}

/// What there is to tell the client.
pub(crate) enum Answered<P> {
    Own {
        product: P,
        attempt: u32,
        stored: bool,
    },
    Replay(Box<StoredResponse>),
    /// Refused; with what the handler that broke down left.
    Refuse(Rejection, Option<P>),
}

/// Drives an exchange whose request is known to its end.
///
/// # Cancel safety
///
/// Dropped before the claim is granted, the claim is released in the background.
/// Dropped later, the handler and the record of its result are not affected.
#[expect(
    clippy::manual_async_fn,
    reason = "what an `async fn` is given it keeps twice, and this is part of every request's future"
)]
pub(crate) fn drive<S: Store, W: Work>(
    mut driver: Box<Driver<S>>,
    mut action: Action,
    work: W,
) -> impl Future<Output = Ended<W>> + Send {
    async move {
        loop {
            let event = match action {
                Action::Claim { id, ref claim_request } => {
                    Event::Claimed(driver.claim(id, claim_request).await)
                }
                Action::Answer { answer, deferred } => {
                    driver.deferred(deferred);
                    return Ended::Answered(match answer {
                        Answer::Pass(passed) => return Ended::Pass(passed, work),
                        Answer::Replay(response) => Answered::Replay(response),
                        Answer::Refuse(rejection) => Answered::Refuse(rejection, None),
                        // An own answer needs an execution, which only `detach` has.
                        _ => driver.impossible(),
                    });
                }
                action => driver.rarely(action).await,
            };
            if let Event::Claimed(Ok(Claim::Granted(lease))) = event {
                return detach(driver, lease, work).await;
            }
            action = driver.step(event);
        }
    }
}

/// Carries on in a task of its own, and waits for what it has to say.
fn detach<S: Store, W: Work>(
    driver: Box<Driver<S>>,
    granted: Lease,
    work: W,
) -> impl Future<Output = Ended<W>> + Send {
    let rules = Arc::clone(driver.engine.rules());
    // Boxed, so that the runtime moves a pointer.
    let executed = tokio::spawn(Box::pin(execute(driver, granted, work)));
    async move {
        executed.await.unwrap_or_else(|_| {
            // The runtime is shutting down and dropped the task: the claim lapses into an orphan.
            let rejection = Rejection::new(Code::InProgress, rules.policy());
            let rejection = rejection.retry_after(rules.policy().lease);
            Ended::Answered(Answered::Refuse(rejection, None))
        })
    }
}

async fn execute<S: Store, W: Work>(
    mut driver: Box<Driver<S>>,
    granted: Lease,
    work: W,
) -> Ended<W> {
    let mut work = Some(work);
    let mut done = Done::broken();
    // The start rule holds because nothing is awaited between this step and the handler's start.
    let mut action = driver.step(Event::Claimed(Ok(Claim::Granted(granted))));
    let ended = loop {
        let event = match action {
            Action::Execute(ref lease) => {
                done = match work.take() {
                    Some(work) => driver.run(lease, work).await,
                    None => Done::broken(),
                };
                Event::Handled(done.handled)
            }
            Action::Settle { ref lease, state, ref response, commits } => {
                let payload = match response {
                    _ if state == State::Unknown => Bytes::new(),
                    Some(response) => response.encode(),
                    None => std::mem::take(&mut done.kept),
                };
                driver.settle(lease, state, payload, commits).await
            }
            Action::Answer { answer, deferred } => {
                driver.deferred(deferred);
                break Ended::Answered(match (answer, work, done.product) {
                    (Answer::Pass(passed), Some(work), _) => break Ended::Pass(passed, work),
                    (Answer::Own { attempt, stored }, _, Some(product)) => {
                        Answered::Own { product, attempt, stored }
                    }
                    (Answer::Replay(response), ..) => Answered::Replay(response),
                    (Answer::Refuse(rejection), _, product) => Answered::Refuse(rejection, product),
                    _ => driver.impossible(),
                });
            }
            action => driver.rarely(action).await,
        };
        action = driver.step(event);
    };
    driver.heartbeat = None;
    if let Some(rest) = done.rest {
        // On the same permit, which the driver has.
        tokio::spawn(async move {
            let _driver = driver;
            rest.await;
        });
    }
    ended
}

/// An exchange with what it holds in this process.
pub(crate) struct Driver<S: Store> {
    engine: Arc<Inner<S>>,
    exchange: Exchange,
    /// When the exchange was last told something.
    stepped: Timestamp,
    pilot: Option<Pilot>,
    permit: Option<OwnedSemaphorePermit>,
    /// A claim request is, or may yet be, in force: there is something to release.
    at_stake: bool,
    heartbeat: Option<Heartbeat>,
    /// What the handler left to be committed.
    left: PendingEffects,
    /// What could not be settled in time, kept for the work behind.
    unsettled: Option<Settlement>,
}

impl<S: Store> Driver<S> {
    /// Boxed, because it moves from task to task, and an exchange is large.
    pub(crate) fn new(engine: &Arc<Inner<S>>, exchange: Exchange) -> Box<Self> {
        Box::new(Self {
            engine: Arc::clone(engine),
            exchange,
            stepped: Timestamp::default(),
            pilot: None,
            permit: None,
            at_stake: false,
            heartbeat: None,
            left: PendingEffects::default(),
            unsettled: None,
        })
    }

    pub(crate) fn engine(&self) -> &Arc<Inner<S>> {
        &self.engine
    }

    pub(crate) fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    pub(crate) fn step(&mut self, event: Event) -> Action {
        let now = self.engine.clock().now();
        let last = std::mem::replace(&mut self.stepped, now);
        if let Event::Handled(_) = event {
            self.engine.typical().took(now.since(last));
        }
        self.exchange.step(event, now)
    }

    /// Does what few exchanges have to do, apart: the others' futures have no room for it.
    fn rarely(&mut self, action: Action) -> Pin<Box<impl Future<Output = Event> + '_>> {
        Box::pin(self.perform(action))
    }

    async fn perform(&mut self, action: Action) -> Event {
        match action {
            Action::Claim { id, claim_request } => {
                Event::Claimed(self.claim(id, &claim_request).await)
            }
            Action::Lookup(id) => Event::Looked(self.lookup(&id).await),
            Action::Meter => Event::Metered { within: self.meter() },
            Action::Renew(lease) => Event::Renewed(self.renew(&lease).await),
            Action::Probe { attempt } => {
                Event::Probed(self.engine.probe(&self.exchange, attempt).await)
            }
            Action::Wait { id, holder, until } => self.wait(id, holder, until).await,
            Action::Release(lease) => self.release(&lease).await,
            // The callers do these themselves.
            _ => Event::WaitOver,
        }
    }

    /// Claims, or is told what another request of this process was told.
    async fn claim(
        &mut self,
        id: RecordId,
        claim_request: &ClaimRequest,
    ) -> Result<Claim, StoreFailure> {
        while self.pilot.is_none() {
            match self.engine.flights().enter(id) {
                Entrance::Lead(pilot) => self.pilot = Some(pilot),
                Entrance::Held(holder) => return Ok(Claim::Found(RecordSnapshot::Held(holder))),
                Entrance::Follow(news) => match news.await {
                    Ok(News::Held(holder)) => {
                        return Ok(Claim::Found(RecordSnapshot::Held(holder)));
                    }
                    Ok(News::Settled(record)) => {
                        return Ok(Claim::Found(RecordSnapshot::Settled(record)));
                    }
                    Ok(News::Failed(failure)) => return Err(failure),
                    Ok(News::Changed) | Err(_) => {}
                },
            }
        }
        let verdict = self.claim_alone(&id, claim_request).await;
        match &verdict {
            Ok(Claim::Granted(lease)) => {
                if let Some(pilot) = &self.pilot {
                    pilot.held(ClaimInfo::new(&Record::running(lease), lease.term));
                }
            }
            other => {
                let news = match other {
                    Ok(Claim::Found(RecordSnapshot::Held(holder))) => News::Held(holder.clone()),
                    Ok(Claim::Found(RecordSnapshot::Settled(record))) => {
                        News::Settled(record.clone())
                    }
                    Ok(_) => News::Changed,
                    Err(failure) => News::Failed(*failure),
                };
                self.permit = None;
                self.land(&news);
            }
        }
        verdict
    }

    async fn claim_alone(
        &mut self,
        id: &RecordId,
        claim_request: &ClaimRequest,
    ) -> Result<Claim, StoreFailure> {
        let limit = self.engine.policy().claim_timeout;
        if self.engine.is_closed_to_claims() {
            return Err(ErrorKind::Full.into());
        }
        if self.permit.is_none() {
            self.permit = match self.engine.permits().try_acquire_owned() {
                Ok(permit) => Some(permit),
                // The claim request has not been sent: refused for want of room, for certain.
                Err(_) => match timeout(limit, self.engine.permits().acquire_owned()).await {
                    Ok(Ok(permit)) => Some(permit),
                    _ => return Err(ErrorKind::Full.into()),
                },
            };
        }
        self.at_stake = true;
        let verdict = within(limit, self.engine.store().claim(id, claim_request)).await;
        self.at_stake = match &verdict {
            Ok(claim) => matches!(claim, Claim::Granted(_)),
            Err(failure) => failure.kind.is_unknown(),
        };
        verdict
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, ErrorKind> {
        let limit = self.engine.policy().claim_timeout;
        Ok(within(limit, self.engine.store().lookup(id)).await?)
    }

    async fn renew(&self, lease: &Lease) -> Result<(), ErrorKind> {
        let limit = self.engine.policy().claim_timeout;
        Ok(within(limit, self.engine.store().renew(lease)).await.map(drop)?)
    }

    fn meter(&self) -> bool {
        let scope = self.exchange.operation().map(|it| it.id());
        scope.is_none_or(|id| self.engine.meter(&id))
    }

    /// Runs the handler with a heartbeat; a panic ends as [`Handled::Broken`].
    async fn run<W: Work>(&mut self, lease: &Lease, work: W) -> Done<W::Product> {
        let Some(operation) = self.exchange.operation() else { return Done::broken() };
        let heartbeat = self.engine.keeper().beat(lease);
        let lost = Arc::clone(heartbeat.lost());
        let execution = Execution::new(operation.clone(), lease, Arc::clone(&lost), &self.engine);
        self.heartbeat = Some(heartbeat);
        let mut work = CatchPanic(Box::pin(work.run(execution.clone())));
        let done = tokio::select! {
            biased;
            done = &mut work => done,
            () = lost.wait() => {
                // The record is somebody else's: whoever asks for it must not be held up by us.
                self.land(&News::Changed);
                work.await
            }
        };
        let done = done.unwrap_or_else(Done::broken);
        self.left = execution.effects().end();
        done
    }

    /// Waits for the end of somebody's claim, together with everybody else in this process.
    async fn wait(&mut self, id: RecordId, holder: ClaimInfo, until: Timestamp) -> Event {
        let token = holder.token;
        let mut waiter = match self.engine.flights().wait(id, holder) {
            Seat::Full => return Event::WaitersFull,
            Seat::Taken(waiter) => waiter,
            Seat::Vigil(waiter, pilot) => {
                tokio::spawn(keep_vigil(Arc::clone(&self.engine), id, token, pilot));
                waiter
            }
        };
        let left = until.since(self.engine.clock().now());
        match timeout(left, &mut waiter.news).await {
            Err(_) => Event::WaitOver,
            Ok(Ok(News::Settled(record))) => Event::Woken(Some(RecordSnapshot::Settled(record))),
            Ok(_) => Event::Woken(None),
        }
    }

    fn deferred(&mut self, deferred: Option<Deferred>) {
        match deferred {
            None => {}
            // Who never asked the store, or only heard what another was told, left nothing there.
            Some(Deferred::Release(lease)) if self.at_stake => {
                self.engine.keeper().deferred(Job::Release(lease));
            }
            Some(Deferred::Settle(lease, _)) => {
                if let Some(done) = self.unsettled.take() {
                    let (heartbeat, pilot) = (self.heartbeat.take(), self.pilot.take());
                    self.engine.keeper().deferred(Job::Settle { lease, done, heartbeat, pilot });
                }
            }
            Some(_) => {}
        }
    }

    fn land(&mut self, news: &News) {
        if let Some(pilot) = self.pilot.take() {
            pilot.land(news);
        }
    }

    /// An answer that the exchange cannot give at this point.
    fn impossible<P>(&self) -> Answered<P> {
        debug_assert!(false, "an own answer without an execution");
        Answered::Refuse(Rejection::new(Code::StoreUnavailable, self.engine.policy()), None)
    }
}

impl<S: Store> Drop for Driver<S> {
    fn drop(&mut self) {
        let deferred = self.exchange.abandon();
        self.deferred(deferred);
    }
}

/// Watches a record that another process claimed with `token`, until it changes or nobody waits
/// any more.
async fn keep_vigil<S: Store>(engine: Arc<Inner<S>>, id: RecordId, token: Token, pilot: Pilot) {
    let limit = engine.policy().claim_timeout;
    let mut pause = VIGIL_POLL_MIN;
    while pilot.is_awaited() {
        // Watch first, look then: what happens in between is not missed.
        let watch = timeout(limit, engine.store().watch(&id)).await.ok().flatten();
        let left = match within(limit, engine.store().lookup(&id)).await {
            Ok(Some(RecordSnapshot::Held(holder)))
                if holder.token == token && !holder.is_orphan() =>
            {
                holder.remaining
            }
            Ok(Some(RecordSnapshot::Settled(record))) => return pilot.land(&News::Settled(record)),
            Ok(_) | Err(StoreFailure { kind: ErrorKind::Corrupt, .. }) => {
                return pilot.land(&News::Changed);
            }
            Err(_) => pause,
        };
        if watch.is_some() {
            pause = VIGIL_POLL_MAX;
        }
        let fallback = sleep(pause.min(left + VIGIL_POLL_MIN));
        match watch {
            Some(watch) => {
                tokio::select! { () = watch => {}, () = fallback => {} }
            }
            None => {
                pause = (pause * 2).min(VIGIL_POLL_MAX);
                fallback.await;
            }
        }
    }
}

/// A step of the store within a limit; beyond it, its outcome is unknown.
async fn within<T>(
    limit: Duration,
    step: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreFailure> {
    let mut step = pin!(step);
    // Only a step that is not over at once needs a timer, and the readings of the clock for it.
    let mut late = pin!(None);
    poll_fn(move |cx| {
        if let Poll::Ready(verdict) = step.as_mut().poll(cx) {
            return Poll::Ready(verdict.map_err(|error| error.failure()));
        }
        if late.is_none() {
            late.set(Some(sleep(limit)));
        }
        let is_late = late.as_mut().as_pin_mut().is_some_and(|late| late.poll(cx).is_ready());
        if is_late { Poll::Ready(Err(ErrorKind::Unavailable.into())) } else { Poll::Pending }
    })
    .await
}

/// Resolves to `None` if the future panics.
struct CatchPanic<F>(Pin<Box<F>>);

impl<F: Future> Future for CatchPanic<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.0.as_mut();
        // The future is never polled again after a panic, so no broken state can be seen.
        match std::panic::catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(poll) => poll.map(Some),
            Err(_) => Poll::Ready(None),
        }
    }
}

const VIGIL_POLL_MIN: Duration = Duration::from_millis(20);
const VIGIL_POLL_MAX: Duration = Duration::from_millis(250);
