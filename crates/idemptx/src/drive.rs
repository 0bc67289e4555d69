//! The async driver: one [`Exchange`] on one store, from the request's body to its answer.
//!
//! What comes before the handler runs in the client's own task and ends with it.
//! From the granted claim on everything runs in a task of its own, so that a client that leaves
//! cancels neither the handler nor the record of what it did.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use idemptx_core::exchange::{Action, Answer, Behind, Event, Exchange, Handled};
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::outcome::{Code, Passed, Rejection};
use idemptx_core::record::{Record, State};
use idemptx_core::response::StoredResponse;
use idemptx_core::store::{Bid, Claim, ErrorKind, Holder, Seen, Settlement, Store, StoreError};
use idemptx_core::time::{Clock, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep, timeout};

use crate::engine::Inner;
use crate::execution::Execution;
use crate::flight::{Entrance, News, Pilot, Seat};
use crate::keeper::{Heartbeat, Job};

/// What is executed under a key.
pub(crate) trait Work: Send + 'static {
    /// What it makes.
    type Product: Product;

    /// Runs it; a panic counts as [`Handled::Broken`].
    fn run(self, execution: Execution) -> impl Future<Output = Done<Self::Product>> + Send;
}

/// What an execution made, before anybody gets it.
pub(crate) trait Product: Send + 'static {
    /// What a store keeps of it: a response, or the head of one that cannot be replayed.
    fn payload(&self) -> Bytes;
}

/// How an execution ended.
pub(crate) struct Done<P> {
    pub(crate) handled: Handled,
    /// `None` if it broke down without anything to show.
    pub(crate) product: Option<P>,
    /// What remains to be done once the client has its answer, such as the rest of a stream.
    pub(crate) rest: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// How a request under a key ended.
pub(crate) enum Ended<W: Work> {
    /// To be run unprotected, by the caller.
    Pass(Passed, W),
    Own {
        product: W::Product,
        attempt: u32,
        stored: bool,
    },
    Replay(StoredResponse),
    /// Refused; with what the handler that broke down left.
    Refuse(Rejection, Option<W::Product>),
}

/// Drives an exchange whose request is known to its end.
///
/// # Cancel safety
///
/// Dropped before the claim is granted, the claim is released in the background.
/// Dropped later, the handler and the record of its result are not affected.
pub(crate) async fn drive<S: Store, W: Work>(
    engine: &Arc<Inner<S>>,
    exchange: Box<Exchange>,
    first: Action,
    work: W,
) -> Ended<W> {
    let mut driver = Driver::new(engine, exchange);
    let mut action = first;
    loop {
        let event = match action {
            Action::Answer { answer, behind } => {
                driver.behind(behind);
                return match answer {
                    Answer::Pass(passed) => Ended::Pass(passed, work),
                    Answer::Replay(response) => Ended::Replay(response),
                    Answer::Refuse(rejection) => Ended::Refuse(rejection, None),
                    // An own answer needs an execution, which only `detach` has.
                    _ => driver.impossible(),
                };
            }
            action => driver.perform(action).await,
        };
        if matches!(event, Event::Claimed(Ok(Claim::Granted(_)))) {
            return detach(driver, event, work).await;
        }
        action = driver.step(event);
    }
}

/// Carries on in a task of its own, and waits for what it has to say.
async fn detach<S: Store, W: Work>(driver: Driver<S>, granted: Event, work: W) -> Ended<W> {
    let (answer, answered) = oneshot::channel();
    let rules = Arc::clone(driver.engine.rules());
    // Boxed, so that the runtime moves a pointer and not ten kilobytes.
    tokio::spawn(Box::pin(execute(driver, granted, work, answer)));
    answered.await.unwrap_or_else(|_| {
        // The runtime is shutting down and dropped the task: the claim lapses into an orphan.
        let rejection = Rejection::new(Code::InProgress, rules.policy());
        Ended::Refuse(rejection.retry_after(rules.policy().lease), None)
    })
}

async fn execute<S: Store, W: Work>(
    mut driver: Driver<S>,
    granted: Event,
    work: W,
    answered: oneshot::Sender<Ended<W>>,
) {
    let mut work = Some(work);
    let mut product: Option<W::Product> = None;
    let mut rest = None;
    // The start rule holds because nothing is awaited between this step and the handler's start.
    let mut action = driver.step(granted);
    let ended = loop {
        let event = match action {
            Action::Execute(lease) => match work.take() {
                None => Event::Handled(Handled::Broken),
                Some(work) => {
                    let done = driver.run(&lease, work).await;
                    product = done.product;
                    rest = done.rest;
                    Event::Handled(done.handled)
                }
            },
            Action::Settle { lease, state, response } => {
                let payload = match (&response, &product) {
                    _ if state == State::Unknown => Bytes::new(),
                    (Some(response), _) => response.encode(),
                    (None, Some(product)) => product.payload(),
                    (None, None) => Bytes::new(),
                };
                driver.settle(lease, state, payload).await
            }
            Action::Answer { answer, behind } => {
                driver.behind(behind);
                break match (answer, work, product) {
                    (Answer::Pass(passed), Some(work), _) => Ended::Pass(passed, work),
                    (Answer::Own { attempt, stored }, _, Some(product)) => {
                        Ended::Own { product, attempt, stored }
                    }
                    (Answer::Replay(response), ..) => Ended::Replay(response),
                    (Answer::Refuse(rejection), _, product) => Ended::Refuse(rejection, product),
                    _ => driver.impossible(),
                };
            }
            action => driver.perform(action).await,
        };
        action = driver.step(event);
    };
    // Whoever left does not want to know; the rest is done all the same, on the same permit.
    drop(answered.send(ended));
    driver.heartbeat = None;
    if let Some(rest) = rest {
        rest.await;
    }
}

/// An exchange with what it holds in this process.
struct Driver<S: Store> {
    engine: Arc<Inner<S>>,
    /// Boxed, because a driver moves from task to task and an exchange is large.
    exchange: Box<Exchange>,
    pilot: Option<Pilot>,
    permit: Option<OwnedSemaphorePermit>,
    /// A bid is, or may yet be, in force: there is something to release.
    at_stake: bool,
    heartbeat: Option<Heartbeat>,
    /// What could not be settled in time, kept for the work behind.
    unsettled: Option<Settlement>,
}

impl<S: Store> Driver<S> {
    fn new(engine: &Arc<Inner<S>>, exchange: Box<Exchange>) -> Self {
        Self {
            engine: Arc::clone(engine),
            exchange,
            pilot: None,
            permit: None,
            at_stake: false,
            heartbeat: None,
            unsettled: None,
        }
    }

