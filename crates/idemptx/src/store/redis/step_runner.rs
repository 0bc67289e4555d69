//! Steps over the connections, and what a failover asks of them.

use std::sync::Arc;
use std::time::Duration;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{Claim, ClaimRequest, ErrorKind, RecordSnapshot, Settlement, StoreError};

use super::client::{packed, pipeline};
use super::deployment::{Deployment, Route};
use super::node::Node;
use super::protocol::check::Precautions;
use super::protocol::epoch::{AssertStep, GuardedClaim, acknowledgement};
use super::protocol::{
    Layout, LookupStep, Next, ReleaseStep, RenewStep, SettleStep, Step, WatchStep, clock,
};
use super::recent::Recent;
use super::redis_connection::send_all;
use super::redis_failure::RedisFailure;
use crate::store::connection::Doubt;
use crate::time_limit::limited_or;

/// Takes the steps of a store.
pub(super) struct StepRunner {
    pub(super) deployment: Deployment,
    pub(super) layout: Layout,
    failover: FailoverSettings,
    recent: Recent,
}

/// Precautions against a failover that forgets what was acknowledged.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FailoverSettings {
    /// Period during which a server that was promoted, or started again, grants nothing new.
    pub(super) grace: Option<Duration>,
    /// Number of replicas that must have a claim or a result before it counts.
    pub(super) wait_replicas: u32,
}

impl StepRunner {
    pub(super) fn new(deployment: Deployment, layout: Layout, failover: FailoverSettings) -> Self {
        Self { deployment, layout, failover, recent: Recent::default() }
    }

    /// Returns the precautions against a failover that forgets.
    pub(super) const fn precautions(&self) -> Precautions {
        let FailoverSettings { grace, wait_replicas } = self.failover;
        Precautions { wait_replicas, has_grace: grace.is_some() }
    }

    pub(super) async fn claim(
        self: &Arc<Self>,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Claim, StoreError> {
        let mut route = self.route(id).await?;
        let step = GuardedClaim::new(*id, request.clone());
        let claim = self.take(&mut route, step, GuardedClaim::during).await;
        self.look_after(&route);
        let claim = claim?;
        if matches!(claim, Claim::Granted(_)) && !self.is_acknowledged(&mut route, id).await {
            // In doubt, so the caller asks again by this token or gives it up. A release from here
            // that came late could undo what was granted when it had asked again.
            return Err(self.unacknowledged());
        }
        Ok(claim)
    }

    pub(super) async fn settle(
        self: &Arc<Self>,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<(), StoreError> {
        let mut route = self.route(&lease.id).await?;
        let step = || SettleStep::new(lease.clone(), done.clone());
        let mut settled = self.take(&mut route, step(), ignore).await;
        self.look_after(&route);
        if is_lost(&settled, &route)? && Box::pin(self.put_back(&mut route, lease)).await? {
            settled = Box::pin(self.take(&mut route, step(), ignore)).await;
        }
        settled?;
        if !self.is_acknowledged(&mut route, &lease.id).await {
            return Err(self.unacknowledged());
        }
        if let Some(grace) = self.failover.grace {
            self.recent.keep(lease, done, 2 * grace);
        }
        Ok(())
    }

    pub(super) async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut route = self.route(&lease.id).await?;
        self.take(&mut route, ReleaseStep::new(lease.clone()), ignore).await
    }

    pub(super) async fn renew(self: &Arc<Self>, lease: &Lease) -> Result<(), StoreError> {
        let mut route = self.route(&lease.id).await?;
        let renewed = self.take(&mut route, RenewStep::new(lease.clone()), ignore).await;
        self.look_after(&route);
        if is_lost(&renewed, &route)? && Box::pin(self.put_back(&mut route, lease)).await? {
            return Ok(());
        }
        renewed
    }

    pub(super) async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        let mut route = self.route(id).await?;
        self.take(&mut route, LookupStep::new(*id), ignore).await
    }

    /// Marks a claim as awaited; false if there is none.
    pub(super) async fn mark_awaited(&self, id: &RecordId) -> Result<bool, StoreError> {
        let mut route = self.route(id).await?;
        self.take(&mut route, WatchStep::new(*id), ignore).await
    }

    /// Subscribes to the notifications of a record.
    pub(super) async fn subscribe(&self, id: &RecordId) -> Result<(), RedisFailure> {
        let channel = self.layout.channel_of(id);
        let command = match &self.deployment {
            Deployment::Single(_) => "SUBSCRIBE",
            Deployment::Cluster(_) => "SSUBSCRIBE",
        };
        let mut subscribe = redis::cmd(command);
        subscribe.arg(&*channel);
        let mut route = self.deployment.route(id).await?;
        self.deployment.subscribe(&mut route, &subscribe).await
    }

    /// Notices a failover also while no request comes, if there are results to put back.
    pub(super) fn maintain(self: &Arc<Self>) {
        let Some(grace) = self.failover.grace else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.recent.since(2 * grace).is_empty() {
            return;
        }
        let runner = self.clone();
        runtime.spawn(async move {
            for node in runner.deployment.primaries().await.into_iter().flatten() {
                // The answer does not matter: a connection that is opened for it compares.
                let _ = node.ask(&clock::question()).await;
                runner.put_back_results(&node);
            }
        });
    }

