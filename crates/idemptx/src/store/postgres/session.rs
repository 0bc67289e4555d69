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
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Error, Row, Socket};

use super::migration::{self, Care};
use super::notification::id_in;
use super::postgres_failure::PostgresFailure;
use super::settings::{Address, PostgresTimeouts};
use super::statement::{Parameter, Prepared, Sql, Texts};
use super::table_names::TableNames;
use crate::store::connection::Connect;
use crate::store::notifier::{NotificationSource, Notifier};

/// Opens sessions, with all that they share.
pub(super) struct Connector {
    pub(super) address: Address,
    pub(super) timeouts: PostgresTimeouts,
    pub(super) layout: TableNames,
    pub(super) texts: Texts,
    pub(super) care: Care,
    /// First statement of a session; `None` with a pooler, where each statement may get another
    /// session.
    pub(super) session_settings: Option<String>,
    /// Statement that begins a handler's transaction and returns its id.
    pub(super) begin: String,
    pub(super) notifier: Arc<Notifier>,
    /// True once the tables were verified.
    pub(super) is_ensured: AtomicBool,
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
        let source = (purpose == Purpose::WakeUps).then(|| self.notifier.source());
        let driver = Driver(tokio::spawn(drive(connection, doubts.clone(), source)));
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
        ensured.map_err(|unfit| match unfit.remedy(&self.layout) {
            Ok(remedy) => PostgresFailure::schema(self.server(), remedy),
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
    /// Number of warnings that revoke the durability of a success.
    doubts: Arc<AtomicU64>,
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
        session.client.is_closed()
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
        self.connector.timed_out(after)
    }

    fn crowded(&self) -> PostgresFailure {
        PostgresFailure::crowded(self.connector.server())
    }

    fn no_runtime(&self) -> PostgresFailure {
        PostgresFailure::no_runtime(self.connector.server())
    }
}
