//! A connection that heals itself.
//!
//! It is opened when it is first needed and shared by all steps of its runtime.
//! Answers come in the order of the requests, and nothing else ties them together, so a connection
//! on which an answer is late gets no further request: it is *suspect* and replaced.
//!
//! Three decisions are not obvious:
//!
//! - A caller may give up before the connection's own time-out does. The dropped step then starts a
//!   watchdog, or a silent peer would never be replaced: no step would ever live to notice it.
//! - A suspect connection counts against the limit until its answer came or its socket died. A
//!   server that stalls commits keeps the session of every closed socket, so replacing without a
//!   limit takes all of its sessions.
//! - A step that was sent once without an answer stays in doubt, even if it is refused when it is
//!   sent again: the first one may have been executed.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use idemptx_core::store::ErrorKind;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

#[cfg(feature = "postgres")]
use crate::time_limit::limited_or;

/// Opens connections of one kind, and judges them.
pub(super) trait Connect: Send + Sync + 'static {
    /// An open connection.
    type Live: Send + Sync + 'static;
    /// Reason for a step without an answer.
    type Failure: StepFailure;

    /// Opens a connection.
    fn connect(&self) -> impl Future<Output = Result<Self::Live, Self::Failure>> + Send;

    /// Returns true if the connection is known to be closed.
    fn is_closed(&self, live: &Self::Live) -> bool;

    /// Resolves when the requests sent so far are answered, or the connection is closed.
    fn drain(&self, live: &Self::Live) -> impl Future<Output = ()> + Send;

    /// Returns true if the server keeps the session of a closed socket until its statement ends.
    fn keeps_sessions(&self) -> bool;

    /// Time limit of a step, with all it takes to send it.
    fn step_limit(&self) -> Duration;

    fn timed_out(&self, after: Duration) -> Self::Failure;

    /// Failure of a step for which there was no connection in time.
    fn connect_timed_out(&self, after: Duration) -> Self::Failure {
        self.timed_out(after)
    }

    /// Failure of a step for which there is no connection and none may be opened.
    fn crowded(&self) -> Self::Failure;

    /// Failure of a step outside of a runtime, or in one that ends.
    fn no_runtime(&self) -> Self::Failure;
}

/// Reason for a step without an answer, as far as a connection has to know it.
pub(super) trait StepFailure: Clone + Send + Sync + 'static {
    /// Returns true if the connection must carry no further request.
    fn is_spent(&self) -> bool;

    /// Returns true if the connection was lost, so that the step may be sent again.
    fn is_dropped(&self) -> bool;

    /// Records that nothing of the step was sent.
    fn unsent(self) -> Self;

    /// Records that the step may have been executed.
    fn in_doubt(self) -> Self;
}

/// Knowledge of whether a failed step was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing of it was sent: certainly not executed.
    Unsent,
    /// It was sent: a refusal by the server is certain, a missing answer is not.
    Sent,
    /// A request was lost before: not even a refusal is certain.
    InDoubt,
}

impl Fate {
    /// Corrects the kind of a failed step's error, which was judged by the answer alone.
    ///
    /// Without a request a missing answer is a refusal, and a request that is sent again never
    /// makes an earlier one's loss a certain refusal.
    pub(super) const fn judge(self, kind: ErrorKind) -> ErrorKind {
        match (self, kind) {
            (Self::Unsent, ErrorKind::Unavailable) => ErrorKind::Refused,
            (Self::InDoubt, ErrorKind::Refused | ErrorKind::Full) => ErrorKind::Unavailable,
            (_, kind) => kind,
        }
    }
}

/// A step's chance of having been executed, over all of its requests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Doubt(bool);

impl Doubt {
    /// Returns true if a request was lost after it was sent.
    pub(super) const fn exists(self) -> bool {
        self.0
    }
}

/// A connection that is opened when it is needed, and again after it was lost.
pub(super) struct Connection<C: Connect> {
    connect: C,
    state: watch::Sender<State<C>>,
    in_use: AtomicUsize,
    suspects: Arc<AtomicUsize>,
    /// Failed attempts and time-outs since the last answer.
    strikes: AtomicU32,
}

enum State<C: Connect> {
    Lost,
    Connecting,
    /// The server is left alone until then.
    Failed {
        failure: C::Failure,
        retry_at: Instant,
    },
    Live(Arc<C::Live>),
}

