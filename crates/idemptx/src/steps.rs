//! Recovery points: steps of a handler whose results outlive it.
//!
//! A step is a record, under an id derived from the operation's, through the contract that every
//! store has.
//! Its claim lapses at once, because the result exists before it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use idemptx_core::fingerprint::Match;
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::{Record, State};
use idemptx_core::response::StoredResponse;
use idemptx_core::store::{
    Claim, ClaimRequest, ErrorKind, Expected, RecordSnapshot, Settlement, Store, StoreError,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engine::Inner;
use crate::execution::Execution;
use crate::retry::{Backoff, retry_within};
use crate::run::json_payload;
use crate::time_limit::limited;

impl Execution {
    /// Runs a step of the operation, unless an earlier attempt has: then its result is given again.
    ///
    /// The result is kept under the label, for as long as the operation's key, and never changes.
    /// An error is not kept, and neither is anything of a step whose process dies in it: that runs
    /// again, so that a call to another system should carry a [derived](Self::derive) key.
    /// A step whose result cannot be kept, because it is too large or no JSON, does not run again:
    /// this attempt gets the error that says so, and each later one [`StepError::NotKept`].
    ///
    /// ```
    /// # use idemptx::{Engine, Execution, store::MemoryStore};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Charge { id: String }
    /// # struct Psp; impl Psp {
    /// #     async fn charge(&self, id: String) -> std::io::Result<Charge> { Ok(Charge { id }) }
    /// # }
    /// # type Failure = Box<dyn std::error::Error>;
    /// async fn pay(execution: &Execution, psp: &Psp) -> Result<Charge, Failure> {
    ///     let key = execution.derive("charge");
    ///     let charge: Charge = execution.step("charge", async || psp.charge(key).await).await?;
    ///     Ok(charge)
    /// }
    /// ```
    ///
    /// Without a claim it just runs.
    ///
    /// # Errors
    ///
    /// [`StepError`]; after most of them nothing has run.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the step ends where it is, without a result.
    pub async fn step<T, E, F, R>(&self, label: &str, work: F) -> Result<T, StepError<E>>
    where
        F: FnOnce() -> R,
        R: Future<Output = Result<T, E>>,
        T: Serialize + DeserializeOwned,
    {
        let Some((lease, records)) = self.recorded() else {
            return work().await.map_err(StepError::Failed);
        };
        check(label)?;
        if self.begin_step() > STEPS_MAX {
            return Err(StepError::TooMany);
        }
        let _active_labels = self.active_labels().enter(label).ok_or(StepError::InProgress)?;
        if let Some(record) = self.look_for_step(records, label).await? {
            return decode(&record, lease);
        }
        if self.is_lost() {
            return Err(StepError::Lost);
        }
        let value = work().await.map_err(StepError::Failed)?;
        let (done, unfit) = match self.payload(&value) {
            Ok(payload) => (self.settlement(State::Completed, payload), None),
            // It happened; that its result cannot be stored must not make it happen again.
            Err(error) => {
                let payload = json_payload(Bytes::new());
                (self.settlement(State::NotReplayable, payload), Some(error))
            }
        };
        match (self.keep_step(records, lease, label, &done).await?, unfit) {
            (None, None) => Ok(value),
            (None, Some(error)) => Err(error),
            // The first one counts: results do not change.
            (Some(record), _) => decode(&record, lease),
        }
    }

    /// The result of a step, if an earlier attempt has run it.
    ///
    /// # Errors
    ///
    /// As [`step`](Self::step).
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn recall<T: DeserializeOwned>(
        &self,
        label: &str,
    ) -> Result<Option<T>, StepError<std::convert::Infallible>> {
        let Some((lease, records)) = self.recorded() else { return Ok(None) };
        check(label)?;
        let found = self.look_for_step(records, label).await?;
        found.map(|record| decode(&record, lease)).transpose()
    }

    /// Prepares the record of a step that the application takes in its own transaction.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn kept_step<T: Serialize>(
        &self,
        label: &str,
        value: &T,
    ) -> Result<KeptStep, StepError<std::convert::Infallible>> {
        let (lease, records) = self.recorded().ok_or(StepError::NotTransactional)?;
        check(label)?;
        if self.begin_step() > STEPS_MAX {
            return Err(StepError::TooMany);
        }
        let payload = self.payload(value)?;
        Ok(KeptStep {
            id: lease.id.step(label),
            request: self.request(records, lease),
            done: self.settlement(State::Completed, payload),
        })
    }

    fn payload<T: Serialize, E>(&self, value: &T) -> Result<Bytes, StepError<E>> {
        let json = serde_json::to_vec(value).map_err(|error| StepError::Unfit(error.into()))?;
        match json.len() <= self.rules().policy().response_bytes_max {
            true => Ok(json_payload(json.into())),
            false => Err(StepError::TooLarge),
        }
    }

    fn request(&self, records: &dyn Records, lease: &Lease) -> ClaimRequest {
        let retain = self.rules().policy().key_retain;
        ClaimRequest::new(records.token(), lease.fingerprint, TERM, retain)
    }

    fn settlement(&self, state: State, payload: Bytes) -> Settlement {
        let retain = self.rules().policy().key_retain;
        Settlement::new(state, payload, retain, retain)
    }

    async fn look_for_step(
        &self,
        records: &dyn Records,
        label: &str,
    ) -> Result<Option<Record>, StoreError> {
        Ok(match records.lookup(&self.operation().id().step(label)).await? {
            Some(RecordSnapshot::Settled(record)) => Some(record),
            _ => None,
        })
    }

    /// Stores a result, or returns the one that another execution has stored meanwhile.
    async fn keep_step(
        &self,
        records: &dyn Records,
        lease: &Lease,
        label: &str,
        done: &Settlement,
    ) -> Result<Option<Record>, StoreError> {
        let (id, request) = (lease.id.step(label), self.request(records, lease));
        let limit = self.rules().policy().settle_timeout;
        let attempt = |_| store_step(records, &id, &request, done);
        retry_within(limit, BACKOFF, is_retryable, attempt).await
    }
}