    fn step(&mut self, event: Event) -> Action {
        self.exchange.step(event, self.engine.clock().now())
    }

    /// Does what both halves of an exchange may have to do.
    async fn perform(&mut self, action: Action) -> Event {
        match action {
            Action::Claim { id, bid } => Event::Claimed(self.claim(id, &bid).await),
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
    async fn claim(&mut self, id: RecordId, bid: &Bid) -> Result<Claim, ErrorKind> {
        while self.pilot.is_none() {
            match self.engine.flights().enter(id) {
                Entrance::Lead(pilot) => self.pilot = Some(pilot),
                Entrance::Held(holder) => return Ok(Claim::Held(holder)),
                Entrance::Follow(news) => match news.await {
                    Ok(News::Held(holder)) => return Ok(Claim::Held(holder)),
                    Ok(News::Settled(record)) => return Ok(Claim::Settled(record)),
                    Ok(News::Failed(kind)) => return Err(kind),
                    Ok(News::Changed) | Err(_) => {}
                },
            }
        }
        let verdict = self.claim_alone(&id, bid).await;
        match &verdict {
            Ok(Claim::Granted(lease)) => {
                if let Some(pilot) = &self.pilot {
                    pilot.held(Holder::new(&Record::running(lease), lease.term));
                }
            }
            other => {
                let news = match other {
                    Ok(Claim::Held(holder)) => News::Held(holder.clone()),
                    Ok(Claim::Settled(record)) => News::Settled(record.clone()),
                    Ok(_) => News::Changed,
                    Err(kind) => News::Failed(*kind),
                };
                self.permit = None;
                self.land(&news);
            }
        }
        verdict
    }

    async fn claim_alone(&mut self, id: &RecordId, bid: &Bid) -> Result<Claim, ErrorKind> {
        let limit = self.engine.policy().claim_timeout;
        if self.engine.is_closed_to_claims() {
            return Err(ErrorKind::Full);
        }
        if self.permit.is_none() {
            let permit = self.engine.permits().acquire_owned();
            // The bid has not been sent: refused for want of room, for certain.
            let permit = timeout(limit, permit).await.map_err(|_| ErrorKind::Full)?;
            self.permit = Some(permit.map_err(|_| ErrorKind::Full)?);
        }
        self.at_stake = true;
        let verdict = within(limit, self.engine.store().claim(id, bid)).await;
        self.at_stake = matches!(
            verdict,
            Ok(Claim::Granted(_)) | Err(ErrorKind::Unavailable | ErrorKind::Internal)
        );
        verdict
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Seen>, ErrorKind> {
        within(self.engine.policy().claim_timeout, self.engine.store().lookup(id)).await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), ErrorKind> {
        let limit = self.engine.policy().claim_timeout;
        within(limit, self.engine.store().renew(lease)).await.map(drop)
    }

    fn meter(&self) -> bool {
        let scope = self.exchange.operation().and_then(|it| it.ids().first());
        scope.is_none_or(|id| self.engine.meter(id))
    }

    async fn release(&mut self, lease: &Lease) -> Event {
        self.heartbeat = None;
        let limit = self.engine.policy().claim_timeout;
        let released = within(limit, self.engine.store().release(lease)).await;
        self.land(&News::Changed);
        Event::Released(released)
    }

    async fn settle(&mut self, lease: Lease, state: State, payload: Bytes) -> Event {
        let policy = self.engine.policy();
        let retain = if state == State::Done { policy.retain } else { policy.key_retain };
        let done = Settlement::new(state, payload, retain, policy.key_retain);
        let settled = self.settle_in_time(&lease, &done).await;
        match settled {
            Ok(()) => {
                self.heartbeat = None;
                self.land(&News::Settled(Record::settled(&lease, &done)));
            }
            Err(ErrorKind::Fenced | ErrorKind::Corrupt) => {
                self.heartbeat = None;
                self.land(&News::Changed);
            }
            // Neither the heartbeat nor the flight may end before the result is in the store.
            Err(_) => self.unsettled = Some(done),
        }
        Event::Settled(settled)
    }

    async fn settle_in_time(&self, lease: &Lease, done: &Settlement) -> Result<(), ErrorKind> {
        let deadline = Instant::now() + self.engine.policy().settle_timeout;
        let mut pause = SETTLE_AGAIN_MIN;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = left.min(SETTLE_STEP_MAX);
            match within(limit, self.engine.store().settle(lease, done)).await {
                Err(ErrorKind::Unavailable | ErrorKind::Internal) if !left.is_zero() => {
                    sleep(pause.min(left)).await;
                    pause = (pause * 2).min(SETTLE_AGAIN_MAX);
                }
                settled => return settled,
            }
        }
    }

    /// Runs the handler with a heartbeat; a panic ends as [`Handled::Broken`].
    async fn run<W: Work>(&mut self, lease: &Lease, work: W) -> Done<W::Product> {
        let broken = || Done { handled: Handled::Broken, product: None, rest: None };
        let Some(operation) = self.exchange.operation() else { return broken() };
        let heartbeat = self.engine.keeper().beat(lease);
        let execution = Execution::new(
            operation.clone(),
            Arc::clone(self.engine.rules()),
            lease,
            Arc::clone(heartbeat.lost()),
        );
        self.heartbeat = Some(heartbeat);
        let began = self.engine.clock().now();
        let done = CatchPanic(Box::pin(work.run(execution))).await.unwrap_or_else(broken);
        self.engine.took(self.engine.clock().now().since(began));
        done
    }

    /// Waits for the end of somebody's claim, together with everybody else in this process.
    async fn wait(&mut self, id: RecordId, holder: Holder, until: Timestamp) -> Event {
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
            Ok(Ok(News::Settled(record))) => Event::Woken(Some(Seen::Settled(record))),
            Ok(_) => Event::Woken(None),
        }
    }

    fn behind(&mut self, behind: Option<Behind>) {
        match behind {
            None => {}
            // Who never asked the store, or only heard what another was told, left nothing there.
            Some(Behind::Release(lease)) if self.at_stake => {
                self.engine.keeper().behind(Job::Release(lease));
            }
            Some(Behind::Settle(lease, _)) => {
                if let Some(done) = self.unsettled.take() {
                    let (heartbeat, pilot) = (self.heartbeat.take(), self.pilot.take());
                    self.engine.keeper().behind(Job::Settle { lease, done, heartbeat, pilot });
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
    fn impossible<W: Work>(&self) -> Ended<W> {
        debug_assert!(false, "an own answer without an execution");
        Ended::Refuse(Rejection::new(Code::StoreUnavailable, self.engine.policy()), None)
    }
}

impl<S: Store> Drop for Driver<S> {
    fn drop(&mut self) {
        let behind = self.exchange.abandon();
        self.behind(behind);
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
            Ok(Some(Seen::Held(holder))) if holder.token == token && !holder.is_orphan() => {
                holder.remaining
            }
            Ok(Some(Seen::Settled(record))) => return pilot.land(&News::Settled(record)),
            Ok(_) | Err(ErrorKind::Corrupt) => return pilot.land(&News::Changed),
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
) -> Result<T, ErrorKind> {
    match timeout(limit, step).await {
        Ok(verdict) => verdict.map_err(|error| error.kind()),
        Err(_) => Err(ErrorKind::Unavailable),
    }
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

const SETTLE_STEP_MAX: Duration = Duration::from_secs(1);
const SETTLE_AGAIN_MIN: Duration = Duration::from_millis(20);
const SETTLE_AGAIN_MAX: Duration = Duration::from_millis(500);
const VIGIL_POLL_MIN: Duration = Duration::from_millis(20);
const VIGIL_POLL_MAX: Duration = Duration::from_millis(250);
