//! The servers of a store: one, or those of a cluster.

use std::sync::Arc;
use std::time::Duration;

use idemptx_core::key::RecordId;
use redis::Cmd;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep};

use super::client::packed;
use super::cluster_nodes::Cluster;
use super::node::Node;
use super::protocol::cluster::{Redirect, slot_of};
use super::protocol::{Command, Reply, has_code};
use super::redis_connection::{send, send_asking};
use super::redis_failure::RedisFailure;
use crate::store::connection::{Doubt, StepFailure};

/// Servers of a store.
pub(super) enum Deployment {
    /// One server, or the primary of a service.
    Single(Arc<Node>),
    Cluster(Arc<Cluster>),
}

/// Way of a step to its node.
pub(super) struct Route {
    slot: u16,
    pub(super) node: Arc<Node>,
    /// True if replicas are waited for afterwards.
    pub(super) is_acknowledged: bool,
    /// Connection of the last answer.
    pub(super) connection: Option<MultiplexedConnection>,
    /// True if the node is only taking the slot over, and has to be told that it is meant.
    is_asking: bool,
    detours_left: u32,
    deadline: Instant,
}

impl Deployment {
    /// Returns the address, for messages.
    pub(super) fn name(&self) -> &Arc<str> {
        match self {
            Self::Single(node) => node.name(),
            Self::Cluster(cluster) => cluster.name(),
        }
    }

    /// Returns true if records cross a network in plain text.
    pub(super) fn is_plaintext(&self) -> bool {
        match self {
            Self::Single(node) => node.is_plaintext(),
            Self::Cluster(cluster) => cluster.is_plaintext(),
        }
    }

    /// Returns all servers that take writes.
    pub(super) async fn primaries(&self) -> Result<Vec<Arc<Node>>, RedisFailure> {
        match self {
            Self::Single(node) => Ok(vec![node.clone()]),
            Self::Cluster(cluster) => cluster.primaries().await,
        }
    }

    /// Returns the way to the node of a record.
    pub(super) async fn route(&self, id: &RecordId) -> Result<Route, RedisFailure> {
        let (slot, node) = match self {
            Self::Single(node) => (0, node.clone()),
            Self::Cluster(cluster) => {
                let slot = slot_of(id);
                (slot, cluster.owner(slot).await?)
            }
        };
        Ok(self.way(slot, node))
    }

    /// Returns the way to a node of a cluster, whatever is asked of it.
    pub(super) fn way(&self, slot: u16, node: Arc<Node>) -> Route {
        Route {
            slot,
            node,
            is_acknowledged: false,
            connection: None,
            is_asking: false,
            detours_left: DETOURS_MAX,
            deadline: Instant::now() + self.step_limit(),
        }
    }

    /// Limit of a step.
    pub(super) fn step_limit(&self) -> Duration {
        match self {
            Self::Single(node) => node.step_limit(),
            Self::Cluster(cluster) => cluster.step_limit(),
        }
    }

    /// Sends a command, and again where a refusal says that another node, or another moment, is the
    /// right one.
    ///
    /// Such a refusal is certain, so it is followed with the same token.
    /// `command` gets the node that is asked, once there is a connection to it.
    pub(super) async fn ask(
        &self,
        route: &mut Route,
        doubt: &mut Doubt,
        mut command: impl FnMut(&Node) -> Cmd,
    ) -> Result<Reply, RedisFailure> {
        loop {
            let node = route.node.clone();
            let is_asking = route.is_asking;
            let connections =
                if route.is_acknowledged { &node.acknowledged } else { &node.commands };
            let answer = connections.run(doubt, |connection| {
                let (command, used) = (command(&node), connection.clone());
                async move {
                    let answer = match is_asking {
                        true => send_asking(connection, command).await?,
                        false => send(connection, &command).await?,
                    };
                    Ok((answer, used))
                }
            });
            let reply = node.reply(answer.await.map(|(answer, used)| {
                route.connection = Some(used);
                answer
            }));
            if !self.detour(route, &reply).await {
                return match reply {
                    Err(failure) if doubt.exists() => Err(failure.in_doubt()),
                    reply => reply,
                };
            }
        }
    }

