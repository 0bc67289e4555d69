//! The sessions and the batches of one runtime.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::Record;
use idemptx_core::store::{ClaimRequest, Settlement};
use tokio::sync::oneshot;
use tokio_postgres::Row;

use super::batcher::{BatchJob, Batcher};
use super::migration::Care;
use super::postgres_failure::PostgresFailure;
use super::row::{RowState, Settled, kept_millis, term_millis};
use super::session::{Connector, MIGRATION_MAX, Purpose, Session, SessionConnect};
use super::statement::{Parameter, Sql};
use super::transaction::{OpenTransaction, Transactions};
use crate::store::connection::{Connection, Doubt};
use crate::time_limit::limited_or;

/// Maximum numbers of sessions of a runtime.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionLimits {
    /// Sessions for the store's statements.
    pub(super) statements: usize,
    /// Sessions for handlers' transactions.
    pub(super) transactions: usize,
}

/// The sessions of one runtime, and the steps that wait for one.
pub(super) struct RuntimePool {
    connector: Arc<Connector>,
    sessions: Vec<Arc<Connection<SessionConnect>>>,
    wake_ups: Arc<Connection<SessionConnect>>,
    transactions: Arc<Transactions>,
    claims: Arc<Batcher<ClaimJob>>,
    settlements: Arc<Batcher<SettleJob>>,
}

impl RuntimePool {
    pub(super) fn new(connector: Arc<Connector>, limits: SessionLimits) -> Self {
        let SessionLimits { statements, transactions } = limits;
        let session =
            |purpose| Connection::new(SessionConnect { connector: connector.clone(), purpose });
        Self {
            sessions: (0..statements).map(|_| session(Purpose::Statements)).collect(),
            wake_ups: session(Purpose::WakeUps),
            transactions: Transactions::new(connector.clone(), transactions),
            claims: Arc::new(Batcher::new(statements)),
            settlements: Arc::new(Batcher::new(statements)),
            connector,
        }
    }

