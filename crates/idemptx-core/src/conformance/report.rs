//! The report of a run.

use std::fmt;

/// The results of every case of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// Every case, in the order they were run.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The cases that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| matches!(finding.verdict, Verdict::Failed(_)))
    }

    /// Ends a test.
    ///
    /// # Panics
    ///
    /// With the text of every failure, if there is one.
    #[allow(clippy::panic, reason = "it is how a test says that it failed")]
    pub fn assert_passed(&self) {
        assert!(self.failures().next().is_none(), "the store breaks its contract\n{self}");
    }

    pub(super) fn add(&mut self, case: &'static str, verdict: Result<Verdict, Violation>) {
        let verdict = verdict.unwrap_or_else(|violation| Verdict::Failed(violation.0));
        self.findings.push(Finding { case, verdict });
    }
}

impl fmt::Display for Report {
    /// Writes a line for each failed or skipped case, and a last one with the count.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { case, verdict } in &self.findings {
            match verdict {
                Verdict::Passed => {}
                Verdict::Skipped(why) => writeln!(f, "skipped {case}: {why}")?,
                Verdict::Failed(why) => writeln!(f, "FAILED {case}: {why}")?,
            }
        }
        write!(f, "{} cases, {} failed", self.findings.len(), self.failures().count())
    }
}

/// The result of one case.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// The name of the case, one of [`CASES`](super::CASES).
    pub case: &'static str,
    /// The verdict on the store.
    pub verdict: Verdict,
}

/// The verdict of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The store kept its contract.
    Passed,
    /// The store does not claim the capability that the case tests.
    Skipped(&'static str),
    /// The store broke its contract, in this way.
    Failed(String),
}

/// A violation of the contract by the store; it ends a case.
#[derive(Debug)]
pub(super) struct Violation(pub(super) String);

/// The end of a case.
pub(super) type Outcome = Result<Verdict, Violation>;

/// Ends a case unless what it says is so.
macro_rules! ensure {
    ($held:expr, $($answer:tt)+) => {
        if !$held {
            return Err($crate::conformance::report::Violation(format!($($answer)+)));
        }
    };
}
pub(super) use ensure;
