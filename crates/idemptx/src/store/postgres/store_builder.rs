//! The settings of a store.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use idemptx_core::store::{ErrorKind, StoreError};

use super::invalid_setting::InvalidSetting;
use super::migration::Care;
use super::postgres_store::PostgresStore;
use super::runtime_pool::SessionLimits;
use super::servers::Servers;
use super::session::Connector;
use super::settings::{Address, PostgresTimeouts, SynchronousCommit};
use super::statement::Texts;
use super::table_names::TableNames;
use super::transaction::begin;
use crate::store::notifier::Notifier;
use crate::store::server_access::{ServerAccess, access_settings};
use crate::store::url_settings::UrlSettings;

/// Settings of a [`PostgresStore`], begun by [`PostgresStore::builder`].
pub struct PostgresStoreBuilder {
    url: String,
    schema: String,
    table: String,
    care: Care,
    is_pooled: bool,
    sessions: SessionLimits,
    synchronous_commit: Option<SynchronousCommit>,
    timeouts: PostgresTimeouts,
    access: ServerAccess,
}

impl PostgresStoreBuilder {
    pub(super) fn new(url: String) -> Self {
        Self {
            url,
            schema: SCHEMA.to_owned(),
            table: TABLE.to_owned(),
            care: Care::Migrate,
            is_pooled: false,
            sessions: SessionLimits { statements: SESSIONS, transactions: TRANSACTIONS },
            synchronous_commit: None,
            timeouts: PostgresTimeouts {
                command: STEP_LIMIT,
                connect: CONNECT_TIMEOUT,
                lock: LOCK_TIMEOUT,
            },
            access: ServerAccess::default(),
        }
    }

    /// The schema that holds the tables; `idemptx` unless set. At most 31 bytes.
    #[must_use]
    pub fn schema(mut self, name: impl Into<String>) -> Self {
        self.schema = name.into();
        self
    }

