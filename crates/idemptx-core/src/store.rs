//! The contract of a store: four atomic steps, each of which may be sent twice.
//!
//! A store keeps one record per [`RecordId`] and never reads its payload.
//! It decides only if a record may be claimed, if a lease has lapsed **by its own clock**, and if a
//! writer holds the token of the current claim.
//! All further decisions are made in [`exchange`](crate::exchange).
//!
//! The suite in [`conformance`](crate::conformance) tests an implementation.
//!
//! [`Inventory`] is a second trait, for operators: it lists the records of a store page by page.

mod intervention;
mod inventory;
mod store_error;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::fingerprint::Fingerprint;
use crate::key::RecordId;
use crate::lease::{Lease, Token};
use crate::policy::Policy;
use crate::record::{Record, State};

pub use self::intervention::Intervention;
pub use self::inventory::{
    Cursor, InvalidCursor, Inventory, ListFilter, Page, Query, RecordStatus, RecordStatuses,
    RecordSummary, UnknownRecordStatus,
};
pub use self::store_error::{ErrorKind, StoreError, StoreFailure};

/// A store of records; see the [module](self) for the contract.
///
/// # Cancel safety
///
/// Any of these futures may be dropped at any point.
/// The caller then treats the step like [`ErrorKind::Unavailable`]: it may have happened.
/// The store must stay usable, and must never return the lost answer to another caller.
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Claims the record, or returns the one that is stored.
    ///
    /// - No record: [`Claim::Granted`] with attempt 1.
    /// - A claim with the request's token: granted again, unchanged but for a renewed term.
    /// - A record with the token and in the state of [`ClaimRequest::expected`]: replaced and
    ///   granted, with the attempt one higher and a greater fence.
    /// - Otherwise [`Claim::Found`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] if no verdict came: the claim may or may not be in force.
    /// [`ErrorKind::Refused`] if the claim is certainly not in force: nothing was sent, or the
    /// store answered that it did not do the step.
    /// Once a byte of the request was sent, sending it again must not turn doubt into certainty.
    /// [`ErrorKind::Full`] if the record is of a later release's format, and
    /// [`ErrorKind::Corrupt`] if the stored bytes are no record of this id at all; they are left
    /// unchanged.
    fn claim(
        &self,
        id: &RecordId,
        claim_request: &ClaimRequest,
    ) -> impl Future<Output = Result<Claim, StoreError>> + Send;

    /// Makes the result of an execution final, durably as far as the store's configuration goes.
    ///
    /// Settling again with the same token and state changes nothing and succeeds; with another
    /// state it is fenced.
    /// A lapsed lease may still settle until another claim replaces it.
    /// A settlement never inserts: while the record was gone, another process may have executed the
    /// operation.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] if the record has another token or is gone: nothing was changed.
    /// [`ErrorKind::Invalid`] for a settlement as [`State::Running`] or
    /// [`State::ResponseExpired`].
    fn settle(
        &self,
        lease: &Lease,
        done: &Settlement,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Gives the claim up, so that the next request with the key executes.
    ///
    /// Succeeds without a record: the release may have been sent before.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] if the record has another token, or is settled: nothing was changed.
    fn release(&self, lease: &Lease) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Restarts the lease's term, by the store's clock.
    ///
    /// A lapsed lease can be renewed until another claim replaces it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] if the record has another token, is settled, or is gone.
    fn renew(&self, lease: &Lease) -> impl Future<Output = Result<Lease, StoreError>> + Send;

    /// Reads the record without claiming it.
    ///
    /// # Errors
    ///
    /// The errors of [`claim`](Self::claim).
    fn lookup(
        &self,
        id: &RecordId,
    ) -> impl Future<Output = Result<Option<RecordSnapshot>, StoreError>> + Send;

    /// Returns the settled record, if the store has it in this process and need not wait.
    ///
    /// Asked before a claim, so that a replay need not wait in line with those who claim.
    /// What is returned must be what a claim at this moment would find.
    /// `None`, the default, says nothing about the record.
    fn recall(&self, id: &RecordId) -> Option<Record> {
        let _ = id;
        None
    }

    /// Begins to watch for the end of a claim.
    ///
    /// Once this returns `Some`, the [`Watch`] resolves after any later settlement or release of
    /// the record.
    /// It is a hint: it may resolve without reason, and the caller polls in case one is lost.
    /// `None`, the default, means that this store has no notifications.
    fn watch(&self, id: &RecordId) -> impl Future<Output = Option<Watch>> + Send {
        let _ = id;
        std::future::ready(None)
    }

    /// Removes expired records; called every few seconds, also while no request comes.
    ///
    /// The default does nothing, for stores that expire records by themselves.
    fn maintain(&self) {}

    /// Returns the guarantees of this store.
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

    fn recall(&self, id: &RecordId) -> Option<Record> {
        S::recall(self, id)
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

/// The terms of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClaimRequest {
    /// The token of the claim; the same when the request is sent again.
    pub token: Token,
    /// The fingerprint of the HTTP request, to be stored in the record.
    pub fingerprint: Fingerprint,
    /// The duration of the lease unless renewed.
    pub term: Duration,
    /// The retention of the claim unless renewed or settled.
    ///
    /// It is the retention of the key, so that a late retry still finds an orphan.
    pub retain: Duration,
    /// The record that may be replaced; `None` to claim only a free id.
    pub expected: Option<Expected>,
    /// The encoded [`Description`](crate::description::Description) of the request, the payload of
    /// the record while it runs; may be empty.
    pub description: Bytes,
}

/// A record that a claim request may replace: its token and the state in which it was seen.
///
/// The token alone is not enough: the owner of an orphan may come back and settle under the same
/// token, and its result must not be lost to a claim request that was made before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A claim whose lease has lapsed.
    Orphan(Token),
    /// A settled record, to execute the operation again.
    Settled(Token),
}

