//! The operators' view of records: look, list, resolve, forget, purge.
//!
//! An operation that ended without a result, though it may have had an effect, stays in doubt under
//! the policies that never execute twice, and its key is refused.
//! A person finds out what happened, and resolves it:
//!
//! ```
//! use http::{HeaderMap, StatusCode};
//! use idemptx::operator::{Query, RecordStatus};
//! use idemptx::store::MemoryStore;
//! use idemptx::{Engine, Policy};
//! # use idemptx_core::policy::ScopeRule;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let policy = Policy::payments().into_builder().scope(ScopeRule::Shared).build()?;
//! let engine = Engine::builder(MemoryStore::new()).policy(policy).build()?;
//! let pay = async |_| Err::<u32, _>(std::io::Error::other("connection reset"));
//! engine.run("payout-17", b"100 EUR", pay).await.unwrap_err();
//!
//! // What is in doubt?
//! let operator = engine.operator();
//! let page = operator.list(&Query::in_doubt()).await?;
//! let [stuck] = page.entries.as_slice() else { panic!("{page:?}") };
//! assert_eq!(stuck.status, RecordStatus::Unknown);
//!
//! // The bank says that payout 1001 was made: that is the answer.
//! let answer = operator.response(StatusCode::OK, &HeaderMap::new(), "1001");
//! let resolved = operator.resolve(&stuck.id, answer.into()).await?;
//! println!("{} was {}", resolved.was.id, resolved.was.status);
//!
//! let payout: u32 = engine.run("payout-17", b"100 EUR", pay).await?;
//! assert_eq!(payout, 1001);
//! # Ok(()) }
//! ```
//!
//! # How it is done
//!
//! With the operations that requests use, over any [`Store`]: an operator claims the record in place
//! of what was found, with its fingerprint, and then settles or releases it.
//! So a decision is refused if the record has changed since; the former owner, should it come back,
//! is fenced; and requests that wait are woken.
//! In between the record is a claim of the operator's, in a spawned task; if the process dies just
//! then, the claim lapses, and the policy deals with it as with any orphan.
//!
//! Nothing is logged here: every call returns the record before and after it.

mod names;
mod purge;
mod target;
mod verdict;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use idemptx_core::exchange::Rules;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::policy::Policy;
use idemptx_core::record::{Record, State};
use idemptx_core::response::StoredResponse;
use idemptx_core::store::{
    Claim, ClaimRequest, ErrorKind, RecordSnapshot, Settlement, Store, StoreError,
};
use tokio::task::JoinHandle;

pub use idemptx_core::description::Description;
pub use idemptx_core::store::{
    Cursor, Intervention, InvalidCursor, Inventory, ListFilter, Page, Query, RecordStatus,
    RecordStatuses, RecordSummary, UnknownRecordStatus,
};

pub use self::purge::{Purge, PurgeReport};
use self::target::Target;
pub use self::verdict::{Forgotten, OperatorError, RecordView, Resolution, Resolved};
use crate::engine::EngineError;
use crate::retry::{Backoff, retry_within};
use crate::time_limit::limited;
use crate::tokens::Tokens;

/// Decides about records; see the [module](self).
///
/// Cheap to clone.
pub struct Operator<S> {
    store: Arc<S>,
    rules: Arc<Rules>,
    tokens: Arc<Tokens>,
}

impl<S> Clone for Operator<S> {
    fn clone(&self) -> Self {
        Self::of(Arc::clone(&self.store), Arc::clone(&self.rules), Arc::clone(&self.tokens))
    }
}

impl<S: fmt::Debug> fmt::Debug for Operator<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator").field("store", &self.store).finish_non_exhaustive()
    }
}

impl<S> Operator<S> {
    pub(crate) fn of(store: Arc<S>, rules: Arc<Rules>, tokens: Arc<Tokens>) -> Self {
        Self { store, rules, tokens }
    }
}

