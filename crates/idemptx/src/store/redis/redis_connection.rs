//! Connections to Redis: one for each purpose and runtime.
//!
//! A multiplexed connection is driven by a task of the runtime that opened it, so a runtime whose
//! threads are all busy stalls its own connection, but not the one of the runtime that renews the
//! leases.
//!
//! The client library keeps a place for every command it has written, even when its step is
//! dropped, and discards that answer: a cancelled step is harmless to the others.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ConnectionInfo, Pipeline, RedisResult, Value};
use tokio::time::Instant;

use super::client::{packed, reply};
use super::data_history::DataHistory;
use super::endpoint::{Endpoint, Line};
use super::protocol::cluster::asking;
use super::protocol::{clock, sentinel};
use super::redis_failure::RedisFailure;
use super::sentinels::Sentinels;
use super::server_clock::ServerClock;
use super::subscription::listener;
use crate::store::connection::{Connect, Connection, Doubt};
use crate::store::notifier::Notifier;
use crate::store::per_runtime::PerRuntime;
use crate::time_limit::limited_or;

/// Time limits of a store.
#[derive(Clone, Copy, Debug)]
pub(super) struct RedisTimeouts {
    /// Limit of a command, with all it takes to send it.
    pub(super) command: Duration,
    /// Limit of opening a connection.
    pub(super) connect: Duration,
}

/// Use of a connection.
pub(super) enum LinePurpose {
    /// Commands; the clock reads the server's time when the connection is opened, and the history
    /// of its data is compared.
    Commands(Arc<ServerClock>, Option<Arc<DataHistory>>),
    /// Subscriptions, whose messages go to the notifier.
    WakeUps(Arc<Notifier>),
}

/// Server of a connection.
pub(super) enum Target {
    /// The server at an address.
    Server(Box<Endpoint>),
    /// Whichever server the sentinels say is the primary.
    Service(Arc<Sentinels>, Arc<str>),
}

impl Target {
    pub(super) fn name(&self) -> &Arc<str> {
        match self {
            Self::Server(endpoint) => endpoint.name(),
            Self::Service(_, name) => name,
        }
    }

    pub(super) fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::Server(endpoint) => Some(endpoint),
            Self::Service(..) => None,
        }
    }

    pub(super) fn is_plaintext(&self) -> bool {
        match self {
            Self::Server(endpoint) => endpoint.is_plaintext(),
            Self::Service(sentinels, _) => sentinels.is_plaintext(),
        }
    }
}

/// Connections of one purpose.
pub(super) struct Connections {
    connector: Arc<Connector>,
    lines: PerRuntime<Connection<Arc<Connector>>>,
}

impl Connections {
    /// Creates an empty set: the first step opens a connection.
    pub(super) fn new(target: Arc<Target>, purpose: LinePurpose, timeouts: RedisTimeouts) -> Self {
        let connector = Arc::new(Connector { target, purpose, timeouts });
        Self { connector, lines: PerRuntime::new() }
    }

    /// Sends a command and returns its answer.
    pub(super) async fn ask(
        &self,
        doubt: &mut Doubt,
        command: &Cmd,
    ) -> Result<Value, RedisFailure> {
        self.run(doubt, |connection| send(connection, command)).await
    }

    /// Sends several commands and returns their answers.
    pub(super) async fn ask_all(&self, commands: &Pipeline) -> Result<Vec<Value>, RedisFailure> {
        self.run(&mut Doubt::default(), |connection| send_all(connection, commands)).await
    }

    /// Takes a step on this runtime's connection, which is open when `step` is called.
    pub(super) async fn run<T, F>(
        &self,
        doubt: &mut Doubt,
        mut step: impl FnMut(MultiplexedConnection) -> F,
    ) -> Result<T, RedisFailure>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let line = self.lines.current(|| Connection::new(self.connector.clone()));
        let line = line.ok_or_else(|| self.connector.no_runtime())?;
        let name = self.connector.target.name();
        line.run(doubt, |live| {
            let answer = step(live.connection.clone());
            async move { answer.await.map_err(|error| RedisFailure::redis(name, error)) }
        })
        .await
    }
}

/// Sends a command on a connection.
pub(super) async fn send(
    mut connection: MultiplexedConnection,
    command: &Cmd,
) -> RedisResult<Value> {
    connection.send_packed_command(command).await?.extract_error()
}

/// Sends a command to a node that is taking its slot over; nothing comes between the two commands.
pub(super) async fn send_asking(
    mut connection: MultiplexedConnection,
    command: Cmd,
) -> RedisResult<Value> {
    let mut commands = Pipeline::with_capacity(2);
    commands.add_command(packed(&asking())).add_command(command);
    let mut answers = connection.send_packed_commands(&commands, 0, 2).await?;
    answers.pop().unwrap_or(Value::Nil).extract_error()
}