    /// The table of the records, which the other names begin with; `records` unless set.
    /// At most 31 bytes.
    ///
    /// Stores with different tables share nothing.
    #[must_use]
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        self
    }

    /// Lets the first session create the missing schema and tables, which is the default.
    ///
    /// Otherwise it only verifies their version: a role that may create tables runs the output of
    /// [`PostgresStore::schema_sql`], and the application needs no such
    /// right.
    #[must_use]
    pub const fn migrate(mut self, migrate: bool) -> Self {
        self.care = if migrate { Care::Migrate } else { Care::Verify };
        self
    }

    /// Declares a pooler in transaction mode, such as pgbouncer; there is none by default.
    ///
    /// See [the module](super) for its restrictions.
    #[must_use]
    pub const fn pooled(mut self, pooled: bool) -> Self {
        self.is_pooled = pooled;
        self
    }

    /// Sets how many sessions each runtime may open for statements; four by default, at least one.
    #[must_use]
    pub fn sessions(mut self, count: usize) -> Self {
        self.sessions.statements = count.clamp(1, SESSIONS_MAX);
        self
    }

    /// Sets how many transactions for handlers each runtime may have open at a time, each on a
    /// separate session; 16 by default, at least one.
    ///
    /// A handler waits for one as long as a step may [take](Self::timeout).
    /// No session is opened before one is begun.
    #[must_use]
    pub fn transactions(mut self, count: usize) -> Self {
        self.sessions.transactions = count.clamp(1, TRANSACTIONS_MAX);
        self
    }

    /// Sets `synchronous_commit` for the store's sessions.
    ///
    /// By default it is never less than `on`: a server or a role whose default is weaker would
    /// forget claims in a crash.
    /// An `options=-c synchronous_commit=…` in the URL has the last word.
    /// Without effect on [pooled](Self::pooled) sessions.
    #[must_use]
    pub const fn synchronous_commit(mut self, level: SynchronousCommit) -> Self {
        self.synchronous_commit = Some(level);
        self
    }

    /// Sets how long a step waits for its answer before its outcome counts as unknown; two seconds
    /// by default.
    ///
    /// It is the sessions' `statement_timeout`, too.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.command = timeout;
        self
    }

    /// Sets how long an attempt to connect may take, of which several hosts have equal shares; three
    /// seconds by default.
    #[must_use]
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.connect = timeout;
        self
    }

    /// Sets how long a statement waits for a record that another transaction has locked; half a
    /// second by default.
    #[must_use]
    pub const fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.lock = timeout;
        self
    }

    access_settings!();

    /// The store, without connecting.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] if the URL, the certificates or the names cannot be used.
    pub fn open(mut self) -> Result<PostgresStore, InvalidSetting> {
        self.read_url()?;
        let mut address = Address::parse(&self.url, &self.access.tls)?;
        address.set_patience();
        // Through a pooler they would reach other clients.
        let session_settings = (!self.is_pooled)
            .then(|| address.session_settings(&self.timeouts, self.synchronous_commit));
        let begin = match self.is_pooled {
            true => begin(""),
            false => begin(&address.transaction_settings(self.synchronous_commit)),
        };
        let layout = TableNames::new(&self.schema, &self.table)?;
        let connector = Arc::new(Connector {
            servers: Servers::of(&address.config),
            address,
            timeouts: self.timeouts,
            texts: Texts::new(&layout),
            layout,
            care: self.care,
            password: self.access.password,
            session_settings,
            begin,
            notifier: Arc::new(Notifier::default()),
            is_ensured: AtomicBool::new(false),
            may_notify: AtomicBool::new(true),
        });
        Ok(PostgresStore::with(connector, self.sessions))
    }

    /// Takes this store's settings out of the URL, over those that were set.
    fn read_url(&mut self) -> Result<(), InvalidSetting> {
        let settings = UrlSettings::take(&self.url, URL_SETTINGS)?;
        if let Some(schema) = settings.text("schema") {
            schema.clone_into(&mut self.schema);
        }
        if let Some(table) = settings.text("table") {
            table.clone_into(&mut self.table);
        }
        if let Some(pooled) = settings.parsed("pooled", BOOLEAN)? {
            self.is_pooled = pooled;
        }
        if let Some(migrate) = settings.parsed("migrate", BOOLEAN)? {
            self.care = if migrate { Care::Migrate } else { Care::Verify };
        }
        let count = |name| settings.parsed(name, "must be a number");
        if let Some(sessions) = count("sessions")? {
            self.sessions.statements = usize::clamp(sessions, 1, SESSIONS_MAX);
        }
        if let Some(transactions) = count("transactions")? {
            self.sessions.transactions = usize::clamp(transactions, 1, TRANSACTIONS_MAX);
        }
        if let Some(timeout) = settings.period("timeout_ms")? {
            self.timeouts.command = timeout;
        }
        if let Some(timeout) = settings.period("connect_timeout_ms")? {
            self.timeouts.connect = timeout;
        }
        settings.read_access(&mut self.access)?;
        self.url = settings.url;
        Ok(())
    }

    /// The store, with a session that works and tables of this release's version.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] with an [`InvalidSetting`] as its source, and [`ErrorKind::Refused`]
    /// if the server cannot be reached, refuses the user, takes no more sessions, or has tables
    /// that are not right.
    ///
    /// # Cancel safety
    ///
    /// The tables may have been made or not.
    pub async fn connect(self) -> Result<PostgresStore, StoreError> {
        let store =
            self.open().map_err(|error| StoreError::with_source(ErrorKind::Invalid, error))?;
        store.ready().await?;
        Ok(store)
    }
}

impl fmt::Debug for PostgresStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStoreBuilder")
            .field("url", &"[redacted]")
            .field("schema", &self.schema)
            .field("table", &self.table)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

/// Settings in the query of a URL, beside those of every server and PostgreSQL's own.
const URL_SETTINGS: &[&str] = &[
    "schema",
    "table",
    "pooled",
    "migrate",
    "sessions",
    "transactions",
    "timeout_ms",
    "connect_timeout_ms",
];
const BOOLEAN: &str = "must be true or false";
const SCHEMA: &str = "idemptx";
const TABLE: &str = "records";
const SESSIONS: usize = 4;
const SESSIONS_MAX: usize = 64;
const TRANSACTIONS: usize = 16;
const TRANSACTIONS_MAX: usize = 256;
/// The default time limit of a step.
pub(in crate::store) const STEP_LIMIT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
