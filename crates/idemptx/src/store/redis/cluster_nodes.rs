//! The nodes of a cluster, and who serves which slot.
//!
//! Each node has connections of its own, so that one that is lost, or replaced, concerns no
//! other.
//! The map of the slots is read from any node that answers: again after a while, and as soon as a
//! node says that a slot is not its own, or cannot be reached.
//! A map that is behind does no harm: the node that is asked by mistake says so, and has not
//! executed anything.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::node::{Node, NodeSettings};
use super::protocol::Reply;
use super::protocol::cluster::{NodeAddress, SLOTS, SlotRange, question, slot_ranges};
use super::redis_connection::Target;
use super::redis_failure::RedisFailure;
use super::url::address;
use crate::store::connection::StepFailure;
use crate::store::per_runtime::PerRuntime;
use crate::time_limit::limited_or;

/// A cluster.
pub(super) struct Cluster {
    name: Arc<str>,
    /// The nodes of the URL.
    seeds: Vec<(String, u16)>,
    /// Credentials and certificates of all nodes.
    access: Endpoint,
    settings: NodeSettings,
    map: RwLock<SlotMap>,
    /// Held while the map is read, so that the steps that wait for it send one question.
    reading: PerRuntime<Mutex<()>>,
    /// True while a task reads the map.
    is_hinted: Arc<AtomicBool>,
}

#[derive(Default)]
struct SlotMap {
    owners: Vec<Option<Arc<Node>>>,
    /// The primaries by their addresses.
    nodes: HashMap<String, Arc<Node>>,
    runs: Vec<SlotRun>,
    read_at: Option<Instant>,
}

/// Slots beside each other that one primary serves.
#[derive(Clone)]
pub(super) struct SlotRun {
    pub(super) slots: Range<u16>,
    pub(super) node: Arc<Node>,
    /// Beginning of the primary's id, or of its address where it has none.
    pub(super) mark: String,
}

impl Cluster {
    pub(super) fn new(
        name: Arc<str>,
        seeds: Vec<(String, u16)>,
        access: Endpoint,
        settings: NodeSettings,
    ) -> Self {
        Self {
            name,
            seeds,
            access,
            settings,
            map: RwLock::default(),
            reading: PerRuntime::new(),
            is_hinted: Arc::default(),
        }
    }

    /// Returns the addresses of the URL, for messages.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns true if records cross a network in plain text.
    pub(super) fn is_plaintext(&self) -> bool {
        self.seeds.iter().any(|(host, port)| self.access.at(host, *port).is_plaintext())
    }

    /// Limit of a step.
    pub(super) const fn step_limit(&self) -> Duration {
        self.settings.timeouts.command
    }

    /// Returns the primary that serves a slot, as far as is known.
    pub(super) async fn owner(self: &Arc<Self>, slot: u16) -> Result<Arc<Node>, RedisFailure> {
        let (owner, is_old) = {
            let map = self.map();
            (map.owner(slot), map.is_older_than(MAP_AGE_MAX))
        };
        if let Some(owner) = owner {
            if is_old {
                self.hint(None);
            }
            return Ok(owner);
        }
        self.read_map(None, MAP_AGE_MIN).await?;
        self.map().owner(slot).ok_or_else(|| RedisFailure::no_owner(&self.name, slot))
    }

    /// Returns the primary that serves a slot after all, once one could not be reached.
    pub(super) async fn other_owner(
        self: &Arc<Self>,
        slot: u16,
        than: &Arc<Node>,
    ) -> Option<Arc<Node>> {
        self.read_map(None, MAP_AGE_MIN).await.ok()?;
        self.map().owner(slot).filter(|owner| !Arc::ptr_eq(owner, than))
    }

    /// Takes what a node said about a slot of which another is the owner.
    pub(super) fn learn(
        self: &Arc<Self>,
        slot: u16,
        to: &NodeAddress,
        by: &Node,
    ) -> Option<Arc<Node>> {
        let owner = self.node_at(to, by)?;
        if let Some(known) = self.map_mut().owners.get_mut(usize::from(slot)) {
            *known = Some(owner.clone());
        }
        self.hint(Some(owner.clone()));
        Some(owner)
    }

