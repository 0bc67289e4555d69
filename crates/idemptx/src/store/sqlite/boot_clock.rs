//! The clock that judges leases: one for all processes of the host, which cannot be set.
//!
//! On Linux that is the time since the host has booted, suspension included, and the file says how
//! far ahead of it the store's time is, so that the latter began with the Unix epoch.
//! Setting the wall clock has no effect.
//!
//! The file also says by which boot it goes.
//! The first process after another boot begins an *era*: it takes the wall clock as the time,
//! unless that would turn the store's back, and every lease of an earlier era counts as lapsed,
//! because its owner has ended with its boot.
//!
//! Elsewhere the wall clock has to do: a step of it shortens or lengthens leases.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension, params};

/// A moment of the store's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BootTime {
    /// Microseconds since the Unix epoch, more or less.
    pub(super) micros: i64,
    /// The boot it is in.
    pub(super) era: i64,
}

impl BootTime {
    /// The moment so much later, or the end of time.
    pub(super) fn after(self, wait: Duration) -> i64 {
        self.micros.saturating_add(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX))
    }

    /// Returns the time until then, zero if that is over.
    pub(super) fn until(self, then: i64) -> Duration {
        Duration::from_micros(u64::try_from(then.saturating_sub(self.micros)).unwrap_or(0))
    }
}

/// The store's clock.
#[derive(Debug)]
pub(super) struct StoreClock {
    host: HostClock,
    ahead: i64,
    era: i64,
    latest: AtomicI64,
}

impl StoreClock {
    /// Begins an era or continues the current one, within a transaction.
    ///
    /// `None` if the others go by a clock that is ahead of this process's.
    pub(super) fn enter(
        connection: &Connection,
        host: HostClock,
    ) -> rusqlite::Result<Option<Self>> {
        let micros = host.micros();
        let read = |row: &rusqlite::Row<'_>| {
            Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        };
        let known: Option<(String, i64, i64, i64)> = connection
            .query_row("SELECT boot, era, ahead, mark FROM clock", [], read)
            .optional()?;
        let (era, ahead) = match known {
            Some((boot, era, ahead, mark)) if boot == host.boot => {
                // The wall clock may have been set back; the boot's cannot.
                if boot != WALL && micros + ahead < mark - MARK_AHEAD {
                    return Ok(None);
                }
                (era, ahead)
            }
            Some((_, era, _, mark)) => (era + 1, wall_micros().max(mark) - micros),
            None => (1, wall_micros() - micros),
        };
        connection.execute(
            "INSERT INTO clock (one, boot, era, ahead, mark) VALUES (1, ?1, ?2, ?3, ?4) \
             ON CONFLICT (one) DO UPDATE SET boot = ?1, era = ?2, ahead = ?3, mark = ?4",
            params![host.boot, era, ahead, micros + ahead + MARK_AHEAD],
        )?;
        Ok(Some(Self { host, ahead, era, latest: AtomicI64::new(0) }))
    }

    /// This moment.
    pub(super) fn now(&self) -> BootTime {
        let micros = self.host.micros() + self.ahead;
        let latest = self.latest.fetch_max(micros, Ordering::Relaxed);
        BootTime { micros: micros.max(latest), era: self.era }
    }

    /// Returns the mark to write, if the time approaches the one in the file.
    pub(super) fn next_mark(now: BootTime, mark: i64) -> Option<i64> {
        (now.micros > mark - MARK_AHEAD / 2).then_some(now.micros + MARK_AHEAD)
    }

    /// Returns true if setting the wall clock changes it.
    pub(super) fn can_be_set(&self) -> bool {
        self.host.boot == WALL
    }
}

/// The clock of the host, and which boot it counts from.
#[derive(Clone, Debug)]
pub(super) struct HostClock {
    boot: String,
}

impl HostClock {
    /// Finds out which boot this is.
    #[cfg(target_os = "linux")]
    pub(super) fn new() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot = boot.trim();
        Self { boot: if boot.is_empty() { WALL } else { boot }.to_owned() }
    }

    /// No clock that a process could rely upon is known.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn new() -> Self {
        Self { boot: WALL.to_owned() }
    }

    /// The clock of another boot, which goes like this one's.
    #[cfg(test)]
    pub(super) fn of_boot(boot: &str) -> Self {
        Self { boot: boot.to_owned() }
    }

    fn micros(&self) -> i64 {
        if self.boot == WALL { wall_micros() } else { boot_micros() }
    }
}

#[cfg(target_os = "linux")]
fn boot_micros() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1000)
}

#[cfg(not(target_os = "linux"))]
fn boot_micros() -> i64 {
    wall_micros()
}

fn wall_micros() -> i64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}

/// Name of the boot on systems that have no boot id.
const WALL: &str = "wall clock";
/// A minute, in microseconds.
const MARK_AHEAD: i64 = 60_000_000;
