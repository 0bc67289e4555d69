//! The start-up check: what a server's configuration can do to claims.

use std::collections::HashMap;

use idemptx_core::store::StoreError;

use super::command::Command;
use super::layout::Layout;
use super::refusal::has_code;
use super::reply::Reply;
use super::wait_replicas::WaitReplicas;
use crate::store::{Finding, SafetyReport, Severity};

/// Returns the commands that read the settings which decide about the server's guarantee.
#[must_use]
pub fn questions() -> [Command; 2] {
    [
        Command::of("INFO", 1, 0),
        Command::of("CONFIG", 4, 0).text("GET").text("appendfsync").text("save"),
    ]
}

/// Evaluates the replies to the [questions](questions()).
///
/// What the server will not tell (hosted ones forbid `CONFIG`, some users `INFO`) is reported as a
/// warning, not guessed.
///
/// # Errors
///
/// As [`Layout::refused`] for any other error among the replies.
pub fn evaluate(
    layout: &Layout,
    transport: Transport,
    replies: [Reply; 2],
) -> Result<Checked, StoreError> {
    evaluate_all(layout, transport, Deployment::Single, Precautions::default(), vec![replies])
}

/// Evaluates the replies of all servers that take writes.
///
/// # Errors
///
/// As [`evaluate`].
pub fn evaluate_all(
    layout: &Layout,
    transport: Transport,
    deployment: Deployment,
    precautions: Precautions,
    replies: Vec<[Reply; 2]>,
) -> Result<Checked, StoreError> {
    let servers = replies.into_iter().map(|[about, configuration]| {
        Ok(ServerSettings {
            info: unless_forbidden(layout, about)?.map(info),
            configuration: unless_forbidden(layout, configuration)?.map(pairs),
        })
    });
    let servers = servers.collect::<Result<Vec<_>, StoreError>>()?;
    let mut report = judge(layout.server().as_deref(), deployment, precautions, &servers);
    if transport == Transport::Plaintext {
        let findings = report.findings.into_iter().chain([plaintext()]).collect();
        report = SafetyReport::new(findings, report.guarantee);
    }
    let durable = servers.iter().map(|server| server.persistence().is_durable());
    // One that forgets is enough.
    let durable = durable.reduce(|one, other| match (one, other) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    });
    Ok(Checked { report, durable: durable.flatten() })
}

