//! The start-up check: what a server's configuration can do to claims.

use tokio_postgres::Row;

use crate::store::{Finding, SafetyReport, Severity};

/// Settings of the server that decide which guarantee it gives.
#[derive(Clone, Debug)]
pub(super) struct DatabaseSettings {
    version: String,
    version_number: i32,
    is_standby: bool,
    is_read_only: bool,
    fsync: bool,
    full_page_writes: bool,
    synchronous_commit: String,
    /// `synchronous_commit` of sessions that set nothing themselves.
    default_commit: Option<String>,
    may_notify: bool,
    /// Rights on the table of the records that the role has not.
    lacking: Vec<String>,
    standby_names: String,
    persistence: Option<String>,
    standbys: i64,
    /// Standbys of which commits wait for one or more.
    synchronous: i64,
    /// Standbys of which the role sees no more than that they are there.
    hidden: i64,
}

impl DatabaseSettings {
    /// The answer to the question.
    pub(super) fn read(row: &Row) -> Option<Self> {
        Some(Self {
            version: row.try_get("version").ok()?,
            version_number: row.try_get("version_number").ok()?,
            is_standby: row.try_get("recovery").ok()?,
            is_read_only: row.try_get("read_only").ok()?,
            fsync: row.try_get("fsync").ok()?,
            full_page_writes: row.try_get("full_page_writes").ok()?,
            synchronous_commit: row.try_get("synchronous_commit").ok()?,
            default_commit: row.try_get("default_commit").ok()?,
            may_notify: row.try_get("may_notify").ok()?,
            lacking: row.try_get("lacking").ok()?,
            standby_names: row.try_get("standby_names").ok()?,
            persistence: row.try_get("persistence").ok()?,
            standbys: row.try_get("standbys").ok()?,
            synchronous: row.try_get("synchronous").ok()?,
            hidden: row.try_get("hidden").ok()?,
        })
    }

    /// Returns true if acknowledged steps survive a crash of the server.
    pub(super) fn is_durable(&self) -> bool {
        self.is_logged() && self.commits_wait()
    }

    /// Returns true if the role may wake the tasks that wait for a claim.
    pub(super) const fn may_notify(&self) -> bool {
        self.may_notify
    }

    /// Returns the report on these settings.
    pub(super) fn report(&self, server: &str, is_plaintext: bool) -> SafetyReport {
        let findings = [
            self.version(),
            self.role(),
            self.rights(),
            self.logging(),
            self.commit(),
            self.application_commit(),
            self.wake_ups(),
            self.flushing(),
            self.pages(),
            self.replication(),
            self.waiting(),
            self.promotion(),
            is_plaintext.then(plaintext),
        ];
        let guarantee = format!(
            "postgresql {} at {server}: {}; {}",
            self.version.split(' ').next().unwrap_or_default(),
            self.crash_guarantee(),
            self.failover_guarantee(),
        );
        SafetyReport::new(findings.into_iter().flatten().collect(), guarantee)
    }

    fn version(&self) -> Option<Finding> {
        (self.version_number < VERSION_MIN).then(|| {
            warning(format!(
                "version {} is older than {}, the oldest that this store is meant for; upgrade it",
                self.version,
                VERSION_MIN / 10_000
            ))
        })
    }

    fn role(&self) -> Option<Finding> {
        if self.is_standby {
            let text = "this server is a standby, which takes no writes; name the primary, or all \
                        of them, in the URL";
            return Some(Finding::new(Severity::Fatal, text));
        }
        self.is_read_only.then(|| {
            let text = "transactions are read-only here (default_transaction_read_only); allow the \
                        store's role to write";
            Finding::new(Severity::Fatal, text)
        })
    }

