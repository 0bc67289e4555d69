//! The error for a policy that cannot work.

use std::borrow::Cow;
use std::fmt;

/// The error for a policy that cannot work; its text names the field and the value to write
/// instead.
///
/// It never contains a secret.
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

    /// Returns the field by its name in JSON, such as `retain_ms` or `fingerprint.body`.
    ///
    /// The name is `profile` for an unknown profile, and `policy` for a text that is not a JSON
    /// object.
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
