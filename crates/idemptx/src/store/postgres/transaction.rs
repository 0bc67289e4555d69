//! Transactions in which a record is settled: the application's, and those that the store begins
//! for it on separate sessions.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use idemptx_core::lease::Lease;
use idemptx_core::store::{Settlement, StoreError};
use tokio::sync::{MappedMutexGuard, MutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio_postgres::{Client, Error, GenericClient, Row, SimpleQueryMessage};

use super::postgres_failure::PostgresFailure;
use super::row::Settled;
use super::session::{Connector, Purpose, Session};
use super::statement::{Parameter, Sql, Texts};
use crate::store::Transactional;
use crate::store::connection::StepFailure;
use crate::time_limit::limited_or;

/// A transaction as a store is given it; made of a [`tokio_postgres::Transaction`] on the store's
/// own database.
#[derive(Clone, Copy)]
pub struct PostgresTransaction<'t> {
    client: &'t Client,
    /// Expected transaction id; `None` if only the owner can have ended it.
    id: Option<&'t str>,
}

impl<'t> From<&'t tokio_postgres::Transaction<'_>> for PostgresTransaction<'t> {
    fn from(transaction: &'t tokio_postgres::Transaction<'_>) -> Self {
        Self { client: GenericClient::client(transaction), id: None }
    }
}