/// Returns what there is to say about the servers, each finding once.
fn judge(
    server: Option<&str>,
    deployment: Deployment,
    precautions: Precautions,
    servers: &[ServerSettings],
) -> SafetyReport {
    let mut findings: Vec<Finding> = Vec::new();
    for finding in
        servers.iter().flat_map(|judged| judged.findings(server, deployment, precautions))
    {
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
    SafetyReport::new(findings, guarantee(server, deployment, precautions, servers))
}

/// The guarantee of all servers: that of the weakest in each respect.
fn guarantee(
    server: Option<&str>,
    deployment: Deployment,
    precautions: Precautions,
    servers: &[ServerSettings],
) -> String {
    let product = servers.first().map(ServerSettings::product).unwrap_or_default();
    let kind = match deployment {
        Deployment::Single => String::new(),
        Deployment::Sentinel => " behind sentinels".to_owned(),
        Deployment::Cluster => format!(" cluster of {} primaries", servers.len()),
    };
    let position = server.map(|server| format!(" at {server}")).unwrap_or_default();
    let persistence = servers.iter().map(ServerSettings::persistence).min();
    let persistence = persistence.unwrap_or(Persistence::Unknown);
    let replicas = servers.iter().map(|server| server.number("connected_slaves"));
    let replicas = replicas.reduce(|one, other| Some(one? + other?)).flatten();
    let eviction = servers.iter().map(|server| server.info("maxmemory_policy"));
    let eviction = eviction.reduce(|one, other| match (one, other) {
        (Some("noeviction"), other) => other,
        (one, _) => one,
    });
    format!(
        "{product}{kind}{position}: {}; {}; {}",
        persistence.describe(precautions),
        describe_replicas(replicas, precautions, servers),
        describe_eviction(eviction.flatten()),
    )
}

fn describe_replicas(
    replicas: Option<u64>,
    precautions: Precautions,
    servers: &[ServerSettings],
) -> String {
    let put_back = match precautions.has_grace {
        true => ", and those who live put them back before anything new begins",
        false => "",
    };
    match replicas {
        None => "replicas unknown".to_owned(),
        Some(0) if precautions.wait_replicas.required(0) > 0 => {
            let required = precautions.wait_replicas.required(0);
            format!("no replicas, and nothing counts before {required} have it")
        }
        Some(0) => "no replicas".to_owned(),
        Some(count) if servers.iter().all(|server| server.is_waited_for(precautions)) => {
            format!("a failover to any of {count} connected replicas keeps acknowledged claims")
        }
        Some(count) => format!(
            "a failover to one of {count} replicas may forget acknowledged claims{put_back}"
        ),
    }
}

fn describe_eviction(policy: Option<&str>) -> String {
    match policy {
        None => "eviction unknown".to_owned(),
        Some("noeviction") => "no eviction".to_owned(),
        Some(policy) => format!("{policy} may delete claims"),
    }
}

/// Settings against a failover that forgets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Precautions {
    /// Replicas that must have a claim or a result before it counts.
    pub wait_replicas: WaitReplicas,
    /// True if a claim or a result must be on the disk before it counts.
    pub waits_for_disk: bool,
    /// True if nothing new is granted for a while after a failover.
    pub has_grace: bool,
}

/// Servers that a store was told to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Deployment {
    /// One server.
    Single,
    /// The primary of a service, which sentinels know.
    Sentinel,
    /// The primaries of a cluster.
    Cluster,
}

/// Result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checked {
    /// The report.
    pub report: SafetyReport,
    /// True if records survive the end of the server's process; `None` if that is unknown.
    pub durable: Option<bool>,
}

/// Transport between the store and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Encrypted, or never leaving this host.
    Private,
    /// Plain text through a network.
    Plaintext,
}

/// The answer, or none where the server says that it will not give any.
fn unless_forbidden(layout: &Layout, reply: Reply) -> Result<Option<Reply>, StoreError> {
    match reply {
        // Not allowed, or `ERR unknown command`.
        Reply::Error(error) if has_code(&error, "NOPERM") || has_code(&error, "ERR") => Ok(None),
        Reply::Error(error) => Err(layout.refused(&error)),
        answer => Ok(Some(answer)),
    }
}

/// Settings of the server; `None` where it refused to show them.
struct ServerSettings {
    info: Option<HashMap<String, String>>,
    configuration: Option<HashMap<String, String>>,
}

impl ServerSettings {
    fn findings(
        &self,
        server: Option<&str>,
        deployment: Deployment,
        precautions: Precautions,
    ) -> impl Iterator<Item = Finding> + use<> {
        let findings = [
            self.visibility(),
            self.version(),
            self.role(),
            self.cluster(deployment),
            self.eviction(),
            self.persistence().finding(precautions, server),
            self.replication(precautions),
            self.headroom(),
        ];
        findings.into_iter().flatten()
    }

    fn info(&self, name: &str) -> Option<&str> {
        self.info.as_ref()?.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.info(name)?.parse().ok()
    }

    fn configured(&self, name: &str) -> Option<&str> {
        self.configuration.as_ref()?.get(name).map(String::as_str)
    }

    fn product(&self) -> String {
        // Valkey shows the version of Redis that it is compatible with, and its own beside it.
        match (self.info("valkey_version"), self.info("redis_version")) {
            (Some(version), _) => format!("valkey {version}"),
            (None, Some(version)) => format!("redis {version}"),
            (None, None) => "redis of an unknown version".to_owned(),
        }
    }

