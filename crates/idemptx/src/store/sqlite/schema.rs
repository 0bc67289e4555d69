//! The tables, their versions, and how a file gets from one to the next.
//!
//! A file says whose it is by its `application_id`, and how its tables look by its `user_version`.
//! Above its lower sixteen bits stands the oldest version whose releases can work with the tables
//! as they are, or nothing, which means that one alone; so an older release goes on where a newer
//! one has only added something.
//! A migration that an older release, still running on the file, must not survive renames the
//! tables: its statements then fail, and its requests with them.

use rusqlite::Connection;

/// The version this release writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// `idmx`, in ASCII.
pub(super) const APPLICATION_ID: i64 = 0x6964_6d78;

/// Owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileOwner {
    Nobody,
    /// Ours, with tables of that version, and the oldest one that can read them.
    Us {
        version: i64,
        readable_from: i64,
    },
    SomebodyElse,
}

/// Looks at what is in the file.
pub(super) fn owner(connection: &Connection) -> rusqlite::Result<FileOwner> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let things: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(match (application, version, things) {
        (APPLICATION_ID, word, _) => {
            let version = word & VERSION_MASK;
            let oldest = word >> VERSION_BITS;
            let readable_from = if oldest == 0 { version } else { oldest };
            FileOwner::Us { version, readable_from }
        }
        (0, 0, 0) => FileOwner::Nobody,
        _ => FileOwner::SomebodyElse,
    })
}

/// Brings the tables from a version to this release's; to be called in a transaction.
pub(super) fn migrate(connection: &Connection, from: i64) -> rusqlite::Result<()> {
    apply(connection, from, MIGRATIONS)
}

fn apply(connection: &Connection, from: i64, migrations: &[&str]) -> rusqlite::Result<()> {
    let done = usize::try_from(from).unwrap_or_default();
    for migration in migrations.iter().skip(done) {
        connection.execute_batch(migration)?;
    }
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    let oldest = if READABLE_FROM == VERSION { 0 } else { READABLE_FROM };
    let word = oldest << VERSION_BITS | migrations.len() as i64;
    connection.pragma_update(None, "user_version", word)
}

/// Migrations from each version to the next; released ones never change.
const MIGRATIONS: &[&str] = &[include_str!("schema/1.sql")];
/// The oldest version whose releases can work with the tables of this one.
const READABLE_FROM: i64 = 1;
const VERSION_BITS: u32 = 16;
const VERSION_MASK: i64 = (1 << VERSION_BITS) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_has_the_tables_of_the_golden_file() {
        let connection = Connection::open_in_memory().unwrap();
        migrate(&connection, 0).unwrap();
        assert_eq!(tables(&connection), GOLDEN);
        let us = FileOwner::Us { version: VERSION, readable_from: VERSION };
        assert_eq!(owner(&connection).unwrap(), us);
    }

    #[test]
    fn a_file_is_brought_to_the_newest_version_step_by_step() {
        let connection = Connection::open_in_memory().unwrap();
        let migrations = ["CREATE TABLE a (x)", "CREATE TABLE b (x)", "DROP TABLE a"];
        apply(&connection, 0, &migrations[..1]).unwrap();
        assert_eq!(owner(&connection).unwrap(), FileOwner::Us { version: 1, readable_from: 1 });
        apply(&connection, 1, &migrations).unwrap();
        assert_eq!(tables(&connection), "CREATE TABLE b (x);\n");
        assert_eq!(owner(&connection).unwrap(), FileOwner::Us { version: 3, readable_from: 3 });
        connection.pragma_update(None, "user_version", 2 << VERSION_BITS | 4).unwrap();
        assert_eq!(owner(&connection).unwrap(), FileOwner::Us { version: 4, readable_from: 2 });
    }

    #[test]
    fn a_file_of_somebody_else_is_known_as_such() {
        let connection = Connection::open_in_memory().unwrap();
        assert_eq!(owner(&connection).unwrap(), FileOwner::Nobody);
        connection.execute_batch("CREATE TABLE theirs (x)").unwrap();
        assert_eq!(owner(&connection).unwrap(), FileOwner::SomebodyElse);
    }

    fn tables(connection: &Connection) -> String {
        let select = "SELECT sql || ';\n' FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name";
        let mut statement = connection.prepare(select).unwrap();
        let tables = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        tables.collect::<rusqlite::Result<String>>().unwrap()
    }

    const GOLDEN: &str = include_str!("../../../tests/fixtures/sqlite/schema.sql");
}
