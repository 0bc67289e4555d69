//! The sessions and the batches of one runtime.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::Record;
use idemptx_core::store::{ClaimRequest, Settlement};
use tokio::runtime::{Handle, Id};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_postgres::Row;

use super::batch::{Batcher, Job};
use super::connection::{Dial, Link, Purpose};
use super::failure::Failure;
use super::row::{Found, Settled, kept_millis, term_millis};
use super::statement::{Parameter, Sql};
use super::transaction::{OpenTransaction, Transactions};

/// The hubs of all runtimes that use a store.
pub(super) struct Hubs {
    dial: Arc<Dial>,
    sessions: Sessions,
    of_runtimes: Mutex<Vec<(Id, Arc<Hub>)>>,
}

impl Hubs {
    /// None yet: the first step makes one.
    pub(super) fn new(dial: Arc<Dial>, sessions: Sessions) -> Self {
        Self { dial, sessions, of_runtimes: Mutex::default() }
    }

    /// The hub of the runtime that calls.
    pub(super) fn here(&self) -> Result<Arc<Hub>, Failure> {
        let runtime =
            Handle::try_current().map_err(|_| Failure::no_runtime(self.dial.server()))?.id();
        let mut hubs = self.of_runtimes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, hub)) = hubs.iter().find(|(id, _)| *id == runtime) {
            return Ok(hub.clone());
        }
        // Runtimes end without telling; the oldest's sessions are dropped, and opened again should
        // it be alive after all.
        if hubs.len() == RUNTIMES_MAX {
            hubs.remove(0);
        }
        let hub = Arc::new(Hub::new(self.dial.clone(), self.sessions));
        hubs.push((runtime, hub.clone()));
        Ok(hub)
    }
}

/// How many a runtime may open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sessions {
    /// For the store's own statements.
    pub(super) statements: usize,
    /// For handlers' transactions.
    pub(super) transactions: usize,
}

/// The sessions of one runtime, and the steps that wait for one.
pub(super) struct Hub {
    dial: Arc<Dial>,
    links: Vec<Arc<Link>>,
    wake_ups: Arc<Link>,
    transactions: Arc<Transactions>,
    claims: Arc<Batcher<ClaimJob>>,
    settlements: Arc<Batcher<SettleJob>>,
}

impl Hub {
    fn new(dial: Arc<Dial>, sessions: Sessions) -> Self {
        let Sessions { statements, transactions } = sessions;
        Self {
            links: (0..statements).map(|_| Link::new(dial.clone(), Purpose::Statements)).collect(),
            wake_ups: Link::new(dial.clone(), Purpose::WakeUps),
            transactions: Transactions::new(dial.clone(), transactions),
            claims: Arc::new(Batcher::new(statements)),
            settlements: Arc::new(Batcher::new(statements)),
            dial,
        }
    }

    /// Runs a statement on whichever session is the least busy.
    pub(super) async fn ask(
        &self,
        sql: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Failure> {
        let least_busy = self.links.iter().min_by_key(|link| link.in_flight());
        let Some(link) = least_busy else { return Err(Failure::unexpected(self.dial.server())) };
        if !link.is_up()
            && let Err(failure) = link.raise(self.dial.timeouts.command).await
        {
            // The server may have no room for one more session, which is no reason to give up.
            let others = self.links.iter().filter(|link| link.is_up());
            return match others.min_by_key(|link| link.in_flight()) {
                Some(link) => link.ask(sql, parameters).await,
                None => Err(failure),
            };
        }
        link.ask(sql, parameters).await
    }

    /// Makes sure that there is a session for statements.
    pub(super) async fn ready(&self) -> Result<(), Failure> {
        match self.links.first() {
            Some(link) => link.raise(self.dial.timeouts.connect).await,
            None => Err(self.unexpected()),
        }
    }

    /// Begins a transaction for a handler.
    pub(super) async fn begin(&self) -> Result<OpenTransaction, Failure> {
        self.transactions.begin().await
    }

    /// Makes sure that the end of awaited claims is heard.
    pub(super) async fn listen(&self) -> Result<(), Failure> {
        self.wake_ups.raise(self.dial.timeouts.command).await
    }

    /// Claims, unless something is there.
    pub(super) async fn claim(
        self: &Arc<Self>,
        id: &RecordId,
        claim_request: &ClaimRequest,
    ) -> Result<ClaimAnswer, Failure> {
        let record =
            Record::running(&Lease::granted(*id, claim_request, 0, FIRST_ATTEMPT)).encode();
        let (term, retain) = (term_millis(claim_request.term), kept_millis(claim_request.retain));
        let (id, token) = (*id, claim_request.token);
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
    ) -> Result<bool, Failure> {
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
        job: impl FnOnce(oneshot::Sender<Result<A, Failure>>) -> J,
    ) -> Result<A, Failure>
    where
        J: Job,
        F: Future<Output = ()> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let hub = self.clone();
        let submitted = batcher.submit(job(reply), move |jobs| run(hub.clone(), jobs));
        submitted.map_err(|_| Failure::busy(self.dial.server()))?;
        let patience = self.dial.timeouts.command;
        match timeout(patience, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Failure::no_runtime(self.dial.server())),
            Err(_) => Err(Failure::timed_out(self.dial.server(), patience)),
        }
    }

    fn unexpected(&self) -> Failure {
        Failure::unexpected(self.dial.server())
    }
}

/// What a claim without a record to replace came to.
pub(super) enum ClaimAnswer {
    /// Granted, with this fence, as the first attempt.
    Created(u64),
    /// Something is there.
    Found(Found),
    /// What is there counts as nothing, and has to make room.
    Expired,
    /// What is there came while it was asked for: ask again.
    Unseen,
}