    fn rights(&self) -> Option<Finding> {
        let lacking = self.lacking.join(", ");
        let grant = format!("GRANT {lacking} ON the table of the records TO the role");
        match self.lacking.as_slice() {
            [] => None,
            // It grants a claim that it could not end, or not even that.
            [right] if right == "DELETE" => Some(warning(format!(
                "the role may not DELETE records: a key that is given up stays blocked for a \
                 lease, and what has expired is never removed; {grant}"
            ))),
            _ => Some(Finding::new(
                Severity::Fatal,
                format!(
                    "the role lacks rights without which no result is kept, so that its operation \
                     would run again; {grant}"
                ),
            )),
        }
    }

    fn logging(&self) -> Option<Finding> {
        (!self.is_logged()).then(|| {
            danger(
                "the table is UNLOGGED: a crash empties it, no standby has it, and retries run \
                 again; ALTER TABLE … SET LOGGED",
            )
        })
    }

    fn commit(&self) -> Option<Finding> {
        match self.synchronous_commit.as_str() {
            "off" => Some(danger(
                "synchronous_commit is off: a crash forgets the last acknowledged claims and \
                 results, and their operations run again; set it to on, for the server, the role, \
                 or this store (`synchronous_commit`)",
            )),
            level @ ("local" | "remote_write") if self.has_synchronous_standbys() => {
                Some(warning(format!(
                    "synchronous_commit is {level}: a failover to a synchronous standby can \
                     forget acknowledged claims; set it to on",
                )))
            }
            _ => None,
        }
    }

    fn application_commit(&self) -> Option<Finding> {
        let is_off = self.default_commit.as_deref() == Some("off") && self.commits_wait();
        is_off.then(|| {
            let text = "synchronous_commit is off by default, and on in this store's sessions: a \
                        result that a handler settles in a transaction on its own connection can \
                        be forgotten in a crash, with what the transaction did; SET LOCAL \
                        synchronous_commit = on there";
            Finding::new(Severity::Note, text)
        })
    }

    fn wake_ups(&self) -> Option<Finding> {
        (!self.may_notify).then(|| {
            warning(
                "the role may not execute pg_notify: requests that wait for the result of another \
                 process look for it from time to time, and are not woken; GRANT EXECUTE ON \
                 FUNCTION pg_catalog.pg_notify(text, text) to the role",
            )
        })
    }

    fn flushing(&self) -> Option<Finding> {
        (!self.fsync).then(|| {
            danger(
                "fsync is off: a crash of the host forgets acknowledged claims or destroys the \
                 database; set it to on",
            )
        })
    }

    fn pages(&self) -> Option<Finding> {
        (!self.full_page_writes).then(|| {
            danger(
                "full_page_writes is off: a crash of the host can leave torn pages, and claims in \
                 them are lost, unless the file system writes pages as a whole; set it to on",
            )
        })
    }

    fn replication(&self) -> Option<Finding> {
        (self.standbys > 0 && !self.has_synchronous_standbys()).then(|| {
            danger(
                "replication is asynchronous: a failover can forget acknowledged claims and \
                 results, and their operations run again; name the standbys that may be promoted \
                 in synchronous_standby_names",
            )
        })
    }

    fn waiting(&self) -> Option<Finding> {
        self.waits_for_nobody().then(|| {
            warning(
                "no synchronous standby is connected: nothing is acknowledged until one is, and \
                 new keys are refused; start one of synchronous_standby_names",
            )
        })
    }

    fn promotion(&self) -> Option<Finding> {
        let awaited = awaited(&self.standby_names);
        (self.has_synchronous_standbys() && self.standbys > awaited).then(|| {
            warning(format!(
                "commits wait for {awaited} of {} connected standbys: if another is promoted, it \
                 may have forgotten acknowledged claims; promote the one that has received most, \
                 or have all named in synchronous_standby_names",
                self.standbys
            ))
        })
    }

    /// Returns true if commits wait, and none of those for which they wait is there.
    fn waits_for_nobody(&self) -> bool {
        self.has_synchronous_standbys()
            && self.hidden == 0
            && self.synchronous == 0
            && !matches!(self.synchronous_commit.as_str(), "off" | "local")
    }