/// The steps of an execution that run, no two of one label: neither would find the other's result.
///
/// As many as an execution has steps, at most.
#[derive(Debug, Default)]
pub(crate) struct Labels(Mutex<Vec<String>>);

impl Labels {
    fn enter(&self, label: &str) -> Option<ActiveLabel<'_>> {
        let mut labels = self.labels();
        if labels.iter().any(|it| it == label) {
            return None;
        }
        labels.push(label.to_owned());
        Some(ActiveLabel { labels: self, label: label.to_owned() })
    }

    /// No code of ours panics while it holds the lock.
    fn labels(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct ActiveLabel<'a> {
    labels: &'a Labels,
    label: String,
}

impl Drop for ActiveLabel<'_> {
    fn drop(&mut self) {
        self.labels.labels().retain(|label| *label != self.label);
    }
}

/// A step's record, to be written in the application's transaction.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[derive(Debug)]
pub struct KeptStep {
    pub(crate) id: RecordId,
    pub(crate) request: ClaimRequest,
    pub(crate) done: Settlement,
}

/// Claims and settles a step's record; returns the one that another execution has stored.
///
/// A process that dies in between leaves a claim that lapses at once.
async fn store_step(
    records: &dyn Records,
    id: &RecordId,
    request: &ClaimRequest,
    done: &Settlement,
) -> Result<Option<Record>, StoreError> {
    let mut claim = records.claim(id, request).await?;
    if let Claim::Found(RecordSnapshot::Held(holder)) = &claim {
        let takeover = request.clone().expecting(Expected::Orphan(holder.token));
        claim = records.claim(id, &takeover).await?;
    }
    match claim {
        Claim::Granted(lease) => records.settle(&lease, done).await.map(|()| None),
        Claim::Found(RecordSnapshot::Settled(record)) if record.token == request.token => Ok(None),
        Claim::Found(RecordSnapshot::Settled(record)) => Ok(Some(record)),
        // Its lease has not lapsed yet.
        Claim::Found(RecordSnapshot::Held(_)) => Err(ErrorKind::Unavailable.into()),
        _ => Err(ErrorKind::Internal.into()),
    }
}

/// Returns `true` if another attempt makes sense; a fenced one finds out who was quicker.
const fn is_retryable(kind: ErrorKind) -> bool {
    kind.is_transient() || matches!(kind, ErrorKind::Fenced)
}

fn decode<T: DeserializeOwned, E>(record: &Record, lease: &Lease) -> Result<T, StepError<E>> {
    if matches!(
        lease.fingerprint.compare(&record.fingerprint),
        Match::DifferentRequest | Match::DifferentOperation | Match::DifferentPrincipal
    ) {
        return Err(StepError::OtherRequest);
    }
    if record.state == State::NotReplayable {
        return Err(StepError::NotKept);
    }
    let stored = StoredResponse::decode(&record.payload);
    let stored = stored.map_err(|error| StepError::Unfit(error.into()))?;
    serde_json::from_slice(&stored.body).map_err(|error| StepError::Unfit(error.into()))
}