impl<S: Store> Operator<S> {
    /// Makes an operator without an engine, such as for a command-line tool.
    ///
    /// The policy must be that of the services: it names the records, and says how long answers are
    /// kept.
    ///
    /// # Errors
    ///
    /// [`EngineError`] on a system without randomness.
    pub fn new(store: S, policy: Policy) -> Result<Self, EngineError> {
        let tokens = Arc::new(Tokens::from_system()?);
        Ok(Self::of(Arc::new(store), Arc::new(Rules::new(policy)), tokens))
    }

    /// Sets the namespace of the service, as
    /// [`EngineBuilder::namespace`](crate::EngineBuilder::namespace); empty by default.
    ///
    /// It is part of the names of records: under another one, no record of the service is found.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.rules = Arc::new(Rules::in_namespace(self.policy().clone(), namespace));
        self
    }

    /// Returns the store.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Makes a response as the layer would store it: without the headers that are never replayed.
    #[must_use]
    pub fn response(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        body: impl Into<Bytes>,
    ) -> StoredResponse {
        StoredResponse::capture(status, headers, body.into(), None, &self.policy().replay)
    }

    /// Returns the record under an id, with its response.
    ///
    /// # Errors
    ///
    /// As [`Store::lookup`].
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn lookup(&self, id: &RecordId) -> Result<Option<RecordView>, StoreError> {
        let limit = self.policy().claim_timeout;
        Ok(match limited(limit, self.store.lookup(id)).await? {
            None => None,
            Some(RecordSnapshot::Held(holder)) => Some(RecordView::held(*id, &holder)),
            Some(RecordSnapshot::Settled(record)) => Some(RecordView::settled(&record)),
            Some(_) => return Err(ErrorKind::Internal.into()),
        })
    }

    /// Returns the first of these that there is: of the [names](Self::ids) of one key, the record that
    /// decides.
    ///
    /// # Errors
    ///
    /// As [`Store::lookup`].
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn find(&self, ids: &[RecordId]) -> Result<Option<RecordView>, StoreError> {
        for id in ids {
            if let Some(sighting) = self.lookup(id).await? {
                return Ok(Some(sighting));
            }
        }
        Ok(None)
    }

    /// Resolves an operation that is in doubt: an orphan, or an unknown outcome.
    ///
    /// With an answer every retry gets it, as if the operation had just ended; released, the next
    /// retry executes.
    ///
    /// # Errors
    ///
    /// [`OperatorError`]; nothing was changed, save after [`OperatorError::Store`], where that is
    /// not known: look again.
    /// What has a result that cannot be read is in no doubt, and is left as it is:
    /// [`OperatorError::Unreadable`].
    ///
    /// # Cancel safety
    ///
    /// Once the record is being replaced, that goes on.
    pub async fn resolve(
        &self,
        id: &RecordId,
        with: Resolution,
    ) -> Result<Resolved, OperatorError> {
        self.resolve_described(id, with, None).await
    }

    /// Resolves an operation in doubt that a listing has shown, as [`resolve`](Self::resolve) does;
    /// its description stays with the record.
    ///
    /// # Errors
    ///
    /// As [`resolve`](Self::resolve).
    ///
    /// # Cancel safety
    ///
    /// As [`resolve`](Self::resolve).
    pub async fn resolve_listed(
        &self,
        entry: &RecordSummary,
        with: Resolution,
    ) -> Result<Resolved, OperatorError> {
        self.resolve_described(&entry.id, with, entry.description()).await
    }

    async fn resolve_described(
        &self,
        id: &RecordId,
        with: Resolution,
        description: Option<Description>,
    ) -> Result<Resolved, OperatorError> {
        let done = match with {
            Resolution::Release => None,
            Resolution::Answer(answer) => Some(self.settlement(&answer)?),
        };
        let was = self.lookup(id).await?.ok_or(OperatorError::Absent)?;
        match was.status.intervention() {
            Intervention::None => Err(OperatorError::InFlight(was.claim.remaining)),
            Intervention::Resolve => {
                let description = was.description.as_ref().or(description.as_ref());
                let target = Target::seen(&was).described(description);
                let now = ended(self.begin(target, done, Vec::new())).await?;
                Ok(Resolved { was, now })
            }
            _ => Err(OperatorError::AlreadySettled(Box::new(was))),
        }
    }

    fn policy(&self) -> &Policy {
        self.rules.policy()
    }

    fn settlement(&self, answer: &StoredResponse) -> Result<Settlement, OperatorError> {
        let policy = self.policy();
        if !answer.is_storable() || answer.body.len() > policy.response_bytes_max {
            return Err(OperatorError::Unstorable);
        }
        Ok(Settlement::by(policy, State::Completed, answer.encode()))
    }

    /// Begins to put a result in the place of a record, or nothing, and to forget these steps of
    /// its operation.
    ///
    /// In a task, so that a caller that leaves does not leave a claim.
    fn begin(
        &self,
        target: Target,
        done: Option<Settlement>,
        steps: Vec<Target>,
    ) -> JoinHandle<Replaced> {
        let operator = self.clone();
        tokio::spawn(async move {
            let lease = operator.take_over(&target).await?;
            // Under the claim: an execution must find either all of its steps or none.
            for step in &steps {
                operator.forget_step(step).await?;
            }
            operator.conclude(&lease, done).await
        })
    }

    async fn forget_step(&self, step: &Target) -> Result<(), OperatorError> {
        let forgotten = match self.take_over(step).await {
            Ok(lease) => self.conclude(&lease, None).await.map(drop),
            Err(error) => Err(error),
        };
        match forgotten {
            // An execution that was taken over has written it meanwhile, or it has expired.
            Err(OperatorError::Changed(_) | OperatorError::Absent | OperatorError::InFlight(_)) => {
                Ok(())
            }
            forgotten => forgotten,
        }
    }

    async fn take_over(&self, target: &Target) -> Result<Lease, OperatorError> {
        let (policy, Target { id, expected, fingerprint, description }) = (self.policy(), target);
        // Long enough for what follows, short enough not to block the key should this process die.
        let term = policy.claim_timeout + policy.settle_timeout * 2;
        let retain = policy.key_retain.max(term * 2);
        let request =
            ClaimRequest::new(self.tokens.draw(), *fingerprint, term, retain).expecting(*expected);
        let request = request.described(description.clone());
        let claim = insist(policy.settle_timeout, || self.store.claim(id, &request)).await?;
        match claim {
            Claim::Granted(lease) if lease.attempt > FIRST_ATTEMPT => Ok(lease),
            Claim::Granted(lease) => {
                // What was there has expired meanwhile.
                insist(policy.settle_timeout, || self.store.release(&lease)).await?;
                Err(OperatorError::Absent)
            }
            Claim::Found(RecordSnapshot::Held(holder)) if !holder.is_orphan() => {
                Err(OperatorError::InFlight(holder.remaining))
            }
            Claim::Found(RecordSnapshot::Held(holder)) => {
                Err(OperatorError::changed(RecordView::held(*id, &holder)))
            }
            Claim::Found(RecordSnapshot::Settled(record)) => {
                Err(OperatorError::changed(RecordView::settled(&record)))
            }
            _ => Err(StoreError::new(ErrorKind::Internal).into()),
        }
    }

    async fn conclude(&self, lease: &Lease, done: Option<Settlement>) -> Replaced {
        let limit = self.policy().settle_timeout;
        let done = done.map(|done| done.describing(lease));
        let concluded = match &done {
            Some(done) => insist(limit, || self.store.settle(lease, done)).await,
            None => insist(limit, || self.store.release(lease)).await,
        };
        match concluded {
            Ok(()) => Ok(done.map(|done| RecordView::settled(&Record::settled(lease, &done)))),
            // Only after this lease had lapsed, and another claim had taken the record over.
            Err(error) if error.kind() == ErrorKind::Fenced => Err(OperatorError::Changed(None)),
            Err(error) => Err(error.into()),
        }
    }
}