    fn is_logged(&self) -> bool {
        self.persistence.as_deref() != Some("u")
    }

    fn commits_wait(&self) -> bool {
        self.synchronous_commit != "off"
    }

    fn has_synchronous_standbys(&self) -> bool {
        !self.standby_names.is_empty()
    }

    fn crash_guarantee(&self) -> &'static str {
        match (self.is_logged(), self.commits_wait(), self.fsync && self.full_page_writes) {
            (false, ..) => "no claim survives a crash of PostgreSQL (unlogged table)",
            (_, false, _) => {
                "the last claims do not survive a crash of PostgreSQL (synchronous_commit off)"
            }
            (.., false) => "claims survive a crash of PostgreSQL, but not of its host",
            _ => "claims survive a crash of PostgreSQL and of its host",
        }
    }

    fn failover_guarantee(&self) -> String {
        let level = &self.synchronous_commit;
        match (self.has_synchronous_standbys(), self.standbys) {
            (true, _) if self.waits_for_nobody() => format!(
                "and nothing is acknowledged, for no synchronous standby is connected ({})",
                self.standby_names
            ),
            (true, _) if matches!(level.as_str(), "on" | "remote_apply") => format!(
                "and a failover to a synchronous standby ({}; synchronous_commit {level})",
                self.standby_names
            ),
            (false, 0) => "no standbys".to_owned(),
            _ => "a failover may forget acknowledged claims".to_owned(),
        }
    }
}

/// Returns how many standbys a commit waits for: `FIRST 2 (a, b)`, `ANY 2 (a, b)`, `2 (a, b)`, and
/// one where there is only a list.
fn awaited(standby_names: &str) -> i64 {
    let Some((method, _)) = standby_names.split_once('(') else { return 1 };
    method.split_whitespace().last().and_then(|number| number.parse().ok()).unwrap_or(1)
}

fn plaintext() -> Finding {
    danger(
        "responses cross the network to this server in plain text, and can be altered there: \
         remove sslmode=disable",
    )
}

fn warning(text: impl Into<String>) -> Finding {
    Finding::new(Severity::Warning, text)
}

fn danger(text: impl Into<String>) -> Finding {
    Finding::new(Severity::Unsafe, text)
}

