//! What an exchange is told, and what it answers.

use super::Handled;
use crate::fingerprint::Fingerprint;
use crate::key::RecordId;
use crate::lease::Lease;
use crate::outcome::{Bypass, Rejection};
use crate::record::State;
use crate::response::StoredResponse;
use crate::store::{Claim, ClaimInfo, ClaimRequest, ErrorKind, RecordSnapshot, StoreFailure};
use crate::time::Timestamp;

/// What happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The body's end, on [`Action::ReadBody`].
    Body(BodyEnd),
    /// The store's verdict, on [`Action::Claim`].
    Claimed(Result<Claim, StoreFailure>),
    /// What the store holds, on [`Action::Lookup`].
    Looked(Result<Option<RecordSnapshot>, ErrorKind>),
    /// Whether the scope may have another new key now, on [`Action::Meter`].
    Metered {
        /// It may.
        within: bool,
    },
    /// The lease begins anew, on [`Action::Renew`].
    Renewed(Result<(), ErrorKind>),
    /// What the application knows of an orphan, on [`Action::Probe`].
    Probed(ProbeResult),
    /// The record may have changed, on [`Action::Wait`]; what it is now, if the driver knows.
    Woken(Option<RecordSnapshot>),
    /// The time to wait is over.
    WaitOver,
    /// There are too many who wait.
    WaitersFull,
    /// The handler ended, on [`Action::Execute`].
    Handled(Handled),
    /// On [`Action::Settle`].
    Settled(Result<(), ErrorKind>),
    /// The transaction that should have settled, on an [`Action::Settle`] that `commits`, was
    /// rolled back, or nobody knows whether it was: so far nothing may be said of its effect.
    ///
    /// Not for a settlement that missed because somebody else holds the record: that is
    /// [`Settled`](Self::Settled) and fenced, once the transaction is rolled back.
    Uncommitted,
    /// On [`Action::Release`].
    Released(Result<(), ErrorKind>),
}

/// How reading a request's body ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BodyEnd {
    /// It is whole, and these are its fingerprints: one for each secret.
    Whole(Vec<Fingerprint>),
    /// It is, or declares to be, larger than the policy allows.
    TooLarge,
    /// There is no room for it now, though it is not too large.
    NoRoom,
    /// It broke off.
    Failed,
}

/// What the application knows of an operation whose executor vanished.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[expect(clippy::large_enum_variant, reason = "made once for an orphan, by the application")]
pub enum ProbeResult {
    /// It happened, and this is its answer.
    Happened(StoredResponse),
    /// It did not happen: execute it.
    NotHappened,
    /// It cannot be told now.
    Unknown,
}

/// The one thing to do next.
#[derive(Debug)]
#[non_exhaustive]
pub enum Action {
    /// Read the request's body to its end or to `bytes_max`, hashing it with the
    /// [fingerprinters](super::Operation::fingerprinters); then [`Event::Body`].
    ReadBody {
        /// Refuse a larger one without buffering it.
        bytes_max: u64,
    },
    /// Ask the store for the record; then [`Event::Claimed`].
    Claim {
        /// Which record.
        id: RecordId,
        /// Under which terms.
        claim_request: ClaimRequest,
    },
    /// Read the record; then [`Event::Looked`].
    Lookup(RecordId),
    /// Count a new key of the scope; then [`Event::Metered`].
    Meter,
    /// Renew a lease that was granted too long ago to start on; then [`Event::Renewed`].
    Renew(Lease),
    /// Ask the application's hook about an orphan; then [`Event::Probed`].
    Probe {
        /// Which execution vanished.
        attempt: u32,
    },
    /// Wait for the holder of the record to finish; then [`Event::Woken`], [`Event::WaitOver`] at
    /// `until`, or [`Event::WaitersFull`].
    Wait {
        /// Which record.
        id: RecordId,
        /// Whose claim: any other state than this claim's live lease ends the wait.
        holder: ClaimInfo,
        /// On the driver's clock.
        until: Timestamp,
    },
    /// Run the handler at once, with a heartbeat, whatever becomes of the client; then
    /// [`Event::Handled`].
    Execute(Lease),
    /// Make the result final, with retries within the policy's `settle_timeout`; then
    /// [`Event::Settled`].
    Settle {
        /// With which right.
        lease: Lease,
        /// As what: the payload is the handler's response for [`State::Completed`], its head for
        /// [`State::NotReplayable`], and nothing for [`State::Unknown`].
        state: State,
        /// The response, where it is not the handler's.
        response: Option<Box<StoredResponse>>,
        /// What the handler did in a transaction of its own is to count: settle in it, without
        /// retries, and commit; without a clear answer, [`Event::Uncommitted`].
        ///
        /// Otherwise, or before a release, such a transaction is rolled back first.
        commits: bool,
    },
    /// Give the claim up; then [`Event::Released`].
    Release(Lease),
    /// The exchange is over.
    Answer {
        /// What the client gets.
        answer: Answer,
        /// What goes on without it.
        deferred: Option<Deferred>,
    },
}

/// What the client gets.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Answer {
    /// Whatever the handler answers, run as if this engine were not there.
    Pass(Bypass),
    /// A stored response.
    Replay(Box<StoredResponse>),
    /// The response of the handler that ran under this exchange's lease.
    Own {
        /// Which execution it was.
        attempt: u32,
        /// Whether a retry will get it too; if not, it is marked `Idempotency-Stored: false`.
        stored: bool,
    },
    /// A problem.
    Refuse(Rejection),
}

/// What goes on in the background, retried within limits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Deferred {
    /// Release by token: the claim may have been granted, or yet be.
    Release(Lease),
    /// Settle as this state; the lease is renewed meanwhile.
    Settle(Lease, State),
}
