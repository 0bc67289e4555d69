//! Steps over the connections, and what a failover asks of them.

use std::sync::Arc;
use std::time::Duration;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{Claim, ClaimRequest, ErrorKind, RecordSnapshot, Settlement, StoreError};

use super::client::{packed, pipeline, reply};
use super::deployment::{Deployment, Route};
use super::node::Node;
use super::protocol::acknowledgement::{
    Acknowledged, Acknowledgement, disk_finding, disk_question,
};
use super::protocol::check::Precautions;
use super::protocol::epoch::{AssertStep, GuardedClaim};
use super::protocol::{
    Layout, LookupStep, Next, ReleaseStep, RenewStep, Reply, SettleStep, Step, WaitReplicas,
    WatchStep, clock,
};
use super::recent::Recent;
use super::redis_connection::send_all;
use super::redis_failure::RedisFailure;
use crate::store::Finding;
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
    /// Condition for a claim or a result to count.
    pub(super) acknowledgement: Acknowledgement,
}

impl StepRunner {
    pub(super) fn new(deployment: Deployment, layout: Layout, failover: FailoverSettings) -> Self {
        Self { deployment, layout, failover, recent: Recent::default() }
    }

    /// Returns the precautions against a failover that forgets.
    pub(super) const fn precautions(&self) -> Precautions {
        let FailoverSettings { grace, acknowledgement } = self.failover;
        Precautions {
            wait_replicas: acknowledgement.replicas,
            waits_for_disk: acknowledgement.is_on_disk,
            has_grace: grace.is_some(),
        }
    }

    /// Returns the reason why a server cannot wait for its disk, if it has to.
    pub(super) async fn disk_finding(&self, node: &Node) -> Result<Option<Finding>, RedisFailure> {
        match self.failover.acknowledgement.is_on_disk {
            true => Ok(disk_finding(&node.ask(&disk_question()).await?)),
            false => Ok(None),
        }
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
        if matches!(claim, Claim::Granted(_)) {
            // In doubt, so the caller asks again by this token or gives it up. A release from here
            // that came late could undo what was granted when it had asked again.
            self.acknowledged(&mut route, id).await?;
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
        self.acknowledged(&mut route, &lease.id).await?;
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
        route.is_acknowledged = self.failover.acknowledgement.is_needed();
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

    /// Waits until replicas and disks have the record as it is now, as far as that was asked for.
    async fn acknowledged(&self, route: &mut Route, id: &RecordId) -> Result<(), StoreError> {
        match self.failover.acknowledgement.is_needed() {
            true => Box::pin(self.wait_for(route, id)).await,
            false => Ok(()),
        }
    }

    async fn wait_for(&self, route: &mut Route, id: &RecordId) -> Result<(), StoreError> {
        let acknowledgement = self.failover.acknowledgement;
        let missing = |reason| {
            let missing = Unacknowledged { acknowledgement, reason };
            StoreError::with_source(ErrorKind::Unavailable, missing)
                .with_retry_after(REPLICAS_RETRY_AFTER)
        };
        let connection = route.connection.take().ok_or_else(|| missing(None))?;
        let limit = self.deployment.step_limit();
        let asking = async {
            // As many as there were the last time: mostly that is right, and saves a question.
            let mut replicas = acknowledgement.replicas.required(route.node.replicas());
            loop {
                let commands = acknowledgement.commands(&self.layout, id, replicas, limit / 2);
                let answers = send_all(connection.clone(), &pipeline(&commands)).await;
                let answers = answers.map_err(|_| None)?.into_iter();
                let replies: Vec<_> = answers.filter_map(reply).collect();
                if let Some(Reply::Integer(connected)) = replies.first() {
                    route.node.set_replicas(u64::try_from(*connected).unwrap_or(0));
                }
                match acknowledgement.judge(replicas, &replies) {
                    Acknowledged::Yes => return Ok(()),
                    Acknowledged::AskAgain(more) => replicas = more,
                    Acknowledged::No(reason) => return Err(reason),
                }
            }
        };
        limited_or(limit, asking, || None).await.map_err(missing)
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

/// A record that fewer replicas, or disks, have than was asked for.
#[derive(Debug)]
struct Unacknowledged {
    acknowledgement: Acknowledgement,
    /// Error of the server, if it would not wait.
    reason: Option<String>,
}

impl std::fmt::Display for Unacknowledged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.reason, self.acknowledgement) {
            (Some(reason), _) => {
                write!(f, "redis: the server does not wait for what was asked for: {reason}")
            }
            (None, Acknowledgement { replicas: WaitReplicas::Count(0), .. }) => {
                f.write_str("redis: it was not on the disk in time: set appendfsync always")
            }
            (None, Acknowledgement { replicas: WaitReplicas::All, .. }) => {
                f.write_str("redis: not all replicas have received it, or there is none")
            }
            (None, Acknowledgement { replicas, .. }) => write!(
                f,
                "redis: fewer than {replicas} replicas have received it: start them, or lower \
                 `wait_replicas`"
            ),
        }
    }
}

impl std::error::Error for Unacknowledged {}

/// Replicas do not come back within a moment.
const REPLICAS_RETRY_AFTER: Duration = Duration::from_secs(1);