    fn visibility(&self) -> Option<Finding> {
        self.info.is_none().then(|| {
            warning(
                "this user may not run INFO, so nothing could be checked; allow it, or make sure \
                 of version 7.0, maxmemory-policy noeviction and persistence yourself",
            )
        })
    }

    fn version(&self) -> Option<Finding> {
        let version = self.info("redis_version")?;
        let major: u32 = version.split('.').next()?.parse().ok()?;
        (major < MAJOR_VERSION_MIN).then(|| {
            fatal(format!(
                "version {version} is too old: claims need SET with both NX and GET, which came \
                 with Redis {MAJOR_VERSION_MIN}.0; upgrade it"
            ))
        })
    }

    fn role(&self) -> Option<Finding> {
        (self.info("role") == Some("slave")).then(|| {
            fatal("this server is a replica, which takes no writes; use the primary's address")
        })
    }

    fn cluster(&self, deployment: Deployment) -> Option<Finding> {
        let is_node = self.info("cluster_enabled")? == "1";
        (is_node && deployment != Deployment::Cluster).then(|| {
            fatal(
                "this server is a node of a cluster, which would refuse every key of the other \
                 nodes; write redis+cluster:// instead of the URL's scheme",
            )
        })
    }

    fn eviction(&self) -> Option<Finding> {
        match self.info("maxmemory_policy") {
            Some("noeviction") => None,
            Some(policy) => Some(danger(format!(
                "maxmemory-policy {policy} deletes claims and results when memory runs short, and \
                 their operations run again; set it to noeviction"
            ))),
            None => Some(warning(
                "maxmemory-policy could not be read; anything but noeviction deletes claims",
            )),
        }
    }

    fn persistence(&self) -> Persistence {
        match (self.info("aof_enabled"), self.configured("appendfsync")) {
            (None, _) => Persistence::Unknown,
            (Some("1"), Some("always")) => Persistence::EveryWrite,
            (Some("1"), Some("everysec")) => Persistence::EverySecond,
            (Some("1"), _) => Persistence::WhenTheHostLikes,
            _ if self.configured("save") == Some("") => Persistence::Nothing,
            _ => Persistence::Snapshots,
        }
    }

    fn replication(&self, precautions: Precautions) -> Option<Finding> {
        if self.number("connected_slaves")? == 0 {
            return None;
        }
        Some(match (self.is_waited_for(precautions), precautions.has_grace) {
            (true, true) => warning(
                "every replica that is connected has a claim before it counts, but one that is away \
                 now and is promoted later can forget it; set min-replicas-to-write, and \
                 `wait_replicas`, to the number of all replicas",
            ),
            (true, false) => danger(
                "a replica that is away while a claim is made, and is promoted later, forgets it \
                 and its operation runs again; set `failover_grace`, too",
            ),
            (false, true) => danger(
                "replication is asynchronous: a failover can forget acknowledged claims and results \
                 of processes that do not live to put them back, and their operations run again; \
                 set `wait_replicas` to the number of all replicas, or keep what must never run \
                 twice in PostgreSQL",
            ),
            (false, false) => danger(
                "replication is asynchronous: a failover can forget acknowledged claims and \
                 results, and their operations run again; set `failover_grace` and \
                 `wait_replicas`, or keep what must never run twice in PostgreSQL",
            ),
        })
    }

    /// Returns true if no connected replica lacks what counts.
    fn is_waited_for(&self, precautions: Precautions) -> bool {
        let connected = self.number("connected_slaves");
        connected
            .is_some_and(|connected| connected <= precautions.wait_replicas.required(connected))
    }

    fn headroom(&self) -> Option<Finding> {
        let (used, limit) = (self.number("used_memory")?, self.number("maxmemory")?);
        let is_short = limit > 0 && used / 9 >= limit / 10;
        is_short.then(|| {
            // Without the bytes in use, which would make each check another finding.
            warning(format!(
                "more than 90 % of {limit} bytes of memory (maxmemory) are in use; new keys are \
                 refused when none is left; raise maxmemory or shorten the retention"
            ))
        })
    }
}

