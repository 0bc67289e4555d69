//! The servers of a URL, and which of them takes writes.
//!
//! A server that was replaced by a standby may be started again, or go on in a part of the network
//! of its own, and take writes as before.
//! Each promotion begins a new timeline, so a server whose timeline is behind one that was seen is
//! left alone, and sessions on it are closed.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config, SimpleQueryMessage};

use super::postgres_failure::PostgresFailure;
use crate::time_limit::limited_or;

/// The servers of a URL.
pub(super) struct Servers {
    each: Vec<(Config, Arc<str>)>,
    /// Position of the server that took writes last.
    preferred: AtomicUsize,
    /// True once an answer of that server was late: the others are asked first.
    is_distrusted: AtomicBool,
    newest: Mutex<Option<Timeline>>,
}

/// The line of promotions that leads to a server's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timeline {
    /// Identifier of the database cluster, which its standbys share.
    system: u64,
    /// Number that each promotion raises.
    number: u32,
}

impl Timeline {
    /// Returns true if a standby was promoted since.
    const fn is_behind(self, other: Self) -> bool {
        self.system == other.system && self.number < other.number
    }
}

impl Servers {
    /// The servers of a configuration with one host or several.
    pub(super) fn of(config: &Config) -> Self {
        Self {
            each: (0..config.get_hosts().len()).map(|place| only(config, place)).collect(),
            preferred: AtomicUsize::new(0),
            is_distrusted: AtomicBool::new(false),
            newest: Mutex::default(),
        }
    }

    /// Returns true if there is another one to turn to.
    pub(super) const fn are_several(&self) -> bool {
        self.each.len() > 1
    }

    /// Has the other servers asked first: an answer of this one was late.
    pub(super) fn distrust(&self) {
        self.is_distrusted.store(true, Ordering::Relaxed);
    }

    /// Returns true if a standby was promoted since a session was opened.
    pub(super) fn is_replaced(&self, timeline: Option<Timeline>) -> bool {
        self.are_several()
            && timeline.zip(*self.newest()).is_some_and(|(own, newest)| own.is_behind(newest))
    }

    /// Opens a session on the server that takes writes, within a time limit in which every server
    /// has its share: one that accepts connections and never answers must not keep the next from
    /// being asked.
    pub(super) async fn open<T, F>(
        &self,
        password: Option<&str>,
        limit: Duration,
        mut open: impl FnMut(Config) -> F,
    ) -> Result<T, PostgresFailure>
    where
        F: Future<Output = Result<(T, Option<Timeline>), PostgresFailure>>,
    {
        let deadline = Instant::now() + limit;
        let mut failure = None;
        let mut left = self.each.len();
        for place in self.order() {
            let Some((config, name)) = self.each.get(place) else { continue };
            let mut config = config.clone();
            if let Some(password) = password {
                config.password(password);
            }
            let share = deadline.saturating_duration_since(Instant::now())
                / u32::try_from(left).unwrap_or(u32::MAX).max(1);
            left -= 1;
            config.connect_timeout(share);
            let late = || PostgresFailure::timed_out(name, share);
            match limited_or(share, open(config), late).await {
                Ok((_, Some(timeline))) if self.is_replaced(Some(timeline)) => {
                    failure = Some(PostgresFailure::replaced(name));
                }
                Ok((session, timeline)) => {
                    self.adopt(place, timeline);
                    return Ok(session);
                }
                Err(error) => failure = Some(error.or_earlier(failure)),
            }
        }
        Err(failure.unwrap_or_else(|| PostgresFailure::unexpected(&Arc::from(""))))
    }

    /// Returns the positions, in the order in which the servers are asked.
    fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let count = self.each.len();
        let first = self.preferred.load(Ordering::Relaxed)
            + usize::from(self.is_distrusted.load(Ordering::Relaxed));
        (0..count).map(move |step| (first + step) % count.max(1))
    }

    fn adopt(&self, place: usize, timeline: Option<Timeline>) {
        self.preferred.store(place, Ordering::Relaxed);
        self.is_distrusted.store(false, Ordering::Relaxed);
        if timeline.is_some() {
            *self.newest() = timeline;
        }
    }

    /// Poisoning is ignored: no code in this file panics while it holds the lock.
    fn newest(&self) -> MutexGuard<'_, Option<Timeline>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks a primary for its timeline; `None` where it will not tell, as hosted ones may not.
