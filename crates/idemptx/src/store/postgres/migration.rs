//! Creates and verifies the tables.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, IsolationLevel, Row};

use super::statement::Parameter;
use super::table_names::TableNames;

/// Treatment of the tables by the first session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// Makes what is missing.
    Migrate,
    /// Only looks.
    Verify,
}

/// Reason for which the tables cannot be used.
#[derive(Debug)]
pub(super) enum Unfit {
    Postgres(Error),
    /// Tables that are older or missing, without permission to migrate.
    Outdated(Option<i32>),
    /// A later release made them, and this one cannot work with them.
    Newer(i32),
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Self::Postgres(error)
    }
}

impl Unfit {
    /// Returns the remedy, or the server's error.
    pub(super) fn remedy(self, layout: &TableNames) -> Result<String, Error> {
        let records = layout.records();
        match self {
            Self::Postgres(error) => Err(error),
            Self::Outdated(found) => Ok(format!(
                "{records} is {}, but this release works with version {VERSION}: run what \
                 `PostgresStore::schema_sql` prints, or let the store migrate",
                found.map_or("missing".to_owned(), |found| format!("of version {found}")),
            )),
            Self::Newer(found) => Ok(format!(
                "{records} is of version {found}, which is later than this release knows \
                 ({VERSION}): upgrade idemptx",
            )),
        }
    }
}

/// Verifies the tables, and returns true if they need a migration that is allowed.
pub(super) async fn verify(
    client: &Client,
    layout: &TableNames,
    care: Care,
) -> Result<bool, Unfit> {
    match version(client, layout).await? {
        Some(found) if found.number >= VERSION => found.usable().map(|()| false),
        older if care == Care::Verify => Err(Unfit::Outdated(older.map(|found| found.number))),
        _ => Ok(true),
    }
}

/// Everything that makes the tables where there are none, to be run by hand.
pub(super) fn script(layout: &TableNames) -> String {
    let mut script = format!(
        "-- The tables of idemptx' PostgreSQL store, version {VERSION}.\n\
         BEGIN;\n\
         CREATE SCHEMA IF NOT EXISTS {};\n{}",
        layout.schema(),
        layout.fill(VERSIONS),
    );
    for (number, migration) in (1..).zip(MIGRATIONS) {
        script.push_str(&step(layout, number, migration));
    }
    script.push_str("COMMIT;\n");
    script
}

/// Migrates the tables to this release's version, under a lock that other sessions wait for.
///
/// It takes as long as it takes: the caller limits it.
pub(super) async fn migrate(client: &mut Client, layout: &TableNames) -> Result<(), Unfit> {
    let isolation = IsolationLevel::ReadCommitted;
    let transaction = client.build_transaction().isolation_level(isolation).start().await?;
    transaction.batch_execute(PATIENCE).await?;
    transaction.query_typed(LOCK, &[(&layout.records(), Type::TEXT)]).await?;
    // Somebody else may have been quicker.
    let found = version(transaction.client(), layout).await?;
    match found {
        Some(found) if found.number >= VERSION => return found.usable(),
        Some(_) => {}
        None => {
            let [schema, _] = layout.names();
            let schema = transaction.query_typed(HAS_SCHEMA, &[(&schema, Type::TEXT)]).await?;
            // Even `IF NOT EXISTS` wants the right to make one.
            if schema.is_empty() {
                transaction.batch_execute(&layout.fill("CREATE SCHEMA {schema}")).await?;
            }
            transaction.batch_execute(&layout.fill(VERSIONS)).await?;
        }
    }
    let done = found.and_then(|found| usize::try_from(found.number).ok()).unwrap_or(0);
    for (number, migration) in (1..).zip(MIGRATIONS).skip(done) {
        transaction.batch_execute(&step(layout, number, migration)).await?;
    }
    Ok(transaction.commit().await?)
}

/// Version of the tables.
#[derive(Clone, Copy, Debug)]
struct Version {
    number: i32,
    /// The oldest version whose releases can work with them.
    readable_from: i32,
}

impl Version {
    fn usable(self) -> Result<(), Unfit> {
        if self.readable_from > VERSION { Err(Unfit::Newer(self.number)) } else { Ok(()) }
    }
}

/// The version of the tables, if there are any.
async fn version(client: &Client, layout: &TableNames) -> Result<Option<Version>, Error> {
    let [schema, table] = layout.names();
    let names: [(Parameter<'_>, Type); 2] = [(&schema, Type::TEXT), (&table, Type::TEXT)];
    let exists = client.query_typed(HAS_TABLE, &names).await?;
    if exists.is_empty() {
        return Ok(None);
    }
    let rows = client.query_typed(&layout.fill(NEWEST), &[]).await?;
    let read = |row: &Row| Ok(Version { number: row.try_get(0)?, readable_from: row.try_get(1)? });
    rows.first().map(read).transpose()
}

fn step(layout: &TableNames, number: i32, Migration { sql, readable_from }: Migration) -> String {
    let insert = "INSERT INTO {versions} (version, readable_from) VALUES";
    layout.fill(&format!("{sql}{insert} ({number}, {readable_from});\n"))
}

/// Migrations to each version, in order; a released one never changes.
const MIGRATIONS: [Migration; VERSION as usize] =
    [Migration { sql: include_str!("sql/1_records.sql"), readable_from: 1 }];
const VERSION: i32 = 1;

/// A migration to the next version.
#[derive(Clone, Copy)]
struct Migration {
    sql: &'static str,
    /// The oldest version whose releases can work with the tables that it makes: where it only adds
    /// something, an older process goes on, and can be started again.
    readable_from: i32,
}

const VERSIONS: &str = "\
CREATE TABLE IF NOT EXISTS {versions} (
    version integer PRIMARY KEY,
    -- The oldest version whose releases can work with these tables.
    readable_from integer NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
";
/// `to_regclass` would answer from a cache that does not know what others have made meanwhile.
const HAS_TABLE: &str = "SELECT 1 FROM pg_catalog.pg_class AS c \
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
    WHERE n.nspname = $1::text AND c.relname = $2::text";
const NEWEST: &str = "SELECT version, readable_from FROM {versions} ORDER BY version DESC LIMIT 1";
const HAS_SCHEMA: &str = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1::text";
const LOCK: &str = "SELECT 1 FROM pg_advisory_xact_lock(hashtextextended('idemptx ' || $1, 0))";
/// Time limits while another session migrates, or a large table is.
const PATIENCE: &str = "SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = 0; \
    SET LOCAL idle_in_transaction_session_timeout = '60s'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_schema_is_the_one_in_the_reference() {
        let layout = TableNames::new("idemptx", "records").unwrap();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/postgres.sql");
        assert_eq!(script(&layout), std::fs::read_to_string(golden).unwrap());
    }
}