impl PostgresTransaction<'_> {
    /// Settles, if the lease is in force, and the transaction too; says whether they were.
    ///
    /// The tasks that wait for the record are woken once the transaction is committed, or look
    /// again in time if that is not possible.
    pub(super) async fn settle(
        self,
        texts: &Texts,
        channel: &str,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<bool, Error> {
        let settled = Settled::new(lease, done);
        let (ids, tokens) = (vec![&lease.id.as_bytes()[..]], vec![&lease.token.as_bytes()[..]]);
        let (states, records) = (vec![settled.state], vec![&settled.record[..]]);
        let (retains, response_retains) = (vec![settled.retain], vec![settled.response_retain]);
        let responses = vec![settled.response.as_deref()];
        let parameters: [Parameter<'_>; 8] =
            [&ids, &tokens, &states, &records, &retains, &responses, &response_retains, &self.id];
        let rows = texts.query(self.client, Sql::SettleIn, &parameters).await?;
        let Some(row) = rows.first() else { return Ok(false) };
        if row.try_get("awaited")? {
            self.notify(texts, channel, &ids).await?;
        }
        Ok(true)
    }

    /// Wakes the tasks that wait for these records with the commit, within a savepoint: a role that
    /// may not notify still settles.
    async fn notify(self, texts: &Texts, channel: &str, ids: &[&[u8]]) -> Result<(), Error> {
        let parameters: [Parameter<'_>; 2] = [&channel, &ids];
        // On their way together; each fails if the one before it did.
        let (begun, notified, kept) = tokio::join!(
            self.client.batch_execute("SAVEPOINT idemptx_notify"),
            texts.query(self.client, Sql::Notify, &parameters),
            self.client.batch_execute("RELEASE SAVEPOINT idemptx_notify"),
        );
        begun?;
        match notified.and(kept) {
            Ok(()) => Ok(()),
            Err(_) => self.client.batch_execute(UNDO_NOTIFY).await,
        }
    }

    /// Runs another statement of the store.
    pub(super) async fn ask(
        self,
        texts: &Texts,
        sql: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Error> {
        texts.query(self.client, sql, parameters).await
    }

    /// Returns true if a handler could have ended it.
    pub(super) const fn is_own(self) -> bool {
        self.id.is_some()
    }
}

impl fmt::Debug for PostgresTransaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresTransaction").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A transaction on a session of the store's own, from
/// [`Transactional::begin`](crate::store::Transactional::begin).
///
/// Dropped before it has ended, it is rolled back with its session.
pub struct OpenTransaction {
    /// Taken to end the transaction.
    session: tokio::sync::Mutex<Option<Lent>>,
    /// Set if the transaction could not be ended because a statement ran on.
    is_over: AtomicBool,
    id: String,
    connector: Arc<Connector>,
}

impl OpenTransaction {
    /// The session, for a statement; `None` once the transaction has ended.
    pub(crate) async fn client(&self) -> Option<MappedMutexGuard<'_, Client>> {
        let mut lent = self.session.lock().await;
        if self.is_over.load(Ordering::Relaxed) {
            // Nobody will commit it: with its session it is rolled back.
            *lent = None;
        }
        MutexGuard::try_map(lent, |lent| Some(&mut lent.as_mut()?.session.client)).ok()
    }

    /// Settles in it by the store, and commits if that went well.
    ///
    /// # Errors
    ///
    /// Those of the settlement.
    /// After [`ErrorKind::Fenced`](idemptx_core::store::ErrorKind::Fenced) nothing of it was
    /// committed; after any other, that is unknown.
    pub(crate) async fn commit(
        &self,
        store: &dyn Transactional,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<(), StoreError> {
        let lent = self.take().await?;
        let lent = lent.ok_or_else(|| PostgresFailure::ended_by_hand(self.connector.server()))?;
        let within = PostgresTransaction { client: &lent.session.client, id: Some(&self.id) };
        match store.settle_in_postgres(within, lease, done).await {
            Ok(()) => Ok(lent.end("COMMIT").await?),
            Err(error) => {
                // Whether it is heard of or not: without a commit there is nothing.
                let _ = lent.end("ROLLBACK").await;
                Err(error)
            }
        }
    }

    /// Ends it without effect.
    pub(crate) async fn roll_back(&self) {
        // A session that does not answer is closed, and its transaction rolled back by the server.
        if let Ok(Some(lent)) = self.take().await {
            let _ = lent.end("ROLLBACK").await;
        }
    }

    /// Takes the session once a running statement has ended.
    async fn take(&self) -> Result<Option<Lent>, PostgresFailure> {
        let patience = self.connector.timeouts.command;
        let taken = async { Ok(self.session.lock().await.take()) };
        let late = || {
            self.is_over.store(true, Ordering::Relaxed);
            self.connector.timed_out(patience)
        };
        limited_or(patience, taken, late).await
    }
}

impl fmt::Debug for OpenTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenTransaction").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The sessions of one runtime that handlers work on: a few, each with one transaction at a time.
pub(super) struct Transactions {
    connector: Arc<Connector>,
    turns: Arc<Semaphore>,
    idle: Mutex<Vec<Session>>,
}

impl Transactions {
    pub(super) fn new(connector: Arc<Connector>, sessions: usize) -> Arc<Self> {
        let turns = Arc::new(Semaphore::new(sessions));
        Arc::new(Self { connector, turns, idle: Mutex::default() })
    }

    /// Begins a transaction when it is its turn.
    pub(super) async fn begin(self: &Arc<Self>) -> Result<OpenTransaction, PostgresFailure> {
        let patience = self.connector.timeouts.command;
        let busy = || PostgresFailure::busy(self.connector.server());
        let turn = async { self.turns.clone().acquire_owned().await.map_err(|_| busy()) };
        let turn = limited_or(patience, turn, busy).await?;
        // One that was lost while it was idle says so only now.
        while let Some(session) = self.idle() {
            match self.begin_on(&session, CLEAN).await {
                Ok(Some(id)) => return Ok(self.lend(session, id, turn)),
                // Nor can one be used that a handler has left statements in.
                Ok(None) => {}
                Err(failure) if failure.is_dropped() || failure.is_read_only() => {}
                Err(failure) => return Err(failure),
            }
        }
        let session = self.connector.open(Purpose::Transactions).await;
        let session = session.map_err(StepFailure::unsent)?;
        let id = self.begin_on(&session, "").await?;
        let id = id.ok_or_else(|| PostgresFailure::unexpected(self.connector.server()))?;
        Ok(self.lend(session, id, turn))
    }

    /// Begins and returns the transaction's id; `None` if the session cannot be cleaned.
    async fn begin_on(
        &self,
        session: &Session,
        clean: &str,
    ) -> Result<Option<String>, PostgresFailure> {
        let clean = if self.connector.is_pooled() { "" } else { clean };
        let begin = async {
            // On their way together, though not in one transaction.
            let cleaned = session.client.simple_query(clean);
            let begun = session.client.simple_query(&self.connector.begin);
            tokio::try_join!(cleaned, begun).map_err(|error| self.connector.failed(error))
        };
        let patience = self.connector.timeouts.command;
        let late = || self.connector.timed_out(patience);
        let (left, rows) = limited_or(patience, begin, late).await?;
        // The unlocking has a row without a text.
        if first(&left).is_some_and(|name| !name.is_empty()) {
            return Ok(None);
        }
        first(&rows).map(Some).ok_or_else(|| PostgresFailure::unexpected(self.connector.server()))
    }

    fn idle(&self) -> Option<Session> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|session| !self.connector.is_closed(session));
        idle.pop()
    }

    fn lend(
        self: &Arc<Self>,
        session: Session,
        id: String,
        turn: OwnedSemaphorePermit,
    ) -> OpenTransaction {
        let lent = Lent { session, home: self.clone(), _turn: turn };
        OpenTransaction {
            session: tokio::sync::Mutex::new(Some(lent)),
            is_over: AtomicBool::new(false),
            id,
            connector: self.connector.clone(),
        }
    }
}

/// A session while a transaction is open on it; unless that ends well, it is closed.
struct Lent {
    session: Session,
    home: Arc<Transactions>,
    _turn: OwnedSemaphorePermit,
}

impl Lent {
    async fn end(self, statement: &str) -> Result<(), PostgresFailure> {
        let connector = &self.home.connector;
        let patience = connector.timeouts.command;
        let doubts = self.session.doubts();
        let ended = self.session.client.batch_execute(statement);
        let ended = async { ended.await.map_err(|error| connector.failed(error)) };
        limited_or(patience, ended, || connector.timed_out(patience)).await?;
        let is_doubtful = self.session.doubts() != doubts;
        let server = connector.server().clone();
        self.home.idle.lock().unwrap_or_else(PoisonError::into_inner).push(self.session);
        if is_doubtful { Err(PostgresFailure::doubtful(&server)) } else { Ok(()) }
    }
}

/// Returns the statement that begins a transaction under local settings and returns its id.
pub(super) fn begin(settings: &str) -> String {
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {settings} \
         SELECT pg_current_xact_id()::text"
    )
}

/// The last row's first text.
fn first(messages: &[SimpleQueryMessage]) -> Option<String> {
    messages.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

const UNDO_NOTIFY: &str = "ROLLBACK TO SAVEPOINT idemptx_notify; RELEASE SAVEPOINT idemptx_notify";
/// Leaves nothing of one request's session to the next; but for statements that it has prepared
/// under names that it chose, one of which is returned: the client library's must stay.
const CLEAN: &str = "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; \
     SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; \
     SELECT name FROM pg_prepared_statements WHERE from_sql LIMIT 1";
