//! What is wrong with a policy, for the developer who wrote it.

use std::borrow::Cow;
use std::fmt;

/// A policy that cannot be used; its text names the field and tells what to write instead.
///
/// Nothing of a secret is ever in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    field: Cow<'static, str>,
    advice: Cow<'static, str>,
}

impl ConfigError {
    pub(crate) fn new(
        field: impl Into<Cow<'static, str>>,
        advice: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { field: field.into(), advice: advice.into() }
    }

    /// The policy's field by its name in JSON, such as `retain_ms` or `fingerprint.body`.
    ///
    /// It is `profile` for the name of a profile, and `policy` for a text that is no JSON object.
    #[must_use]
    pub fn field(&self) -> &str {
        &self.field
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.field, self.advice)
    }
}

impl std::error::Error for ConfigError {}
