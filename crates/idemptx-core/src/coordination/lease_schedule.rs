use std::collections::BTreeMap;
use std::time::Duration;

use crate::lease::{Lease, Token};
use crate::store::ErrorKind;
use crate::time::Timestamp;

/// The leases of running handlers: each is renewed at a third of its term, so that two renewals
/// may fail before it lapses.
///
/// `H` is what is returned once a lease is lost: the driver tells the handler by it.
#[derive(Debug)]
pub struct LeaseSchedule<H> {
    running: BTreeMap<Token, Renewal<H>>,
    /// The time at which the driver looks next; `None` while there is no lease.
    planned: Option<Timestamp>,
}

#[derive(Debug)]
struct Renewal<H> {
    lease: Lease,
    due: Timestamp,
    holder: H,
}

impl<H> LeaseSchedule<H> {
    /// Creates one without leases.
    #[must_use]
    pub const fn new() -> Self {
        Self { running: BTreeMap::new(), planned: None }
    }

    /// Adds a lease that was granted just now.
    ///
    /// Returns `true` if it is due before the driver [plans](Self::plan) to look.
    pub fn add(&mut self, lease: Lease, holder: H, now: Timestamp) -> bool {
        let due = now.after(lease.term / RENEWALS_PER_TERM);
        self.running.insert(lease.token, Renewal { lease, due, holder });
        self.planned.is_none_or(|planned| due < planned)
    }

    /// Removes a lease, which is not renewed any more.
    pub fn remove(&mut self, token: &Token) -> Option<H> {
        self.running.remove(token).map(|renewal| renewal.holder)
    }

    /// Returns when to look next, which is also the plan from now on; `None` without leases.
    pub fn plan(&mut self) -> Option<Timestamp> {
        self.planned = self.running.values().map(|renewal| renewal.due).min();
        self.planned
    }

    /// Returns the leases to renew now, with their holders.
    ///
    /// Each is due again before the answer can be late.
    pub fn take_due(&mut self, now: Timestamp) -> Vec<(&Lease, &H)> {
        let due = self.running.values_mut().filter(|renewal| renewal.due <= now);
        due.map(|renewal| {
            renewal.due = now.after(renewal.lease.term / RENEWALS_PER_TERM);
            (&renewal.lease, &renewal.holder)
        })
        .collect()
    }

    /// Takes the outcome of a renewal; returns the holder of a lease that is lost.
    ///
    /// Without a verdict the renewal is due again soon, while the lease may still be alive: the
    /// driver plans again.
    pub fn renewed(
        &mut self,
        token: &Token,
        outcome: Result<(), ErrorKind>,
        now: Timestamp,
    ) -> Option<H> {
        match outcome {
            Ok(()) => None,
            Err(ErrorKind::Fenced) => self.remove(token),
            Err(_) => {
                if let Some(renewal) = self.running.get_mut(token) {
                    let soon = (renewal.lease.term / RETRIES_PER_TERM).min(RETRY_AFTER_MAX);
                    renewal.due = renewal.due.min(now.after(soon));
                }
                None
            }
        }
    }

    /// Returns the holders of all leases.
    pub fn holders(&self) -> impl Iterator<Item = &H> {
        self.running.values().map(|renewal| &renewal.holder)
    }

    /// Returns `true` if no lease is renewed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Returns the number of leases.
    #[must_use]
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// The time within which a renewal of the lease is answered, or counts as failed.
    #[must_use]
    pub fn time_limit(lease: &Lease) -> Duration {
        lease.term / RENEWALS_PER_TERM
    }
}

impl<H> Default for LeaseSchedule<H> {
    fn default() -> Self {
        Self::new()
    }
}

const RENEWALS_PER_TERM: u32 = 3;
const RETRIES_PER_TERM: u32 = 10;
const RETRY_AFTER_MAX: Duration = Duration::from_secs(1);