impl<C: Connect> Connection<C> {
    pub(super) fn new(connect: C) -> Arc<Self> {
        Arc::new(Self {
            connect,
            state: watch::Sender::new(State::Lost),
            in_use: AtomicUsize::new(0),
            suspects: Arc::default(),
            strikes: AtomicU32::new(0),
        })
    }

    /// Number of steps that use it.
    #[cfg(feature = "postgres")]
    pub(super) fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Returns true if it is open.
    #[cfg(feature = "postgres")]
    pub(super) fn is_live(&self) -> bool {
        self.present().is_some()
    }

    /// Opens it, unless it is open.
    #[cfg(feature = "postgres")]
    pub(super) async fn open(self: &Arc<Self>, limit: Duration) -> Result<(), C::Failure> {
        let opened = limited_or(limit, self.live(), || self.connect.timed_out(limit)).await;
        opened.map(drop).map_err(StepFailure::unsent)
    }

    /// Takes a step, and once more if the connection turns out to be lost before or during it:
    /// every step may be sent twice.
    pub(super) async fn run<T, F>(
        self: &Arc<Self>,
        doubt: &mut Doubt,
        mut step: impl FnMut(Arc<C::Live>) -> F,
    ) -> Result<T, C::Failure>
    where
        F: Future<Output = Result<T, C::Failure>>,
    {
        let limit = self.connect.step_limit();
        let deadline = Instant::now() + limit;
        let mut resends_left = RESENDS_MAX;
        loop {
            let live = match self.present() {
                Some(live) => Ok(live),
                // Boxed, or its rare state would make the future of every step larger.
                None => match Box::pin(timeout_at(deadline, self.live())).await {
                    Ok(live) => live,
                    Err(_) => Err(self.connect.connect_timed_out(limit)),
                },
            };
            let unsent = |failure: C::Failure| match doubt.exists() {
                true => failure.in_doubt(),
                false => failure.unsent(),
            };
            let live = live.map_err(unsent)?;
            let pending = Pending::new(self, &live, deadline);
            // Pinned first: a time-out that takes it over would copy it twice.
            let step = pin!(step(live.clone()));
            let answer = timeout_at(deadline, step).await;
            pending.answered();
            let failure = match answer {
                Ok(Ok(answer)) => {
                    self.strikes.store(0, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(failure)) => failure,
                Err(_) => {
                    doubt.0 = true;
                    self.suspect(live);
                    return Err(self.connect.timed_out(limit).in_doubt());
                }
            };
            if failure.is_spent() {
                self.forget(&live, State::Lost);
            }
            if !failure.is_dropped() {
                return Err(if doubt.exists() { failure.in_doubt() } else { failure });
            }
            doubt.0 = true;
            if resends_left == 0 {
                return Err(failure.in_doubt());
            }
            resends_left -= 1;
        }
    }

    /// Returns the connection, if it is open.
    fn present(&self) -> Option<Arc<C::Live>> {
        match &*self.state.borrow() {
            State::Live(live) if !self.connect.is_closed(live) => Some(live.clone()),
            _ => None,
        }
    }

    /// Returns the connection, and opens it if it is not open.
    async fn live(self: &Arc<Self>) -> Result<Arc<C::Live>, C::Failure> {
        loop {
            if let Some(live) = self.present() {
                return Ok(live);
            }
            if self.suspects.load(Ordering::Acquire) > SUSPECTS_MAX {
                return Err(self.connect.crowded());
            }
            if self.state.send_if_modified(|state| state.begin(&self.connect)) {
                let attempt = Attempt { connection: self.clone(), is_over: false };
                // In a task, so that the step that came first may be dropped without failing the
                // others.
                tokio::spawn(attempt.run());
            }
            let mut states = self.state.subscribe();
            let state = states.wait_for(|state| !matches!(state, State::Connecting)).await;
            if let Ok(State::Failed { failure, .. }) = state.as_deref() {
                return Err(failure.clone());
            }
        }
    }

    /// Replaces a connection on which an answer is late.
    fn suspect(self: &Arc<Self>, live: Arc<C::Live>) {
        // The first time-out is followed by a new connection at once: its peer may just be gone.
        let strikes = self.strikes.load(Ordering::Relaxed);
        let next = match strikes {
            0 => State::Lost,
            _ => State::Failed {
                failure: self.connect.timed_out(self.connect.step_limit()),
                retry_at: Instant::now() + backoff(strikes - 1),
            },
        };
        if !self.forget(&live, next) {
            return;
        }
        self.strikes.fetch_add(1, Ordering::Relaxed);
        if !self.connect.keeps_sessions() {
            return;
        }
        let suspect = Counted::new(self.suspects.clone());
        let connection = self.clone();
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                let _suspect = suspect;
                // A peer that never answers is given up, or its slot would be lost.
                let _ = timeout(SUSPECT_AGE_MAX, connection.connect.drain(&live)).await;
            });
        }
    }

    /// Gives a connection up, unless that happened already.
    fn forget(&self, live: &Arc<C::Live>, next: State<C>) -> bool {
        self.state.send_if_modified(|state| match state {
            State::Live(current) if Arc::ptr_eq(current, live) => {
                *state = next;
                true
            }
            _ => false,
        })
    }

    fn end_attempt(&self, outcome: Result<C::Live, C::Failure>) {
        let next = match outcome {
            Ok(live) => State::Live(Arc::new(live)),
            Err(failure) => {
                let strikes = self.strikes.fetch_add(1, Ordering::Relaxed);
                State::Failed { failure, retry_at: Instant::now() + backoff(strikes) }
            }
        };
        self.state.send_if_modified(|state| {
            let is_connecting = matches!(state, State::Connecting);
            if is_connecting {
                *state = next;
            }
            is_connecting
        });
    }
}

