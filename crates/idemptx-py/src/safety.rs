//! Converts a store's safety report for Python.

use idemptx::store::{SafetyReport, Severity};

/// Returns the guarantee, and each finding with its severity.
pub(crate) fn as_python(report: SafetyReport) -> (String, Vec<(i32, String)>) {
    let found = report.findings.into_iter();
    let findings = found.map(|finding| (grade(finding.severity), finding.text)).collect();
    (report.guarantee, findings)
}

const fn grade(severity: Severity) -> i32 {
    match severity {
        Severity::Note => 0,
        Severity::Unsafe => 2,
        Severity::Fatal => 3,
        _ => 1,
    }
}