    /// Runs a statement on the least busy session; once more if its tables were missing and may be
    /// made, or if the server takes no writes and there are others.
    pub(super) async fn ask(
        &self,
        sql: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, PostgresFailure> {
        let mut doubt = Doubt::default();
        match self.try_ask(sql, parameters, &mut doubt).await {
            // Nothing was executed, and the next session makes them, or leads to another server.
            Err(failure) if self.may_be_mended(&failure) => {
                self.try_ask(sql, parameters, &mut doubt).await
            }
            answer => answer,
        }
    }

    fn may_be_mended(&self, failure: &PostgresFailure) -> bool {
        failure.is_about_tables() && self.connector.care == Care::Migrate
            || failure.is_read_only() && self.connector.servers.are_several()
    }

    async fn try_ask(
        &self,
        sql: Sql,
        parameters: &[Parameter<'_>],
        doubt: &mut Doubt,
    ) -> Result<Vec<Row>, PostgresFailure> {
        let least_busy = self.sessions.iter().min_by_key(|session| session.in_use());
        let Some(mut session) = least_busy else { return Err(self.unexpected()) };
        if !session.is_live()
            && let Err(failure) = session.open(self.connector.timeouts.command).await
        {
            // A server without room for one more session may still serve the others.
            let live = self.sessions.iter().filter(|session| session.is_live());
            session = live.min_by_key(|session| session.in_use()).ok_or(failure)?;
        }
        let query =
            |live: Arc<Session>| async move { live.query(&self.connector, sql, parameters).await };
        session.run(doubt, query).await
    }

    /// Opens a session for statements, and waits for its tables to be made.
    pub(super) async fn ready(&self) -> Result<(), PostgresFailure> {
        // An attempt to connect has a limit of its own.
        let limit = 3 * self.connector.timeouts.connect + MIGRATION_MAX;
        match self.sessions.first() {
            Some(session) => session.open(limit).await,
            None => Err(self.unexpected()),
        }
    }

    /// Begins a transaction for a handler.
    pub(super) async fn begin(&self) -> Result<OpenTransaction, PostgresFailure> {
        self.transactions.begin().await
    }

    /// Opens the session that receives notifications.
    pub(super) async fn listen(&self) -> Result<(), PostgresFailure> {
        self.wake_ups.open(self.connector.timeouts.command).await
    }

    /// Wakes the tasks that wait for these records, in the background.
    ///
    /// It is a hint, and a statement of its own: without the right to notify, or with a full queue,
    /// a record is settled all the same, and the tasks that wait look again in time.
    pub(super) fn notify(self: &Arc<Self>, ids: Vec<RecordId>) {
        if ids.is_empty() || !self.connector.may_notify.load(Ordering::Relaxed) {
            return;
        }
        let pool = self.clone();
        tokio::spawn(async move {
            let ids: Vec<&[u8]> = ids.iter().map(|id| &id.as_bytes()[..]).collect();
            let channel = pool.connector.layout.channel();
            if let Err(failure) = pool.ask(Sql::Notify, &[&channel, &ids]).await
                && failure.is_about_rights()
            {
                pool.connector.may_notify.store(false, Ordering::Relaxed);
            }
        });
    }

    /// Claims, unless something is there.
    pub(super) async fn claim(
        self: &Arc<Self>,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<ClaimAnswer, PostgresFailure> {
        let record = Record::running(&Lease::granted(*id, request, 0, FIRST_ATTEMPT)).encode();
        let (term, retain) = (term_millis(request.term), kept_millis(request.retain));
        let (id, token) = (*id, request.token);
        self.submit(&self.claims, claim_batch, |reply| ClaimJob {
            id,
            token,
            record,
            term,
            retain,
            reply,
        })
        .await
    }

    /// Settles, if the lease is in force; says whether it was.
    pub(super) async fn settle(
        self: &Arc<Self>,
        lease: &Lease,
        done: &Settlement,
    ) -> Result<bool, PostgresFailure> {
        let (id, token) = (lease.id, lease.token);
        let settled = Settled::new(lease, done);
        self.submit(&self.settlements, settle_batch, |reply| SettleJob {
            id,
            token,
            settled,
            reply,
        })
        .await
    }

    /// Hands a job to its batcher and waits for the answer.
    async fn submit<J, A, F>(
        self: &Arc<Self>,
        batcher: &Arc<Batcher<J>>,
        run: fn(Arc<Self>, Vec<J>) -> F,
        job: impl FnOnce(oneshot::Sender<Result<A, PostgresFailure>>) -> J,
    ) -> Result<A, PostgresFailure>
    where
        J: BatchJob,
        F: Future<Output = ()> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let pool = self.clone();
        let submitted = batcher.submit(job(reply), move |jobs| run(pool.clone(), jobs));
        submitted.map_err(|_| PostgresFailure::busy(self.connector.server()))?;
        let patience = self.connector.timeouts.command;
        let ended = |_| PostgresFailure::no_runtime(self.connector.server());
        let answer = async { answer.await.map_err(ended)? };
        limited_or(patience, answer, || self.connector.timed_out(patience)).await
    }

    fn unexpected(&self) -> PostgresFailure {
        PostgresFailure::unexpected(self.connector.server())
    }
}

/// Result of a claim without a record to replace.
pub(super) enum ClaimAnswer {
    /// Granted, with this fence, as the first attempt.
    Created(u64),
    /// Something is there.
    RowState(RowState),
    /// An expired record, which is replaced.
    Expired,
    /// A record that was written during the statement: ask again.
    Unseen,
    /// A record for which the answer had no room: ask again.
    Unread,
}

struct ClaimJob {
    id: RecordId,
    token: Token,
    record: Vec<u8>,
    term: i64,
    retain: i64,
    reply: oneshot::Sender<Result<ClaimAnswer, PostgresFailure>>,
}

impl BatchJob for ClaimJob {
    fn id(&self) -> &RecordId {
        &self.id
    }

    fn bytes(&self) -> usize {
        self.record.len()
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}

async fn claim_batch(pool: Arc<RuntimePool>, mut jobs: Vec<ClaimJob>) {
    // The first record is always read, so that each statement leaves fewer.
    while !jobs.is_empty() {
        jobs = claim_and_answer(&pool, jobs).await;
        jobs.retain(|job| !job.is_abandoned());
    }
}

/// Claims for these jobs, and returns those whose records did not fit into the answer.
async fn claim_and_answer(pool: &RuntimePool, jobs: Vec<ClaimJob>) -> Vec<ClaimJob> {
    let mut unread = Vec::new();
    match ask_to_claim(pool, &jobs).await {
        Ok(mut answers) => {
            for job in jobs {
                match answers.remove(&job.id).unwrap_or(ClaimAnswer::Unseen) {
                    ClaimAnswer::Unread => unread.push(job),
                    answer => drop(job.reply.send(Ok(answer))),
                }
            }
        }
        Err(failure) if jobs.len() > 1 && failure.may_be_about_one_row() => {
            for job in jobs.into_iter().filter(|job| !job.is_abandoned()) {
                let answer = ask_to_claim(pool, std::slice::from_ref(&job)).await;
                let answer = answer
                    .map(|mut answers| answers.remove(&job.id).unwrap_or(ClaimAnswer::Unseen));
                let _ = job.reply.send(answer.map_err(|each| each.after(&failure)));
            }
        }
        Err(failure) => {
            for job in jobs {
                let _ = job.reply.send(Err(failure.clone()));
            }
        }
    }
    unread
}

async fn ask_to_claim(
    pool: &RuntimePool,
    jobs: &[ClaimJob],
) -> Result<HashMap<RecordId, ClaimAnswer>, PostgresFailure> {
    let rows = match jobs {
        [job] => {
            let (id, token) = (&job.id.as_bytes()[..], &job.token.as_bytes()[..]);
            let parameters: [Parameter<'_>; 5] = [&id, &token, &job.record, &job.term, &job.retain];
            pool.ask(Sql::ClaimOne, &parameters).await?
        }
        jobs => {
            let ids: Vec<&[u8]> = jobs.iter().map(|job| &job.id.as_bytes()[..]).collect();
            let tokens: Vec<&[u8]> = jobs.iter().map(|job| &job.token.as_bytes()[..]).collect();
            let records: Vec<&[u8]> = jobs.iter().map(|job| &job.record[..]).collect();
            let terms: Vec<i64> = jobs.iter().map(|job| job.term).collect();
            let retains: Vec<i64> = jobs.iter().map(|job| job.retain).collect();
            let parameters: [Parameter<'_>; 6] =
                [&ids, &tokens, &records, &terms, &retains, &ANSWER_BYTES_MAX];
            pool.ask(Sql::Claim, &parameters).await?
        }
    };
    let answer = |row: &Row| {
        let id = id_of(row)?;
        let answer = match row.try_get::<_, Option<i64>>("fence").ok()? {
            Some(fence) => ClaimAnswer::Created(u64::try_from(fence).ok()?),
            None if row.try_get("expired").ok()? => ClaimAnswer::Expired,
            None if row.try_get::<_, Option<&[u8]>>("record").ok()?.is_none() => {
                ClaimAnswer::Unread
            }
            None => ClaimAnswer::RowState(RowState::read(row)?),
        };
        Some((id, answer))
    };
    let mut answers = HashMap::with_capacity(jobs.len());
    for row in &rows {
        let (id, answer) = answer(row).ok_or_else(|| pool.unexpected())?;
        // What was removed after the snapshot was taken is still read, beside what was granted in
        // its place.
        if !matches!(answers.get(&id), Some(ClaimAnswer::Created(_))) {
            answers.insert(id, answer);
        }
    }
    Ok(answers)
}

struct SettleJob {
    id: RecordId,
    token: Token,
    settled: Settled,
    reply: oneshot::Sender<Result<bool, PostgresFailure>>,
}

impl BatchJob for SettleJob {
    fn id(&self) -> &RecordId {
        &self.id
    }

    fn bytes(&self) -> usize {
        self.settled.record.len() + self.settled.response.as_ref().map_or(0, Bytes::len)
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}

async fn settle_batch(pool: Arc<RuntimePool>, jobs: Vec<SettleJob>) {
    match ask_to_settle(&pool, &jobs).await {
        Ok(settled) => {
            let awaited = settled.iter().filter(|(_, is_awaited)| **is_awaited);
            let awaited = awaited.map(|(id, _)| *id).collect();
            for job in jobs {
                let is_settled = settled.contains_key(&job.id);
                let _ = job.reply.send(Ok(is_settled));
            }
            pool.notify(awaited);
        }
        Err(failure) if jobs.len() > 1 && failure.may_be_about_one_row() => {
            for job in jobs.into_iter().filter(|job| !job.is_abandoned()) {
                let settled = ask_to_settle(&pool, std::slice::from_ref(&job)).await;
                if let Ok(settled) = &settled
                    && settled.get(&job.id) == Some(&true)
                {
                    pool.notify(vec![job.id]);
                }
                let settled = settled.map(|settled| settled.contains_key(&job.id));
                let _ = job.reply.send(settled.map_err(|each| each.after(&failure)));
            }
        }
        Err(failure) => {
            for job in jobs {
                let _ = job.reply.send(Err(failure.clone()));
            }
        }
    }
}

/// Settles, and returns the settled records with whether they are waited for.
async fn ask_to_settle(
    pool: &RuntimePool,
    jobs: &[SettleJob],
) -> Result<HashMap<RecordId, bool>, PostgresFailure> {
    let ids: Vec<&[u8]> = jobs.iter().map(|job| &job.id.as_bytes()[..]).collect();
    let tokens: Vec<&[u8]> = jobs.iter().map(|job| &job.token.as_bytes()[..]).collect();
    let states: Vec<&str> = jobs.iter().map(|job| job.settled.state).collect();
    let records: Vec<&[u8]> = jobs.iter().map(|job| &job.settled.record[..]).collect();
    let retains: Vec<i64> = jobs.iter().map(|job| job.settled.retain).collect();
    let responses: Vec<Option<&[u8]>> =
        jobs.iter().map(|job| job.settled.response.as_deref()).collect();
    let response_retains: Vec<Option<i64>> =
        jobs.iter().map(|job| job.settled.response_retain).collect();
    let parameters: [Parameter<'_>; 7] =
        [&ids, &tokens, &states, &records, &retains, &responses, &response_retains];
    let rows = pool.ask(Sql::Settle, &parameters).await?;
    let settled = |row: &Row| Some((id_of(row)?, row.try_get("awaited").ok()?));
    rows.iter().map(|row| settled(row).ok_or_else(|| pool.unexpected())).collect()
}

fn id_of(row: &Row) -> Option<RecordId> {
    let bytes = row.try_get::<_, &[u8]>("id").ok()?;
    Some(RecordId::from_bytes(bytes.try_into().ok()?))
}

pub(super) const FIRST_ATTEMPT: u32 = 1;
/// Bytes of records and responses after which the answer to a batch ends, with its last record.
const ANSWER_BYTES_MAX: i64 = 4 << 20;
