//! A server that keeps records: its connections and its clock.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use super::client::{packed, pipeline, reply};
use super::endpoint::Endpoint;
use super::protocol::{Command, Reply};
use super::redis_connection::{Connections, LinePurpose, RedisTimeouts, Target};
use super::redis_failure::RedisFailure;
use super::server_clock::ServerClock;
use crate::store::connection::Doubt;
use crate::store::notifier::Notifier;

/// A server, or whichever is the primary of a service.
pub(super) struct Node {
    target: Arc<Target>,
    timeouts: RedisTimeouts,
    pub(super) clock: Arc<ServerClock>,
    pub(super) commands: Connections,
    pub(super) wake_ups: Connections,
}

impl Node {
    pub(super) fn new(target: Target, notifier: &Arc<Notifier>, timeouts: RedisTimeouts) -> Self {
        let target = Arc::new(target);
        let clock = Arc::new(ServerClock::new());
        let connections = |purpose| Connections::new(target.clone(), purpose, timeouts);
        Self {
            commands: connections(LinePurpose::Commands(clock.clone())),
            wake_ups: connections(LinePurpose::WakeUps(notifier.clone())),
            clock,
            timeouts,
            target,
        }
    }

    /// Returns the address, for messages.
    pub(super) fn name(&self) -> &Arc<str> {
        self.target.name()
    }

    /// Limit of a step.
    pub(super) const fn step_limit(&self) -> Duration {
        self.timeouts.command
    }

    /// Returns the server, unless sentinels know it.
    pub(super) fn endpoint(&self) -> Option<&Endpoint> {
        self.target.endpoint()
    }

    /// Returns true if sentinels are asked for it.
    pub(super) fn has_sentinels(&self) -> bool {
        self.target.endpoint().is_none()
    }

    /// Returns true if records cross a network in plain text.
    pub(super) fn is_plaintext(&self) -> bool {
        self.target.is_plaintext()
    }

    /// Sends a command and returns its reply.
    pub(super) async fn ask(&self, command: &Command) -> Result<Reply, RedisFailure> {
        self.reply(self.commands.ask(&mut Doubt::default(), &packed(command)).await)
    }

    /// Sends several commands at once and returns their replies.
    pub(super) async fn ask_all(&self, commands: &[Command]) -> Result<Vec<Reply>, RedisFailure> {
        let values = self.commands.ask_all(&pipeline(commands)).await?;
        values.into_iter().map(|value| self.reply(Ok(value))).collect()
    }

    /// The reply in an answer; an error of the server is one, too.
    pub(super) fn reply(&self, answer: Result<Value, RedisFailure>) -> Result<Reply, RedisFailure> {
        match answer {
            Ok(value) => reply(value).ok_or_else(|| RedisFailure::unexpected(self.name())),
            // A refusal of the connection is no reply to the command.
            Err(failure) if failure.is_unsent() => Err(failure),
            Err(failure) => failure.refusal().map(Reply::Error).ok_or(failure),
        }
    }
}
