//! The contract of a store: four atomic steps, each of which may be sent twice.
//!
//! A store keeps one record per [`RecordId`] and never looks into its payload.
//! All it decides is whether a claim is free, whether a lease has lapsed **by its own clock**, and
//! whether a writer still holds the token it claims with.
//! What follows from that is decided in [`exchange`](crate::exchange).
//!
//! Implementations prove themselves against [`conformance`](crate::conformance).
//!
//! [`Inventory`] is beside it, for operators: what a store holds, page by page.

mod inventory;

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::fingerprint::Fingerprint;
use crate::key::RecordId;
use crate::lease::{Lease, Token};
use crate::record::{Record, State};

pub use self::inventory::{
    Cursor, InvalidCursor, Inventory, ListFilter, Page, Query, RecordStatus, RecordStatuses,
    RecordSummary, UnknownRecordStatus,
};

/// Keeps records; see the [module](self) for the contract.
///
/// # Cancel safety
///
/// Any of these futures may be dropped at any point.
/// The step may then have happened or not, which the caller treats like
/// [`ErrorKind::Unavailable`]; the store itself must not be harmed by it, and in particular must
/// never hand the lost answer to another caller.
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Claims the record, or returns what is stored under the id.
    ///
    /// - No record: [`Claim::Granted`] with attempt 1.
    /// - A claim with the request's token: granted again, unchanged but for a renewed term.
    /// - The record that [`ClaimRequest::expected`] names, in the state it names: replaced and
    ///   granted, with the attempt one higher and a greater fence.
    /// - Otherwise [`Claim::Found`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] when no verdict came: the claim may or may not be in force.
    /// [`ErrorKind::Refused`] when the claim is certainly not in force: nothing was sent, or the
    /// store answered that it did not do the step.
    /// Once a byte of the request was sent, sending it again must not turn doubt into certainty.
    /// [`ErrorKind::Corrupt`] when what is there is no record of this id in a known version; it is
    /// left as it is.
    fn claim(
        &self,
        id: &RecordId,
        claim_request: &ClaimRequest,
    ) -> impl Future<Output = Result<Claim, StoreError>> + Send;

    /// Makes the result of an execution final, durably as far as the store's configuration goes.
    ///
    /// Settling again with the same token and state changes nothing and succeeds; with another
    /// state it is fenced.
    /// A lapsed lease may still settle as long as nobody took the record over.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] when the record has another token or is gone: nothing was changed.
    /// [`ErrorKind::Invalid`] for a settlement as running or spent.
    fn settle(
        &self,
        lease: &Lease,
        done: &Settlement,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Gives the claim up, so that the next request with the key executes.
    ///
    /// Succeeds when nothing is there: the release may have been sent before.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] when the record has another token, or is settled: nothing was changed.
    fn release(&self, lease: &Lease) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Starts the lease's term anew, by the store's clock.
    ///
    /// A lapsed lease can be renewed as long as nobody took the record over.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] when the record has another token, is settled, or is gone.
    fn renew(&self, lease: &Lease) -> impl Future<Output = Result<Lease, StoreError>> + Send;

    /// Reads the record without claiming it.
    ///
    /// # Errors
    ///
    /// As [`claim`](Self::claim).
    fn lookup(
        &self,
        id: &RecordId,
    ) -> impl Future<Output = Result<Option<RecordSnapshot>, StoreError>> + Send;

    /// Begins to watch for the end of a claim.
    ///
    /// Once this returns `Some`, the [`Watch`] resolves after any later settlement or release of
    /// the record.
    /// It is a hint: it may resolve without reason, and a lost one is made up for by the caller's
    /// polling.
    /// `None`, the default, means that this store cannot tell.
    fn watch(&self, id: &RecordId) -> impl Future<Output = Option<Watch>> + Send {
        let _ = id;
        std::future::ready(None)
    }

    /// Gives back what has expired; called every few seconds, also when nothing else is.
    ///
    /// For stores that do not do so by themselves; the default does nothing.
    fn maintain(&self) {}

    /// What this store promises; see [`Capabilities`].
    fn capabilities(&self) -> Capabilities;
}

/// A store that several engines share.
impl<S: Store> Store for Arc<S> {
    fn claim(
        &self,
        id: &RecordId,
        claim_request: &ClaimRequest,
    ) -> impl Future<Output = Result<Claim, StoreError>> + Send {
        S::claim(self, id, claim_request)
    }