/// A label that can name a step.
fn check<E>(label: &str) -> Result<(), StepError<E>> {
    if (1..=LABEL_BYTES_MAX).contains(&label.len()) { Ok(()) } else { Err(StepError::Label) }
}

/// A store without its type, as an execution uses it for its steps; each call is limited in time.
pub(crate) trait Records: Send + Sync {
    fn token(&self) -> Token;
    fn lookup<'a>(&'a self, id: &'a RecordId) -> StoreFuture<'a, Option<RecordSnapshot>>;
    fn claim<'a>(&'a self, id: &'a RecordId, request: &'a ClaimRequest) -> StoreFuture<'a, Claim>;
    fn settle<'a>(&'a self, lease: &'a Lease, done: &'a Settlement) -> StoreFuture<'a, ()>;
}

/// The answer of such a store.
pub(crate) type StoreFuture<'a, T> =
    Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

impl<S: Store> Records for Inner<S> {
    fn token(&self) -> Token {
        self.token()
    }

    fn lookup<'a>(&'a self, id: &'a RecordId) -> StoreFuture<'a, Option<RecordSnapshot>> {
        Box::pin(limited(self.policy().claim_timeout, self.store().lookup(id)))
    }

    fn claim<'a>(&'a self, id: &'a RecordId, request: &'a ClaimRequest) -> StoreFuture<'a, Claim> {
        Box::pin(limited(self.policy().claim_timeout, self.store().claim(id, request)))
    }

    fn settle<'a>(&'a self, lease: &'a Lease, done: &'a Settlement) -> StoreFuture<'a, ()> {
        Box::pin(limited(self.policy().claim_timeout, self.store().settle(lease, done)))
    }
}

/// A step without a result.
#[derive(Debug)]
#[non_exhaustive]
pub enum StepError<E> {
    /// The step ran and failed.
    Failed(E),
    /// The operation was taken over: nothing was run, and what this handler does is in
    /// vain.
    Lost,
    /// An earlier request under the key, with other content, has run it: nothing was run.
    OtherRequest,
    /// The label has no byte, or more than 255: nothing was run.
    Label,
    /// The execution has begun a hundred steps already: nothing was run.
    TooMany,
    /// The step ran, and its result is larger than the policy's `response_bytes_max`: it is not
    /// stored, and the step does not run again.
    TooLarge,
    /// An earlier attempt ran the step, and its result could not be kept: nothing was run.
    NotKept,
    /// The execution is in a step of this label: nothing was run.
    InProgress,
    /// The value is no JSON, or not that of the type: the one that the step made, which is not
    /// stored while the step does not run again, or the one that is.
    Unfit(Box<dyn std::error::Error + Send + Sync>),
    /// There is a result already, on `step_in`: roll back, and recall it.
    Kept,
    /// No transaction is possible, on `step_in`: the engine was not made with
    /// [`EngineBuilder::transactional`](crate::EngineBuilder::transactional), or the execution is
    /// not under a claim.
    NotTransactional,
    /// The store could not be asked, and nothing was run; or it ran, and its result is not kept.
    Store(StoreError),
}

impl<E> From<StoreError> for StepError<E> {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl<E: fmt::Display> fmt::Display for StepError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed(_) => "the step failed",
            Self::Lost => "another execution took the operation over",
            Self::OtherRequest => "the step was run for another request under the same key",
            Self::Label => "a step's label has 1 to 255 bytes",
            Self::TooMany => "an execution has a hundred steps at most",
            Self::TooLarge => "the step has run, and its result is too large to be kept",
            Self::NotKept => "the step ran in an earlier attempt, and its result was not kept",
            Self::InProgress => "a step of this label runs in this execution",
            Self::Unfit(_) => "the step's result is not of the type that was asked for",
            Self::Kept => "the step has a result already: roll back, and recall it",
            Self::NotTransactional => {
                "the step cannot be kept in a transaction: is there a key, and was its engine made \
                 with `EngineBuilder::transactional`?"
            }
            Self::Store(_) => "the store gave no answer about the step",
        })
    }
}

impl<E: std::error::Error + 'static> std::error::Error for StepError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(error) => Some(error),
            Self::Unfit(error) => Some(&**error),
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

const LABEL_BYTES_MAX: usize = 255;
const STEPS_MAX: u32 = 100;
/// A claim on a step's record may be taken over at once: the result exists, and only the first to
/// settle counts.
const TERM: Duration = Duration::from_millis(1);
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(2), Duration::from_millis(200));
