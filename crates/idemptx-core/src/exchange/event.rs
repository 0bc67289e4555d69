//! The inputs of an exchange ([`Event`]) and its outputs ([`Action`]).

use super::Handled;
use crate::fingerprint::{Fingerprint, Fingerprinters};
use crate::key::RecordId;
use crate::lease::{Lease, Token};
use crate::outcome::{Bypass, Rejection};
use crate::record::State;
use crate::response::StoredResponse;
use crate::store::{Claim, ClaimInfo, ClaimRequest, ErrorKind, RecordSnapshot, StoreFailure};
use crate::time::Timestamp;

/// A result of the last [`Action`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The end of the request's body, after [`Action::ReadBody`], and 128 random bits to claim with.
    Body(BodyEnd, Token),
    /// The store's verdict, after [`Action::Claim`].
    Claimed(Result<Claim, StoreFailure>),
    /// The record in the store, after [`Action::Lookup`].
    Looked(Result<Option<RecordSnapshot>, ErrorKind>),
    /// The verdict of the meter, after [`Action::Meter`].
    Metered {
        /// True if the principal may add this new key.
        within: bool,
    },
    /// The result of a renewal, after [`Action::Renew`].
    Renewed(Result<(), ErrorKind>),
    /// The application's knowledge of an orphan, after [`Action::Probe`].
    Probed(ProbeResult),
    /// A possible change of the record, after [`Action::Wait`], with the record if the driver read
    /// it.
    Woken(Option<RecordSnapshot>),
    /// The deadline of [`Action::Wait`] has passed.
    WaitOver,
    /// The limit of waiting requests is reached, after [`Action::Wait`].
    WaitersFull,
    /// The end of the handler, after [`Action::Execute`].
    Handled(Handled),
    /// The result of a settlement, after [`Action::Settle`].
    Settled(Result<(), ErrorKind>),
    /// The transaction that should have settled was rolled back, or its end is not known, after an
    /// [`Action::Settle`] that `commits`.
    ///
    /// A settlement that another claim fenced is [`Settled`](Self::Settled) with
    /// [`ErrorKind::Fenced`] instead, sent once the transaction is rolled back.
    Uncommitted,
    /// The result of a release, after [`Action::Release`].
    Released(Result<(), ErrorKind>),
}

/// The end of reading a request's body.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BodyEnd {
    /// The body is complete and has these fingerprints, one for each secret.
    Whole(Vec<Fingerprint>),
    /// The body is, or declares to be, larger than the policy allows.
    TooLarge,
    /// The process has no room for the body now.
    NoRoom,
    /// The body broke off.
    Failed,
}

impl BodyEnd {
    /// Ends these fingerprints with a body that is complete.
    ///
    /// A decompression bomb counts as [`TooLarge`](Self::TooLarge).
    #[must_use]
    pub fn complete(fingerprinters: Fingerprinters) -> Self {
        fingerprinters.try_finish().map_or(Self::TooLarge, Self::Whole)
    }
}

/// An application's knowledge of an operation whose executor was lost.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[expect(clippy::large_enum_variant, reason = "made once for an orphan, by the application")]
pub enum ProbeResult {
    /// The operation happened, with this response.
    Happened(StoredResponse),
    /// The operation did not happen and is to be executed.
    NotHappened,
    /// The application cannot decide now.
    Unknown,
}

/// The next step of the driver.
#[derive(Debug)]
#[non_exhaustive]
pub enum Action {
    /// Read the request's body to its end or to `bytes_max`, hashing it with the
    /// [fingerprinters](super::Exchange::fingerprinters); then [`Event::Body`], or
    /// [`recall`](super::Exchange::recall) before it.
    ReadBody {
        /// The limit beyond which a body is [`BodyEnd::TooLarge`] and not buffered.
        bytes_max: u64,
    },
    /// Claim the record in the store; then [`Event::Claimed`].
    Claim {
        /// The record.
        id: RecordId,
        /// The terms of the claim.
        claim_request: ClaimRequest,
    },
    /// Read the record; then [`Event::Looked`].
    Lookup(RecordId),
    /// Count a new key under [`meter_id`](super::Operation::meter_id); then [`Event::Metered`].
    Meter,
    /// Renew a lease: it was granted too long ago to start on, or its handler's body flows on under
    /// it; then [`Event::Renewed`].
    ///
    /// A transaction that the handler left open is rolled back first, as before a release.
    Renew(Lease),
    /// Ask the application's hook about an orphan; then [`Event::Probed`].
    Probe {
        /// The number of the execution that was lost.
        attempt: u32,
    },
    /// Wait for the end of a claim; then [`Event::Woken`], [`Event::WaitOver`] at `until`, or
    /// [`Event::WaitersFull`].
    Wait {
        /// The record.
        id: RecordId,
        /// The claim: any other state than its live lease ends the wait.
        holder: ClaimInfo,
        /// The deadline, by the driver's clock.
        until: Timestamp,
    },
    /// Run the handler at once, renewing the lease meanwhile; then [`Event::Handled`].
    ///
    /// The handler runs to its end even if the client leaves.
    Execute(Lease),
    /// Make the result final, with retries within the policy's `settle_timeout`; then
    /// [`Event::Settled`].
    Settle {
        /// The lease of the claim.
        lease: Lease,
        /// The state to settle as.
        ///
        /// The payload is the handler's response for [`State::Completed`], its head for
        /// [`State::NotReplayable`], and empty for [`State::Unknown`].
        state: State,
        /// The response to store instead of the handler's.
        response: Option<Box<StoredResponse>>,
        /// True if the handler's transaction, where it has one, is to settle and commit, without
        /// retries; if the result is not certain, [`Event::Uncommitted`].
        ///
        /// If false, and before a release, such a transaction is rolled back first.
        commits: bool,
    },
    /// Give the claim up; then [`Event::Released`].
    Release(Lease),
    /// Answer the client: the exchange is over.
    Answer {
        /// The answer.
        answer: Answer,
        /// The work to finish in the background.
        deferred: Option<Deferred>,
    },
}

/// The answer to the client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Answer {
    /// The handler's response, run as if this engine were not there.
    Pass(Bypass),
    /// A stored response.
    Replay(Box<StoredResponse>),
    /// The response of the handler that ran under this exchange's lease.
    Own {
        /// The number of the execution.
        attempt: u32,
        /// True if a retry will get the response too; otherwise it is marked
        /// `Idempotency-Stored: false`.
        stored: bool,
    },
    /// A problem document (RFC 9457); boxed, because few answers are refusals, and each is moved
    /// with room for one.
    Refuse(Box<Rejection>),
    /// The handler's own failure, as if this engine were not there: its panic, its error, or its
    /// response with the body that broke off.
    Broken {
        /// The number of the execution.
        attempt: u32,
        /// The answer of a driver that cannot let the failure itself pass.
        rejection: Box<Rejection>,
    },
}

/// Work to finish in the background, retried within limits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Deferred {
    /// Release by token: the claim may be in force, or come into force later.
    Release(Lease),
    /// Settle as this state, renewing the lease meanwhile.
    Settle(Lease, State),
    /// Renew the lease until the handler's body, which flows to the client, has ended: then release
    /// by token, so that no retry runs beside it.
    ///
    /// The client gets the end of the body after that, or once the policy's `settle_timeout` is
    /// over: its next request is to find the key as this one has left it.
    AfterBody {
        /// The lease of the claim.
        lease: Lease,
        /// The state to settle as instead if the body broke off, or was given up with its client;
        /// `None` to release all the same.
        broken: Option<State>,
    },
}
