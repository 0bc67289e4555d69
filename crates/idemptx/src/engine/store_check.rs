//! The check of a store's configuration against the policy.

use std::fmt;
use std::sync::atomic::Ordering;

use idemptx_core::policy::OnUnsafeStore;
use idemptx_core::store::StoreError;

use super::Engine;
use crate::store::{Finding, SafetyCheck, SafetyReport, Severity};

impl<S: SafetyCheck> Engine<S> {
    /// Asks the store what it promises in its present configuration.
    ///
    /// Call it at start, and print the report's guarantee line and findings.
    /// Under `on_unsafe_store: refuse`, an unsafe store makes the engine answer every request under
    /// a key with `store-unavailable` until a later check finds it safe.
    ///
    /// # Errors
    ///
    /// [`CheckError::Unreachable`] when the store gave no answer: call again later.
    /// [`CheckError::Refused`] when it is unsafe and the policy refuses that.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    pub async fn check(&self) -> Result<SafetyReport, CheckError> {
        let mut report = self.inner.store().check().await.map_err(CheckError::Unreachable)?;
        if self.policy().secrets.is_empty() && self.store().capabilities().shared {
            let guessable = "without a secret in the policy, whoever reads the store can test \
                             guesses of keys and bodies: set `secrets`";
            report.findings.push(Finding::new(Severity::Warning, guessable));
        }
        let refuse = report.is_fatal()
            || report.is_unsafe() && self.policy().on_unsafe_store == OnUnsafeStore::Refuse;
        self.inner.refuses.store(refuse, Ordering::Relaxed);
        if refuse { Err(CheckError::Refused(report)) } else { Ok(report) }
    }
}

/// An unusable store, or one that could not be checked.
#[derive(Debug)]
#[non_exhaustive]
pub enum CheckError {
    /// The store gave no answer.
    Unreachable(StoreError),
    /// The store can lose records, or lacks something that is needed.
    Refused(SafetyReport),
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(_) => f.write_str("the store cannot be reached"),
            Self::Refused(report) => {
                f.write_str("the store is not safe enough for this policy")?;
                report.findings.iter().try_for_each(|finding| write!(f, "; {}", finding.text))
            }
        }
    }
}

impl std::error::Error for CheckError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreachable(error) => Some(error),
            Self::Refused(_) => None,
        }
    }
}
