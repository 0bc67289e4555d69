//! A server that keeps records: its connections and its clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::Value;

use super::client::{packed, pipeline, reply};
use super::data_history::DataHistory;
use super::endpoint::Endpoint;
use super::protocol::{Command, Layout, Reply};
use super::redis_connection::{Connections, LinePurpose, RedisTimeouts, Target};
use super::redis_failure::RedisFailure;
use super::server_clock::ServerClock;
use crate::store::connection::Doubt;
use crate::store::notifier::Notifier;

/// A server, or whichever is the primary of a service.
pub(super) struct Node {
    target: Arc<Target>,
    timeouts: RedisTimeouts,
    history: Option<Arc<DataHistory>>,
    /// Number of replicas that were connected the last time it was asked for.
    replicas: AtomicU64,
    pub(super) clock: Arc<ServerClock>,
    pub(super) commands: Connections,
    /// Connections on which replicas are waited for: nothing else is answered there meanwhile.
    pub(super) acknowledged: Connections,
    pub(super) wake_ups: Connections,
}

/// Settings that all nodes of a store share.
#[derive(Clone)]
pub(super) struct NodeSettings {
    pub(super) notifier: Arc<Notifier>,
    pub(super) timeouts: RedisTimeouts,
    /// Layout and grace period, where the history of a server's data is compared.
    pub(super) grace: Option<(Layout, Duration)>,
}

impl Node {
    pub(super) fn new(target: Target, settings: &NodeSettings, is_in_cluster: bool) -> Self {
        let (target, clock) = (Arc::new(target), Arc::new(ServerClock::new()));
        let timeouts = settings.timeouts;
        let history = settings.grace.clone().map(|(layout, grace)| {
            Arc::new(DataHistory::new(layout, grace, (!is_in_cluster).then_some(None)))
        });
        let commands = || LinePurpose::Commands(clock.clone(), history.clone());
        let connections = |purpose| Connections::new(target.clone(), purpose, timeouts);
        Self {
            commands: connections(commands()),
            acknowledged: connections(commands()),
            wake_ups: connections(LinePurpose::WakeUps(settings.notifier.clone())),
            clock,
            timeouts,
            history,
            replicas: AtomicU64::new(0),
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

    /// Returns what is left of its grace period, if this is one or may be.
    pub(super) fn grace_left(&self) -> Option<Duration> {
        self.history.as_ref()?.left()
    }

    /// Returns true during a grace period.
    pub(super) fn is_grace(&self) -> bool {
        self.history.as_ref().is_some_and(|history| history.is_grace())
    }

    /// Returns true while the history of its data is not known.
    pub(super) fn is_unknown(&self) -> bool {
        self.grace_left().is_some() && !self.is_grace()
    }

    /// Returns true once for each grace period that was found.
    pub(super) fn take_beginning(&self) -> bool {
        self.history.as_ref().is_some_and(|history| history.take_beginning())
    }

    /// Returns how many replicas were connected the last time.
    pub(super) fn replicas(&self) -> u64 {
        self.replicas.load(Ordering::Relaxed)
    }

    /// Notes how many replicas are connected.
    pub(super) fn set_replicas(&self, connected: u64) {
        self.replicas.store(connected, Ordering::Relaxed);
    }

    /// Names a slot that it serves.
    pub(super) fn set_slot(&self, slot: u16) {
        if let Some(history) = &self.history {
            history.set_slot(slot);
        }
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
            Ok(value) => {
                if let Some(history) = &self.history {
                    history.note_answer();
                }
                reply(value).ok_or_else(|| RedisFailure::unexpected(self.name()))
            }
            // A refusal of the connection is no reply to the command.
            Err(failure) if failure.is_unsent() => Err(failure),
            Err(failure) => failure.refusal().map(Reply::Error).ok_or(failure),
        }
    }
}
