//! Forgetting many records.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::AddAssign;

use idemptx_core::store::{Intervention, Inventory, Query, RecordSummary, StoreError};

use super::{Operator, OperatorError, Target, ended};

/// Forgets what a query asks for, page by page; begun by [`Operator::purge`].
///
/// A record whose execution is running is left alone, and so is one that changes hands meanwhile.
/// A retry of a request whose record is forgotten **executes again**; if it ends while the walk
/// still goes on, its new record is one like any other, and may be met and forgotten as well.
/// Ask for what has been [idle](Query::idle_for) for longer than the walk takes, and it is not.
///
/// The [steps](crate::Execution::step) of the operations go with their records, in a second walk
/// over the store, because no index leads to them: they are not in the report, and a purge that is
/// dropped before its end leaves some to expire by themselves.
#[must_use = "nothing is forgotten before it runs"]
pub struct Purge<S> {
    operator: Operator<S>,
    query: Query,
    is_dry: bool,
    is_over: bool,
    report: PurgeReport,
    /// The scopes of the steps of what was forgotten.
    step_scopes: BTreeSet<[u8; 16]>,
    /// The walk over all records that forgets those steps.
    steps_walk: Option<Query>,
}

impl<S: Inventory> Purge<S> {
    pub(super) fn new(operator: Operator<S>, query: Query) -> Self {
        let report = PurgeReport::default();
        Self {
            operator,
            query,
            is_dry: false,
            is_over: false,
            report,
            step_scopes: BTreeSet::new(),
            steps_walk: None,
        }
    }

    /// Only counts what would be forgotten.
    pub fn dry_run(mut self) -> Self {
        self.is_dry = true;
        self
    }

    /// Forgets everything there is of it.
    ///
    /// # Errors
    ///
    /// As [`step`](Self::step): called again, it goes on where it stopped.
    ///
    /// # Cancel safety
    ///
    /// What is done is done, and [reported](Self::report) page by page; called again, it goes on.
    pub async fn run(&mut self) -> Result<PurgeReport, StoreError> {
        while self.step().await? {}
        Ok(self.report)
    }

    /// Forgets what is on the next page, and says whether there may be more.
    ///
    /// # Errors
    ///
    /// As [`Inventory::list`] and [`Operator::forget`]; called again, it does the rest of the page.
    ///
    /// # Cancel safety
    ///
    /// What has been begun is carried on with, though it may not be counted; called again, it does
    /// the rest of the page.
    pub async fn step(&mut self) -> Result<bool, StoreError> {
        if self.step_scopes.len() >= STEP_SCOPES_MAX || self.is_over && !self.step_scopes.is_empty()
        {
            return self.walk_steps().await;
        }
        if self.is_over {
            return Ok(false);
        }
        let page = self.operator.list(&self.query).await?;
        // What is left alone would be met again, so it counts only once the page is done.
        let mut left =
            PurgeReport { unreadable: page.unreadable.len() as u64, ..Default::default() };
        for entries in page.entries.chunks(AT_ONCE_MAX) {
            self.forget(entries, &mut left).await?;
        }
        self.report += left;
        self.query.after = page.next;
        self.is_over = self.query.after.is_none();
        Ok(!self.is_over || !self.step_scopes.is_empty())
    }

    /// Forgets the steps on the next page of all records, and says whether there may be more to do.
    async fn walk_steps(&mut self) -> Result<bool, StoreError> {
        let all = || Query::all().limit(Query::LIMIT_MAX);
        let page = self.operator.list(self.steps_walk.get_or_insert_with(all)).await?;
        let is_step = |entry: &&RecordSummary| self.step_scopes.contains(&entry.id.scope_bytes());
        for entry in page.entries.iter().filter(is_step) {
            // One that cannot be read is left to expire.
            if let Err(OperatorError::Store(error)) =
                self.operator.forget_step(&Target::listed(entry)).await
            {
                return Err(error);
            }
        }
        match page.next {
            Some(next) => self.steps_walk = Some(all().after(Some(next))),
            None => {
                self.steps_walk = None;
                self.step_scopes.clear();
            }
        }
        Ok(!self.is_over || !self.step_scopes.is_empty())
    }

    /// Returns the numbers so far.
    #[must_use]
    pub const fn report(&self) -> PurgeReport {
        self.report
    }

    /// Forgets all of these at once.
    async fn forget(
        &mut self,
        entries: &[RecordSummary],
        left: &mut PurgeReport,
    ) -> Result<(), StoreError> {
        let mut begun = Vec::with_capacity(entries.len());
        for entry in entries {
            match entry.status.intervention() {
                Intervention::None => left.in_flight += 1,
                _ if self.is_dry => self.report.count(entry),
                _ => {
                    let target = Target::listed(entry);
                    begun.push((entry, self.operator.begin(target, None, Vec::new())));
                }
            }
        }
        let mut failed = Ok(());
        for (entry, forgetting) in begun {
            match ended(forgetting).await {
                Ok(_) => {
                    self.step_scopes.insert(entry.id.steps_scope());
                    self.report.count(entry);
                }
                Err(OperatorError::InFlight(_)) => left.in_flight += 1,
                Err(OperatorError::Store(error)) => failed = Err(error),
                Err(_) => left.changed += 1,
            }
        }
        failed
    }
}

impl<S: fmt::Debug> fmt::Debug for Purge<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Purge")
            .field("query", &self.query)
            .field("is_dry", &self.is_dry)
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

/// The numbers of a [`Purge`].
///
/// A record is forgotten once, however often it is listed, and is counted once for it; only one
/// that was being forgotten when a step failed or was dropped may be missing.
/// All other counts, a dry run's included, grow as often as a record is
/// [listed](Inventory::list), so that these numbers may be too large: by a few, on Redis, while the
/// server rearranges its keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PurgeReport {
    /// Records that were forgotten or, in a dry run, would be.
    pub forgotten: u64,
    /// The size of their responses, as they were stored.
    pub payload_bytes: u64,
    /// Records left alone because their executions are running.
    pub in_flight: u64,
    /// Records left alone because they changed, or went, since they were listed.
    pub changed: u64,
    /// Records left alone because they cannot be read.
    pub unreadable: u64,
}

impl PurgeReport {
    fn count(&mut self, entry: &RecordSummary) {
        self.forgotten += 1;
        self.payload_bytes += entry.payload_bytes;
    }
}

impl AddAssign for PurgeReport {
    fn add_assign(&mut self, other: Self) {
        self.forgotten += other.forgotten;
        self.payload_bytes += other.payload_bytes;
        self.in_flight += other.in_flight;
        self.changed += other.changed;
        self.unreadable += other.unreadable;
    }
}

/// The most records whose steps one walk looks for.
const STEP_SCOPES_MAX: usize = 100_000;
/// The number of records that are forgotten at once.
const AT_ONCE_MAX: usize = 32;
