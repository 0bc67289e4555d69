//! Sessions of the server, a few for each runtime.
//!
//! A session is driven by a task of the runtime that opened it.
//! A runtime whose threads are all busy therefore stalls its own sessions, but not those of the
//! runtime which renews the leases.
//!
//! Statements are pipelined, each as a separate transaction; the client library keeps a place for
//! every one it has sent, even when its step is dropped, and discards that answer.
//! A session whose answer was late, or that failed on the wire, gets no further statement, and no
//! statement is ever cancelled at the server: a cancelled wait for a synchronous standby would
//! report success.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, Error, Row, Socket};

use super::migration::{self, Care, Unfit};
use super::notification::id_in;
use super::postgres_failure::PostgresFailure;
use super::servers::{Servers, Timeline, timeline};
use super::settings::{Address, PostgresTimeouts};
use super::statement::{Parameter, Prepared, Sql, Texts};
use super::table_names::TableNames;
use crate::store::connection::Connect;
use crate::store::notifier::{NotificationSource, Notifier};
use crate::store::server_access::{PasswordSource, with_password};
use crate::time_limit::limited_or;

/// Opens sessions, with all that they share.
pub(super) struct Connector {
    pub(super) address: Address,
    pub(super) servers: Servers,
    pub(super) timeouts: PostgresTimeouts,
    pub(super) layout: TableNames,
    pub(super) texts: Texts,
    pub(super) care: Care,
    /// Source of the password, where it is not the URL.
    pub(super) password: Option<PasswordSource>,
    /// First statement of a session; `None` with a pooler, where each statement may get another
    /// session.
    pub(super) session_settings: Option<String>,
    /// Statement that begins a handler's transaction and returns its id.
    pub(super) begin: String,
    pub(super) notifier: Arc<Notifier>,
    /// True once the tables were verified.
    pub(super) is_ensured: AtomicBool,
    /// False once the role turned out to have no right to notify.
    pub(super) may_notify: AtomicBool,
}

/// Use of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Statements,
    /// Receives notifications, and nothing else.
    WakeUps,
    /// Handlers work on it, under settings of their own.
    Transactions,
}

impl Connector {
    /// Returns true if each statement may get another session of the server.
    pub(super) const fn is_pooled(&self) -> bool {
        self.session_settings.is_none()
    }

    pub(super) fn server(&self) -> &Arc<str> {
        &self.address.name
    }

    /// Opens a session, and makes its tables if need be.
    ///
    /// Only the tables, and a command that prints the password, may take longer than an attempt to
    /// connect.
    pub(super) async fn open(&self, purpose: Purpose) -> Result<Session, PostgresFailure> {
        let mut session = self.session(purpose).await?;
        if purpose != Purpose::WakeUps {
            self.ensure(&mut session.client).await?;
        }
        if purpose == Purpose::Statements && !self.is_pooled() {
            session.prepared = Some(self.prepared(&mut session.client).await?);
        }
        Ok(session)
    }

    /// Brings the tables to this release's version, on a session of its own and without a limit on
    /// how long that may take.
    pub(super) async fn migrate(&self) -> Result<(), PostgresFailure> {
        let mut session = self.session(Purpose::Transactions).await?;
        let migrated = migration::migrate(&mut session.client, &self.layout).await;
        migrated.map_err(|unfit| self.unfit(unfit))
    }

    /// Returns true if a session is closed, or its server was replaced by a standby since.
    pub(super) fn is_closed(&self, session: &Session) -> bool {
        session.client.is_closed() || self.servers.is_replaced(session.timeline)
    }

    async fn within_connect<T>(
        &self,
        opening: impl Future<Output = Result<T, PostgresFailure>>,
    ) -> Result<T, PostgresFailure> {
        let limit = self.timeouts.connect;
        limited_or(limit, opening, || self.timed_out(limit)).await
    }

    /// Opens a session on the server that takes writes.
    async fn session(&self, purpose: Purpose) -> Result<Session, PostgresFailure> {
        let unreadable = |error: &_| PostgresFailure::no_password(self.server(), error);
        let attempt = |password: Option<String>| async move {
            let opening = |config| self.session_at(purpose, config);
            self.servers.open(password.as_deref(), self.timeouts.connect, opening).await
        };
        let source = self.password.as_ref();
        with_password(source, unreadable, PostgresFailure::is_of_authentication, attempt).await
    }

    async fn session_at(
        &self,
        purpose: Purpose,
        config: Config,
    ) -> Result<(Session, Option<Timeline>), PostgresFailure> {
        let connecting = config.connect(self.address.tls.clone());
        let (client, connection) = connecting.await.map_err(|error| self.failed(error))?;
        let doubts = Arc::new(AtomicU64::new(0));
        let source = (purpose == Purpose::WakeUps).then(|| self.notifier.source());
        let driver = Driver(tokio::spawn(drive(connection, doubts.clone(), source)));
        if let Some(settings) = &self.session_settings
            && purpose != Purpose::Transactions
        {
            client.batch_execute(settings).await.map_err(|error| self.failed(error))?;
        }
        if purpose == Purpose::WakeUps {
            let listening = client.batch_execute(&self.layout.listen()).await;
            listening.map_err(|error| self.failed(error))?;
        }
        let timeline = match self.servers.are_several() {
            true => timeline(&client).await,
            false => None,
        };
        Ok((Session { client, prepared: None, doubts, timeline, _driver: driver }, timeline))
    }

