//! The records of a store as an operator sees them: page by page, without their responses.
//!
//! A listing is no snapshot; [`Inventory::list`] states its guarantees.

use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{ClaimInfo, Store, StoreError};
use crate::description::Description;
use crate::key::RecordId;
use crate::record::{Record, State};

/// A store that can list its records.
///
/// It is separate from [`Store`] because no request needs it.
pub trait Inventory: Store {
    /// Returns one page of the records that the query selects, in an order that the store chooses.
    ///
    /// Follow [`Page::next`] to its end for all pages.
    ///
    /// - A record that matches the query during the whole walk is listed **at least once**, and
    ///   more often if the store rearranges its records meanwhile, as Redis does.
    /// - A record that is written, changed or removed during the walk may be listed or not, in its
    ///   earlier or its later form, or in both.
    ///   A record may thus appear on a page after it was removed, and a key that is removed and
    ///   used again may appear twice, as two records with different tokens.
    /// - An entry is true at the moment at which it was read.
    ///   An operator's decision on it claims the record by its token and state, and is refused if
    ///   the record has changed since.
    ///
    /// Each call does a bounded amount of work, blocks no other step for long and changes nothing.
    /// A page may therefore have fewer entries than the limit, and even none, before the last page.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](super::ErrorKind::Invalid) for a cursor of another store, or of
    /// another query.
    /// [`ErrorKind::Unavailable`](super::ErrorKind::Unavailable) if no answer came: try again.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any point: a listing changes nothing.
    fn list(&self, query: &Query) -> impl Future<Output = Result<Page, StoreError>> + Send;
}

/// A store that several engines share.
impl<S: Inventory> Inventory for Arc<S> {
    fn list(&self, query: &Query) -> impl Future<Output = Result<Page, StoreError>> + Send {
        S::list(self, query)
    }
}

/// The records to list, and their number per page.
///
/// ```
/// use std::time::Duration;
/// use idemptx_core::store::{Query, RecordStatus};
///
/// let query = Query::of([RecordStatus::Unknown]).idle_for(Duration::from_secs(3600)).limit(20);
/// # assert!(query.statuses.contains(RecordStatus::Unknown));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct Query {
    /// The statuses of the records.
    pub statuses: RecordStatuses,
    /// The part of the store.
    pub filter: ListFilter,
    /// The least time since the last write of a record.
    pub idle_min: Duration,
    /// The most entries of a page, from one to [`LIMIT_MAX`](Self::LIMIT_MAX); a value outside is
    /// clamped.
    pub limit: usize,
    /// The end of the last page.
    pub after: Option<Cursor>,
}

impl Query {
    /// The most entries of a page.
    pub const LIMIT_MAX: usize = 1_000;

    /// Creates a query for all records.
    pub const fn all() -> Self {
        let (filter, idle_min) = (ListFilter::Everything, Duration::ZERO);
        Self { statuses: RecordStatuses::ALL, filter, idle_min, limit: LIMIT, after: None }
    }

    /// Creates a query for records with one of these statuses.
    pub fn of(statuses: impl IntoIterator<Item = RecordStatus>) -> Self {
        Self { statuses: statuses.into_iter().collect(), ..Self::all() }
    }

    /// Creates a query for claimed records that are not settled, orphans included.
    pub const fn in_flight() -> Self {
        let mut query = Self::all();
        query.statuses = RecordStatuses::IN_FLIGHT;
        query
    }

    /// Creates a query for records that may need a decision: orphans and unknown outcomes.
    pub const fn in_doubt() -> Self {
        let mut query = Self::all();
        query.statuses = RecordStatuses::IN_DOUBT;
        query
    }

    /// Limits the query to one scope, by [`RecordId::scope_bytes`].
    pub const fn in_scope(mut self, scope: [u8; 16]) -> Self {
        self.filter = ListFilter::Scope(scope);
        self
    }

    /// Limits the query to one record.
    pub const fn only(mut self, id: RecordId) -> Self {
        self.filter = ListFilter::Record(id);
        self
    }

    /// Limits the query to records that were not claimed, renewed or settled for this long.
    pub const fn idle_for(mut self, idle_min: Duration) -> Self {
        self.idle_min = idle_min;
        self
    }

    /// Sets the most entries of a page; 100 by default.
    pub const fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Continues after the page that ended at this cursor.
    pub fn after(mut self, cursor: Option<Cursor>) -> Self {
        self.after = cursor;
        self
    }

    /// Returns the limit within its bounds; for stores.
    #[must_use]
    pub fn page_max(&self) -> usize {
        self.limit.clamp(1, Self::LIMIT_MAX)
    }

