//! Connections that heal themselves: one for each purpose and runtime.
//!
//! A multiplexed connection is driven by a task of the runtime that opened it.
//! A runtime whose threads are all busy therefore stalls its own connection, but not that of the
//! runtime which renews the leases.
//!
//! Answers come in the order of the commands, and that order is all that ties them together.
//! The client library keeps a place for every command it has written, even when whoever asked is
//! gone, and throws that answer away: a cancelled step is harmless to the others.
//! A step that timed out or failed on the wire has shown that the order cannot be relied on any
//! more (or that the server is not the one it was), so its connection gets no further command.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::runtime::{Handle, Id};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::client::{packed, reply};
use super::protocol::clock;
use super::redis_failure::RedisFailure;
use super::server_clock::ServerClock;
use super::subscription::listener;
use super::topology::{Line, Topology};
use crate::store::waiters::Waiters;

/// How long to wait for the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct RedisTimeouts {
    /// For a command, with everything it takes to get it through.
    pub(super) command: Duration,
    /// For a connection.
    pub(super) connect: Duration,
}

/// What connections are for.
#[derive(Debug)]
pub(super) enum LinePurpose {
    /// Commands; the clock learns the server's time on the way.
    Commands(Arc<ServerClock>),
    /// Subscriptions; what they bring goes to the waiters.
    WakeUps(Arc<Waiters>),
}

/// The connections of one purpose.
pub(super) struct Connections {
    connector: Arc<Connector>,
    links: Mutex<Vec<(Id, Arc<HealingLine>)>>,
}

impl Connections {
    /// None yet: the first step opens one.
    pub(super) fn new(
        topology: Arc<Topology>,
        purpose: LinePurpose,
        timeouts: RedisTimeouts,
    ) -> Self {
        Self {
            connector: Arc::new(Connector { topology, purpose, timeouts }),
            links: Mutex::default(),
        }
    }

    /// Sends a command and takes its answer.
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Value, RedisFailure> {
        self.run(|connection| send(connection, command)).await
    }

    /// Sends several and takes their answers.
    pub(super) async fn ask_all(&self, commands: &Pipeline) -> Result<Vec<Value>, RedisFailure> {
        self.run(|connection| send_all(connection, commands)).await
    }

    /// Takes a step on this runtime's connection, which is open by the time `step` is called.
    ///
    /// The step is taken once more when the connection turns out to have been lost before or
    /// during it: every step may be sent twice.
    pub(super) async fn run<T, F>(
        &self,
        step: impl FnMut(MultiplexedConnection) -> F,
    ) -> Result<T, RedisFailure>
    where
        F: Future<Output = RedisResult<T>>,
    {
        self.here()?.run(step).await
    }

    fn here(&self) -> Result<Arc<HealingLine>, RedisFailure> {
        let runtime = Handle::try_current()
            .map_err(|_| RedisFailure::no_runtime(self.connector.topology.name()))?
            .id();
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, link)) = links.iter().find(|(id, _)| *id == runtime) {
            return Ok(link.clone());
        }
        // Runtimes end without telling; the oldest's connection is dropped, and opened again
        // should it be alive after all.
        if links.len() == RUNTIMES_MAX {
            links.remove(0);
        }
        let link = Arc::new(HealingLine::new(self.connector.clone()));
        links.push((runtime, link.clone()));
        Ok(link)
    }
}

/// Sends a command on a connection.
pub(super) async fn send(
    mut connection: MultiplexedConnection,
    command: &Cmd,
) -> RedisResult<Value> {
    connection.send_packed_command(command).await?.extract_error()
}

/// Sends several at once on a connection; an error of the server is the answer to its command.
pub(super) async fn send_all(
    mut connection: MultiplexedConnection,
    commands: &Pipeline,
) -> RedisResult<Vec<Value>> {
    connection.send_packed_commands(commands, 0, commands.len()).await
}

struct Connector {
    topology: Arc<Topology>,
    purpose: LinePurpose,
    timeouts: RedisTimeouts,
}

impl Connector {
    async fn connect(&self) -> Result<Line, RedisFailure> {
        let connecting = async {
            match &self.purpose {
                LinePurpose::Commands(server_clock) => {
                    let line = self.topology.connect().await?;
                    let asked = Instant::now();
                    let question = packed(&clock::question());
                    let time = send(line.connection.clone(), &question).await?;
                    if let Some(micros) = reply(time).as_ref().and_then(clock::micros) {
                        server_clock.set(micros, asked);
                    }
                    Ok(line)
                }
                LinePurpose::WakeUps(waiters) => self.topology.listen(listener(waiters)).await,
            }
        };
        match timeout(self.timeouts.connect, connecting).await {
            Ok(connected) => connected.map_err(|error| self.failed(error)),
            Err(_) => Err(self.timed_out(self.timeouts.connect)),
        }
    }

