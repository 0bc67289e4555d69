//! What is wrong with a configuration, and where.

use std::fmt;
use std::ops::Range;

/// A mistake in a configuration: `file:line:column: what to change`.
///
/// Nothing of a variable's value is ever in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidConfig {
    name: String,
    place: Option<(usize, usize)>,
    text: String,
}

impl InvalidConfig {
    /// One about the whole file.
    pub(crate) fn without_position(name: &str, text: impl Into<String>) -> Self {
        Self { name: name.to_owned(), place: None, text: text.into() }
    }

    /// Where it is, counted from 1, unless it is about the whole file.
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

/// A text, to find places in.
#[derive(Clone, Copy)]
pub(super) struct SourceText<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
}

impl SourceText<'_> {
    /// A mistake at the beginning of a span.
    pub(super) fn error_at(&self, span: &Range<usize>, text: impl Into<String>) -> InvalidConfig {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        InvalidConfig { name: self.name.to_owned(), place: Some((line, column)), text: text.into() }
    }

    /// What the parser found.
    pub(super) fn parse_error(&self, error: &toml::de::Error) -> InvalidConfig {
        match error.span() {
            Some(span) => self.error_at(&span, error.message()),
            None => InvalidConfig::without_position(self.name, error.message()),
        }
    }
}
