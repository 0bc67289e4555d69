//! Sessions that heal themselves: a few for each runtime, shared by everybody on it.
//!
//! A session is driven by a task of the runtime that opened it.
//! A runtime whose threads are all busy therefore stalls its own sessions, but not those of the
//! runtime which renews the leases.
//!
//! Statements are pipelined, each a transaction of its own; the client library keeps a place for
//! every one it has sent, even when whoever asked is gone, and throws that answer away.
//! A session whose answer was late, or that failed on the wire, gets no further statement, and no
//! statement is ever cancelled at the server: a cancelled wait for a synchronous standby would
//! report success.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Connection, Error, Row, Socket};

use super::migration::{self, Care};
use super::notification::id_in;
use super::postgres_failure::{PostgresFailure, is_dropped, is_spent};
use super::settings::{Address, PostgresTimeouts};
use super::statement::{Parameter, Prepared, Sql, Texts};
use super::table_names::TableNames;
use crate::store::waiters::{Ear, Waiters};

/// How sessions are opened, and what is known of the server.
pub(super) struct Connector {
    pub(super) address: Address,
    pub(super) timeouts: PostgresTimeouts,
    pub(super) layout: TableNames,
    pub(super) texts: Texts,
    pub(super) care: Care,
    /// What a session begins with; none where statements may meet another one each time, behind a
    /// pooler.
    pub(super) session_settings: Option<String>,
    /// What begins a transaction for a handler, and tells its id.
    pub(super) begin: String,
    pub(super) waiters: Arc<Waiters>,
    /// Whether the tables have been looked at.
    pub(super) is_ensured: AtomicBool,
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Statements,
    /// It listens to the end of awaited claims, and does nothing else.
    WakeUps,
    /// Handlers work on it, under settings of their own.
    Transactions,
}

impl Connector {
    /// Whether statements may meet another session of the server each time.
    pub(super) const fn is_pooled(&self) -> bool {
        self.session_settings.is_none()
    }

    pub(super) fn server(&self) -> &Arc<str> {
        &self.address.name
    }

    pub(super) async fn open(&self, purpose: Purpose) -> Result<Session, PostgresFailure> {
        match timeout(self.timeouts.connect, self.session(purpose)).await {
            Ok(opened) => opened,
            Err(_) => Err(self.timed_out(self.timeouts.connect)),
        }
    }

    async fn session(&self, purpose: Purpose) -> Result<Session, PostgresFailure> {
        let connecting = self.address.config.connect(self.address.tls.clone());
        let (mut client, connection) = connecting.await.map_err(|error| self.failed(error))?;
        let doubts = Arc::new(AtomicU64::new(0));
        let ear = (purpose == Purpose::WakeUps).then(|| self.waiters.ear());
        let driver = Driver(tokio::spawn(drive(connection, doubts.clone(), ear)));
        if let Some(settings) = &self.session_settings
            && purpose != Purpose::Transactions
        {
            client.batch_execute(settings).await.map_err(|error| self.failed(error))?;
        }
        let mut prepared = None;
        match purpose {
            Purpose::Statements => {
                self.ensure(&mut client).await?;
                if !self.is_pooled() {
                    let all = Prepared::all(&self.texts, &client).await;
                    prepared = Some(all.map_err(|error| self.failed(error))?);
                }
            }
            Purpose::WakeUps => client
                .batch_execute(&self.layout.listen())
                .await
                .map_err(|error| self.failed(error))?,
            Purpose::Transactions => self.ensure(&mut client).await?,
        }
        Ok(Session { client, prepared, doubts, _driver: driver })
    }

    async fn ensure(&self, client: &mut Client) -> Result<(), PostgresFailure> {
        if self.is_ensured.load(Ordering::Relaxed) {
            return Ok(());
        }
        let ensured = migration::ensure(client, &self.layout, self.care).await;
        ensured.map_err(|unfit| match unfit.what_to_do(&self.layout) {
            Ok(what_to_do) => PostgresFailure::schema(self.server(), what_to_do),
            Err(error) => self.failed(error),
        })?;
        self.is_ensured.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn failed(&self, error: Error) -> PostgresFailure {
        PostgresFailure::postgres(self.server(), error)
    }

    fn timed_out(&self, after: Duration) -> PostgresFailure {
        PostgresFailure::timed_out(self.server(), after)
    }
}

/// A session of the server.
pub(super) struct Session {
    pub(super) client: Client,
    prepared: Option<Prepared>,
    /// How often the server took back the promise that a success makes.
    doubts: Arc<AtomicU64>,
    _driver: Driver,
}

impl Session {
    /// How often the server took back the promise that a success makes.
    pub(super) fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::Acquire)
    }

    async fn query(
        &self,
        texts: &Texts,
        sql: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Error> {
        match self.prepared.as_ref().and_then(|prepared| prepared.of(sql)) {
            Some(statement) => self.client.query(statement, parameters).await,
            None => texts.query(&self.client, sql, parameters).await,
        }
    }
}

/// The task that moves a session's bytes; it ends with the session.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn drive<S>(mut connection: Connection<Socket, S>, doubts: Arc<AtomicU64>, ear: Option<Ear>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
        match message {
            AsyncMessage::Notification(told) => {
                if let (Some(ear), Some(id)) = (&ear, id_in(told.payload())) {
                    ear.hear(&id);
                }
            }
            // It comes before the success that it takes back.
            AsyncMessage::Notice(notice) if takes_back(notice.code()) => {
                doubts.fetch_add(1, Ordering::Release);
            }
            _ => {}
        }
    }
}