    fn failed(&self, error: RedisError) -> RedisFailure {
        RedisFailure::redis(self.topology.name(), error)
    }

    fn timed_out(&self, after: Duration) -> RedisFailure {
        RedisFailure::timed_out(self.topology.name(), after)
    }
}

/// The connection of one runtime: one attempt at a time, shared by everybody who needs it.
struct HealingLine {
    connector: Arc<Connector>,
    state: watch::Sender<State>,
}

enum State {
    /// None has been opened yet, or the last one was given up.
    Lost,
    Connecting {
        attempts: u32,
    },
    /// The server could not be reached, and is left alone for a while.
    Failed {
        failure: RedisFailure,
        attempts: u32,
        retry_at: Instant,
    },
    Up(Arc<Line>),
}

impl HealingLine {
    fn new(connector: Arc<Connector>) -> Self {
        Self { connector, state: watch::Sender::new(State::Lost) }
    }

    async fn run<T, F>(
        self: Arc<Self>,
        mut step: impl FnMut(MultiplexedConnection) -> F,
    ) -> Result<T, RedisFailure>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let patience = self.connector.timeouts.command;
        let deadline = Instant::now() + patience;
        let mut resends_left = RESENDS_MAX;
        loop {
            let live = match timeout_at(deadline, self.live()).await {
                Ok(live) => live?,
                Err(_) => return Err(self.connector.timed_out(patience)),
            };
            let error = match timeout_at(deadline, step(live.connection.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => {
                    self.replace(&live);
                    return Err(self.connector.timed_out(patience));
                }
            };
            if is_spent(&error) {
                self.replace(&live);
            }
            if !error.is_connection_dropped() || resends_left == 0 {
                return Err(self.connector.failed(error));
            }
            resends_left -= 1;
        }
    }

    async fn live(self: &Arc<Self>) -> Result<Arc<Line>, RedisFailure> {
        loop {
            if let State::Up(live) = &*self.state.borrow() {
                return Ok(live.clone());
            }
            if self.state.send_if_modified(State::begin) {
                let attempt = Attempt(self.clone());
                // A task, so that whoever came first may leave without spoiling it for the others.
                tokio::spawn(attempt.run());
            }
            let mut states = self.state.subscribe();
            let state = states.wait_for(|state| !matches!(state, State::Connecting { .. })).await;
            if let Ok(State::Failed { failure, .. }) = state.as_deref() {
                return Err(failure.clone());
            }
        }
    }

    /// Gives a connection up, unless that has happened already.
    fn replace(&self, live: &Arc<Line>) {
        self.state.send_if_modified(|state| match state {
            State::Up(current) if Arc::ptr_eq(current, live) => {
                *state = State::Lost;
                true
            }
            _ => false,
        });
    }
}

impl State {
    /// Whether it is time to connect, which the caller then does.
    fn begin(&mut self) -> bool {
        let attempts = match self {
            Self::Lost => 0,
            Self::Failed { attempts, retry_at, .. } if *retry_at <= Instant::now() => *attempts,
            _ => return false,
        };
        *self = Self::Connecting { attempts };
        true
    }

    fn end(&mut self, outcome: Result<Line, RedisFailure>) -> bool {
        let Self::Connecting { attempts } = self else { return false };
        *self = match outcome {
            Ok(line) => Self::Up(Arc::new(line)),
            Err(failure) => {
                let pause = RECONNECT_PAUSE.saturating_mul(1 << (*attempts).min(10));
                Self::Failed {
                    failure,
                    attempts: attempts.saturating_add(1),
                    retry_at: Instant::now() + pause.min(RECONNECT_PAUSE_MAX),
                }
            }
        };
        true
    }
}

/// An attempt to connect, which always ends: also when its runtime does.
struct Attempt(Arc<HealingLine>);

impl Attempt {
    async fn run(self) {
        let outcome = self.0.connector.connect().await;
        self.0.state.send_if_modified(|state| state.end(outcome));
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let abandoned = RedisFailure::no_runtime(self.0.connector.topology.name());
        self.0.state.send_if_modified(|state| state.end(Err(abandoned)));
    }
}

/// Whether an error says that its connection must carry no further command: it failed, or it leads
/// to a server that has become a replica.
fn is_spent(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_unrecoverable_error()
        || error.kind() == redis::ErrorKind::Server(ServerErrorKind::ReadOnly)
}

const RUNTIMES_MAX: usize = 16;
const RESENDS_MAX: u32 = 1;
const RECONNECT_PAUSE: Duration = Duration::from_millis(25);
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);
