//! The store and its settings.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::{Record, State};
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, ErrorKind, Expected, Inventory, Page, Query, RecordSnapshot,
    Settlement, Store, StoreError, Watch,
};
use tokio_postgres::Row;

use super::database_settings::DatabaseSettings;
use super::invalid_setting::InvalidSetting;
use super::list_rows;
use super::migration;
use super::postgres_failure::PostgresFailure;
use super::row::{RowState, RowStatus, kept_millis, term_millis};
use super::runtime_pool::{ClaimAnswer, FIRST_ATTEMPT, RuntimePool, SessionLimits};
use super::session::Connector;
use super::statement::{Parameter, Sql};
use super::store_builder::PostgresStoreBuilder;
use super::sweep::{self, Sweeper};
use super::table_names::TableNames;
use crate::store::SafetyReport;
use crate::store::per_runtime::PerRuntime;

/// Keeps records in PostgreSQL; see the [module](super).
///
/// Up to four sessions, and one for wake-ups, are opened for each tokio runtime that uses it, when
/// they are first needed and again whenever they are lost.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use idemptx::store::postgres::PostgresStore;
///
/// let store = PostgresStore::builder("postgres://app@localhost/app").schema("shop").connect().await?;
/// let report = store.check().await?;
/// println!("{}", report.guarantee);
/// # Ok(())
/// # }
/// ```
pub struct PostgresStore {
    pub(super) connector: Arc<Connector>,
    pools: PerRuntime<RuntimePool>,
    limits: SessionLimits,
    durable: AtomicBool,
    sweeper: Arc<Sweeper>,
}

impl PostgresStore {
    /// Begins to set a store up.
    ///
    /// The URL is `postgres://[user[:password]@]host[:port]/database`, with more hosts separated by
    /// commas, or `postgres:///database?host=/path` for the socket in a directory.
    /// Servers beyond this host are spoken to in TLS, and have to prove who they are, unless it
    /// says `sslmode=disable`; those on this host need `sslmode=verify-full` for it.
    #[must_use]
    pub fn builder(url: impl Into<String>) -> PostgresStoreBuilder {
        PostgresStoreBuilder::new(url.into())
    }

    /// A store at a URL, with the default settings and without connecting: a server that cannot be
    /// reached now may be reached later.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] if the URL is none of the forms that [`builder`](Self::builder) names.
    pub fn open(url: impl Into<String>) -> Result<Self, InvalidSetting> {
        Self::builder(url).open()
    }

    /// A store at a URL, with the default settings and a session that works.
    ///
    /// # Errors
    ///
    /// As [`PostgresStoreBuilder::connect`].
    ///
    /// # Cancel safety
    ///
    /// The tables may have been made or not.
    pub async fn connect(url: impl Into<String>) -> Result<Self, StoreError> {
        Self::builder(url).connect().await
    }

    /// The SQL that makes the tables, for those who want to run it themselves; with the default
    /// names it is [in the reference](https://github.com/idemptx/idemptx/blob/main/docs/reference/postgres.sql).
    ///
    /// ```
    /// use idemptx::store::postgres::PostgresStore;
    ///
    /// let store = PostgresStore::builder("postgres://localhost/app").migrate(false).open()?;
    /// assert!(store.schema_sql().contains("CREATE TABLE \"idemptx\".\"records\""));
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn schema_sql(&self) -> String {
        migration::script(&self.connector.layout)
    }