/// Policy of the server for writing to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Persistence {
    Unknown,
    Nothing,
    Snapshots,
    WhenTheHostLikes,
    EverySecond,
    EveryWrite,
}

impl Persistence {
    /// True if records survive the end of the server's process; `None` if that is unknown.
    fn is_durable(self) -> Option<bool> {
        (self != Self::Unknown).then_some(self != Self::Nothing)
    }

    fn finding(self, precautions: Precautions, server: Option<&str>) -> Option<Finding> {
        match self {
            Self::EverySecond | Self::WhenTheHostLikes if precautions.waits_for_disk => {
                Some(warning(
                    "with `wait_aof` each claim and result waits until the server flushes its \
                     append-only file, which it does once a second; set appendfsync always, or \
                     raise the store's time limit above three seconds",
                ))
            }
            // That INFO tells nothing is a finding of its own.
            Self::Unknown | Self::EveryWrite => None,
            Self::Nothing => {
                let position = server.map(|server| format!(" at {server}")).unwrap_or_default();
                Some(danger(format!(
                    "Redis{position} has no persistence; a restart forgets every claim and \
                     result, and retries run again: set appendonly yes"
                )))
            }
            Self::Snapshots => Some(danger(
                "without the append-only file a crash forgets every claim and result since the \
                 last snapshot, and retries run again; set appendonly yes",
            )),
            Self::WhenTheHostLikes => Some(warning(
                "appendfsync is `no` or could not be read: a crash of the host forgets what it \
                 has not written yet; only `always` loses nothing",
            )),
            Self::EverySecond => Some(Finding::new(
                Severity::Note,
                "a loss of power forgets the last second's claims and results; \
                 appendfsync always loses none",
            )),
        }
    }

    fn describe(self, precautions: Precautions) -> &'static str {
        match self {
            Self::EverySecond | Self::WhenTheHostLikes if precautions.waits_for_disk => {
                "claims survive a crash of Redis and of its host (waited for)"
            }
            Self::Unknown => "what survives a crash of Redis is unknown",
            Self::Nothing => "no claim survives a restart of Redis (no persistence)",
            Self::Snapshots => {
                "claims since the last snapshot do not survive a crash of Redis (no appendonly)"
            }
            Self::WhenTheHostLikes => {
                "claims survive a crash of Redis, and of its host once written (appendonly)"
            }
            Self::EverySecond => {
                "claims survive a crash of Redis up to the last second (appendonly everysec)"
            }
            Self::EveryWrite => {
                "claims survive a crash of Redis and of its host (appendonly always)"
            }
        }
    }
}

fn plaintext() -> Finding {
    danger(
        "responses cross the network to this server in plain text, and can be altered there: use \
         rediss://",
    )
}

fn warning(text: impl Into<String>) -> Finding {
    Finding::new(Severity::Warning, text)
}

fn danger(text: impl Into<String>) -> Finding {
    Finding::new(Severity::Unsafe, text)
}

fn fatal(text: impl Into<String>) -> Finding {
    Finding::new(Severity::Fatal, text)
}

/// The lines `name:value` of `INFO`.
fn info(reply: Reply) -> HashMap<String, String> {
    let text = text(reply).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.trim_end().split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The names and values of `CONFIG GET`, which take turns.
fn pairs(reply: Reply) -> HashMap<String, String> {
    let Reply::Array(parts) = reply else { return HashMap::new() };
    let mut texts = parts.into_iter().filter_map(text);
    std::iter::from_fn(|| Some((texts.next()?, texts.next()?))).collect()
}

fn text(reply: Reply) -> Option<String> {
    let Reply::Bytes(bytes) = reply else { return None };
    String::from_utf8(bytes.into()).ok()
}

const MAJOR_VERSION_MIN: u32 = 7;

#[cfg(test)]
mod tests;