const VERSION_MIN: i32 = 130_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> DatabaseSettings {
        DatabaseSettings {
            version: "15.18 (Debian 15.18-0+deb12u1)".to_owned(),
            version_number: 150_018,
            is_standby: false,
            is_read_only: false,
            fsync: true,
            full_page_writes: true,
            synchronous_commit: "on".to_owned(),
            default_commit: Some("on".to_owned()),
            may_notify: true,
            lacking: Vec::new(),
            standby_names: String::new(),
            persistence: Some("p".to_owned()),
            standbys: 0,
            synchronous: 0,
            hidden: 0,
        }
    }

    fn gravest(settings: &DatabaseSettings) -> Option<(Severity, String)> {
        let findings = settings.report("db:5432/app", false).findings;
        findings.first().map(|finding| (finding.severity, finding.text.clone()))
    }

    #[test]
    fn a_sound_server_has_no_findings() {
        let report = sound().report("db:5432/app", false);
        assert!(report.findings.is_empty(), "{report:?}");
        assert_eq!(
            report.guarantee,
            "postgresql 15.18 at db:5432/app: claims survive a crash of PostgreSQL and of its \
             host; no standbys"
        );
        assert!(sound().is_durable());
    }

    #[test]
    fn everything_that_loses_claims_is_a_finding() {
        for (settings, severity, word, is_durable) in [
            (DatabaseSettings { is_standby: true, ..sound() }, Severity::Fatal, "standby", true),
            (
                DatabaseSettings { is_read_only: true, ..sound() },
                Severity::Fatal,
                "read-only",
                true,
            ),
            (DatabaseSettings { fsync: false, ..sound() }, Severity::Unsafe, "fsync", true),
            (
                DatabaseSettings { full_page_writes: false, ..sound() },
                Severity::Unsafe,
                "full_page",
                true,
            ),
            (
                DatabaseSettings { synchronous_commit: "off".to_owned(), ..sound() },
                Severity::Unsafe,
                "synchronous_commit",
                false,
            ),
            (
                DatabaseSettings { may_notify: false, ..sound() },
                Severity::Warning,
                "GRANT EXECUTE ON FUNCTION pg_catalog.pg_notify",
                true,
            ),
            (
                DatabaseSettings { lacking: vec!["UPDATE".to_owned()], ..sound() },
                Severity::Fatal,
                "GRANT UPDATE ON",
                true,
            ),
            (
                DatabaseSettings { lacking: vec!["DELETE".to_owned()], ..sound() },
                Severity::Warning,
                "GRANT DELETE ON",
                true,
            ),
            (
                DatabaseSettings { default_commit: Some("off".to_owned()), ..sound() },
                Severity::Note,
                "own connection",
                true,
            ),
            (
                DatabaseSettings { persistence: Some("u".to_owned()), ..sound() },
                Severity::Unsafe,
                "UNLOGGED",
                false,
            ),
            (DatabaseSettings { standbys: 1, ..sound() }, Severity::Unsafe, "asynchronous", true),
            (
                DatabaseSettings { version_number: 120_022, ..sound() },
                Severity::Warning,
                "older",
                true,
            ),
        ] {
            let (found, text) = gravest(&settings).unwrap();
            assert_eq!(found, severity, "{text}");
            assert!(text.contains(word), "{text}");
            assert_eq!(settings.is_durable(), is_durable, "{text}");
        }
    }

    #[test]
    fn synchronous_standbys_are_part_of_the_guarantee() {
        let mut settings = DatabaseSettings { standby_names: "ANY 1 (*)".to_owned(), ..sound() };
        (settings.standbys, settings.synchronous) = (1, 1);
        assert_eq!(gravest(&settings), None);
        let guarantee = settings.report("db", false).guarantee;
        assert!(
            guarantee.contains("a failover to a synchronous standby (ANY 1 (*)"),
            "{guarantee}"
        );
        settings.synchronous_commit = "local".to_owned();
        assert_eq!(gravest(&settings).unwrap().0, Severity::Warning);
        assert!(settings.report("db", false).guarantee.contains("may forget"));
    }

    #[test]
    fn standbys_that_are_away_or_may_lag_behind_are_told() {
        let names = |names: &str| DatabaseSettings { standby_names: names.to_owned(), ..sound() };
        let away = names("one");
        assert!(gravest(&away).unwrap().1.contains("no synchronous standby is connected"));
        let guarantee = away.report("db", false).guarantee;
        assert!(guarantee.contains("nothing is acknowledged"), "{guarantee}");
        // A role that sees nothing of them knows nothing of that.
        assert_eq!(gravest(&DatabaseSettings { standbys: 1, hidden: 1, ..away }), None);
        for (text, awaited) in [
            ("one, two", 1),
            ("*", 1),
            ("2 (one, two)", 2),
            ("FIRST 2 (one, two)", 2),
            ("ANY 2 (*)", 2),
        ] {
            let all = DatabaseSettings { standbys: awaited, synchronous: awaited, ..names(text) };
            assert_eq!(gravest(&all), None, "{text}");
            let more = DatabaseSettings { standbys: awaited + 1, ..all };
            let (severity, finding) = gravest(&more).unwrap();
            assert_eq!(severity, Severity::Warning, "{text}");
            assert!(finding.contains(&format!("wait for {awaited} of {}", awaited + 1)), "{text}");
        }
    }

    #[test]
    fn plain_text_over_a_network_is_a_finding() {
        let report = sound().report("db", true);
        assert!(report.is_unsafe());
        assert!(report.findings[0].text.contains("plain text"));
    }
}