    /// Sends a subscription on the connection for notifications.
    pub(super) async fn subscribe(
        &self,
        route: &mut Route,
        command: &Cmd,
    ) -> Result<(), RedisFailure> {
        loop {
            let node = route.node.clone();
            let mut doubt = Doubt::default();
            let subscribing = node.wake_ups.run(&mut doubt, |connection| send(connection, command));
            let answer = match subscribing.await {
                Ok(_) => return Ok(()),
                Err(failure) => failure,
            };
            let refusal = answer.refusal().map(Reply::Error).ok_or_else(|| answer.clone());
            if !self.detour(route, &refusal).await {
                return Err(answer);
            }
        }
    }

    /// Sends several commands to one node at once, and follows the refusals of single ones.
    pub(super) async fn ask_all(
        &self,
        slot: u16,
        node: &Arc<Node>,
        commands: &[Command],
    ) -> Result<Vec<Reply>, RedisFailure> {
        let mut replies = node.ask_all(commands).await?;
        if let Self::Cluster(_) = self {
            for (reply, command) in replies.iter_mut().zip(commands) {
                let mut route = self.way(slot, node.clone());
                let refusal = Ok(std::mem::replace(reply, Reply::Nil));
                *reply = match self.detour(&mut route, &refusal).await {
                    true => {
                        self.ask(&mut route, &mut Doubt::default(), |_| packed(command)).await?
                    }
                    false => refusal?,
                };
            }
        }
        Ok(replies)
    }

    /// Returns true if the command is to be sent again, on a route that was changed.
    async fn detour(&self, route: &mut Route, reply: &Result<Reply, RedisFailure>) -> bool {
        match self {
            Self::Single(node) => {
                // The sentinels will name another server, or this one again.
                let is_demoted = node.has_sentinels()
                    && matches!(reply, Ok(Reply::Error(error)) if has_code(error, "READONLY"));
                is_demoted && route.pause().await
            }
            Self::Cluster(cluster) => route.detour(cluster, reply).await,
        }
    }
}

impl Route {
    /// Returns the slot and its node.
    pub(super) fn into_node(self) -> (u16, Arc<Node>) {
        (self.slot, self.node)
    }

    async fn detour(
        &mut self,
        cluster: &Arc<Cluster>,
        reply: &Result<Reply, RedisFailure>,
    ) -> bool {
        let redirect = match reply {
            Ok(Reply::Error(error)) => Redirect::read(error),
            Ok(_) => return false,
            Err(failure) if failure.is_unsent() => {
                let other = cluster.other_owner(self.slot, &self.node).await;
                return other.is_some_and(|other| self.lead_to(other, false));
            }
            Err(_) => {
                cluster.hint(None);
                return false;
            }
        };
        match redirect {
            None => false,
            Some(Redirect::Moved { slot, to }) => {
                self.slot = slot;
                let owner = cluster.learn(slot, &to, &self.node);
                owner.is_some_and(|owner| self.lead_to(owner, false))
            }
            Some(Redirect::Ask(to)) => {
                let next = cluster.node_at(&to, &self.node);
                next.is_some_and(|next| self.lead_to(next, true))
            }
            Some(Redirect::TryAgain) => self.pause().await && self.start_over(cluster).await,
            Some(Redirect::Down) => {
                cluster.hint(None);
                self.pause().await && self.start_over(cluster).await
            }
        }
    }

    /// Goes to another node, unless that happened too often.
    fn lead_to(&mut self, node: Arc<Node>, is_asking: bool) -> bool {
        (self.node, self.is_asking) = (node, is_asking);
        self.detours_left = self.detours_left.saturating_sub(1);
        self.detours_left > 0 && Instant::now() < self.deadline
    }

    /// Waits a moment, if there is time for it.
    async fn pause(&mut self) -> bool {
        if Instant::now() + PAUSE >= self.deadline {
            return false;
        }
        sleep(PAUSE).await;
        true
    }

    async fn start_over(&mut self, cluster: &Arc<Cluster>) -> bool {
        let Ok(owner) = cluster.owner(self.slot).await else { return false };
        (self.node, self.is_asking) = (owner, false);
        true
    }
}

/// Number of times that a step is led elsewhere: more are nodes that disagree for good.
const DETOURS_MAX: u32 = 16;
/// Pause before a command that came too early is sent again.
const PAUSE: Duration = Duration::from_millis(20);