    /// Makes the tables, or brings them to this release's version, as the first session does by
    /// default: a step of its own for deployments, under a role that may, before processes start
    /// with [`migrate(false)`](PostgresStoreBuilder::migrate).
    ///
    /// Tables of this version or of a later one are left as they are.
    /// Only the connection has a time limit.
    ///
    /// # Errors
    ///
    /// As [`PostgresStoreBuilder::connect`]; [`ErrorKind::Unavailable`] if the connection was lost.
    ///
    /// # Cancel safety
    ///
    /// The tables may have been migrated or not, never by half.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        Ok(self.connector.migrate().await?)
    }

    /// Asks the server for everything that decides which guarantee it can give.
    ///
    /// [`capabilities`](Store::capabilities) follow what was found.
    ///
    /// # Errors
    ///
    /// As [`lookup`](Store::lookup).
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn check(&self) -> Result<SafetyReport, StoreError> {
        let rows = self.pool()?.ask(Sql::Check, &[&self.connector.layout.records()]).await?;
        let settings =
            rows.first().and_then(DatabaseSettings::read).ok_or_else(|| self.unexpected())?;
        self.durable.store(settings.is_durable(), Ordering::Relaxed);
        self.connector.may_notify.store(settings.may_notify(), Ordering::Relaxed);
        Ok(settings.report(self.connector.server(), self.connector.address.is_plaintext()))
    }

    /// Forgets what has expired, some hundred records at a time, and says how many were looked at.
    ///
    /// [`Store::maintain`] does so every few seconds, in the background.
    ///
    /// # Errors
    ///
    /// As [`lookup`](Store::lookup).
    ///
    /// # Cancel safety
    ///
    /// Some of it may have been done.
    pub async fn sweep(&self) -> Result<u64, StoreError> {
        Ok(sweep::sweep_all(&*self.pool()?).await?)
    }

    /// Returns the names of the tables.
    pub(super) fn layout(&self) -> &TableNames {
        &self.connector.layout
    }

    /// Returns another store with the same settings and the same knowledge of the server, but without
    /// sessions: to be used, and dropped with them, where this one makes statements for
    /// [other drivers](Self::settle_statement).
    #[must_use]
    pub fn another(&self) -> Self {
        Self::with(self.connector.clone(), self.limits)
    }

    /// The store that a builder has put together.
    pub(super) fn with(connector: Arc<Connector>, limits: SessionLimits) -> Self {
        Self {
            pools: PerRuntime::new(),
            limits,
            connector,
            durable: AtomicBool::new(true),
            sweeper: Arc::default(),
        }
    }

    /// Waits for a session that works.
    pub(super) async fn ready(&self) -> Result<(), StoreError> {
        Ok(self.pool()?.ready().await?)
    }

    pub(super) fn pool(&self) -> Result<Arc<RuntimePool>, PostgresFailure> {
        let create = || Arc::new(RuntimePool::new(self.connector.clone(), self.limits));
        let pool = self.pools.current(create);
        pool.ok_or_else(|| PostgresFailure::no_runtime(self.connector.server()))
    }

    async fn find(
        &self,
        pool: &RuntimePool,
        id: &RecordId,
    ) -> Result<Option<RowStatus>, StoreError> {
        let rows = pool.ask(Sql::Lookup, &[&&id.as_bytes()[..]]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let found = RowState::read(row).ok_or_else(|| self.unexpected())?;
        decode_row(found, id).map(Some)
    }

    /// Replaces a record by a claim, if the record is in the expected state.
    async fn replace(
        &self,
        pool: &RuntimePool,
        id: &RecordId,
        request: &ClaimRequest,
        former: Former,
    ) -> Result<Option<Lease>, StoreError> {
        let (state, token): (&str, &[u8]) = match &former {
            Former::Expired => ("expired", b""),
            Former::Named(Expected::Orphan(token)) => ("orphan", token.as_bytes()),
            Former::Named(Expected::Settled(token)) => ("settled", token.as_bytes()),
        };
        let record = Record::running(&Lease::granted(*id, request, 0, FIRST_ATTEMPT)).encode();
        let rows = pool
            .ask(
                Sql::TakeOver,
                &[
                    &&id.as_bytes()[..],
                    &token,
                    &state,
                    &&request.token.as_bytes()[..],
                    &record,
                    &term_millis(request.term),
                    &kept_millis(request.retain),
                ],
            )
            .await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (fence, attempt) = granted(row).ok_or_else(|| self.unexpected())?;
        Ok(Some(Lease::granted(*id, request, fence, attempt)))
    }

    /// Shortens a claim to its term and its retention, counted from now; a hint, which the next
    /// claim repeats.
    async fn shorten(&self, pool: &RuntimePool, record: &Record) {
        let parameters: [Parameter<'_>; 4] = [
            &&record.id.as_bytes()[..],
            &&record.token.as_bytes()[..],
            &term_millis(record.term),
            &kept_millis(record.retain),
        ];
        let _ = pool.ask(Sql::Clamp, &parameters).await;
    }

    async fn renewed(&self, pool: &RuntimePool, lease: &Lease) -> Result<bool, StoreError> {
        let rows = pool
            .ask(
                Sql::Renew,
                &[
                    &&lease.id.as_bytes()[..],
                    &&lease.token.as_bytes()[..],
                    &term_millis(lease.term),
                    &kept_millis(lease.retain),
                ],
            )
            .await?;
        Ok(!rows.is_empty())
    }

    /// Claims, with as many statements as that takes.
    ///
    /// `may_be_claimed` is set when a statement's result may come from an earlier request of it
    /// that was executed although its answer was lost: a later refusal is then not certain.
    async fn claim_in_steps(
        &self,
        id: &RecordId,
        request: &ClaimRequest,
        may_be_claimed: &mut bool,
    ) -> Result<Claim, StoreError> {
        let pool = self.pool()?;
        for _ in 0..ATTEMPTS_MAX {
            if let Some(expected) = request.expected {
                let former = Former::Named(expected);
                if let Some(lease) = self.replace(&pool, id, request, former).await? {
                    return Ok(Claim::Granted(lease));
                }
                *may_be_claimed = true;
            }
            let found = match pool.claim(id, request).await? {
                ClaimAnswer::Created(fence) => {
                    return Ok(Claim::Granted(Lease::granted(*id, request, fence, FIRST_ATTEMPT)));
                }
                ClaimAnswer::Expired => {
                    match self.replace(&pool, id, request, Former::Expired).await? {
                        Some(lease) => return Ok(Claim::Granted(lease)),
                        None => {
                            *may_be_claimed = true;
                            continue;
                        }
                    }
                }
                ClaimAnswer::Unseen | ClaimAnswer::Unread => {
                    *may_be_claimed = true;
                    continue;
                }
                ClaimAnswer::RowState(found) => decode_row(found, id)?,
            };
            if let Some(record) = found.lengthened() {
                self.shorten(&pool, record).await;
            }
            match found {
                // Sent before: only the term is restarted.
                RowStatus::Held { record, .. } if record.token == request.token => {
                    *may_be_claimed = true;
                    let lease = record.lease();
                    if self.renewed(&pool, &lease).await? {
                        return Ok(Claim::Granted(lease));
                    }
                }
                // It came to be so after the takeover had missed it.
                found if may_be_replaced(&found, request.expected) => {}
                RowStatus::Held { record, remaining } => {
                    return Ok(Claim::Found(RecordSnapshot::Held(RowStatus::holder(
                        &record, remaining,
                    ))));
                }
                RowStatus::Settled(record) => {
                    return Ok(Claim::Found(RecordSnapshot::Settled(record)));
                }
            }
        }
        Err(self.contended())
    }

    pub(super) fn unexpected(&self) -> PostgresFailure {
        PostgresFailure::unexpected(self.connector.server())
    }

    pub(super) fn contended(&self) -> StoreError {
        PostgresFailure::contended(self.connector.server()).into()
    }
}

