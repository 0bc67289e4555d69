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
    /// Claims the record for `bid`, or says who holds it or what it holds.
    ///
    /// - Nothing there: [`Claim::Granted`] with attempt 1.
    /// - A claim with the claim request's own token: granted again, unchanged but for a renewed term.
    /// - The very record that [`ClaimRequest::over`] names, in the state it names: replaced and granted, with
    ///   the attempt one higher and a greater fence.
    /// - Otherwise [`Claim::Held`] or [`Claim::Settled`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] when no verdict came: the claim may or may not be in force.
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

/// A store's verdict on a [`ClaimRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Claim {
    /// The record is the requester's.
    Granted(Lease),
    /// Somebody claimed it and has not settled it.
    Held(ClaimInfo),
    /// It has a final result.
    Settled(Record),
}

/// What a lookup finds: a [`Claim`] that was never asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordSnapshot {
    /// Somebody claimed it and has not settled it.
    Held(ClaimInfo),
    /// It has a final result.
    Settled(Record),
}

/// Who holds a record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClaimInfo {
    /// Names the claim.
    pub token: Token,
    /// Of the claim.
    pub fence: u64,
    /// Of the claim.
    pub attempt: u32,
    /// Of the request that claimed.
    pub fingerprint: Fingerprint,
    /// What is left of the lease by the store's clock; zero when it has lapsed: an orphan.
    pub remaining: Duration,
}

impl ClaimInfo {
    /// The holder of an unsettled record.
    #[must_use]
    pub fn new(record: &Record, remaining: Duration) -> Self {
        Self {
            token: record.token,
            fence: record.fence,
            attempt: record.attempt,
            fingerprint: record.fingerprint,
            remaining,
        }
    }

    /// Whether the lease lapsed without a result.
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

/// Why a step of a store has no result.
pub struct StoreError {
    kind: ErrorKind,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl StoreError {
    /// An error without a cause of its own.
    #[must_use]
    pub const fn new(kind: ErrorKind) -> Self {
        Self { kind, source: None }
    }

    /// An error with its cause.
    #[must_use]
    pub fn with_source(
        kind: ErrorKind,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { kind, source: Some(source.into()) }
    }

    /// What the caller must do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
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
            .field("kind", &self.kind)
            .field("source", &self.source)
            .finish()
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            ErrorKind::Unavailable => "the store gave no verdict: the step may have happened",
            ErrorKind::Fenced => "somebody else holds the record, or it is gone",
            ErrorKind::Corrupt => "the store holds something that is no record of this key",
            ErrorKind::Full => "the store has no room for another key",
            ErrorKind::Invalid => "the store refused the request as malformed",
            ErrorKind::Internal => "the store failed in a way it should not",
        })
    }
}

impl StdError for StoreError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// What a [`StoreError`] asks of its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Outcome unknown: try again with the same token, or act as if it might have happened.
    Unavailable,
    /// Certain: the caller is no longer the owner. Change nothing.
    Fenced,
    /// Certain: what is stored cannot be read. Neither execute nor delete.
    Corrupt,
    /// Certain: refused for want of room; nothing was changed.
    Full,
    /// Certain: a fault of the caller; trying again will not help.
    Invalid,
    /// A fault of the store; whether the step happened is unknown.
    Internal,
}
