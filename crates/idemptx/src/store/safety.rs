//! Guarantees and dangers of a store's configuration.

use std::future::Future;
use std::sync::Arc;

use idemptx_core::store::{Store, StoreError};

/// A store that can tell what it promises in its present configuration, and prepare itself.
pub trait SafetyCheck: Store {
    /// Looks at the configuration.
    ///
    /// # Errors
    ///
    /// As [`Store::lookup`].
    fn check(&self) -> impl Future<Output = Result<SafetyReport, StoreError>> + Send;

    /// Prepares everything that the store needs, such as tables of this release's version, without
    /// a time limit.
    ///
    /// The default does nothing, for stores that need nothing, or whose opening prepares it.
    ///
    /// # Errors
    ///
    /// As [`Store::lookup`].
    fn migrate(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        std::future::ready(Ok(()))
    }
}

/// The result of a start-up check.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SafetyReport {
    /// The findings, the gravest first.
    pub findings: Vec<Finding>,
    /// The guarantee of this store in this configuration, in one line.
    pub guarantee: String,
}

impl SafetyReport {
    /// A report of these findings.
    #[must_use]
    pub fn new(mut findings: Vec<Finding>, guarantee: String) -> Self {
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Self { findings, guarantee }
    }

    /// Returns true if the store can lose or delete claims, or cannot work at all.
    #[must_use]
    pub fn is_unsafe(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity >= Severity::Unsafe)
    }

    /// Returns true if the store cannot work.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Fatal)
    }
}

/// A finding of a start-up check.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The severity.
    pub severity: Severity,
    /// The problem, its consequence and the remedy, in one sentence or two.
    pub text: String,
}

impl Finding {
    /// A finding.
    #[must_use]
    pub fn new(severity: Severity, text: impl Into<String>) -> Self {
        Self { severity, text: text.into() }
    }
}

/// Severity of a [`Finding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// Good to know.
    Note,
    /// Something could not be checked, or will cause refusals.
    Warning,
    /// Claims can be lost or deleted, and their operations run twice.
    Unsafe,
    /// The store cannot work.
    Fatal,
}

impl<S: SafetyCheck> SafetyCheck for Arc<S> {
    fn check(&self) -> impl Future<Output = Result<SafetyReport, StoreError>> + Send {
        S::check(self)
    }

    fn migrate(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        S::migrate(self)
    }
}

impl SafetyCheck for super::MemoryStore {
    async fn check(&self) -> Result<SafetyReport, StoreError> {
        let guarantee = "memory: one execution per key within this process; every record ends with \
                         it, so a retry after a restart executes again";
        Ok(SafetyReport::new(Vec::new(), guarantee.into()))
    }
}

#[cfg(feature = "postgres")]
impl SafetyCheck for super::postgres::PostgresStore {
    async fn check(&self) -> Result<SafetyReport, StoreError> {
        Self::check(self).await
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        Self::migrate(self).await
    }
}

#[cfg(feature = "redis")]
impl SafetyCheck for super::redis::RedisStore {
    async fn check(&self) -> Result<SafetyReport, StoreError> {
        Self::check(self).await
    }
}

#[cfg(feature = "sqlite")]
impl SafetyCheck for super::sqlite::SqliteStore {
    async fn check(&self) -> Result<SafetyReport, StoreError> {
        Self::check(self).await
    }
}