    /// Returns the first and the last id that the [filter](Self::filter) admits; for stores.
    #[must_use]
    pub fn bounds(&self) -> (RecordId, RecordId) {
        let ends = match self.filter {
            ListFilter::Everything => [[0; RecordId::BYTES], [u8::MAX; RecordId::BYTES]],
            ListFilter::Record(id) => [*id.as_bytes(); 2],
            ListFilter::Scope(scope) => [0, u8::MAX].map(|filling| {
                let mut end = [filling; RecordId::BYTES];
                end.iter_mut().zip(scope).for_each(|(to, from)| *to = from);
                end
            }),
        };
        let [first, last] = ends.map(RecordId::from_bytes);
        (first, last)
    }

    /// Returns true if the query selects this entry; for stores.
    #[must_use]
    pub fn admits(&self, entry: &RecordSummary) -> bool {
        let (first, last) = self.bounds();
        self.statuses.contains(entry.status)
            && entry.idle >= self.idle_min
            && (first..=last).contains(&entry.id)
    }
}

/// The part of a store to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListFilter {
    /// All records.
    Everything,
    /// The records of one scope, by the first half of their ids.
    Scope([u8; 16]),
    /// One record.
    Record(RecordId),
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// The records.
    pub entries: Vec<RecordSummary>,
    /// The ids whose bytes are no record, or one that only a newer release can read.
    ///
    /// They are reported under every query, because their status cannot be read.
    /// Requests for them are refused, and no store removes them.
    pub unreadable: Vec<RecordId>,
    /// The cursor of the next page; `None` at the end.
    pub next: Option<Cursor>,
}

/// A record in a listing.
///
/// The times are by the store's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordSummary {
    /// The id of the record.
    pub id: RecordId,
    /// The status of the record.
    pub status: RecordStatus,
    /// The claim that runs or has settled.
    pub claim: ClaimInfo,
    /// The time since that claim was made, as its fence records it.
    ///
    /// It is exact to about a second where clients extrapolate the store's clock, as with Redis.
    pub age: Duration,
    /// The time since the last write: claim, renewal, or settlement.
    pub idle: Duration,
    /// The rest of the retention, if nothing is written.
    pub expires_in: Duration,
    /// The size of the payload, as it is stored.
    pub payload_bytes: u64,
    /// The beginning of the payload, as far as it may be a description.
    pub payload_head: Bytes,
}

impl RecordSummary {
    /// Creates the entry of a record; its first [`LISTED_BYTES`](Record::LISTED_BYTES) are enough.
    #[must_use]
    pub fn new(record: &Record, remaining: Duration, expires_in: Duration, age: Duration) -> Self {
        let remaining = match record.state {
            State::Running => remaining,
            _ => Duration::ZERO,
        };
        Self {
            id: record.id,
            status: RecordStatus::of(record.state, remaining),
            claim: ClaimInfo::new(record, remaining),
            age,
            idle: record.retain.saturating_sub(expires_in),
            expires_in,
            payload_bytes: record.payload.len() as u64,
            payload_head: record.payload.slice(..record.payload.len().min(Description::BYTES_MAX)),
        }
    }

    /// Returns the description of the request, if the record has one that can be read here: of a
    /// sealed response it cannot.
    #[must_use]
    pub fn description(&self) -> Option<Description> {
        Description::of(&self.payload_head)
    }
}

/// The status of a record: its [`State`], with orphans distinguished from live claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum RecordStatus {
    /// Claimed, and the lease is in force.
    Running,
    /// Claimed, and the lease has lapsed without a result.
    Orphaned,
    /// Settled with a response that can be replayed.
    Completed,
    /// Settled with a response that cannot be replayed.
    NotReplayable,
    /// Settled without knowledge of whether the operation happened.
    Unknown,
    /// Settled with a response that has expired; the key is still kept.
    ResponseExpired,
}

impl RecordStatus {
    /// The statuses, in the order in which tools show them.
    pub const ALL: [Self; 6] = [
        Self::Running,
        Self::Orphaned,
        Self::Completed,
        Self::NotReplayable,
        Self::Unknown,
        Self::ResponseExpired,
    ];

    /// Returns the status of a state with the rest of the lease.
    #[must_use]
    pub const fn of(state: State, remaining: Duration) -> Self {
        match state {
            State::Running if remaining.is_zero() => Self::Orphaned,
            State::Running => Self::Running,
            State::Completed => Self::Completed,
            State::NotReplayable => Self::NotReplayable,
            State::Unknown => Self::Unknown,
            State::ResponseExpired => Self::ResponseExpired,
        }
    }