impl<S: Inventory> Operator<S> {
    /// Lists one page of a query; see [`Inventory::list`].
    ///
    /// # Errors
    ///
    /// As [`Inventory::list`].
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        let limit = self.policy().settle_timeout;
        limited(limit, self.store.list(query)).await
    }

    /// Returns one record as a listing has it: with its age, and how long it is kept.
    ///
    /// # Errors
    ///
    /// As [`Inventory::list`].
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn entry(&self, id: &RecordId) -> Result<Option<RecordSummary>, StoreError> {
        Ok(self.list(&Query::all().only(*id)).await?.entries.pop())
    }

    /// Forgets a record whose execution is not running, as if its key had never been used.
    ///
    /// A retry of that request, should there be one, **executes again**: forget what must not be
    /// kept, or what you know will not be retried; a doubt is [resolved](Self::resolve).
    /// A sealed record need not be opened for it, so that one can be forgotten whose keys are lost.
    /// The operation's [steps](crate::Execution::step) go with it.
    ///
    /// # Errors
    ///
    /// As [`resolve`](Self::resolve).
    ///
    /// # Cancel safety
    ///
    /// Once the record is being replaced, that goes on.
    pub async fn forget(&self, id: &RecordId) -> Result<Forgotten, OperatorError> {
        let was = match self.lookup(id).await {
            // A listing does not open it; what it cannot read either is none that could be claimed.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let entry = self.entry(id).await?.ok_or(OperatorError::Unreadable(error))?;
                RecordView::listed(&entry)
            }
            seen => seen?.ok_or(OperatorError::Absent)?,
        };
        if was.status.intervention() == Intervention::None {
            return Err(OperatorError::InFlight(was.claim.remaining));
        }
        // Before the record is claimed, because a listing may take longer than a claim should; if an
        // execution adds a step meanwhile, the record has changed as well.
        let steps = self.steps_of(id).await?;
        ended(self.begin(Target::seen(&was), None, steps)).await?;
        Ok(Forgotten { was })
    }

    /// Lists the records of an operation's steps.
    async fn steps_of(&self, id: &RecordId) -> Result<Vec<Target>, StoreError> {
        let mut query = Query::all().in_scope(id.steps_scope()).limit(Query::LIMIT_MAX);
        let mut steps = Vec::new();
        loop {
            let page = self.list(&query).await?;
            steps.extend(page.entries.iter().map(Target::listed));
            query.after = page.next;
            if query.after.is_none() {
                return Ok(steps);
            }
        }
    }

    /// Begins to [forget](Self::forget) all records of a query whose executions are not running.
    ///
    /// ```
    /// use std::time::Duration;
    /// # use idemptx::{Policy, operator::{Operator, Query, RecordStatus}, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let operator = Operator::new(MemoryStore::new(), Policy::draft())?;
    /// let old = Query::of([RecordStatus::Completed]).idle_for(Duration::from_secs(30 * 24 * 3600));
    /// let would = operator.purge(old.clone()).dry_run().run().await?;
    /// println!("{} records of {} bytes", would.forgotten, would.payload_bytes);
    /// let done = operator.purge(old).run().await?;
    /// # assert_eq!(done, would);
    /// # Ok(()) }
    /// ```
    pub fn purge(&self, query: Query) -> Purge<S> {
        Purge::new(self.clone(), query)
    }
}

/// The record in place of another one.
type Replaced = Result<Option<RecordView>, OperatorError>;

async fn ended(replacing: JoinHandle<Replaced>) -> Replaced {
    // It ends otherwise only with its runtime.
    replacing.await.unwrap_or_else(|_| Err(StoreError::new(ErrorKind::Unavailable).into()))
}

/// Repeats an operation, which every one allows, until its outcome is known or the limit is over.
async fn insist<T, F>(limit: Duration, operation: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let attempt = |left| limited(left, operation());
    retry_within(limit, BACKOFF, ErrorKind::is_transient, attempt).await
}

const FIRST_ATTEMPT: u32 = 1;
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