    fn settle(
        &self,
        lease: &Lease,
        done: &Settlement,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        S::settle(self, lease, done)
    }

    fn release(&self, lease: &Lease) -> impl Future<Output = Result<(), StoreError>> + Send {
        S::release(self, lease)
    }

    fn renew(&self, lease: &Lease) -> impl Future<Output = Result<Lease, StoreError>> + Send {
        S::renew(self, lease)
    }

    fn lookup(
        &self,
        id: &RecordId,
    ) -> impl Future<Output = Result<Option<RecordSnapshot>, StoreError>> + Send {
        S::lookup(self, id)
    }

    fn watch(&self, id: &RecordId) -> impl Future<Output = Option<Watch>> + Send {
        S::watch(self, id)
    }

    fn maintain(&self) {
        S::maintain(self);
    }

    fn capabilities(&self) -> Capabilities {
        S::capabilities(self)
    }
}

/// A future that resolves when a watched record may have changed.
pub type Watch = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An attempt to claim a record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClaimRequest {
    /// Names this attempt; the same when it is sent again.
    pub token: Token,
    /// Of the request, to be kept in the record.
    pub fingerprint: Fingerprint,
    /// How long the lease lasts unless renewed.
    pub term: Duration,
    /// How long the claim stays in the store unless renewed or settled: the key's retention, so
    /// that an orphan is found by a late retry.
    pub retain: Duration,
    /// The record that may be replaced.
    pub expected: Option<Expected>,
}

/// A record that a claim request may replace, by its token and what the requester knows of it.
///
/// The state is part of it: an orphan whose owner came back and settled is an orphan no more, and
/// its result must not be lost to a claim request that was made before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A claim whose lease has lapsed.
    Orphan(Token),
    /// A final record, to execute the operation anew.
    Settled(Token),
}

impl ClaimRequest {
    /// A claim request for a record that nobody should hold.
    #[must_use]
    pub const fn new(
        token: Token,
        fingerprint: Fingerprint,
        term: Duration,
        retain: Duration,
    ) -> Self {
        Self { token, fingerprint, term, retain, expected: None }
    }

    /// The same claim request, allowed to replace a record.
    #[must_use]
    pub const fn expecting(mut self, record: Expected) -> Self {
        self.expected = Some(record);
        self
    }
}

/// A store's answer to a [`ClaimRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Claim {
    /// The claim is in force.
    Granted(Lease),
    /// The claim was not made, because of this record.
    Found(RecordSnapshot),
}

/// A record at the moment of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordSnapshot {
    /// A claim without a result.
    Held(ClaimInfo),
    /// A final result.
    Settled(Record),
}

/// A claim as others see it: the current one, or the one that settled the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClaimInfo {
    /// The token of the claim.
    pub token: Token,
    /// The fencing token of the claim.
    pub fence: u64,
    /// The number of the execution, from 1.
    pub attempt: u32,
    /// The fingerprint of the request that claimed.
    pub fingerprint: Fingerprint,
    /// The rest of the lease by the store's clock: zero for an orphan and for a settled record.
    pub remaining: Duration,
}

impl ClaimInfo {
    /// The claim of a record, with the rest of its lease.
    #[must_use]
    pub const fn new(record: &Record, remaining: Duration) -> Self {
        Self {
            token: record.token,
            fence: record.fence,
            attempt: record.attempt,
            fingerprint: record.fingerprint,
            remaining,
        }
    }

    /// Returns true if the lease lapsed without a result.
    #[must_use]
    pub fn is_orphan(&self) -> bool {
        self.remaining.is_zero()
    }
}

/// A final result, to be kept.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settlement {
    /// Any state but [`State::Running`] and [`State::ResponseExpired`].
    pub state: State,
    /// The response, opaque to the store; empty for [`State::Unknown`].
    pub payload: Bytes,
    /// How long the payload is kept.
    pub retain: Duration,
    /// How long the record is kept, at least as long: from the payload's end to this one's the
    /// state is [`State::ResponseExpired`].
    pub key_retain: Duration,
}

