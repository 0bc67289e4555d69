//! Redis clusters.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::{CertificateAuthority, RedisServer, ReservedPort};

/// A cluster of `redis-server` processes, killed when dropped.
///
/// The primaries come first, then the first replica of each, then the second of each.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    ids: Vec<String>,
    buses: Vec<ReservedPort>,
    /// Encrypted ports, if there are any.
    encrypted: Vec<ReservedPort>,
}

impl RedisCluster {
    /// Starts primaries with so many replicas each, and waits until the cluster serves all slots.
    pub fn start(primaries: usize, replicas_each: usize, configuration: &[&str]) -> Self {
        Self::start_encrypted(primaries, replicas_each, configuration, None)
    }

    /// Does the same, with the certificates in a directory: everything but the requests of this
    /// type is encrypted.
    pub fn start_encrypted(
        primaries: usize,
        replicas_each: usize,
        configuration: &[&str],
        certificates: Option<&Path>,
    ) -> Self {
        let count = primaries * (1 + replicas_each);
        let reserve = |count| (0..count).map(|_| ReservedPort::reserve()).collect::<Vec<_>>();
        let buses = reserve(count);
        let encrypted = reserve(if certificates.is_some() { count } else { 0 });
        let start = |index: usize| {
            let bus = format!("cluster-port {}", buses[index].number());
            let tls = certificates.map(|certificates| {
                let port = encrypted[index].number();
                CertificateAuthority::redis_lines(certificates, port) + "\ntls-cluster yes"
            });
            let own =
                ["cluster-enabled yes", "cluster-node-timeout 1000", "repl-diskless-sync-delay 0"];
            let tls = tls.unwrap_or_default();
            RedisServer::start(&[&own[..], &[bus.as_str(), &tls], configuration].concat())
        };
        let nodes: Vec<_> = (0..count).map(start).collect();
        let ids = nodes.iter().map(|node| cluster(node, &["MYID"])).collect();
        let cluster = Self { nodes, ids, buses, encrypted };
        cluster.form(primaries);
        cluster
    }

    fn form(&self, primaries: usize) {
        for (index, node) in self.nodes.iter().enumerate() {
            run(node, &["SET-CONFIG-EPOCH", &(index + 1).to_string()]);
            if index < primaries {
                let bound = |index: usize| (index * SLOTS / primaries).to_string();
                let last = (index + 1) * SLOTS / primaries - 1;
                run(node, &["ADDSLOTSRANGE", &bound(index), &last.to_string()]);
            }
        }
        let [first, others @ ..] = &*self.nodes else { panic!("a cluster has nodes") };
        for (index, (other, bus)) in others.iter().zip(&self.buses[1..]).enumerate() {
            let port = self.encrypted.get(index + 1).map_or(other.port(), ReservedPort::number);
            run(first, &["MEET", "127.0.0.1", &port.to_string(), &bus.number().to_string()]);
        }
        let count = self.nodes.len();
        let known = format!("cluster_known_nodes:{count}\r\n");
        self.wait_until("all nodes know each other", |it| {
            it.nodes.iter().all(|node| {
                let nodes: String = cluster(node, &["NODES"]);
                cluster::<String>(node, &["INFO"]).contains(&known) && !nodes.contains("handshake")
            })
        });
        for (index, replica) in self.nodes.iter().enumerate().skip(primaries) {
            run(replica, &["REPLICATE", &self.ids[index % primaries]]);
        }
        self.wait_until_served();
    }

    /// Waits until every node that runs knows that all slots are served, and its replicas follow.
    pub fn wait_until_served(&self) {
        self.wait_until("all slots are served", |it| {
            it.running().all(|node| {
                let info: redis::InfoDict = info(node, "replication");
                let follows = info.get::<String>("role").as_deref() == Some("master")
                    || info.get::<String>("master_link_status").as_deref() == Some("up");
                cluster::<String>(node, &["INFO"]).contains("cluster_state:ok") && follows
            })
        });
    }

