//! The check of a store's configuration against the policy, at start and from time to time.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idemptx_core::policy::{OnUnsafeStore, Policy};
use idemptx_core::store::{Store, StoreError};

use super::Engine;
use crate::store::{Finding, SafetyCheck, SafetyReport, Severity};
use crate::time_limit::limited;

impl<S: SafetyCheck> Engine<S> {
    /// Asks the store what it promises in its present configuration.
    ///
    /// Call it at start, and print the report's guarantee line and findings.
    /// Under `on_unsafe_store: refuse`, an unsafe store makes the engine answer every request under
    /// a key with `store-unavailable` until a later check finds it safe.
    /// From then on the store is asked again every `store_check_ms` of the policy, in the
    /// background: requests are refused, and are taken again, as its promise changes, and the
    /// feature `tracing` logs each change once.
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
        self.check_from_time_to_time();
        let report = self.inner.store().check().await.map_err(CheckError::Unreachable)?;
        self.judge(report)
    }

    fn check_from_time_to_time(&self) {
        let every = self.policy().store_check;
        if every.is_zero() {
            return;
        }
        let shared = &self.inner.shared;
        let (store, safety) = (Arc::clone(&shared.store), Arc::clone(&shared.safety));
        shared.lease_renewer.repeat(every, move || {
            let (store, safety) = (Arc::clone(&store), Arc::clone(&safety));
            Box::pin(async move {
                // Without an answer nothing has changed, as far as is known.
                if let Ok(report) = limited(CHECK_LIMIT, store.check()).await {
                    let before = safety.note(&report);
                    #[cfg(feature = "tracing")]
                    log_change(before.as_ref(), &report);
                    #[cfg(not(feature = "tracing"))]
                    drop(before);
                }
            })
        });
    }
}

impl<S: Store> Engine<S> {
    /// Takes a report on the store as [`check`](Self::check) does, where several engines share one
    /// store and it is asked once for all of them.
    ///
    /// # Errors
    ///
    /// [`CheckError::Refused`] when the store is unsafe and the policy refuses that.
    pub fn judge(&self, mut report: SafetyReport) -> Result<SafetyReport, CheckError> {
        let safety = &self.inner.shared.safety;
        safety.note(&report);
        if self.policy().secrets.is_empty() && self.store().capabilities().shared {
            let guessable = "without a secret in the policy, whoever reads the store can test \
                             guesses of keys and bodies: set `secrets`";
            report.findings.push(Finding::new(Severity::Warning, guessable));
        }
        match safety.is_refused_by(self.policy()) {
            true => Err(CheckError::Refused(report)),
            false => Ok(report),
        }
    }

    /// Returns what the store promised when it was checked last; `None` before the first check.
    #[must_use]
    pub fn store_report(&self) -> Option<SafetyReport> {
        self.inner.shared.safety.latest().clone()
    }
}

/// Promise of a store, as it was found last, for all policies of an engine.
#[derive(Debug, Default)]
pub(super) struct StoreSafety {
    level: AtomicU8,
    latest: Mutex<Option<SafetyReport>>,
}

impl StoreSafety {
    /// Takes a report, and returns the one before it.
    fn note(&self, report: &SafetyReport) -> Option<SafetyReport> {
        let level = match (report.is_fatal(), report.is_unsafe()) {
            (true, _) => FATAL,
            (false, true) => UNSAFE,
            (false, false) => SAFE,
        };
        let mut latest = self.latest();
        self.level.store(level, Ordering::Relaxed);
        latest.replace(report.clone())
    }

    /// Returns true if a policy demands more than the store promises; false while nothing is known.
    pub(super) fn is_refused_by(&self, policy: &Policy) -> bool {
        match self.level.load(Ordering::Relaxed) {
            FATAL => true,
            UNSAFE => policy.on_unsafe_store == OnUnsafeStore::Refuse,
            _ => false,
        }
    }

    /// Poisoning is ignored: no code in this file panics while it holds the lock.
    fn latest(&self) -> MutexGuard<'_, Option<SafetyReport>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs what has come and what has gone since the check before.
#[cfg(feature = "tracing")]
fn log_change(before: Option<&SafetyReport>, now: &SafetyReport) {
    let Some(before) = before.filter(|before| *before != now) else { return };
    match now.is_unsafe() {
        true => tracing::warn!("the store's promise has changed: {}", now.guarantee),
        false => tracing::info!("the store's promise has changed: {}", now.guarantee),
    }
    for finding in now.findings.iter().filter(|it| !before.findings.contains(it)) {
        tracing::warn!("{}", finding.text);
    }
    for finding in before.findings.iter().filter(|it| !now.findings.contains(it)) {
        tracing::info!("not any more: {}", finding.text);
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

const SAFE: u8 = 1;
const UNSAFE: u8 = 2;
const FATAL: u8 = 3;
/// Time limit of a check in the background.
const CHECK_LIMIT: Duration = Duration::from_secs(10);