impl Store for PostgresStore {
    async fn claim(&self, id: &RecordId, request: &ClaimRequest) -> Result<Claim, StoreError> {
        let mut may_be_claimed = false;
        let claim = self.claim_in_steps(id, request, &mut may_be_claimed).await;
        claim.map_err(|error| if may_be_claimed { error.in_doubt() } else { error })
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        if matches!(done.state, State::Running | State::ResponseExpired) {
            return Err(ErrorKind::Invalid.into());
        }
        let pool = self.pool()?;
        for _ in 0..ATTEMPTS_MAX {
            if pool.settle(lease, done).await? {
                return Ok(());
            }
            match self.find(&pool, &lease.id).await.map_err(StoreError::in_doubt)? {
                // Claimed after the settlement had missed it, by a claim that was sent twice.
                Some(RowStatus::Held { record, .. }) if record.token == lease.token => {}
                Some(RowStatus::Settled(record))
                    if record.token == lease.token && was_settled_as(&record, done.state) =>
                {
                    return Ok(());
                }
                _ => return Err(ErrorKind::Fenced.into()),
            }
        }
        Err(self.contended())
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let pool = self.pool()?;
        let (id, token) = (&lease.id.as_bytes()[..], &lease.token.as_bytes()[..]);
        for _ in 0..ATTEMPTS_MAX {
            if let Some(row) = pool.ask(Sql::Release, &[&id, &token]).await?.first() {
                if row.try_get("awaited").unwrap_or(true) {
                    pool.notify(vec![lease.id]);
                }
                return Ok(());
            }
            match self.find(&pool, &lease.id).await.map_err(StoreError::in_doubt)? {
                None => return Ok(()),
                Some(RowStatus::Held { record, .. }) if record.token == lease.token => {}
                Some(_) => return Err(ErrorKind::Fenced.into()),
            }
        }
        Err(self.contended())
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        match self.renewed(&*self.pool()?, lease).await? {
            true => Ok(lease.clone()),
            false => Err(ErrorKind::Fenced.into()),
        }
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        Ok(self.find(&*self.pool()?, id).await?.map(|found| match found {
            RowStatus::Held { record, remaining } => {
                RecordSnapshot::Held(RowStatus::holder(&record, remaining))
            }
            RowStatus::Settled(record) => RecordSnapshot::Settled(record),
        }))
    }

    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        if self.connector.is_pooled() {
            return None;
        }
        let pool = self.pool().ok()?;
        let handle = self.connector.notifier.watch(*id);
        pool.listen().await.ok()?;
        if !pool.ask(Sql::Await, &[&&id.as_bytes()[..]]).await.ok()?.is_empty() {
            return Some(handle.into_watch());
        }
        // Nobody claims it now, so there is no end to be told of: look again at once.
        Some(Box::pin(std::future::ready(())))
    }

    fn maintain(&self) {
        if let Ok(pool) = self.pool() {
            self.sweeper.start(pool);
        }
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.shared = true;
        capabilities.durable = self.durable.load(Ordering::Relaxed);
        capabilities.watch = !self.connector.is_pooled();
        capabilities
    }
}

