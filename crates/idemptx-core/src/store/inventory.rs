//! What an operator sees of a store: its records, page by page, without their responses.
//!
//! A listing is no snapshot; [`Inventory::list`] says what it is.

use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::{ClaimInfo, Store, StoreError};
use crate::key::RecordId;
use crate::record::{Record, State};

/// A store that can list what it holds.
///
/// It is no part of [`Store`], because no request needs it: a store without it serves requests as
/// well as any other.
pub trait Inventory: Store {
    /// One page of what the query asks for, in an order of the store's own.
    ///
    /// Follow [`Page::next`] to its end for all of it.
    /// A record that is there, and is what is asked for, during the whole walk is listed **at least
    /// once**, and more often where the store rearranges its records meanwhile, as Redis does; one
    /// that comes, goes or changes meanwhile may be listed or not, in what it was or what it is, or
    /// in both.
    /// So one that is deleted during the walk may still be on a page that is told later, and a key
    /// that is deleted and used again may be listed twice, as two records with different tokens.
    /// An entry is true of the moment at which it was read: whoever acts upon it makes a claim request over
    /// its token, and is refused if it is true no more.
    ///
    /// Each call does a bounded amount of work, whatever there is, blocks no other step for long
    /// and changes nothing.
    /// So a page may have fewer entries than asked for, and even none, while there are more.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](super::ErrorKind::Invalid) for a cursor of another store, or of
    /// another query.
    /// [`ErrorKind::Unavailable`](super::ErrorKind::Unavailable) when no answer came: ask again.
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    fn list(&self, query: &Query) -> impl Future<Output = Result<Page, StoreError>> + Send;
}

/// A store that several engines share.
impl<S: Inventory> Inventory for Arc<S> {
    fn list(&self, query: &Query) -> impl Future<Output = Result<Page, StoreError>> + Send {
        S::list(self, query)
    }
}

/// Which records are to be listed, and how many at a time.
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
    /// What the records have come to.
    pub statuses: RecordStatuses,
    /// Where they stand.
    pub filter: ListFilter,
    /// How long ago they were last written, at least.
    pub idle_min: Duration,
    /// How many entries a page has at most; taken as at least one, and at most
    /// [`LIMIT_MAX`](Self::LIMIT_MAX).
    pub limit: usize,
    /// Where the last page ended.
    pub after: Option<Cursor>,
}

impl Query {
    /// Most entries of a page.
    pub const LIMIT_MAX: usize = 1_000;

    /// Everything there is.
    pub const fn all() -> Self {
        let (filter, idle_min) = (ListFilter::Everything, Duration::ZERO);
        Self { statuses: RecordStatuses::ALL, filter, idle_min, limit: LIMIT, after: None }
    }

    /// What has come to one of these.
    pub fn of(statuses: impl IntoIterator<Item = RecordStatus>) -> Self {
        Self { statuses: statuses.into_iter().collect(), ..Self::all() }
    }

    /// What is claimed and not settled, whether its owner lives or has vanished.
    pub const fn in_flight() -> Self {
        let mut query = Self::all();
        query.statuses = RecordStatuses::IN_FLIGHT;
        query
    }

    /// What may need somebody to decide: orphans, and records whose outcome is unknown.
    pub const fn in_doubt() -> Self {
        let mut query = Self::all();
        query.statuses = RecordStatuses::IN_DOUBT;
        query
    }

    /// The same, within one scope: [`RecordId::scope_bytes`].
    pub const fn in_scope(mut self, scope: [u8; 16]) -> Self {
        self.filter = ListFilter::Scope(scope);
        self
    }

    /// The same, of one record.
    pub const fn only(mut self, id: RecordId) -> Self {
        self.filter = ListFilter::Record(id);
        self
    }

    /// The same, if nobody has claimed, renewed or settled it for so long.
    pub const fn idle_for(mut self, idle_min: Duration) -> Self {
        self.idle_min = idle_min;
        self
    }

    /// The same, with so many entries on a page; 100 unless set.
    pub const fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// The page after the one that ended here.
    pub fn after(mut self, cursor: Option<Cursor>) -> Self {
        self.after = cursor;
        self
    }

    /// How many entries a page has at most, within the bounds; for stores.
    #[must_use]
    pub fn page_max(&self) -> usize {
        self.limit.clamp(1, Self::LIMIT_MAX)
    }

    /// The first and the last id that belong to the [extent](Self::extent); for stores.
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