struct ClaimJob {
    id: RecordId,
    token: Token,
    record: Vec<u8>,
    term: i64,
    retain: i64,
    reply: oneshot::Sender<Result<ClaimAnswer, Failure>>,
}

impl Job for ClaimJob {
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

async fn claim_batch(hub: Arc<Hub>, jobs: Vec<ClaimJob>) {
    match ask_to_claim(&hub, &jobs).await {
        Ok(mut answers) => {
            for job in jobs {
                let answer = answers.remove(&job.id).unwrap_or(ClaimAnswer::Unseen);
                let _ = job.reply.send(Ok(answer));
            }
        }
        Err(failure) if jobs.len() > 1 && failure.may_be_about_one_row() => {
            for job in jobs.into_iter().filter(|job| !job.is_abandoned()) {
                let answer = ask_to_claim(&hub, std::slice::from_ref(&job)).await;
                let answer = answer
                    .map(|mut answers| answers.remove(&job.id).unwrap_or(ClaimAnswer::Unseen));
                let _ = job.reply.send(answer);
            }
        }
        Err(failure) => {
            for job in jobs {
                let _ = job.reply.send(Err(failure.clone()));
            }
        }
    }
}

async fn ask_to_claim(
    hub: &Hub,
    jobs: &[ClaimJob],
) -> Result<HashMap<RecordId, ClaimAnswer>, Failure> {
    let rows = match jobs {
        [job] => {
            let (id, token) = (&job.id.as_bytes()[..], &job.token.as_bytes()[..]);
            let parameters: [Parameter<'_>; 5] = [&id, &token, &job.record, &job.term, &job.retain];
            hub.ask(Sql::ClaimOne, &parameters).await?
        }
        jobs => {
            let ids: Vec<&[u8]> = jobs.iter().map(|job| &job.id.as_bytes()[..]).collect();
            let tokens: Vec<&[u8]> = jobs.iter().map(|job| &job.token.as_bytes()[..]).collect();
            let records: Vec<&[u8]> = jobs.iter().map(|job| &job.record[..]).collect();
            let terms: Vec<i64> = jobs.iter().map(|job| job.term).collect();
            let retains: Vec<i64> = jobs.iter().map(|job| job.retain).collect();
            hub.ask(Sql::Claim, &[&ids, &tokens, &records, &terms, &retains]).await?
        }
    };
    let answer = |row: &Row| {
        let id = id_of(row)?;
        let answer = match row.try_get::<_, Option<i64>>("fence").ok()? {
            Some(fence) => ClaimAnswer::Created(u64::try_from(fence).ok()?),
            None if row.try_get("expired").ok()? => ClaimAnswer::Expired,
            None => ClaimAnswer::Found(Found::read(row)?),
        };
        Some((id, answer))
    };
    let mut answers = HashMap::with_capacity(jobs.len());
    for row in &rows {
        let (id, answer) = answer(row).ok_or_else(|| hub.unexpected())?;
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
    reply: oneshot::Sender<Result<bool, Failure>>,
}

impl Job for SettleJob {
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

async fn settle_batch(hub: Arc<Hub>, jobs: Vec<SettleJob>) {
    match ask_to_settle(&hub, &jobs).await {
        Ok(settled) => {
            for job in jobs {
                let is_settled = settled.contains_key(&job.id);
                let _ = job.reply.send(Ok(is_settled));
            }
        }
        Err(failure) if jobs.len() > 1 && failure.may_be_about_one_row() => {
            for job in jobs.into_iter().filter(|job| !job.is_abandoned()) {
                let settled = ask_to_settle(&hub, std::slice::from_ref(&job)).await;
                let _ = job.reply.send(settled.map(|settled| settled.contains_key(&job.id)));
            }
        }
        Err(failure) => {
            for job in jobs {
                let _ = job.reply.send(Err(failure.clone()));
            }
        }
    }
}

async fn ask_to_settle(hub: &Hub, jobs: &[SettleJob]) -> Result<HashMap<RecordId, ()>, Failure> {
    let ids: Vec<&[u8]> = jobs.iter().map(|job| &job.id.as_bytes()[..]).collect();
    let tokens: Vec<&[u8]> = jobs.iter().map(|job| &job.token.as_bytes()[..]).collect();
    let states: Vec<&str> = jobs.iter().map(|job| job.settled.state).collect();
    let records: Vec<&[u8]> = jobs.iter().map(|job| &job.settled.record[..]).collect();
    let retains: Vec<i64> = jobs.iter().map(|job| job.settled.retain).collect();
    let responses: Vec<Option<&[u8]>> =
        jobs.iter().map(|job| job.settled.response.as_deref()).collect();
    let response_retains: Vec<Option<i64>> =
        jobs.iter().map(|job| job.settled.response_retain).collect();
    let channel = hub.dial.layout.channel();
    let parameters: [Parameter<'_>; 8] =
        [&ids, &tokens, &states, &records, &retains, &responses, &response_retains, &channel];
    let rows = hub.ask(Sql::Settle, &parameters).await?;
    rows.iter().map(|row| id_of(row).map(|id| (id, ())).ok_or_else(|| hub.unexpected())).collect()
}

fn id_of(row: &Row) -> Option<RecordId> {
    let bytes = row.try_get::<_, &[u8]>("id").ok()?;
    Some(RecordId::from_bytes(bytes.try_into().ok()?))
}

pub(super) const FIRST_ATTEMPT: u32 = 1;
const RUNTIMES_MAX: usize = 16;