/// Sends several commands at once; an error of the server is the answer to its command.
pub(super) async fn send_all(
    mut connection: MultiplexedConnection,
    commands: &Pipeline,
) -> RedisResult<Vec<Value>> {
    connection.send_packed_commands(commands, 0, commands.len()).await
}

struct Connector {
    target: Arc<Target>,
    purpose: LinePurpose,
    timeouts: RedisTimeouts,
}

impl Connector {
    async fn line(
        &self,
        endpoint: &Endpoint,
        info: ConnectionInfo,
        promotion: u64,
    ) -> RedisResult<Line> {
        match &self.purpose {
            LinePurpose::Commands(server_clock, history) => {
                let generation = history.as_ref().map(|history| history.generation());
                let mut line = endpoint.connect(info).await?;
                let asked = Instant::now();
                let question = packed(&clock::question());
                let time = send(line.connection.clone(), &question).await?;
                if let Some(micros) = reply(time).as_ref().and_then(clock::micros) {
                    server_clock.set(micros, asked);
                }
                if let Some(history) = history {
                    history.compare(&line.connection, promotion).await;
                }
                line.generation = generation.unwrap_or_default();
                Ok(line)
            }
            LinePurpose::WakeUps(notifier) => {
                let is_cut_off = Arc::<AtomicBool>::default();
                let receive = listener(notifier, is_cut_off.clone());
                let mut line = endpoint.listen(info, receive).await?;
                line.is_cut_off = is_cut_off;
                Ok(line)
            }
        }
    }

    /// Opens a line to the server at an address, of a promotion that sentinels have numbered.
    async fn open(&self, endpoint: &Endpoint, promotion: u64) -> Result<Line, RedisFailure> {
        let limit = self.timeouts.connect;
        // A command that prints the password may take longer than an attempt to connect.
        let attempt = |info| async move {
            let failed = |error| RedisFailure::redis(endpoint.name(), error);
            let line = async { self.line(endpoint, info, promotion).await.map_err(failed) };
            limited_or(limit, line, || endpoint.late(limit)).await
        };
        endpoint.attempt(attempt).await
    }

    /// Opens a line to the primary that the sentinels name, which must agree.
    async fn open_primary(&self, sentinels: &Arc<Sentinels>) -> Result<Line, RedisFailure> {
        let limit = self.timeouts.connect;
        let switches = sentinels.switches();
        let named = sentinels.primary(limit).await?;
        let endpoint = &named.endpoint;
        let mut line = self.open(endpoint, named.promotion).await?;
        let question = packed(&sentinel::role());
        let asking = send(line.connection.clone(), &question);
        let failed = |error| RedisFailure::redis(endpoint.name(), error);
        let asking = async { asking.await.map_err(failed) };
        let late = || RedisFailure::timed_out(endpoint.name(), limit);
        let role = limited_or(limit, asking, late).await?;
        if !reply(role).as_ref().is_some_and(sentinel::is_primary) {
            return Err(RedisFailure::no_primary(endpoint.name(), sentinels.service()));
        }
        line.switches = switches;
        if let LinePurpose::Commands(..) = self.purpose {
            line.run(sentinels.clone().listen(named, limit));
        }
        Ok(line)
    }
}

impl Connect for Arc<Connector> {
    type Live = Line;
    type Failure = RedisFailure;

    async fn connect(&self) -> Result<Line, RedisFailure> {
        match &*self.target {
            Target::Server(endpoint) => self.open(endpoint, 0).await,
            Target::Service(sentinels, _) => self.open_primary(sentinels).await,
        }
    }

    fn is_closed(&self, line: &Line) -> bool {
        // That the server closed it, the client library reports with the next command only.
        let is_switched = match &*self.target {
            Target::Server(_) => false,
            Target::Service(sentinels, _) => line.switches != sentinels.switches(),
        };
        let is_outdated = match &self.purpose {
            LinePurpose::Commands(_, Some(history)) => line.generation != history.generation(),
            _ => false,
        };
        is_switched || is_outdated || line.is_cut_off.load(Ordering::Acquire)
    }

    async fn drain(&self, line: &Line) {
        let _ = send(line.connection.clone(), &redis::cmd("PING")).await;
    }

    fn keeps_sessions(&self) -> bool {
        false
    }

    fn step_limit(&self) -> Duration {
        self.timeouts.command
    }

    fn timed_out(&self, after: Duration) -> RedisFailure {
        RedisFailure::timed_out(self.target.name(), after)
    }

    fn connect_timed_out(&self, after: Duration) -> RedisFailure {
        match &*self.target {
            Target::Server(endpoint) => endpoint.late(after),
            Target::Service(..) => self.timed_out(after),
        }
    }

    fn crowded(&self) -> RedisFailure {
        self.timed_out(self.timeouts.command)
    }

    fn no_runtime(&self) -> RedisFailure {
        RedisFailure::no_runtime(self.target.name())
    }
}