    /// Whether an entry is asked for; for stores.
    #[must_use]
    pub fn admits(&self, entry: &RecordSummary) -> bool {
        let (first, last) = self.bounds();
        self.statuses.contains(entry.status)
            && entry.idle >= self.idle_min
            && (first..=last).contains(&entry.id)
    }
}

/// Which part of a store is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListFilter {
    /// All of it.
    Everything,
    /// The records of one scope, by the half of their ids that names it.
    Scope([u8; 16]),
    /// One record.
    Record(RecordId),
}

/// A part of what was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// The records.
    pub entries: Vec<RecordSummary>,
    /// The ids under which there is something that is no record, or one that only a newer release
    /// can read; told wherever the store comes by one, whatever was asked for.
    ///
    /// They are refused to every request, and no store removes them.
    pub unreadable: Vec<RecordId>,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

/// A record as a listing shows it.
///
/// All times are by the store's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordSummary {
    /// Its name.
    pub id: RecordId,
    /// What it has come to.
    pub status: RecordStatus,
    /// The claim that runs or has settled.
    pub claim: ClaimInfo,
    /// How long ago that claim was made, as far as its fence tells: to within a second or so where
    /// clients extrapolate the store's clock, as with Redis.
    pub age: Duration,
    /// How long ago it was last written: claimed, renewed, or settled.
    pub idle: Duration,
    /// How long it is kept, if nothing happens to it.
    pub expires_in: Duration,
    /// How large the response is, as it is stored.
    pub payload_bytes: u64,
}

impl RecordSummary {
    /// The entry of a record, of which the head is enough.
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
        }
    }
}

/// What a record has come to: its [`State`], and whether the owner of a claim has vanished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum RecordStatus {
    /// Claimed, and the lease is in force.
    Running,
    /// Claimed, and the lease has lapsed: its owner has vanished.
    Orphaned,
    /// Settled with a response that is replayed.
    Completed,
    /// Settled; the response cannot be replayed.
    NotReplayable,
    /// Whether the operation happened is not known.
    Unknown,
    /// The response has expired, the key is still remembered.
    ResponseExpired,
}

impl RecordStatus {
    /// Every one.
    pub const ALL: [Self; 6] = [
        Self::Running,
        Self::Orphaned,
        Self::Completed,
        Self::NotReplayable,
        Self::Unknown,
        Self::ResponseExpired,
    ];

    /// What a state comes to, with what is left of the lease.
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

    /// Its name, the same in every tool.
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

/// A text that names no [`RecordStatus`].
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
    /// All of them.
    pub const ALL: Self = Self(u8::MAX >> (u8::BITS as usize - RecordStatus::ALL.len()));
    /// Claimed and not settled.
    pub const IN_FLIGHT: Self = Self(RecordStatus::Running.bit() | RecordStatus::Orphaned.bit());
    /// What may need somebody to decide.
    pub const IN_DOUBT: Self = Self(RecordStatus::Orphaned.bit() | RecordStatus::Unknown.bit());

    /// Whether it is among them.
    #[must_use]
    pub const fn contains(self, status: RecordStatus) -> bool {
        self.0 & status.bit() != 0
    }

    /// Those in it, in the order of [`RecordStatus::ALL`].
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

/// Where a page ended; opaque, and short enough to stand in a URL as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cursor(Box<str>);

impl Cursor {
    /// How long its text may be.
    pub const BYTES_MAX: usize = 200;

    /// Its text, which only its store understands.
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

    /// Takes letters, digits, and `-`, `.`, `:`, `_`.
    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:_".contains(&byte);
        let is_one = !text.is_empty() && text.len() <= Self::BYTES_MAX && text.bytes().all(plain);
        is_one.then(|| Self(text.into())).ok_or(InvalidCursor)
    }
}

/// A text that is no [`Cursor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidCursor;

impl fmt::Display for InvalidCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no cursor: use the one that came with the page before, or begin anew")
    }
}

impl std::error::Error for InvalidCursor {}

const LIMIT: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_standings_are_read_back() {
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
    fn the_bounds_are_those_of_the_extent() {
        let id = RecordId::from_bytes([7; RecordId::BYTES]);
        assert_eq!(Query::all().only(id).bounds(), (id, id));
        let (first, last) = Query::all().in_scope([7; 16]).bounds();
        assert!(first < id && id < last);
        assert_eq!((first.scope_bytes(), last.scope_bytes()), ([7; 16], [7; 16]));
        let (first, last) = Query::all().bounds();
        assert_eq!((first.as_bytes(), last.as_bytes()), (&[0; 32], &[255; 32]));
    }
}
