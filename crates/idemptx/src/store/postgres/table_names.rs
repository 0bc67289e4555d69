//! Names of the tables, and the statements that contain them.

use std::fmt;

use super::invalid_setting::InvalidSetting;

/// The names of everything that a store has in its database, quoted.
#[derive(Clone)]
pub(super) struct TableNames {
    names: [String; 2],
    schema: String,
    records: String,
    versions: String,
    due: String,
    channel: String,
}

impl TableNames {
    /// The names in a schema, with those of a table and what belongs to it.
    pub(super) fn new(schema: &str, table: &str) -> Result<Self, InvalidSetting> {
        for (what, name, bytes_max) in
            [("schema", schema, SCHEMA_BYTES_MAX), ("table", table, TABLE_BYTES_MAX)]
        {
            if name.is_empty() || name.len() > bytes_max || name.contains('\0') {
                return Err(InvalidSetting::name(what, bytes_max));
            }
        }
        let of_table = |suffix: &str| quoted(&format!("{table}{suffix}"));
        let qualified = |name: &str| format!("{}.{name}", quoted(schema));
        Ok(Self {
            names: [schema.to_owned(), format!("{table}{VERSION_SUFFIX}")],
            schema: quoted(schema),
            records: qualified(&of_table("")),
            versions: qualified(&of_table(VERSION_SUFFIX)),
            due: of_table("_due"),
            channel: format!("{schema}.{table}"),
        })
    }

    /// A statement or a piece of schema with the names filled in.
    pub(super) fn fill(&self, template: &str) -> String {
        let mut filled = String::with_capacity(template.len() + 64);
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            filled.push_str(before);
            let (name, after) = after.split_once('}').unwrap_or((after, ""));
            filled.push_str(match name {
                "records" => &self.records,
                "versions" => &self.versions,
                "schema" => &self.schema,
                "due" => &self.due,
                _ => name,
            });
            rest = after;
        }
        filled.push_str(rest);
        filled
    }

    /// The schema, quoted.
    pub(super) fn schema(&self) -> &str {
        &self.schema
    }

    /// The schema, and the table with the version of what is in it, as the catalogue has them.
    pub(super) fn names(&self) -> [&str; 2] {
        let [schema, versions] = &self.names;
        [schema, versions]
    }

    /// The table of the records, qualified and quoted.
    pub(super) fn records(&self) -> &str {
        &self.records
    }

    /// Returns the channel of the notifications, unquoted.
    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    /// Returns the statement that subscribes to that channel.
    pub(super) fn listen(&self) -> String {
        format!("LISTEN {}", quoted(&self.channel))
    }
}

impl fmt::Debug for TableNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TableNames").field(&self.channel).finish()
    }
}

/// Quotes a name of any characters for SQL.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

const VERSION_SUFFIX: &str = "_version";
/// The channel has both names and a dot; PostgreSQL cuts names at 63 bytes.
const SCHEMA_BYTES_MAX: usize = 31;
/// Leaves room for what is appended to the names of indexes and of the other table.
const TABLE_BYTES_MAX: usize = 31;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_whatever_they_consist_of() {
        let layout = TableNames::new("odd \"schema\"", "x; DROP TABLE y").unwrap();
        assert_eq!(
            layout.fill("SELECT FROM {records}, {versions}"),
            "SELECT FROM \"odd \"\"schema\"\"\".\"x; DROP TABLE y\", \
             \"odd \"\"schema\"\"\".\"x; DROP TABLE y_version\""
        );
        assert_eq!(layout.listen(), "LISTEN \"odd \"\"schema\"\".x; DROP TABLE y\"");
        let braces = TableNames::new("{records}", "t").unwrap();
        assert_eq!(braces.fill("{records}"), "\"{records}\".\"t\"");
    }

    #[test]
    fn names_that_postgresql_would_cut_are_refused() {
        assert!(TableNames::new("", "records").is_err());
        assert!(TableNames::new("idemptx", "a\0b").is_err());
        assert!(TableNames::new("idemptx", &"t".repeat(32)).is_err());
        assert!(TableNames::new(&"s".repeat(31), &"t".repeat(31)).is_ok());
    }
}