    /// Waits until a condition holds.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
            // A foreign process announces such things only when it is asked.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Returns the URL of a store, with the addresses of the first nodes.
    pub fn url(&self) -> String {
        let (scheme, ports): (_, Vec<_>) = match self.encrypted.as_slice() {
            [] => ("redis", self.nodes.iter().map(RedisServer::port).collect()),
            encrypted => ("rediss", encrypted.iter().map(ReservedPort::number).collect()),
        };
        let places = ports.iter().take(3).map(|port| format!("127.0.0.1:{port}"));
        format!("{scheme}+cluster://{}", places.collect::<Vec<_>>().join(","))
    }

    /// Returns a node.
    pub fn node(&self, index: usize) -> &RedisServer {
        &self.nodes[index]
    }

    /// Returns a node, to kill it or to start it again.
    pub fn node_mut(&mut self, index: usize) -> &mut RedisServer {
        &mut self.nodes[index]
    }

    /// Returns the index of the primary that serves a slot, as a node that runs knows it.
    pub fn owner(&self, slot: u16) -> usize {
        let informant = self.running().next().unwrap();
        let ranges: Vec<(u16, u16, redis::Value)> = slots(informant);
        let (_, _, primary) =
            ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot)).unwrap();
        let (_, port): (String, u16) = first_two(primary);
        self.nodes.iter().position(|node| node.port() == port).unwrap()
    }

    /// Makes a replica a primary at once, whatever it has received, as `TAKEOVER` does.
    pub fn promote(&self, index: usize) {
        run(&self.nodes[index], &["FAILOVER", "TAKEOVER"]);
    }

    /// Moves a slot to another primary, key by key; `between` is called before each.
    pub fn migrate(&self, slot: u16, to: usize, mut between: impl FnMut()) {
        let from = self.owner(slot);
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let number = slot.to_string();
        run(target, &["SETSLOT", &number, "IMPORTING", &self.ids[from]]);
        run(source, &["SETSLOT", &number, "MIGRATING", &self.ids[to]]);
        let mut connection = source.connection();
        loop {
            between();
            let mut asking = redis::cmd("CLUSTER");
            let keys: Vec<Vec<u8>> =
                asking.arg("GETKEYSINSLOT").arg(slot).arg(1).query(&mut connection).unwrap();
            if keys.is_empty() {
                break;
            }
            let mut migrate = redis::cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(target.port()).arg("").arg(0).arg(5_000).arg("KEYS");
            migrate.arg(keys).exec(&mut connection).unwrap();
        }
        for node in [target, source].into_iter().chain(self.running()) {
            let role: String = info(node, "replication").get("role").unwrap();
            if role == "master" {
                run(node, &["SETSLOT", &number, "NODE", &self.ids[to]]);
            }
        }
    }

    /// Returns the nodes that answer.
    pub fn running(&self) -> impl Iterator<Item = &RedisServer> {
        self.nodes.iter().filter(|node| node.is_running())
    }
}

fn slots(node: &RedisServer) -> Vec<(u16, u16, redis::Value)> {
    let ranges: Vec<Vec<redis::Value>> = cluster(node, &["SLOTS"]);
    let read = |range: Vec<redis::Value>| {
        let number = |index: usize| redis::from_redis_value_ref(&range[index]).unwrap();
        (number(0), number(1), range[2].clone())
    };
    ranges.into_iter().map(read).collect()
}

fn first_two(value: &redis::Value) -> (String, u16) {
    let redis::Value::Array(parts) = value else { panic!("{value:?}") };
    let text = redis::from_redis_value_ref(&parts[0]).unwrap();
    (text, redis::from_redis_value_ref(&parts[1]).unwrap())
}

fn info(node: &RedisServer, section: &str) -> redis::InfoDict {
    redis::cmd("INFO").arg(section).query(&mut node.connection()).unwrap()
}

fn cluster<T: redis::FromRedisValue>(node: &RedisServer, arguments: &[&str]) -> T {
    redis::cmd("CLUSTER").arg(arguments).query(&mut node.connection()).unwrap()
}

fn run(node: &RedisServer, arguments: &[&str]) {
    redis::cmd("CLUSTER").arg(arguments).exec(&mut node.connection()).unwrap();
}

const SLOTS: usize = 16_384;
const PATIENCE: Duration = Duration::from_secs(60);