/// Shows the payload's size, and nothing of it.
impl fmt::Debug for Settlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settlement")
            .field("state", &self.state)
            .field("payload_bytes", &self.payload.len())
            .field("retain", &self.retain)
            .field("key_retain", &self.key_retain)
            .finish()
    }
}

impl Settlement {
    /// A result of the given state.
    #[must_use]
    pub const fn new(state: State, payload: Bytes, retain: Duration, key_retain: Duration) -> Self {
        Self { state, payload, retain, key_retain }
    }
}

/// What a store can do and what it promises, for the start-up check and for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Whether other processes see the records.
    pub shared: bool,
    /// Whether records survive a crash of the store's process.
    pub durable: bool,
    /// Whether [`Store::watch`] ever tells anything.
    pub watch: bool,
}

/// The error of a step that a store did not do, or may not have done.
///
/// [`kind`](Self::kind) says which of the two, and so what the caller must do.
pub struct StoreError {
    failure: StoreFailure,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl StoreError {
    /// Creates an error without a source.
    #[must_use]
    pub const fn new(kind: ErrorKind) -> Self {
        Self { failure: StoreFailure { kind, retry_after: None }, source: None }
    }

    /// Creates an error with its source.
    #[must_use]
    pub fn with_source(
        kind: ErrorKind,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { source: Some(source.into()), ..Self::new(kind) }
    }

    /// Adds a hint when another try makes sense.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.failure.retry_after = Some(wait);
        self
    }

    /// Takes back that a refused step was certainly not done, because an earlier request of it may
    /// have been executed.
    #[must_use]
    pub const fn in_doubt(mut self) -> Self {
        if matches!(self.failure.kind, ErrorKind::Refused | ErrorKind::Full) {
            self.failure.kind = ErrorKind::Unavailable;
        }
        self
    }

    /// Returns the kind, which decides what the caller must do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.failure.kind
    }

    /// Returns when another try makes sense, if the store knows.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.failure.retry_after
    }

    /// Returns the part of the error that the protocol decides on.
    #[must_use]
    pub const fn failure(&self) -> StoreFailure {
        self.failure
    }
}

/// The part of a [`StoreError`] that the protocol decides on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreFailure {
    /// The kind of the error.
    pub kind: ErrorKind,
    /// When another try makes sense, if the store knows.
    pub retry_after: Option<Duration>,
}

impl From<StoreFailure> for ErrorKind {
    fn from(failure: StoreFailure) -> Self {
        failure.kind
    }
}

impl From<ErrorKind> for StoreFailure {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, retry_after: None }
    }
}

impl From<ErrorKind> for StoreError {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreError")
            .field("kind", &self.failure.kind)
            .field("retry_after", &self.failure.retry_after)
            .field("source", &self.source)
            .finish()
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.failure.kind {
            ErrorKind::Unavailable => "the store did not answer: the step may have happened",
            ErrorKind::Refused => "the store refused the step: nothing was changed",
            ErrorKind::Fenced => "another claim holds the record, or the record is gone",
            ErrorKind::Corrupt => "the store holds something that is no record of this key",
            ErrorKind::Full => "a limit was reached: nothing was changed",
            ErrorKind::Invalid => "the request was malformed: nothing was changed",
            ErrorKind::Internal => "the store failed: the step may have happened",
        })
    }
}

impl StdError for StoreError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// The kind of a [`StoreError`]: certainty about the step, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Unknown: no answer came. Try again with the same token, or release by it.
    Unavailable,
    /// Certainly not done: the store or the connection to it refused the step, for now.
    Refused,
    /// Certainly not done: the caller is not the owner any more. Change nothing.
    Fenced,
    /// Certainly not done: the stored bytes cannot be read. Neither execute nor delete.
    Corrupt,
    /// Certainly not done: a configured limit of this process or its store was reached.
    ///
    /// Never answered by running unprotected, because that would lift the limit.
    Full,
    /// Certainly not done: the request was malformed, and another try will not help.
    Invalid,
    /// Unknown: the store failed in a way that it should not.
    Internal,
}

impl ErrorKind {
    /// Returns true if the step may have happened: only then is there something to undo.
    #[must_use]
    pub const fn is_unknown(self) -> bool {
        matches!(self, Self::Unavailable | Self::Internal)
    }

    /// Returns true if another try may succeed: nothing is decided yet, or refused for good.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        self.is_unknown() || matches!(self, Self::Refused)
    }
}