    /// Prepares the statements; once more if the tables that were verified before are not on this
    /// server, as after a failover.
    async fn prepared(&self, client: &mut Client) -> Result<Prepared, PostgresFailure> {
        match self.prepare(client).await {
            Err(failure) if failure.is_about_tables() => {
                self.ensure(client).await?;
                self.prepare(client).await
            }
            prepared => prepared,
        }
    }

    async fn prepare(&self, client: &Client) -> Result<Prepared, PostgresFailure> {
        let all = Prepared::all(&self.texts, client);
        self.within_connect(async { all.await.map_err(|error| self.failed(error)) }).await
    }

    async fn ensure(&self, client: &mut Client) -> Result<(), PostgresFailure> {
        if self.is_ensured.load(Ordering::Relaxed) {
            return Ok(());
        }
        let verifying = migration::verify(client, &self.layout, self.care);
        let verifying = async { verifying.await.map_err(|unfit| self.unfit(unfit)) };
        if self.within_connect(verifying).await? {
            let migrating = migration::migrate(client, &self.layout);
            let migrating = async { migrating.await.map_err(|unfit| self.unfit(unfit)) };
            let late = || self.timed_out(MIGRATION_MAX);
            limited_or(MIGRATION_MAX, migrating, late).await?;
        }
        self.is_ensured.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn unfit(&self, unfit: Unfit) -> PostgresFailure {
        match unfit.remedy(&self.layout) {
            Ok(remedy) => PostgresFailure::schema(self.server(), remedy),
            Err(error) => self.failed(error),
        }
    }

    pub(super) fn failed(&self, error: Error) -> PostgresFailure {
        let failure = PostgresFailure::postgres(self.server(), error);
        if failure.is_about_tables() {
            // Another server than the one that was looked at, or somebody has dropped them.
            self.is_ensured.store(false, Ordering::Relaxed);
        }
        failure
    }

    pub(super) fn timed_out(&self, after: Duration) -> PostgresFailure {
        PostgresFailure::timed_out(self.server(), after)
    }
}

/// A session of the server.
pub(super) struct Session {
    pub(super) client: Client,
    prepared: Option<Prepared>,
    /// Number of warnings that revoke the durability of a success.
    doubts: Arc<AtomicU64>,
    /// Timeline of its server when it was opened, where there are others.
    timeline: Option<Timeline>,
    _driver: Driver,
}

impl Session {
    /// Number of warnings that revoke the durability of a success.
    pub(super) fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::Acquire)
    }

    /// Runs a statement of the store.
    pub(super) async fn query(
        &self,
        connector: &Connector,
        sql: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, PostgresFailure> {
        let doubts = self.doubts();
        let rows = match self.prepared.as_ref().and_then(|prepared| prepared.of(sql)) {
            Some(statement) => self.client.query(statement, parameters).await,
            None => connector.texts.query(&self.client, sql, parameters).await,
        };
        match rows {
            // The warning comes before the success that it takes back.
            Ok(_) if self.doubts() != doubts => Err(PostgresFailure::doubtful(connector.server())),
            rows => rows.map_err(|error| connector.failed(error)),
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

async fn drive<S>(
    mut connection: tokio_postgres::Connection<Socket, S>,
    doubts: Arc<AtomicU64>,
    source: Option<NotificationSource>,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
        match message {
            AsyncMessage::Notification(told) => {
                if let (Some(source), Some(id)) = (&source, id_in(told.payload())) {
                    source.notify(&id);
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

/// Returns true for the code of the warning about a cancelled wait for a synchronous standby; its
/// text depends on the server's language.
fn takes_back(code: &SqlState) -> bool {
    *code == SqlState::WARNING || *code == SqlState::ADMIN_SHUTDOWN
}

/// Opens the sessions of one purpose.
pub(super) struct SessionConnect {
    pub(super) connector: Arc<Connector>,
    pub(super) purpose: Purpose,
}

impl Connect for SessionConnect {
    type Live = Session;
    type Failure = PostgresFailure;

    async fn connect(&self) -> Result<Session, PostgresFailure> {
        self.connector.open(self.purpose).await
    }

    fn is_closed(&self, session: &Session) -> bool {
        self.connector.is_closed(session)
    }

    async fn drain(&self, session: &Session) {
        let _ = session.client.simple_query("").await;
    }

    fn keeps_sessions(&self) -> bool {
        true
    }

    fn step_limit(&self) -> Duration {
        self.connector.timeouts.command
    }

    fn timed_out(&self, after: Duration) -> PostgresFailure {
        // Its commits may wait for a standby that was promoted in its place.
        self.connector.servers.distrust();
        self.connector.timed_out(after)
    }

    fn crowded(&self) -> PostgresFailure {
        PostgresFailure::crowded(self.connector.server())
    }

    fn no_runtime(&self) -> PostgresFailure {
        PostgresFailure::no_runtime(self.connector.server())
    }
}

/// Time limit of a migration that the first session makes.
pub(super) const MIGRATION_MAX: Duration = Duration::from_secs(600);