/// Whether a warning may be the one of a cancelled wait for a synchronous standby; its text
/// depends on the server's language, its code does not.
fn takes_back(code: &SqlState) -> bool {
    *code == SqlState::WARNING || *code == SqlState::ADMIN_SHUTDOWN
}

/// One session at a time, opened when it is needed and again when it was lost.
pub(super) struct HealingSession {
    connector: Arc<Connector>,
    purpose: Purpose,
    state: watch::Sender<State>,
    in_flight: AtomicUsize,
}

enum State {
    /// None has been opened yet, or the last one was given up.
    Lost,
    Connecting {
        attempts: u32,
    },
    /// The server could not be reached, and is left alone for a while.
    Failed {
        failure: PostgresFailure,
        attempts: u32,
        retry_at: Instant,
    },
    Up(Arc<Session>),
}

impl HealingSession {
    pub(super) fn new(connector: Arc<Connector>, purpose: Purpose) -> Arc<Self> {
        let state = watch::Sender::new(State::Lost);
        Arc::new(Self { connector, purpose, state, in_flight: AtomicUsize::new(0) })
    }

    /// How many statements are under way on it.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether it has a session.
    pub(super) fn is_up(&self) -> bool {
        matches!(&*self.state.borrow(), State::Up(session) if !session.client.is_closed())
    }

    /// Makes sure that there is a session.
    pub(super) async fn raise(self: &Arc<Self>, patience: Duration) -> Result<(), PostgresFailure> {
        match timeout(patience, self.live()).await {
            Ok(live) => live.map(drop),
            Err(_) => Err(self.connector.timed_out(patience)),
        }
    }

    /// Runs a statement, and once more when the session turns out to have been lost before or
    /// during it: every step may be sent twice.
    pub(super) async fn ask(
        self: &Arc<Self>,
        sql: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, PostgresFailure> {
        let _under_way = UnderWay::on(&self.in_flight);
        let patience = self.connector.timeouts.command;
        let deadline = Instant::now() + patience;
        let mut resends_left = RESENDS_MAX;
        loop {
            let live = match timeout_at(deadline, self.live()).await {
                Ok(live) => live?,
                Err(_) => return Err(self.connector.timed_out(patience)),
            };
            let doubts = live.doubts();
            let asked = live.query(&self.connector.texts, sql, parameters);
            let error = match timeout_at(deadline, asked).await {
                Ok(Ok(_)) if live.doubts() != doubts => {
                    return Err(PostgresFailure::doubtful(self.connector.server()));
                }
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(error)) => error,
                Err(_) => {
                    self.replace(&live);
                    return Err(self.connector.timed_out(patience));
                }
            };
            if is_spent(&error) {
                self.replace(&live);
            }
            if !is_dropped(&error) || resends_left == 0 {
                return Err(self.connector.failed(error));
            }
            resends_left -= 1;
        }
    }

    async fn live(self: &Arc<Self>) -> Result<Arc<Session>, PostgresFailure> {
        loop {
            if let State::Up(live) = &*self.state.borrow()
                && !live.client.is_closed()
            {
                return Ok(live.clone());
            }
            if self.state.send_if_modified(State::begin) {
                let attempt = Attempt(self.clone());
                // A task, so that whoever came first may leave without spoiling it for the others.
                tokio::spawn(attempt.run());
            }
            let mut states = self.state.subscribe();
            let state = states.wait_for(|state| !matches!(state, State::Connecting { .. })).await;
            if let Ok(State::Failed { failure, .. }) = state.as_deref() {
                return Err(failure.clone());
            }
        }
    }

    /// Gives a session up, unless that has happened already.
    fn replace(&self, live: &Arc<Session>) {
        self.state.send_if_modified(|state| match state {
            State::Up(current) if Arc::ptr_eq(current, live) => {
                *state = State::Lost;
                true
            }
            _ => false,
        });
    }
}

impl State {
    /// Whether it is time to connect, which the caller then does.
    fn begin(&mut self) -> bool {
        let attempts = match self {
            Self::Lost => 0,
            Self::Up(session) if session.client.is_closed() => 0,
            Self::Failed { attempts, retry_at, .. } if *retry_at <= Instant::now() => *attempts,
            _ => return false,
        };
        *self = Self::Connecting { attempts };
        true
    }

    fn end(&mut self, outcome: Result<Session, PostgresFailure>) -> bool {
        let Self::Connecting { attempts } = self else { return false };
        *self = match outcome {
            Ok(session) => Self::Up(Arc::new(session)),
            Err(failure) => {
                let pause = RECONNECT_PAUSE.saturating_mul(1 << (*attempts).min(10));
                Self::Failed {
                    failure,
                    attempts: attempts.saturating_add(1),
                    retry_at: Instant::now() + pause.min(RECONNECT_PAUSE_MAX),
                }
            }
        };
        true
    }
}

/// An attempt to connect, which always ends: also when its runtime does.
struct Attempt(Arc<HealingSession>);

impl Attempt {
    async fn run(self) {
        let outcome = self.0.connector.open(self.0.purpose).await;
        self.0.state.send_if_modified(|state| state.end(outcome));
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let abandoned = PostgresFailure::no_runtime(self.0.connector.server());
        self.0.state.send_if_modified(|state| state.end(Err(abandoned)));
    }
}

struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    fn on(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

const RESENDS_MAX: u32 = 1;
const RECONNECT_PAUSE: Duration = Duration::from_millis(25);
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);