impl ClaimRequest {
    /// Creates a claim request for a free id.
    #[must_use]
    pub const fn new(
        token: Token,
        fingerprint: Fingerprint,
        term: Duration,
        retain: Duration,
    ) -> Self {
        let description = Bytes::new();
        Self { token, fingerprint, term, retain, expected: None, description }
    }

    /// Allows the claim to replace a record.
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
    /// The claim was not made, because the id has this record.
    Found(RecordSnapshot),
}

/// A record at the moment of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordSnapshot {
    /// A claim without a result yet.
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
    /// Creates the view of a record's claim, with the rest of its lease.
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

    /// Creates the view of a claim that was granted or renewed just now.
    #[must_use]
    pub const fn of(lease: &Lease) -> Self {
        Self {
            token: lease.token,
            fence: lease.fence,
            attempt: lease.attempt,
            fingerprint: lease.fingerprint,
            remaining: lease.term,
        }
    }

    /// Returns true if the lease lapsed without a result.
    #[must_use]
    pub fn is_orphan(&self) -> bool {
        self.remaining.is_zero()
    }
}

/// The result with which a claim is settled.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settlement {
    /// The final state: any but [`State::Running`] and [`State::ResponseExpired`].
    pub state: State,
    /// The response, opaque to the store, after the claim's description if it has one; nothing but
    /// that for [`State::Unknown`].
    pub payload: Bytes,
    /// The retention of the payload.
    pub retain: Duration,
    /// The retention of the record, at least that of the payload.
    ///
    /// Between the two ends the state is [`State::ResponseExpired`].
    pub key_retain: Duration,
}

/// Shows the size of the payload, never its content.
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
    /// Creates a settlement.
    #[must_use]
    pub const fn new(state: State, payload: Bytes, retain: Duration, key_retain: Duration) -> Self {
        Self { state, payload, retain, key_retain }
    }

    /// Creates a settlement that is kept for as long as the policy says of its state.
    #[must_use]
    pub fn by(policy: &Policy, state: State, payload: Bytes) -> Self {
        let retain = if state == State::Completed { policy.retain } else { policy.key_retain };
        Self::new(state, payload, retain, policy.key_retain)
    }
}

/// The guarantees of a store, for the start-up check and for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// True if other processes see the records.
    pub shared: bool,
    /// True if records survive a crash of the store's process.
    pub durable: bool,
    /// True if [`Store::watch`] reports changes.
    pub watch: bool,
}
