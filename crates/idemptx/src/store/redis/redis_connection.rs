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
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ConnectionInfo, Pipeline, RedisResult, Value};
use tokio::time::Instant;

use super::client::{packed, reply};
use super::protocol::clock;
use super::redis_failure::RedisFailure;
use super::server_clock::ServerClock;
use super::subscription::listener;
use super::topology::{Line, Topology};
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
#[derive(Debug)]
pub(super) enum LinePurpose {
    /// Commands; the clock reads the server's time when the connection is opened.
    Commands(Arc<ServerClock>),
    /// Subscriptions, whose messages go to the notifier.
    WakeUps(Arc<Notifier>),
}

/// Connections of one purpose.
pub(super) struct Connections {
    connector: Arc<Connector>,
    lines: PerRuntime<Connection<Arc<Connector>>>,
}

impl Connections {
    /// Creates an empty set: the first step opens a connection.
    pub(super) fn new(
        topology: Arc<Topology>,
        purpose: LinePurpose,
        timeouts: RedisTimeouts,
    ) -> Self {
        let connector = Arc::new(Connector { topology, purpose, timeouts });
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
        let name = self.connector.topology.name();
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

/// Sends several commands at once; an error of the server is the answer to its command.
async fn send_all(
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
    async fn line(&self, info: ConnectionInfo) -> RedisResult<Line> {
        match &self.purpose {
            LinePurpose::Commands(server_clock) => {
                let line = self.topology.connect(info).await?;
                let asked = Instant::now();
                let question = packed(&clock::question());
                let time = send(line.connection.clone(), &question).await?;
                if let Some(micros) = reply(time).as_ref().and_then(clock::micros) {
                    server_clock.set(micros, asked);
                }
                Ok(line)
            }
            LinePurpose::WakeUps(notifier) => self.topology.listen(info, listener(notifier)).await,
        }
    }
}

impl Connect for Arc<Connector> {
    type Live = Line;
    type Failure = RedisFailure;

    async fn connect(&self) -> Result<Line, RedisFailure> {
        let limit = self.timeouts.connect;
        let failed = |error| RedisFailure::redis(self.topology.name(), error);
        // A command that prints the password may take longer than an attempt to connect.
        let info = self.topology.info().await;
        let info = info.map_err(|error| RedisFailure::no_password(self.topology.name(), &error))?;
        let line = async { self.line(info).await.map_err(failed) };
        limited_or(limit, line, || self.timed_out(limit)).await
    }

    fn is_closed(&self, _: &Line) -> bool {
        // The client library reports it with the next command only.
        false
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
        RedisFailure::timed_out(self.topology.name(), after)
    }

    fn crowded(&self) -> RedisFailure {
        self.timed_out(self.timeouts.command)
    }

    fn no_runtime(&self) -> RedisFailure {
        RedisFailure::no_runtime(self.topology.name())
    }
}
