//! Settlements for transactions on other drivers' sessions, those of other languages among them.

use std::fmt;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use idemptx_core::lease::Lease;
use idemptx_core::store::Settlement;

use super::postgres_store::PostgresStore;
use super::row::Settled;
use super::table_names::TableNames;

impl PostgresStore {
    /// The statement that settles within a transaction that some other driver has begun, for it to
    /// execute: one row says that the operation is settled once that is committed.
    ///
    /// No row means that it is not, because another claim holds the record, or because the
    /// transaction is not the one named by `transaction`: then it must be rolled back.
    /// Pass the result of `pg_current_xact_id()::text` in it, or `None` if only its owner can have
    /// ended
    /// it.
    ///
    /// The state of `done` must be one that [`Store::settle`](idemptx_core::store::Store::settle)
    /// takes.
    #[must_use]
    pub fn settle_statement(
        &self,
        lease: &Lease,
        done: &Settlement,
        transaction: Option<&str>,
        style: ParameterStyle,
    ) -> SettleStatement {
        let settled = Settled::new(lease, done);
        let text = |text: &str| SettleParameter::Text(text.to_owned());
        let bytes = |bytes: &[u8]| SettleParameter::Bytes(Bytes::copy_from_slice(bytes));
        let parameters = [
            bytes(lease.id.as_bytes()),
            bytes(lease.token.as_bytes()),
            text(settled.state),
            SettleParameter::Bytes(settled.record.into()),
            SettleParameter::Integer(settled.retain),
            settled.response.map_or(SettleParameter::Null, SettleParameter::Bytes),
            settled.response_retain.map_or(SettleParameter::Null, SettleParameter::Integer),
            text(self.layout().channel()),
            transaction.map_or(SettleParameter::Null, text),
        ];
        let may_notify = self.connector.may_notify.load(Ordering::Relaxed);
        SettleStatement { text: render(self.layout(), style, may_notify), parameters }
    }
}

/// A statement for another driver.
#[derive(Clone)]
#[non_exhaustive]
pub struct SettleStatement {
    /// The SQL; the type of each parameter is said in it.
    pub text: String,
    /// The parameters, the first one being number 1.
    pub parameters: [SettleParameter; PARAMETERS],
}

/// A value for a [`SettleStatement`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SettleParameter {
    /// SQL's `NULL`.
    Null,
    /// A `bytea`.
    Bytes(Bytes),
    /// A `text`.
    Text(String),
    /// A `bigint`.
    Integer(i64),
}

/// Syntax of a driver's statement parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParameterStyle {
    /// `$1`, as PostgreSQL itself.
    Numbered,
    /// `%(p1)s`, with `%%` for a percent sign, as Python's drivers that call it `pyformat`.
    Named,
}

impl fmt::Debug for SettleStatement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The parameters hold a response.
        f.debug_struct("SettleStatement").field("text", &self.text).finish_non_exhaustive()
    }
}

/// The store's own statement for a batch, of one record here, with scalars for arrays: not every
/// driver can tell what an array of nothing is made of.
fn render(layout: &TableNames, style: ParameterStyle, may_notify: bool) -> String {
    let awaited = if may_notify { NOTIFY } else { DO_NOT_NOTIFY };
    let escape = |text: &str| match style {
        ParameterStyle::Numbered => text.to_owned(),
        ParameterStyle::Named => text.replace('%', "%%"),
    };
    let parameter = |number: usize| match style {
        ParameterStyle::Numbered => format!("${number}"),
        ParameterStyle::Named => format!("%(p{number})s"),
    };
    let mut template = String::new();
    for line in include_str!("sql/settle.sql").lines().filter(|line| !line.starts_with("--")) {
        template.push_str(&line.replace("{within}", WITHIN).replace("{awaited}", awaited));
        template.push('\n');
    }
    for (number, kind) in (1..).zip(KINDS) {
        let scalar = format!("ARRAY[{{{number}}}::{kind}]");
        template = template.replace(&format!("${number}::{kind}[]"), &scalar);
    }
    let mut text = String::with_capacity(template.len() + 64);
    let mut rest = template.as_str();
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(&escape(before));
        let (name, after) = after.split_once('}').unwrap_or((after, ""));
        match name.parse() {
            Ok(number) => text.push_str(&parameter(number)),
            Err(_) => text.push_str(&escape(&layout.fill(&format!("{{{name}}}")))),
        }
        rest = after;
    }
    text + &escape(rest)
}

/// Types of the elements of the statement's arrays.
const KINDS: [&str; 7] = ["bytea", "bytea", "text", "bytea", "int8", "bytea", "int8"];
/// Condition for a transaction that a handler could have ended: its id, or none.
const WITHIN: &str =
    "AND ({9}::text IS NULL OR pg_current_xact_id_if_assigned()::text = {9}::text)";
/// Wakes the tasks that wait, once it is committed. It cannot fail alone, so it leaves a queue alone
/// that is almost full.
const NOTIFY: &str = "CASE WHEN awaited AND pg_notification_queue_usage() < 0.9 \
    THEN pg_notify({8}::text, encode(id, 'hex'))::text END";
/// Does not notify, for a role that may not: a task that waits looks again in time.
const DO_NOT_NOTIFY: &str = "CASE WHEN awaited THEN {8}::text END";
const PARAMETERS: usize = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_parameters_are_told_apart_in_either_style() {
        let layout = TableNames::new("50% $1", "{2}").unwrap();
        let numbered = render(&layout, ParameterStyle::Numbered, true);
        assert!(numbered.contains("UPDATE \"50% $1\".\"{2}\" AS r SET"), "{numbered}");
        assert!(numbered.contains("unnest(ARRAY[$1::bytea], ARRAY[$2::bytea]"), "{numbered}");
        assert!(numbered.contains("pg_notify($8::text"), "{numbered}");
        let named = render(&layout, ParameterStyle::Named, true);
        assert!(named.contains("UPDATE \"50%% $1\".\"{2}\" AS r SET"), "{named}");
        for number in 1..=PARAMETERS {
            assert!(named.contains(&format!("%(p{number})s::")), "{named}");
            assert!(numbered.contains(&format!("${number}::")), "{numbered}");
        }
        assert!(!named.contains('{') || named.matches('{').count() == 1, "{named}");
        let silent = render(&layout, ParameterStyle::Numbered, false);
        assert!(silent.contains("$8::text") && !silent.contains("pg_notify"), "{silent}");
    }
}
