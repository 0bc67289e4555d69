//! The statements, each a single compare-and-set or a single look.

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row, Statement};

use super::table_names::TableNames;

/// A statement of this store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sql {
    Claim,
    ClaimOne,
    TakeOver,
    Settle,
    Release,
    Renew,
    Lookup,
    Await,
    /// Wakes the tasks that wait for some records.
    Notify,
    /// Shortens a lease that the server's clock has lengthened.
    Clamp,
    Sweep,
    Check,
    List,
    /// Settles in a transaction of the application.
    SettleIn,
}

/// A value for a statement.
pub(super) type Parameter<'a> = &'a (dyn ToSql + Sync);

impl Sql {
    const ALL: [Self; 14] = [
        Self::Claim,
        Self::ClaimOne,
        Self::TakeOver,
        Self::Settle,
        Self::Release,
        Self::Renew,
        Self::Lookup,
        Self::Await,
        Self::Notify,
        Self::Clamp,
        Self::Sweep,
        Self::Check,
        Self::List,
        Self::SettleIn,
    ];

    const fn template(self) -> &'static str {
        match self {
            Self::Claim => include_str!("sql/claim.sql"),
            Self::ClaimOne => include_str!("sql/claim_one.sql"),
            Self::TakeOver => include_str!("sql/take_over.sql"),
            Self::Settle | Self::SettleIn => include_str!("sql/settle.sql"),
            Self::Release => include_str!("sql/release.sql"),
            Self::Renew => include_str!("sql/renew.sql"),
            Self::Lookup => include_str!("sql/lookup.sql"),
            Self::Await => include_str!("sql/await.sql"),
            Self::Notify => include_str!("sql/notify.sql"),
            Self::Clamp => include_str!("sql/clamp.sql"),
            Self::Sweep => include_str!("sql/sweep.sql"),
            Self::Check => include_str!("sql/check.sql"),
            Self::List => include_str!("sql/list.sql"),
        }
    }

    const fn types(self) -> &'static [Type] {
        match self {
            Self::Claim => &[
                Type::BYTEA_ARRAY,
                Type::BYTEA_ARRAY,
                Type::BYTEA_ARRAY,
                Type::INT8_ARRAY,
                Type::INT8_ARRAY,
                Type::INT8,
            ],
            Self::ClaimOne => &[Type::BYTEA, Type::BYTEA, Type::BYTEA, Type::INT8, Type::INT8],
            Self::TakeOver => &[
                Type::BYTEA,
                Type::BYTEA,
                Type::TEXT,
                Type::BYTEA,
                Type::BYTEA,
                Type::INT8,
                Type::INT8,
            ],
            Self::Settle => &[
                Type::BYTEA_ARRAY,
                Type::BYTEA_ARRAY,
                Type::TEXT_ARRAY,
                Type::BYTEA_ARRAY,
                Type::INT8_ARRAY,
                Type::BYTEA_ARRAY,
                Type::INT8_ARRAY,
            ],
            Self::SettleIn => &[
                Type::BYTEA_ARRAY,
                Type::BYTEA_ARRAY,
                Type::TEXT_ARRAY,
                Type::BYTEA_ARRAY,
                Type::INT8_ARRAY,
                Type::BYTEA_ARRAY,
                Type::INT8_ARRAY,
                Type::TEXT,
            ],
            Self::Release => &[Type::BYTEA, Type::BYTEA],
            Self::Notify => &[Type::TEXT, Type::BYTEA_ARRAY],
            Self::Renew | Self::Clamp => &[Type::BYTEA, Type::BYTEA, Type::INT8, Type::INT8],
            Self::Lookup | Self::Await => &[Type::BYTEA],
            Self::Sweep => &[Type::INT8, Type::INT8],
            Self::Check => &[Type::TEXT],
            Self::List => &[Type::BYTEA, Type::BYTEA, Type::INT8, Type::TEXT_ARRAY],
        }
    }
}

/// The text of every statement.
pub(super) struct Texts([String; Sql::ALL.len()]);

impl Texts {
    pub(super) fn new(layout: &TableNames) -> Self {
        let text = |sql: Sql| {
            let within = if sql == Sql::SettleIn { WITHIN } else { "" };
            let template = sql.template().replace("{within}", within);
            layout.fill(&template.replace("{awaited}", "awaited"))
        };
        Self(Sql::ALL.map(text))
    }

    fn of(&self, sql: Sql) -> &str {
        self.0.get(sql as usize).map_or("", String::as_str)
    }

    /// Runs a statement that was not prepared, in one round trip.
    pub(super) async fn query(
        &self,
        client: &Client,
        sql: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Error> {
        let typed: Vec<_> = parameters.iter().copied().zip(sql.types().iter().cloned()).collect();
        client.query_typed(self.of(sql), &typed).await
    }

    async fn prepare(&self, client: &Client, sql: Sql) -> Result<Statement, Error> {
        client.prepare_typed(self.of(sql), sql.types()).await
    }
}

/// The statements as one session of the server knows them, but for the last: that is for sessions
/// which others use, too.
pub(super) struct Prepared([Statement; Sql::ALL.len() - 1]);

impl Prepared {
    /// Prepares all of them, in one round trip.
    pub(super) async fn all(texts: &Texts, client: &Client) -> Result<Self, Error> {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, _] =
            Sql::ALL.map(|sql| texts.prepare(client, sql));
        let (a, b, c, d, e, f, g, h, i, j, k, l, m) =
            tokio::try_join!(a, b, c, d, e, f, g, h, i, j, k, l, m)?;
        Ok(Self([a, b, c, d, e, f, g, h, i, j, k, l, m]))
    }

    pub(super) fn of(&self, sql: Sql) -> Option<&Statement> {
        self.0.get(sql as usize)
    }
}

/// Condition for a transaction that a handler could have ended: $8 is its id, or NULL.
const WITHIN: &str = "AND ($8 IS NULL OR pg_current_xact_id_if_assigned()::text = $8)";