pub(super) async fn timeline(client: &Client) -> Option<Timeline> {
    let rows = client.simple_query(TIMELINE).await.ok()?;
    let row = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })?;
    let number = row.get(1)?.get(..TIMELINE_DIGITS)?;
    Some(Timeline {
        system: row.get(0)?.parse().ok()?,
        number: u32::from_str_radix(number, 16).ok()?,
    })
}

/// The configuration of one of several hosts, and the host's name for messages.
fn only(of: &Config, place: usize) -> (Config, Arc<str>) {
    let mut config = Config::new();
    match of.get_hosts().get(place) {
        Some(Host::Tcp(host)) => config.host(host),
        #[cfg(unix)]
        Some(Host::Unix(path)) => config.host_path(path),
        None => &mut config,
    };
    if let Some(address) = of.get_hostaddrs().get(place) {
        config.hostaddr(*address);
    }
    let ports = of.get_ports();
    config.port(ports.get(place).or(ports.first()).copied().unwrap_or(super::settings::PORT));
    if let Some(user) = of.get_user() {
        config.user(user);
    }
    if let Some(password) = of.get_password() {
        config.password(password);
    }
    if let Some(dbname) = of.get_dbname() {
        config.dbname(dbname);
    }
    if let Some(options) = of.get_options() {
        config.options(options);
    }
    if let Some(application) = of.get_application_name() {
        config.application_name(application);
    }
    if let Some(timeout) = of.get_tcp_user_timeout() {
        config.tcp_user_timeout(*timeout);
    }
    if let Some(interval) = of.get_keepalives_interval() {
        config.keepalives_interval(interval);
    }
    if let Some(retries) = of.get_keepalives_retries() {
        config.keepalives_retries(retries);
    }
    config
        .keepalives(of.get_keepalives())
        .keepalives_idle(of.get_keepalives_idle())
        .ssl_mode(of.get_ssl_mode())
        .ssl_negotiation(of.get_ssl_negotiation())
        .channel_binding(of.get_channel_binding())
        .target_session_attrs(of.get_target_session_attrs())
        .load_balance_hosts(of.get_load_balance_hosts());
    let name = super::settings::name(&config).into();
    (config, name)
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.each.iter().map(|(_, name)| name)).finish()
    }
}

/// The name of a file of the log begins with the timeline; the control file has the new one only
/// after the checkpoint that follows a promotion.
const TIMELINE: &str = "SELECT system_identifier, pg_walfile_name(pg_current_wal_insert_lsn()) \
                        FROM pg_control_system()";
const TIMELINE_DIGITS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn servers() -> Servers {
        Servers::of(&"postgres://app:secret@one,two:6000,three/db".parse().unwrap())
    }

    #[test]
    fn each_host_keeps_what_all_share() {
        let servers = servers();
        let names: Vec<_> = servers.each.iter().map(|(_, name)| name.to_string()).collect();
        assert_eq!(names, ["one:5432/db", "two:6000/db", "three:5432/db"]);
        for (config, _) in &servers.each {
            assert_eq!(config.get_user(), Some("app"));
            assert_eq!(config.get_password(), Some(&b"secret"[..]));
        }
        assert!(!format!("{servers:?}").contains("secret"));
    }

    #[test]
    fn the_server_that_took_writes_is_asked_first_until_an_answer_is_late() {
        let servers = servers();
        let order = || servers.order().collect::<Vec<_>>();
        assert_eq!(order(), [0, 1, 2]);
        servers.adopt(1, None);
        assert_eq!(order(), [1, 2, 0]);
        servers.distrust();
        servers.distrust();
        assert_eq!(order(), [2, 0, 1]);
        servers.adopt(1, None);
        assert_eq!(order(), [1, 2, 0]);
    }

    #[test]
    fn only_an_older_timeline_of_the_same_cluster_was_replaced() {
        let servers = servers();
        let line = |system, number| Some(Timeline { system, number });
        assert!(!servers.is_replaced(line(7, 1)));
        servers.adopt(0, line(7, 2));
        assert!(servers.is_replaced(line(7, 1)));
        for other in [line(7, 2), line(7, 3), line(8, 1), None] {
            assert!(!servers.is_replaced(other), "{other:?}");
        }
        servers.adopt(0, None);
        assert!(servers.is_replaced(line(7, 1)), "a server that does not tell changes nothing");
        let alone = Servers::of(&"postgres://one/db".parse().unwrap());
        alone.adopt(0, line(7, 2));
        assert!(!alone.is_replaced(line(7, 1)), "there is no other one");
    }
}