/// Reads up to a thousand records in one statement, by the index of their ids and without locks.
impl Inventory for PostgresStore {
    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        list_rows::list(&*self.pool()?, query, || self.unexpected()).await
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("server", self.connector.server())
            .field("layout", &self.connector.layout)
            .finish_non_exhaustive()
    }
}

/// A record that makes room for a claim.
enum Former {
    Named(Expected),
    Expired,
}

pub(super) fn granted(row: &Row) -> Option<(u64, u32)> {
    let fence = row.try_get::<_, i64>("fence").ok()?;
    let attempt = row.try_get::<_, i32>("attempt").ok()?;
    Some((u64::try_from(fence).ok()?, u32::try_from(attempt).ok()?))
}

pub(super) fn decode_row(found: RowState, id: &RecordId) -> Result<RowStatus, StoreError> {
    found.decode(id).map_err(|error| StoreError::with_source(error.error_kind(), error))
}

fn may_be_replaced(found: &RowStatus, expected: Option<Expected>) -> bool {
    match (found, expected) {
        (RowStatus::Held { record, remaining }, Some(Expected::Orphan(token))) => {
            remaining.is_zero() && record.token == token
        }
        (RowStatus::Settled(record), Some(Expected::Settled(token))) => record.token == token,
        _ => false,
    }
}

fn was_settled_as(record: &Record, state: State) -> bool {
    let original =
        if record.state == State::ResponseExpired { State::Completed } else { record.state };
    original == state
}

/// Attempts of a step whose record others change between its statements.
const ATTEMPTS_MAX: u32 = 16;