impl<C: Connect> State<C> {
    /// Begins an attempt if it is time for one; the caller then makes it.
    fn begin(&mut self, connect: &C) -> bool {
        let is_due = match self {
            Self::Lost => true,
            Self::Live(live) => connect.is_closed(live),
            Self::Failed { retry_at, .. } => *retry_at <= Instant::now(),
            Self::Connecting => false,
        };
        if is_due {
            *self = Self::Connecting;
        }
        is_due
    }
}

/// An attempt to connect, which ends even if its runtime does.
struct Attempt<C: Connect> {
    connection: Arc<Connection<C>>,
    is_over: bool,
}

impl<C: Connect> Attempt<C> {
    async fn run(mut self) {
        let outcome = self.connection.connect.connect().await;
        self.is_over = true;
        self.connection.end_attempt(outcome);
    }
}

impl<C: Connect> Drop for Attempt<C> {
    fn drop(&mut self) {
        if !self.is_over {
            self.connection.end_attempt(Err(self.connection.connect.no_runtime()));
        }
    }
}

/// A step that was sent; without its answer the watchdog begins when it is dropped.
struct Pending<'a, C: Connect> {
    connection: &'a Arc<Connection<C>>,
    live: Option<Arc<C::Live>>,
    deadline: Instant,
}

impl<'a, C: Connect> Pending<'a, C> {
    fn new(connection: &'a Arc<Connection<C>>, live: &Arc<C::Live>, deadline: Instant) -> Self {
        connection.in_use.fetch_add(1, Ordering::Relaxed);
        Self { connection, live: Some(live.clone()), deadline }
    }

    fn answered(mut self) {
        self.live = None;
    }
}

impl<C: Connect> Drop for Pending<'_, C> {
    fn drop(&mut self) {
        self.connection.in_use.fetch_sub(1, Ordering::Relaxed);
        let (Some(live), Ok(runtime)) = (self.live.take(), Handle::try_current()) else { return };
        let (connection, deadline) = (self.connection.clone(), self.deadline);
        runtime.spawn(async move {
            // Answers come in order: this one also answers for the step that was dropped.
            if timeout_at(deadline, connection.connect.drain(&live)).await.is_err() {
                connection.suspect(live);
            }
        });
    }
}

/// Guard that counts one until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Pause before the next attempt: doubled each time, and between half of that and the whole at
/// random, so that the clients of a server that restarts do not come at the same moment.
fn backoff(strikes: u32) -> Duration {
    let pause = RECONNECT_PAUSE.saturating_mul(1 << strikes.min(10)).min(RECONNECT_PAUSE_MAX);
    let jitter = getrandom::u32().unwrap_or(u32::MAX);
    pause / 2 + (pause / 2).mul_f64(f64::from(jitter) / f64::from(u32::MAX))
}

const RESENDS_MAX: u32 = 1;
/// Suspect connections of one slot beside its live one; with one more it has no live one.
const SUSPECTS_MAX: usize = 1;
const SUSPECT_AGE_MAX: Duration = Duration::from_secs(60);
const RECONNECT_PAUSE: Duration = Duration::from_millis(25);
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