    /// Returns the name of the status, the same in every tool.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Orphaned => "orphaned",
            Self::Completed => "completed",
            Self::NotReplayable => "not-replayable",
            Self::Unknown => "unknown",
            Self::ResponseExpired => "response-expired",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for RecordStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for RecordStatus {
    type Err = UnknownRecordStatus;

    fn from_str(text: &str) -> Result<Self, UnknownRecordStatus> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(UnknownRecordStatus)
    }
}

/// The error of parsing a text that names no [`RecordStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownRecordStatus;

impl fmt::Display for UnknownRecordStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such state: use one of")?;
        RecordStatus::ALL.iter().try_for_each(|status| write!(f, " {status}"))
    }
}

impl std::error::Error for UnknownRecordStatus {}

/// A set of [`RecordStatus`]s.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RecordStatuses(u8);

impl RecordStatuses {
    /// The set of every status.
    pub const ALL: Self = Self(u8::MAX >> (u8::BITS as usize - RecordStatus::ALL.len()));
    /// The statuses of claims that are not settled.
    pub const IN_FLIGHT: Self = Self(RecordStatus::Running.bit() | RecordStatus::Orphaned.bit());
    /// The statuses that may need a decision.
    pub const IN_DOUBT: Self = Self(RecordStatus::Orphaned.bit() | RecordStatus::Unknown.bit());

    /// Returns true if the set contains `status`.
    #[must_use]
    pub const fn contains(self, status: RecordStatus) -> bool {
        self.0 & status.bit() != 0
    }

    /// Returns the statuses of the set, in the order of [`RecordStatus::ALL`].
    pub fn iter(self) -> impl Iterator<Item = RecordStatus> {
        RecordStatus::ALL.into_iter().filter(move |status| self.contains(*status))
    }
}

impl FromIterator<RecordStatus> for RecordStatuses {
    fn from_iter<I: IntoIterator<Item = RecordStatus>>(statuses: I) -> Self {
        Self(statuses.into_iter().fold(0, |set, status| set | status.bit()))
    }
}

impl fmt::Debug for RecordStatuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The end of a page: opaque text that a URL can carry without escapes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cursor(Box<str>);

impl Cursor {
    /// The longest text of a cursor.
    pub const BYTES_MAX: usize = 200;

    /// Returns the text, which only the store that made it can interpret.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Cursor {
    type Err = InvalidCursor;

    /// Accepts letters, digits, and `-`, `.`, `:`, `_`.
    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:_".contains(&byte);
        let is_one = !text.is_empty() && text.len() <= Self::BYTES_MAX && text.bytes().all(plain);
        is_one.then(|| Self(text.into())).ok_or(InvalidCursor)
    }
}

/// The error of parsing a text that is no [`Cursor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidCursor;

impl fmt::Display for InvalidCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no cursor: use the one that came with the page before, or start over")
    }
}

impl std::error::Error for InvalidCursor {}

/// The default number of entries on a page.
const LIMIT: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_statuses_are_read_back() {
        for status in RecordStatus::ALL {
            assert_eq!(status.to_string().parse(), Ok(status));
        }
        assert_eq!("Running".parse::<RecordStatus>(), Err(UnknownRecordStatus));
    }

    #[test]
    fn a_set_has_what_was_put_into_it() {
        assert_eq!(RecordStatuses::ALL.iter().count(), RecordStatus::ALL.len());
        assert_eq!(RecordStatus::ALL.into_iter().collect::<RecordStatuses>(), RecordStatuses::ALL);
        for status in RecordStatus::ALL {
            let set: RecordStatuses = [status].into_iter().collect();
            assert_eq!(set.iter().collect::<Vec<_>>(), [status]);
        }
    }

    #[test]
    fn a_cursor_is_short_and_plain() {
        let longest = "x".repeat(Cursor::BYTES_MAX);
        assert_eq!(longest.parse::<Cursor>().unwrap().to_string(), longest);
        for text in ["", "a b", "a/b", "ü", &"x".repeat(Cursor::BYTES_MAX + 1)] {
            assert_eq!(text.parse::<Cursor>(), Err(InvalidCursor), "{text}");
        }
    }

    #[test]
    fn the_bounds_are_those_of_the_filter() {
        let id = RecordId::from_bytes([7; RecordId::BYTES]);
        assert_eq!(Query::all().only(id).bounds(), (id, id));
        let (first, last) = Query::all().in_scope([7; 16]).bounds();
        assert!(first < id && id < last);
        assert_eq!((first.scope_bytes(), last.scope_bytes()), ([7; 16], [7; 16]));
        let (first, last) = Query::all().bounds();
        assert_eq!((first.as_bytes(), last.as_bytes()), (&[0; 32], &[255; 32]));
    }
}
