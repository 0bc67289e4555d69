//! Errors in a configuration, with their position.

use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// An error in a configuration: `file:line:column: what to change`.
///
/// It never contains the value of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidConfig {
    name: String,
    place: Option<(usize, usize)>,
    text: String,
}

impl InvalidConfig {
    /// Returns an error without a position.
    pub(crate) fn without_position(name: &str, text: impl Into<String>) -> Self {
        Self { name: name.to_owned(), place: None, text: text.into() }
    }

    /// The line and the column, counted from 1, if the error has a position.
    #[must_use]
    pub const fn place(&self) -> Option<(usize, usize)> {
        self.place
    }
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some((line, column)) => write!(f, "{}:{line}:{column}: {}", self.name, self.text),
            None => write!(f, "{}: {}", self.name, self.text),
        }
    }
}

impl std::error::Error for InvalidConfig {}

/// A setting that contradicts another one, named by its path in the file.
#[derive(Debug)]
pub(super) struct InvalidSetting {
    path: Vec<String>,
    is_key: bool,
    text: String,
}

impl InvalidSetting {
    /// The error is in the value at this path.
    pub(super) fn at<const N: usize>(path: [&str; N], text: impl Into<String>) -> Self {
        Self { path: path.map(str::to_owned).into(), is_key: false, text: text.into() }
    }

    /// The error is in the key at the end of this path.
    pub(super) fn at_key<const N: usize>(path: [&str; N], text: impl Into<String>) -> Self {
        Self { is_key: true, ..Self::at(path, text) }
    }
}

/// The text of a configuration, to find positions in.
#[derive(Clone, Copy)]
pub(super) struct SourceText<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
}

impl SourceText<'_> {
    /// Returns an error at the beginning of a span.
    pub(super) fn error_at(&self, span: &Range<usize>, text: impl Into<String>) -> InvalidConfig {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let place = Some((line, column));
        InvalidConfig { name: self.name.to_owned(), place, text: text.into() }
    }

    /// Returns the parser's error.
    pub(super) fn parse_error(&self, error: &toml::de::Error) -> InvalidConfig {
        let text = in_words_of_the_file(error.message());
        match error.span() {
            Some(span) => self.error_at(&span, text),
            None => InvalidConfig::without_position(self.name, text),
        }
    }

    /// Returns the error of a setting, whose position the table knows.
    pub(super) fn setting_error(
        &self,
        table: &Spanned<DeTable<'_>>,
        error: InvalidSetting,
    ) -> InvalidConfig {
        self.error_at(&span_of(table, &error.path, error.is_key), error.text)
    }
}

/// Replaces the names of Rust's types, which say nothing to who writes a file.
fn in_words_of_the_file(message: &str) -> String {
    let Some((found, expected)) = message.split_once(", expected ") else {
        return message.to_owned();
    };
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0",
        "a sequence" => "a list",
        "a map" => "a table",
        "f64" => "a number",
        record if record.starts_with("struct ") => "a table",
        other => other,
    };
    format!("{found}, expected {expected}")
}

/// Finds a setting, or else the innermost table around it.
fn span_of(table: &Spanned<DeTable<'_>>, path: &[String], is_key: bool) -> Range<usize> {
    let (mut span, mut key_span) = (table.span(), None);
    let (mut table, mut array) = (Some(table.get_ref()), None);
    for step in path {
        let found = match (table, array) {
            (Some(table), _) => {
                let named = table.iter().find(|(key, _)| key.get_ref() == step);
                named.map(|(key, value)| (Some(key.span()), value))
            }
            (None, Some(items)) => {
                let items: &toml::de::DeArray<'_> = items;
                let item = step.parse().ok().and_then(|position: usize| items.get(position));
                item.map(|value| (None, value))
            }
            (None, None) => None,
        };
        let Some((key, value)) = found else { return span };
        (span, key_span) = (value.span(), key);
        (table, array) = match value.get_ref() {
            DeValue::Table(table) => (Some(table), None),
            DeValue::Array(items) => (None, Some(items)),
            _ => (None, None),
        };
    }
    key_span.filter(|_| is_key).unwrap_or(span)
}