    async fn route(&self, id: &RecordId) -> Result<Route, StoreError> {
        let mut route = self.deployment.route(id).await?;
        route.is_acknowledged = self.failover.wait_replicas > 0;
        Ok(route)
    }

    /// Holds a step's dialogue with the server of its record.
    ///
    /// `prepare` is told what is left of the server's grace period, before each beginning.
    async fn take<S: Step>(
        &self,
        route: &mut Route,
        mut step: S,
        prepare: impl Fn(&mut S, Option<Duration>),
    ) -> Result<S::Verdict, StoreError> {
        let mut doubt = Doubt::default();
        let begin = |node: &Node| {
            prepare(&mut step, node.grace_left());
            packed(&step.begin(&self.layout, node.clock.micros()))
        };
        let mut reply = self.deployment.ask(route, &mut doubt, begin).await?;
        loop {
            match step.answer(&self.layout, reply) {
                Next::Ask(command) => {
                    let next = |_: &Node| packed(&command);
                    reply = self.deployment.ask(route, &mut doubt, next).await?;
                }
                // The server's error is certain for the request it answers, not for a lost one.
                Next::Done(Err(error)) if doubt.exists() => return Err(error.in_doubt()),
                Next::Done(verdict) => return verdict,
            }
        }
    }

    /// Puts a claim back that the server has forgotten.
    async fn put_back(&self, route: &mut Route, lease: &Lease) -> Result<bool, StoreError> {
        self.take(route, AssertStep::new(lease.clone()), ignore).await
    }

    /// Follows up on what the step found out about its node.
    fn look_after(self: &Arc<Self>, route: &Route) {
        if let Deployment::Cluster(cluster) = &self.deployment
            && route.node.is_unknown()
        {
            cluster.hint(None);
        }
        self.put_back_results(&route.node);
    }

    /// Puts the results of the last moments back, if the server's grace period has just begun.
    fn put_back_results(self: &Arc<Self>, node: &Arc<Node>) {
        let (Some(grace), true) = (self.failover.grace, node.take_beginning()) else { return };
        let results = self.recent.since(2 * grace);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let runner = self.clone();
        runtime.spawn(async move {
            for (lease, done) in results {
                // Those that are there are left alone; an error is one that a retry will find.
                let _ = runner.put_back_result(&lease, done).await;
            }
        });
    }

    async fn put_back_result(&self, lease: &Lease, done: Settlement) -> Result<(), StoreError> {
        let mut route = self.route(&lease.id).await?;
        if self.put_back(&mut route, lease).await? {
            self.take(&mut route, SettleStep::new(lease.clone(), done), ignore).await?;
        }
        Ok(())
    }

    /// Returns true once enough replicas have the record as it is now.
    async fn is_acknowledged(&self, route: &mut Route, id: &RecordId) -> bool {
        match self.failover.wait_replicas {
            0 => true,
            count => Box::pin(self.has_replicas(route, id, count)).await,
        }
    }

    async fn has_replicas(&self, route: &mut Route, id: &RecordId, count: u32) -> bool {
        let Some(connection) = route.connection.take() else { return false };
        let limit = self.deployment.step_limit();
        let commands = acknowledgement(&self.layout, id, count, limit / 2);
        let asking = async { send_all(connection, &pipeline(&commands)).await.map_err(drop) };
        let answers = limited_or(limit, asking, || ()).await.unwrap_or_default();
        match answers.last() {
            Some(redis::Value::Int(acknowledged)) => *acknowledged >= i64::from(count),
            _ => false,
        }
    }

    fn unacknowledged(&self) -> StoreError {
        let too_few = Unacknowledged(self.failover.wait_replicas);
        StoreError::with_source(ErrorKind::Unavailable, too_few)
            .with_retry_after(REPLICAS_RETRY_AFTER)
    }
}

/// Returns true if a server has forgotten the claim of a step that it fenced, as far as is known.
///
/// While the history of its data is not known, its verdict is none: the owner would give up what is
/// still its own.
fn is_lost(outcome: &Result<(), StoreError>, route: &Route) -> Result<bool, StoreError> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::Fenced => match route.node.is_unknown() {
            true => Err(ErrorKind::Unavailable.into()),
            false => Ok(route.node.is_grace()),
        },
        _ => Ok(false),
    }
}

const fn ignore<S>(_: &mut S, _: Option<Duration>) {}

/// A record that fewer replicas have than was asked for.
#[derive(Debug)]
struct Unacknowledged(u32);

impl std::fmt::Display for Unacknowledged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "redis: fewer than {} replicas have received it: start them, or lower", self.0)?;
        f.write_str(" `wait_replicas`")
    }
}

impl std::error::Error for Unacknowledged {}

/// Replicas do not come back within a moment.
const REPLICAS_RETRY_AFTER: Duration = Duration::from_secs(1);