    /// Returns the node at an address that another node told.
    pub(super) fn node_at(&self, to: &NodeAddress, by: &Node) -> Option<Arc<Node>> {
        let (host, _) = by.endpoint()?.address()?;
        Some(self.node(to.host.as_deref().unwrap_or(host), to.port, &mut self.map_mut().nodes))
    }

    /// Has the map read soon, by a task, and first from this node.
    pub(super) fn hint(self: &Arc<Self>, from: Option<Arc<Node>>) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.is_hinted.swap(true, Ordering::AcqRel) {
            return;
        }
        let (cluster, hinted) = (self.clone(), Hinted(self.is_hinted.clone()));
        runtime.spawn(async move {
            let _hinted = hinted;
            let _ = cluster.read_map(from, MAP_AGE_MIN).await;
        });
    }

    /// Returns all primaries, as they are now.
    pub(super) async fn primaries(self: &Arc<Self>) -> Result<Vec<Arc<Node>>, RedisFailure> {
        self.read_map(None, Duration::ZERO).await?;
        let map = self.map();
        let mut primaries: Vec<Arc<Node>> = Vec::new();
        for run in &map.runs {
            if !primaries.iter().any(|known| Arc::ptr_eq(known, &run.node)) {
                primaries.push(run.node.clone());
            }
        }
        Ok(primaries)
    }

    /// Returns the run of a slot, or the next one, with its rest from that slot on, as it is now.
    pub(super) async fn run_from(
        self: &Arc<Self>,
        slot: u16,
    ) -> Result<Option<SlotRun>, RedisFailure> {
        self.read_map(None, Duration::ZERO).await?;
        let map = self.map();
        let run = map.runs.iter().find(|run| run.slots.end > slot).cloned();
        Ok(run.map(|run| SlotRun { slots: run.slots.start.max(slot)..run.slots.end, ..run }))
    }

    /// Reads the map, first from this node, unless it is no older than this.
    async fn read_map(
        self: &Arc<Self>,
        from: Option<Arc<Node>>,
        age_min: Duration,
    ) -> Result<(), RedisFailure> {
        let reading = self.reading.current(Arc::default);
        let reading = reading.ok_or_else(|| RedisFailure::no_runtime(&self.name))?;
        let _reading = reading.lock().await;
        if !self.map().is_older_than(age_min) {
            return Ok(());
        }
        let mut failure = None;
        for node in self.informants(from) {
            match self.ranges(&node).await {
                Ok(ranges) if !ranges.is_empty() => {
                    self.adopt(&node, ranges);
                    return Ok(());
                }
                // It belongs to no cluster yet, or does not any more.
                Ok(_) => {}
                Err(error) => failure = Some(error),
            }
        }
        let nobody = || RedisFailure::no_owner(&self.name, 0);
        Err(failure.unwrap_or_else(nobody).unsent())
    }

    /// Returns the nodes to ask: the one that knows something new, the known ones, the seeds.
    fn informants(&self, first: Option<Arc<Node>>) -> Vec<Arc<Node>> {
        let mut known: Vec<_> = self.map().nodes.values().cloned().collect();
        if !known.is_empty() {
            let turn = getrandom::u32().unwrap_or(0) as usize % known.len();
            known.rotate_left(turn);
        }
        known.truncate(INFORMANTS_MAX);
        let mut map = self.map_mut();
        let seeds = self.seeds.iter().map(|(host, port)| self.node(host, *port, &mut map.nodes));
        let mut informants: Vec<Arc<Node>> = Vec::new();
        for node in first.into_iter().chain(known).chain(seeds) {
            if !informants.iter().any(|other| Arc::ptr_eq(other, &node)) {
                informants.push(node);
            }
        }
        informants
    }

    async fn ranges(&self, node: &Node) -> Result<Vec<SlotRange>, RedisFailure> {
        let limit = self.settings.timeouts.command.min(INFORMANT_LIMIT);
        let late = || RedisFailure::timed_out(node.name(), limit);
        let reply = limited_or(limit, node.ask(&question()), late).await?;
        if let Reply::Error(error) = &reply {
            return Err(RedisFailure::refused(node.name(), error.clone()));
        }
        slot_ranges(&reply).ok_or_else(|| RedisFailure::unexpected(node.name()))
    }

    fn adopt(&self, asked: &Node, mut ranges: Vec<SlotRange>) {
        let Some((asked_host, _)) = asked.endpoint().and_then(Endpoint::address) else { return };
        ranges.sort_unstable_by_key(|range| range.first);
        let mut map = self.map_mut();
        let mut nodes = HashMap::new();
        let mut owners = vec![None; usize::from(SLOTS)];
        let mut runs: Vec<SlotRun> = Vec::new();
        for range in ranges {
            let host = range.primary.host.as_deref().unwrap_or(asked_host);
            let node = self.node(host, range.primary.port, &mut map.nodes);
            nodes.insert(address(host, range.primary.port), node.clone());
            let (first, last) = (usize::from(range.first), usize::from(range.last));
            if let Some(owned) = owners.get_mut(first..=last) {
                owned.fill(Some(node.clone()));
            }
            // The first counts: ranges come in their order.
            node.set_slot(range.first);
            let slots = range.first..range.last + 1;
            match runs.last_mut() {
                Some(run) if run.slots.end == slots.start && Arc::ptr_eq(&run.node, &node) => {
                    run.slots.end = slots.end;
                }
                _ => runs.push(SlotRun { slots, mark: mark(&range, host), node }),
            }
        }
        *map = SlotMap { owners, nodes, runs, read_at: Some(Instant::now()) };
    }

    /// Returns the node at an address, the same as long as it is known.
    fn node(&self, host: &str, port: u16, nodes: &mut HashMap<String, Arc<Node>>) -> Arc<Node> {
        let create = || {
            let target = Target::Server(Box::new(self.access.at(host, port)));
            Arc::new(Node::new(target, &self.settings, true))
        };
        nodes.entry(address(host, port)).or_insert_with(create).clone()
    }

    /// Poisoning is ignored: no code in this file panics while it holds the lock.
    fn map(&self) -> RwLockReadGuard<'_, SlotMap> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, SlotMap> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlotMap {
    fn owner(&self, slot: u16) -> Option<Arc<Node>> {
        self.owners.get(usize::from(slot)).cloned().flatten()
    }

    fn is_older_than(&self, age: Duration) -> bool {
        self.read_at.is_none_or(|read_at| read_at.elapsed() > age)
    }
}

/// Guard of a task that reads the map, whose runtime may end before it does.
struct Hinted(Arc<AtomicBool>);

impl Drop for Hinted {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Returns what stands for a primary in a cursor.
fn mark(range: &SlotRange, host: &str) -> String {
    let id = match range.primary_id.as_str() {
        "" => address(host, range.primary.port),
        id => id.to_owned(),
    };
    let plain = id.chars().filter(char::is_ascii_alphanumeric);
    // The end of an address differs more often than its beginning; an id is random throughout.
    let mut mark: Vec<char> = plain.collect();
    let surplus = mark.len().saturating_sub(MARK_CHARS);
    mark.drain(..surplus);
    mark.into_iter().collect()
}

/// Age after which the map is read again although nothing called for it.
const MAP_AGE_MAX: Duration = Duration::from_secs(30);
/// Age under which the map is as good as a new one.
const MAP_AGE_MIN: Duration = Duration::from_millis(50);
/// Number of known nodes that are asked before the seeds.
const INFORMANTS_MAX: usize = 8;
const INFORMANT_LIMIT: Duration = Duration::from_millis(500);
const MARK_CHARS: usize = 12;
